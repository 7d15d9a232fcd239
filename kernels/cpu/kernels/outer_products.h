// left^T right, summed over many rows.

#pragma once

#include "../runtime/arena.h"
#include "packing.h"

namespace {

constexpr int64_t SPAN_STEPS = 256;  // of the sum over rows

// put(row, column, values) for all m rows and n columns of left^T right over `rows` rows, whose addresses `left` and `right`
// give. A span of rows of `right` is packed once for all m; sums wait for the next span in fp32. see(first, rows, column,
// columns) is called while these rows and columns of `left` are in a cache.
template <class O, class Left, class Right, class Put, class See>
void outer_products(int64_t rows, int64_t m, int64_t n, Left left, Right right, Put put, See see) {
  constexpr int64_t MOST = SPAN_STEPS * UNIT<O>, HEIGHT = MOST_PANEL_ROWS<O>;
  int64_t spans = (rows + MOST - 1) / MOST, length = round_up((rows + spans - 1) / spans, STEP<O>);
  Frame frame;
  float* c = frame.take<float>(round_up(m, TILE_ROWS) * round_up(n, COLUMNS));
  float* panels = frame.take<float>((TILE_ROWS + ROWS) * SPAN_STEPS);
  float* columns = frame.take<float>(round_up(n, COLUMNS) * SPAN_STEPS);
  for (int64_t at = 0; at < rows; at += length) {
    int64_t k = least(length, rows - at), steps = units<O>(k);
    pack_columns<O>(n, k, columns, [&](int64_t i) { return right(at + i); });
    for (int64_t m0 = 0; m0 < m; m0 += TILE_ROWS) {
      int64_t count = least(TILE_ROWS, m - m0);
      pack_panels<O>(count, HEIGHT, k, panels, [&](int64_t i) { return left(at + i) + m0; });
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
          multiply_panels<O>(panels, count, HEIGHT, steps, columns + j * steps, tile, at > 0, InTile{tile});
        else  // the sums are whole, and leave the registers for good
          multiply_panels<O>(panels, count, HEIGHT, steps, columns + j * steps, tile, at > 0,
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

}  // namespace
