// Weight gradients: left^T right, summed over an expert's rows. A task owns a block of the result and sums it over all rows, in
// blocks of rows in their order: the bits do not depend on who does it.

#pragma once

#include "tiles.h"

namespace {

constexpr int64_t BLOCK_COLUMNS = 12 * COLUMNS, BLOCK_STEPS = 256;

// C in panels of COLUMNS: the result's rows m0..m0 + m, columns n0..n0 + n. `left` and `right` give a row's address.
template <class O, class Left, class Right>
void outer_products(int64_t rows, int64_t m, int64_t n, float* c, Left left, Right right) {
  constexpr int64_t BLOCK = BLOCK_STEPS * UNIT<O>;
  float* panels = floats(Scratch::tokens, (TILE_ROWS + ROWS) * BLOCK_STEPS);
  float* columns = floats(Scratch::columns, (BLOCK_COLUMNS + COLUMNS) * BLOCK_STEPS);
  for (int64_t at = 0; at < rows; at += BLOCK) {
    int64_t k = least(BLOCK, rows - at), steps = units<O>(k);
    pack_panels<O>(m, k, panels, [&](int64_t i) { return left(at + i); });
    pack_columns<O>(n, k, columns, [&](int64_t i) { return right(at + i); });
    for (int64_t j = 0; j < n; j += COLUMNS)
      multiply_panels<O>(panels, m, steps, columns + j * steps, c + j * TILE_ROWS, at > 0);
  }
}

template <class T, class L, class R>
void weight_grad_block(const WeightGrad& w, int64_t expert, int64_t m0, int64_t n0) {
  int64_t first = w.plan.offsets[expert], rows = w.plan.offsets[expert + 1] - first;
  int64_t m = least(TILE_ROWS, w.left_size - m0), n = least(BLOCK_COLUMNS, w.right_size - n0);
  auto index = [&](bool by_token, int64_t i) {
    return by_token ? token_of(w.plan, first + i) : row_of(w.plan, first + i);
  };
  auto left = [&](int64_t i) { return (const L*)w.left.data + index(w.left_by_token, i) * w.left_size + m0; };
  auto right = [&](int64_t i) { return (const R*)w.right.data + index(w.right_by_token, i) * w.right_size + n0; };
  T* to = (T*)w.grad_weight + (expert * w.left_size + m0) * w.right_size + n0;
  T* bias = w.grad_bias && n0 == 0 ? (T*)w.grad_bias + expert * w.left_size + m0 : nullptr;
  if (!rows) {
    for (int64_t r = 0; r < m; ++r) memset(to + r * w.right_size, 0, n * sizeof(T));
    if (bias) memset(bias, 0, m * sizeof(T));
    return;
  }
  float* c = floats(Scratch::tile, TILE_ROWS * (BLOCK_COLUMNS + COLUMNS));
  outer_products<Operand<T>>(rows, m, n, c, left, right);
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = 0; j < n; j += LANES)
      store_first(to + r * w.right_size + j,
                  load(c + j / COLUMNS * COLUMNS * TILE_ROWS + r * COLUMNS + j % COLUMNS), n - j);
  if (!bias) return;
  for (int64_t r = 0; r < m; r += LANES) {
    Floats sum = {};
    for (int64_t i = 0; i < rows; ++i) {
      Floats value = load_first(left(i) + r, m - r);
      sum += w.scales ? value * w.scales[w.plan.order[first + i]] : value;
    }
    store_first(bias + r, sum, m - r);
  }
}

void weight_grad(const WeightGrad& w) {
  int64_t down = (w.left_size + TILE_ROWS - 1) / TILE_ROWS, across = (w.right_size + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
  with_type(w.type, [&](auto type) {
    with_type(w.left.type, [&](auto left) {
      with_type(w.right.type, [&](auto right) {
        typedef decltype(type) T;
        for_each(w.plan.experts * down * across, [&](int64_t i) {
          weight_grad_block<T, decltype(left), decltype(right)>(w, i / (down * across), i / across % down * TILE_ROWS,
                                                                i % across * BLOCK_COLUMNS);
        });
      });
    });
  });
}

}  // namespace
