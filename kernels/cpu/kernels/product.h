// Plain products in fp32.

#pragma once

#include "outer_products.h"
#include "parallel.h"
#include "rows.h"
#include "weight_panels.h"

namespace {

// A B: rows of A are shared out.
template <class B, class C>
void plain_product(const Product& p) {
  int64_t step = 8 * ROWS;
  for_each((p.m + step - 1) / step, [&](int64_t i) {
    int64_t first = i * step;
    Gradient<C> put = {(C*)p.c.data + first * p.n, p.n, p.n, false};
    multiply_weight(p.a + first * p.k, least(step, p.m - first), p.k, (const B*)p.b.data, p.n, 0, p.n,
                    [&](int64_t row, int64_t column, const float* c) {
                      for (int v = 0; v < COLUMNS; v += LANES) put(row, column + v, load(c + v));
                    });
  });
}

// A^T B: tiles of C are.
template <class B, class C>
void outer_product(const Product& p) {
  static constexpr float ONE = 1.0f;
  int64_t step = 2 * COLUMNS, across = (p.n + step - 1) / step;
  for_each((p.m + TILE_ROWS - 1) / TILE_ROWS * across, [&](int64_t i) {
    int64_t m0 = i / across * TILE_ROWS, n0 = i % across * step;
    int64_t m = least(TILE_ROWS, p.m - m0), n = least(step, p.n - n0);
    C* c = (C*)p.c.data + m0 * p.n + n0;
    if (!p.k) {
      for (int64_t r = 0; r < m; ++r) memset(c + r * p.n, 0, n * sizeof(C));
      return;
    }
    auto a = [&](int64_t k) { return p.a + k * p.m + m0; };
    auto b = [&](int64_t k) { return p.b.data ? (const B*)p.b.data + k * p.n + n0 : (const B*)(const void*)&ONE; };
    outer_products<float>(p.k, m, n, a, b, Gradient<C>{c, p.n, n, false}, [](int64_t, int64_t, int64_t, int64_t) {});
  });
}

void product(const Product& p) {
  with_type(p.b.type, [&](auto b) {
    with_type(p.c.type, [&](auto c) {
      auto run = p.transpose_a ? outer_product<decltype(b), decltype(c)> : plain_product<decltype(b), decltype(c)>;
      run(p);
    });
  });
}

}  // namespace
