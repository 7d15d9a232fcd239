// The sum that ends a layer, and that of its input's gradients.

#pragma once

#include "parallel.h"
#include "rows.h"

namespace {

void combine(const Combine& c) {
  for_each((c.tokens + ROWS_A_TASK - 1) / ROWS_A_TASK, [&](int64_t task) {
    for (int64_t t = task * ROWS_A_TASK; t < least(c.tokens, (task + 1) * ROWS_A_TASK); ++t) {
      bool residual = c.residual.data && (!c.mask || c.mask[t]);
      for (int64_t h = 0; h < c.hidden; h += LANES) {
        int64_t n = c.hidden - h, at = t * c.hidden + h;
        Floats sum = load_any(c.rows, t * c.top_k * c.hidden + h, n);
        for (int64_t k = 1; k < c.top_k; ++k) sum += load_any(c.rows, (t * c.top_k + k) * c.hidden + h, n);
        if (residual) sum += load_any(c.residual, at, n);
        if (c.second.data) sum += load_any(c.second, at, n);
        for (int64_t i = 0; i < c.terms; ++i) sum += load_first(c.term_rows + i * c.hidden + h, n) * c.scales[t * c.terms + i];
        store_any(c.y, at, sum, n);
      }
    }
  });
}

}  // namespace
