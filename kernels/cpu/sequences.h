// What an encoder does before its blocks and after them, for inference: embeddings, the mean over a sequence, a length of 1.

#pragma once

#include "norm.h"

namespace {

constexpr int64_t ROWS_A_TASK = 64;

void embed(const Embed& e) {
  for_each((e.tokens + ROWS_A_TASK - 1) / ROWS_A_TASK, [&](int64_t block) {
    int64_t first = block * ROWS_A_TASK, last = least(e.tokens, first + ROWS_A_TASK), sequence = 0;
    int64_t size = e.hidden;
    float* sums = floats(Scratch::tile, round_up(size, LANES));
    for (int64_t t = first; t < last; ++t) {
      while (sequence + 1 < e.sequences && e.starts[sequence + 1] <= t) ++sequence;
      const float* token = e.token_rows + e.ids[t] * size;
      const float* place = e.position_rows + (t - e.starts[sequence]) * size;
      Floats total = {};
      for (int64_t h = 0; h < size; h += LANES) {
        Floats sum = load_first(token + h, size - h) + load_first(place + h, size - h);
        store(sums + h, sum);
        total += sum;
      }
      normalize_row(sums, size, total, e.norm.eps, e.norm.weight, e.norm.bias, [&](int64_t h, Floats values, int64_t n) {
        store_first(e.out + t * size + h, values, n);
      });
    }
  });
}

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
  for_each((l.rows + ROWS_A_TASK - 1) / ROWS_A_TASK, [&](int64_t block) {
    for (int64_t i = block * ROWS_A_TASK; i < least(l.rows, (block + 1) * ROWS_A_TASK); ++i) {
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
