// Weight gradients: left^T right, summed over an expert's rows. A task owns a part of the result and sums it over all rows, in
// spans of rows in their order: the bits do not depend on which thread does it.

#pragma once

#include "outer_products.h"
#include "tiles.h"

namespace {

constexpr int64_t PART_ROWS = 4 * TILE_ROWS, PART_COLUMNS = 12 * COLUMNS;

template <class T, class L, class R>
void weight_grad_part(const WeightGrad& w, int64_t expert, int64_t m0, int64_t n0, bool streamed) {
  int64_t first = w.plan.offsets[expert], rows = w.plan.offsets[expert + 1] - first;
  int64_t m = least(PART_ROWS, w.left.size - m0), n = least(PART_COLUMNS, w.right.size - n0);
  auto index = [&](bool by_token, int64_t i) {
    return by_token ? token_of(w.plan, first + i) : row_of(w.plan, first + i);
  };
  auto left = [&](int64_t i) { return (const L*)w.left.rows.data + index(w.left.by_token, i) * w.left.size + m0; };
  auto right = [&](int64_t i) { return (const R*)w.right.rows.data + index(w.right.by_token, i) * w.right.size + n0; };
  T* to = (T*)w.grad_weight + (expert * w.left.size + m0) * w.right.size + n0;
  T* bias = w.grad_bias && n0 == 0 ? (T*)w.grad_bias + expert * w.left.size + m0 : nullptr;
  Frame frame;
  float* sums = frame.take<float>(PART_ROWS + LANES);
  memset(sums, 0, PART_ROWS * 4);
  auto add_to_bias = [&](int64_t at, int64_t count, int64_t column, int64_t columns) {
    if (!bias) return;
    for (int64_t i = at; i < at + count; ++i) {
      const L* row = left(i) + column;
      float scale = w.scales ? w.scales[w.plan.order[first + i]] : 1.0f;
      for (int64_t r = 0; r < columns; r += LANES) {
        float* sum = sums + column + r;
        store(sum, load(sum) + load_first(row + r, columns - r) * scale);
      }
    }
  };
  if (rows) {
    Gradient<T> gradient{to, w.right.size, n, streamed};
    outer_products<Operand<T>>(rows, m, n, left, right, gradient, add_to_bias);
    if (streamed) finish_streams();
  } else {
    for (int64_t r = 0; r < m; ++r) memset(to + r * w.right.size, 0, n * sizeof(T));
  }
  if (!bias) return;
  for (int64_t r = 0; r < m; r += LANES) store_first(bias + r, load(sums + r), m - r);
}

constexpr int64_t STREAMED_BYTES = 4 << 20;  // of a gradient: then most of it would be out of the caches when it is read

void weight_grad(const WeightGrad& w) {
  int64_t down = (w.left.size + PART_ROWS - 1) / PART_ROWS;
  int64_t across = (w.right.size + PART_COLUMNS - 1) / PART_COLUMNS;
  with_type(w.type, [&](auto type) {
    with_type(w.left.rows.type, [&](auto left) {
      with_type(w.right.rows.type, [&](auto right) {
        typedef decltype(type) T;
        bool streamed = w.plan.experts * w.left.size * w.right.size * int64_t(sizeof(T)) >= STREAMED_BYTES;
        for_each(w.plan.experts * down * across, [&](int64_t i) {
          weight_grad_part<T, decltype(left), decltype(right)>(w, i / (down * across), i / across % down * PART_ROWS,
                                                                i % across * PART_COLUMNS, streamed);
        });
      });
    });
  });
}

}  // namespace
