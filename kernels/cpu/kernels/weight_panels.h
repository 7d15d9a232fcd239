// Rows times a weight [k, n] as it lies in memory: the rows are broadcast, and the weight is packed panel by panel, so that C is
// [rows, features], as the tensors around it are.

#pragma once

#include "../runtime/arena.h"
#include "packing.h"

namespace {

// finish(row, column, C's row) for each row of A [n, k] times each panel of the weight's columns from..to, which is converted to
// A's type. While a panel is multiplied, the next is fetched: its lines lie far apart, where no prefetcher finds them.
template <class O, class T, class Finish>
void multiply_weight(const O* a, int64_t n, int64_t k, const T* weight, int64_t stride, int64_t from, int64_t to,
                     Finish finish) {
  Frame frame;
  float* panel = frame.take<float>(units<O>(k) * COLUMNS);
  float c[MOST_ROWS<O> * COLUMNS];
  int64_t step = rows_at_once<O>(n), slice = (k * step + n - 1) / n + 1;
  for (int64_t f = from; f < to; f += COLUMNS) {
    pack_columns<O>(least(COLUMNS, to - f), k, panel, [&](int64_t i) { return weight + i * stride + f; });
    int64_t fetched = f + COLUMNS < to ? 0 : k;
    for (int64_t r = 0; r < n; r += step) {
      for (int64_t end = least(k, fetched + slice); fetched < end; ++fetched)
        fetch<2>(weight + fetched * stride + f + COLUMNS, COLUMNS);
      int64_t rows = least(step, n - r);
      multiply(a + r * k, k, rows, k, panel, 2, c);
      for (int64_t i = 0; i < rows; ++i) finish(r + i, f, c + i * COLUMNS);
    }
  }
}

}  // namespace
