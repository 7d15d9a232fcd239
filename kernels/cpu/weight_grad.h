// Weight gradients: left^T right, summed over an expert's rows. A task owns a block of the result and sums it over all rows, in
// blocks of rows in their order: the bits do not depend on who does it.

#pragma once

#include "tiles.h"

namespace {

constexpr int64_t BLOCK_COLUMNS = 12 * COLUMNS, BLOCK_STEPS = 256;

// put(row, column, values) for all m rows and n columns of left^T right over `rows` rows, whose addresses `left` and `right`
// give. A block of rows of `right` is packed once for all m; sums wait for the next block in fp32. see(first, rows, column,
// columns) is called while these rows and columns of `left` are in a cache.
template <class O, class Left, class Right, class Put, class See>
void outer_products(int64_t rows, int64_t m, int64_t n, Left left, Right right, Put put, See see) {
  constexpr int64_t MOST = BLOCK_STEPS * UNIT<O>;
  int64_t blocks = (rows + MOST - 1) / MOST, length = round_up((rows + blocks - 1) / blocks, UNIT<O>);
  float* c = floats(Scratch::tile, round_up(m, TILE_ROWS) * round_up(n, COLUMNS));
  float* panels = floats(Scratch::tokens, (TILE_ROWS + ROWS) * BLOCK_STEPS);
  float* columns = floats(Scratch::columns, round_up(n, COLUMNS) * BLOCK_STEPS);
  for (int64_t at = 0; at < rows; at += length) {
    int64_t k = least(length, rows - at), steps = units<O>(k);
    pack_columns<O>(n, k, columns, [&](int64_t i) { return right(at + i); });
    for (int64_t m0 = 0; m0 < m; m0 += TILE_ROWS) {
      int64_t count = least(TILE_ROWS, m - m0);
      pack_panels<O>(count, ROWS, k, panels, [&](int64_t i) { return left(at + i) + m0; });
      see(at, k, m0, count);
      // Meanwhile, what is packed next comes closer: its rows lie apart, where no prefetcher finds them.
      bool same = m0 + TILE_ROWS < m;
      int64_t next = same ? at : at + length, next_m = same ? m0 + TILE_ROWS : 0, left_rows = least(length, rows - next);
      for (int64_t j = 0; j < n; j += COLUMNS) {
        for (int64_t i = left_rows * j / n; i < left_rows * least(j + COLUMNS, n) / n; ++i) {
          fetch<2>(left(next + i) + next_m, least(TILE_ROWS, m - next_m));
          if (!same) fetch<2>(right(next + i), n);
        }
        float* tile = c + m0 * round_up(n, COLUMNS) + j * TILE_ROWS;
        if (at + length < rows)
          multiply_panels<O>(panels, count, ROWS, steps, columns + j * steps, tile, at > 0, InTile{tile});
        else  // the sums are whole, and leave the registers for good
          multiply_panels<O>(panels, count, ROWS, steps, columns + j * steps, tile, at > 0,
                             [=](int64_t r, int v, Floats values) { put(m0 + r, j + v * LANES, values); });
      }
    }
  }
}

// Rows of a gradient, perhaps past the caches.
template <class T>
struct Gradient {
  T* to;
  int64_t stride, n;
  bool streamed;

  INLINE void operator()(int64_t r, int64_t j, Floats values) const {
    T* at = to + r * stride + j;
    if (streamed && n - j >= LANES && uintptr_t(at) % (LANES * sizeof(T)) == 0)
      stream(at, values);
    else if (j < n)
      store_first(at, values, n - j);
  }
};

constexpr int64_t BLOCK_ROWS = 4 * TILE_ROWS;

template <class T, class L, class R>
void weight_grad_block(const WeightGrad& w, int64_t expert, int64_t m0, int64_t n0, bool streamed) {
  int64_t first = w.plan.offsets[expert], rows = w.plan.offsets[expert + 1] - first;
  int64_t m = least(BLOCK_ROWS, w.left_size - m0), n = least(BLOCK_COLUMNS, w.right_size - n0);
  auto index = [&](bool by_token, int64_t i) {
    return by_token ? token_of(w.plan, first + i) : row_of(w.plan, first + i);
  };
  auto left = [&](int64_t i) { return (const L*)w.left.data + index(w.left_by_token, i) * w.left_size + m0; };
  auto right = [&](int64_t i) { return (const R*)w.right.data + index(w.right_by_token, i) * w.right_size + n0; };
  T* to = (T*)w.grad_weight + (expert * w.left_size + m0) * w.right_size + n0;
  T* bias = w.grad_bias && n0 == 0 ? (T*)w.grad_bias + expert * w.left_size + m0 : nullptr;
  float* sums = floats(Scratch::dots, BLOCK_ROWS + LANES);
  memset(sums, 0, BLOCK_ROWS * 4);
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
    Gradient<T> gradient{to, w.right_size, n, streamed};
    outer_products<Operand<T>>(rows, m, n, left, right, gradient, add_to_bias);
    if (streamed) finish_streams();
  } else {
    for (int64_t r = 0; r < m; ++r) memset(to + r * w.right_size, 0, n * sizeof(T));
  }
  if (!bias) return;
  for (int64_t r = 0; r < m; r += LANES) store_first(bias + r, load(sums + r), m - r);
}

constexpr int64_t STREAMED_BYTES = 4 << 20;  // of a gradient: then most of it would be out of the caches when it is read

void weight_grad(const WeightGrad& w) {
  int64_t down = (w.left_size + BLOCK_ROWS - 1) / BLOCK_ROWS;
  int64_t across = (w.right_size + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
  with_type(w.type, [&](auto type) {
    with_type(w.left.type, [&](auto left) {
      with_type(w.right.type, [&](auto right) {
        typedef decltype(type) T;
        bool streamed = w.plan.experts * w.left_size * w.right_size * int64_t(sizeof(T)) >= STREAMED_BYTES;
        for_each(w.plan.experts * down * across, [&](int64_t i) {
          weight_grad_block<T, decltype(left), decltype(right)>(w, i / (down * across), i / across % down * BLOCK_ROWS,
                                                                i % across * BLOCK_COLUMNS, streamed);
        });
      });
    });
  });
}

}  // namespace
