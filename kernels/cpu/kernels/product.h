// Plain products in fp32.

#pragma once

#include "outer_products.h"
#include "parallel.h"
#include "rows.h"
#include "weight_panels.h"

namespace {

void product(const Product& p) {
  if (!p.transpose_a) {
    int64_t step = 8 * ROWS;
    for_each((p.m + step - 1) / step, [&](int64_t i) {
      int64_t first = i * step;
      multiply_weight<float>(p.a + first * p.k, least(step, p.m - first), p.k, (const float*)p.b.data, p.n, 0, p.n,
                             [&](int64_t row, int64_t column, const float* c) {
                               float* to = p.c + (first + row) * p.n + column;
                               int64_t n = p.n - column;
                               store_first(to, load(c), n);
                               if (n > LANES) store_first(to + LANES, load(c + LANES), n - LANES);
                             });
    });
    return;
  }
  static constexpr float ONE = 1.0f;
  int64_t step = 2 * COLUMNS, across = (p.n + step - 1) / step;
  with_type(p.b.type, [&](auto type) {
    typedef decltype(type) B;
    for_each((p.m + TILE_ROWS - 1) / TILE_ROWS * across, [&](int64_t i) {
      int64_t m0 = i / across * TILE_ROWS, n0 = i % across * step;
      int64_t m = least(TILE_ROWS, p.m - m0), n = least(step, p.n - n0);
      if (!p.k) {
        for (int64_t r = 0; r < m; ++r) memset(p.c + (m0 + r) * p.n + n0, 0, n * 4);
        return;
      }
      auto a = [&](int64_t k) { return p.a + k * p.m + m0; };
      auto b = [&](int64_t k) { return p.b.data ? (const B*)p.b.data + k * p.n + n0 : (const B*)(const void*)&ONE; };
      outer_products<float>(p.k, m, n, a, b, Gradient<float>{p.c + m0 * p.n + n0, p.n, n, false},
                            [](int64_t, int64_t, int64_t, int64_t) {});
    });
  });
}

}  // namespace
