// Weight gradients: left^T right, summed over an expert's rows. A task owns a block of the result and sums it over all rows, in
// blocks of rows in their order: the bits do not depend on who does it.

#pragma once

#include "tiles.h"

namespace {

constexpr int64_t BLOCK_COLUMNS = 12 * COLUMNS, BLOCK_STEPS = 256;

// result rows m0..m0 + m and columns n0..n0 + n of left^T right over `rows` rows, in panels of COLUMNS in C: what
// `left` and `right` give are the addresses of a row at m0 and at n0. `right` is packed already where a caller says so.
template <class O, class Left, class Right>
const float* outer_products(int64_t rows, int64_t m, int64_t n, bool packed, Left left, Right right) {
  constexpr int64_t BLOCK = BLOCK_STEPS * UNIT<O>;
  float* c = floats(Scratch::tile, TILE_ROWS * (BLOCK_COLUMNS + COLUMNS));
  float* panels = floats(Scratch::tokens, (TILE_ROWS + ROWS) * BLOCK_STEPS);
  float* columns = floats(Scratch::columns, (BLOCK_COLUMNS + COLUMNS) * BLOCK_STEPS);
  for (int64_t at = 0; at < rows; at += BLOCK) {
    int64_t k = least(BLOCK, rows - at), steps = units<O>(k);
    pack_panels<O>(m, ROWS, k, panels, [&](int64_t i) { return left(at + i); });
    if (!packed) pack_columns<O>(n, k, columns, [&](int64_t i) { return right(at + i); });
    for (int64_t j = 0; j < n; j += COLUMNS)
      multiply_panels<O>(panels, m, ROWS, steps, columns + j * steps, c + j * TILE_ROWS, at > 0);
  }
  return c;
}

// `streamed`: past the caches.
template <class T>
void store_products(const float* c, int64_t m, int64_t n, T* to, int64_t stride, bool streamed) {
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = 0; j < n; j += COLUMNS) {
      const float* from = c + j * TILE_ROWS + r * COLUMNS;
      T* at = to + r * stride + j;
      if (streamed && n - j >= COLUMNS && uintptr_t(at) % 64 == 0) {
        stream(at, load(from), load(from + LANES));
      } else {
        store_first(at, load(from), n - j);
        if (n - j > LANES) store_first(at + LANES, load(from + LANES), n - j - LANES);
      }
    }
  if (streamed) finish_streams();
}

template <class T, class L, class R>
void weight_grad_block(const WeightGrad& w, int64_t expert, int64_t m0, int64_t n0, bool packed, bool streamed) {
  int64_t first = w.plan.offsets[expert], rows = w.plan.offsets[expert + 1] - first;
  int64_t m = least(TILE_ROWS, w.left_size - m0), n = least(BLOCK_COLUMNS, w.right_size - n0);
  auto index = [&](bool by_token, int64_t i) {
    return by_token ? token_of(w.plan, first + i) : row_of(w.plan, first + i);
  };
  auto left = [&](int64_t i) { return (const L*)w.left.data + index(w.left_by_token, i) * w.left_size + m0; };
  auto right = [&](int64_t i) { return (const R*)w.right.data + index(w.right_by_token, i) * w.right_size + n0; };
  T* to = (T*)w.grad_weight + (expert * w.left_size + m0) * w.right_size + n0;
  T* bias = w.grad_bias && n0 == 0 ? (T*)w.grad_bias + expert * w.left_size + m0 : nullptr;
  if (rows) {
    store_products(outer_products<Operand<T>>(rows, m, n, packed, left, right), m, n, to, w.right_size,
                   streamed);
  } else {
    for (int64_t r = 0; r < m; ++r) memset(to + r * w.right_size, 0, n * sizeof(T));
  }
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

constexpr int64_t STREAMED_BYTES = 4 << 20;  // of a gradient: then most of it would be out of the caches when it is read

// Blocks in a column, which share the packed rows of `right` if those are few.
constexpr int64_t BLOCKS_A_TASK = 4;

void weight_grad(const WeightGrad& w) {
  int64_t step = BLOCKS_A_TASK * TILE_ROWS, down = (w.left_size + step - 1) / step;
  int64_t across = (w.right_size + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
  with_type(w.type, [&](auto type) {
    with_type(w.left.type, [&](auto left) {
      with_type(w.right.type, [&](auto right) {
        typedef decltype(type) T;
        bool streamed = w.plan.experts * w.left_size * w.right_size * int64_t(sizeof(T)) >= STREAMED_BYTES;
        for_each(w.plan.experts * down * across, [&](int64_t i) {
          int64_t expert = i / (down * across), first = i / across % down * step;
          bool few = w.plan.offsets[expert + 1] - w.plan.offsets[expert] <= BLOCK_STEPS;
          for (int64_t m = first; m < least(w.left_size, first + step); m += TILE_ROWS)
            weight_grad_block<T, decltype(left), decltype(right)>(w, expert, m, i % across * BLOCK_COLUMNS,
                                                                  few && m > first, streamed);
        });
      });
    });
  });
}

}  // namespace
