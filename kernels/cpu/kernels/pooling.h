// From hidden states to embeddings: the mean over a sequence, and a length of 1.

#pragma once

#include "parallel.h"

namespace {

void mean(const Mean& m) {
  for_each(m.sequences, [&](int64_t i) {
    int64_t first = m.starts[i], last = m.starts[i + 1];
    Floats scale = splat(last > first ? 1.0f / float(last - first) : 0.0f);
    constexpr int AT_ONCE = 4;
    for (int64_t from = 0; from < m.hidden; from += AT_ONCE * LANES) {
      Floats sums[AT_ONCE] = {};
      for (int64_t t = first; t < last; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < AT_ONCE; ++v) {
          int64_t h = from + v * LANES;
          if (h < m.hidden) sums[v] += load_first(m.x + t * m.hidden + h, m.hidden - h);
        }
      for (int v = 0; v < AT_ONCE; ++v) {
        int64_t h = from + v * LANES;
        if (h < m.hidden) store_first(m.out + i * m.hidden + h, sums[v] * scale, m.hidden - h);
      }
    }
  });
}

void scale_to_one(const Lengths& l) {
  for_each((l.rows + ROWS_A_TASK - 1) / ROWS_A_TASK, [&](int64_t task) {
    for (int64_t i = task * ROWS_A_TASK; i < least(l.rows, (task + 1) * ROWS_A_TASK); ++i) {
      float* row = l.data + i * l.hidden;
      Floats sum = {};
      for (int64_t h = 0; h < l.hidden; h += LANES) {
        Floats values = load_first(row + h, l.hidden - h);
        sum += values * values;
      }
      float length = __builtin_sqrtf(sum_lanes(sum));
      float least_length = 1e-12f;  // as F.normalize has it
      for (int64_t h = 0; h < l.hidden; h += LANES)
        store_first(row + h, load_first(row + h, l.hidden - h) / (length < least_length ? least_length : length), l.hidden - h);
    }
  });
}

}  // namespace
