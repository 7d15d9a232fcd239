// LayerNorm of one row.

#pragma once

#include "microkernel.h"

namespace {

struct RowStats {
  float mean, scale;
};

// finish(column, values, n) for a row whose values lie in `sums`, padded to whole vectors, and add up to `total`.
template <class Finish>
INLINE RowStats normalize_row(float* sums, int64_t size, Floats total, float eps, const float* weight,
                              const float* bias, Finish finish) {
  int64_t padded = round_up(size, LANES);
  float mean = sum_lanes(total) / float(size);
  Floats squares = {};
  for (int64_t h = size; h < padded; ++h) sums[h] = mean;  // counts for nothing below
  for (int64_t h = 0; h < padded; h += LANES) {
    Floats centred = load(sums + h) - mean;
    squares += centred * centred;
  }
  float scale = 1.0f / __builtin_sqrtf(sum_lanes(squares) / float(size) + eps);
  for (int64_t h = 0; h < size; h += LANES) {
    int64_t n = size - h;
    Floats normal = (load(sums + h) - mean) * scale;
    finish(h, normal * load_first(weight + h, n) + load_first(bias + h, n), n);
  }
  return {mean, scale};
}

}  // namespace
