// LayerNorm(x + dropout(y)), a row at a time, which stays in the first-level cache between its passes. Columns lie in
// lanes. Nothing of a row is kept for the backward but its mean and scale: the sum and the mask are computed again.

#pragma once

#include "dropout.h"
#include "layer_norm.h"
#include "parallel.h"
#include "rows.h"

namespace {

constexpr int64_t NORM_ROWS = 32;  // a task's

template <class Body>
INLINE void norm_tiles(const ResidualNorm& r, Body body) {
  for_each((r.rows + NORM_ROWS - 1) / NORM_ROWS,
           [&](int64_t i) { body(i, i * NORM_ROWS, least(r.rows, (i + 1) * NORM_ROWS)); });
}

void residual_norm(const ResidualNorm& r) {
  int64_t size = r.hidden;
  norm_tiles(r, [&](int64_t, int64_t first, int64_t last) {
    Frame frame;
    float* sums = frame.take<float>(round_up(size, LANES));
    for (int64_t t = first; t < last; ++t) {
      RowDropout keep = RowDropout::make(r, t);
      Floats total = {};
      for (int64_t h = 0; h < size; h += LANES) {
        int64_t at = t * size + h, n = size - h;
        Floats sum = load_any(r.x, at, n) + load_any(r.y, at, n) * keep(h);
        store(sums + h, sum);
        total += sum;
      }
      RowStats stats = normalize_row(sums, size, total, r.eps, r.weight, r.bias, [&](int64_t h, Floats values, int64_t n) {
        store_any(r.out, t * size + h, values, n);
      });
      r.stats[2 * t] = stats.mean;
      r.stats[2 * t + 1] = stats.scale;
    }
  });
}

// With n the normalised row and g = grad * weight: grad_sum = scale * (g - mean(g) - n * mean(g * n)).
void residual_norm_backward(const ResidualNorm& r) {
  int64_t size = r.hidden, padded = round_up(size, LANES), tiles = (r.rows + NORM_ROWS - 1) / NORM_ROWS;
  Frame frame;
  float* partials = frame.take<float>(tiles * 2 * padded);  // of the gradients of weight and bias
  norm_tiles(r, [&](int64_t tile, int64_t first, int64_t last) {
    Frame frame;
    float *normals = frame.take<float>(padded), *grads = frame.take<float>(padded), *kept = frame.take<float>(padded);
    float *weight_sums = partials + tile * 2 * padded, *bias_sums = weight_sums + padded;
    memset(weight_sums, 0, 2 * padded * 4);
    for (int64_t t = first; t < last; ++t) {
      RowDropout keep = RowDropout::make(r, t);
      float mean = r.stats[2 * t], scale = r.stats[2 * t + 1];
      Floats total = {}, dot = {};
      for (int64_t h = 0; h < size; h += LANES) {
        int64_t at = t * size + h, n = size - h;
        Floats kept_here = keep(h), grad = load_any(r.grad, at, n);
        Floats normal = (load_any(r.x, at, n) + load_any(r.y, at, n) * kept_here - mean) * scale;
        store(weight_sums + h, load(weight_sums + h) + grad * normal);
        store(bias_sums + h, load(bias_sums + h) + grad);
        grad *= load_first(r.weight + h, n);
        total += grad;
        dot += grad * normal;
        store(normals + h, normal);
        store(grads + h, grad);
        store(kept + h, kept_here);
      }
      float mean_grad = sum_lanes(total) / float(size), mean_dot = sum_lanes(dot) / float(size);
      for (int64_t h = 0; h < size; h += LANES) {
        int64_t at = t * size + h, n = size - h;
        Floats grad = (load(grads + h) - mean_grad - load(normals + h) * mean_dot) * scale;
        store_any(r.grad_x, at, grad, n);
        store_any(r.grad_y, at, grad * load(kept + h), n);
      }
    }
  });
  for_each((2 * padded + COLUMNS - 1) / COLUMNS, [&](int64_t i) {
    for (int64_t h = i * COLUMNS; h < least(2 * padded, (i + 1) * COLUMNS); h += LANES) {
      Floats sum = {};
      for (int64_t tile = 0; tile < tiles; ++tile) sum += load(partials + tile * 2 * padded + h);
      bool of_weight = h < padded;
      int64_t column = of_weight ? h : h - padded;
      store_first((of_weight ? r.grad_weight : r.grad_bias) + column, sum, size - column);
    }
  });
}

}  // namespace
