// Embeddings: what an encoder does before its blocks, for inference.

#pragma once

#include "../runtime/arena.h"
#include "layer_norm.h"
#include "parallel.h"

namespace {

void embed(const Embed& e) {
  for_each((e.tokens + ROWS_A_TASK - 1) / ROWS_A_TASK, [&](int64_t task) {
    int64_t first = task * ROWS_A_TASK, last = least(e.tokens, first + ROWS_A_TASK), sequence = 0;
    int64_t size = e.hidden;
    Frame frame;
    float* sums = frame.take<float>(round_up(size, LANES));
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

}  // namespace
