// The backward of one head of one sequence at a time; the probabilities are computed again from q, k and lse.
// Queries lie in lanes, as in the forward. dK and dV are sums over tiles of queries, in their order.

#pragma once

#include "attention.h"

namespace {

// From scores and gradients of the probabilities, both [keys, queries] in fp32, to what the three products read.
template <class O>
struct ScoreGradients {
  O *probs, *grads;  // dropped probabilities and gradients of scores: rows of keys
  float* packed;     // the latter again, packed

  template <class D>
  INLINE void vector(int v, const float* scores, const float* grad_probs, int64_t count, float scale, Floats lse,
                     Floats delta, D dropout) {
    Floats shift = lse * LOG2E;
    auto gradient = [&](int64_t j) {
      int64_t at = j * COLUMNS + v * LANES;
      auto keep = dropout(j);
      Floats p = exp2<UNIT<O> == 2>(load(scores + at) * (scale * LOG2E) - shift);
      Floats grad = p * (load(grad_probs + at) * keep - delta) * scale;
      store(probs + at, p * keep);
      store(grads + at, grad);
      return grad;
    };
    for (int64_t j = 0; j < count; j += UNIT<O>) {
      Floats grad = gradient(j);
      if constexpr (UNIT<O> == 2) grad = pair(grad, j + 1 < count ? gradient(j + 1) : Floats{});
      store(packed + j / UNIT<O> * COLUMNS + v * LANES, grad);
    }
  }
};

template <class T, class D>
void attention_backward_head(const Attention& a, int64_t task) {
  typedef Operand<T> O;
  Head<T> head = Head<T>::make(a, task);
  int64_t length = head.length, size = head.size, width = round_up(size, COLUMNS), steps = units<O>(length);
  int64_t height = panel_rows<O>(size);
  if (!length) return;
  Frame frame;
  const O* keys = head.operands(a.k, frame);
  const O* values = head.operands(a.v, frame);
  float* key_panels = frame.take<float>(round_up(size, height) * steps + LANES);
  float* queries = frame.take<float>(units<O>(size) * COLUMNS);
  float* grads = frame.take<float>(units<O>(size) * COLUMNS);
  float* query_columns = frame.take<float>(COLUMNS * width);
  float* grad_columns = frame.take<float>(COLUMNS * width);
  float* scores = frame.take<float>(length * COLUMNS);
  float* grad_probs = frame.take<float>(length * COLUMNS);
  ScoreGradients<O> between = {frame.take<O>(length * COLUMNS), frame.take<O>(length * COLUMNS),
                               frame.take<float>(steps * COLUMNS)};
  float* grad_q = frame.take<float>(round_up(size, LANES) * COLUMNS);
  float* grad_k = frame.take<float>(length * width);
  float* grad_v = frame.take<float>(length * width);
  clear_rest<O>(length, between.packed);
  pack_panels<O>(size, height, length, key_panels, [&](int64_t j) { return head.input(a.k, j); });
  float scale = 1.0f / __builtin_sqrtf(float(size));
  for (int64_t q = 0; q < length; q += COLUMNS) {
    int64_t n = least(COLUMNS, length - q);
    int vectors = n > LANES ? 2 : 1;
    auto query = [&](int64_t i) { return head.input(a.q, q + i); };
    auto grad = [&](int64_t i) { return (const T*)head.row(a.grad, q + i); };
    pack_rows<O>(n, size, queries, query);
    pack_rows<O>(n, size, grads, grad);
    pack_columns<O>(size, n, query_columns, query);
    pack_columns<O>(size, n, grad_columns, grad);
    multiply(keys, size, length, size, queries, vectors, scores);
    multiply(values, size, length, size, grads, vectors, grad_probs);
    for (int v = 0; v < vectors; ++v) {
      Floats lse = {}, delta = {};
      for (int64_t i = 0; i < least(LANES, n - v * LANES); ++i) {
        int64_t at = q + v * LANES + i;
        lse[i] = a.lse[(head.first + at) * a.heads + task % a.heads];
        Floats sum = {};
        for (int64_t d = 0; d < size; d += LANES)
          sum += load_first(head.row(a.out, at) + d, size - d) * load_first(head.row(a.grad, at) + d, size - d);
        delta[i] = sum_lanes(sum);
      }
      between.vector(v, scores, grad_probs, length, scale, lse, delta,
                     D::make(a, head.first + q + v * LANES, task % a.heads));
    }
    for (int64_t d = 0; d < size; d += COLUMNS) {
      const float* panel = query_columns + d / COLUMNS * units<O>(n) * COLUMNS;
      multiply<O>(between.grads, COLUMNS, length, n, panel, 2, grad_k + d * length, q > 0);
      panel = grad_columns + d / COLUMNS * units<O>(n) * COLUMNS;
      multiply<O>(between.probs, COLUMNS, length, n, panel, 2, grad_v + d * length, q > 0);
    }
    multiply_panels<O>(key_panels, size, height, steps, between.packed, grad_q, false, InTile{grad_q});
    transposed(grad_q, size, n, [&](int64_t i, int64_t d, Floats row, int64_t count) {
      store_first(head.row(a.grad_q, q + i) + d, row, count);
    });
  }
  for (int64_t j = 0; j < length; ++j)
    for (int64_t d = 0; d < size; d += LANES) {
      int64_t at = d / COLUMNS * COLUMNS * length + j * COLUMNS + d % COLUMNS;
      store_first(head.row(a.grad_k, j) + d, load(grad_k + at), size - d);
      store_first(head.row(a.grad_v, j) + d, load(grad_v + at), size - d);
    }
}

void attention_backward(const Attention& a) {
  with_type(a.type, [&](auto type) {
    with_dropout(a, [&](auto dropout) {
      for_each(a.sequences * a.heads,
               [&](int64_t task) { attention_backward_head<decltype(type), decltype(dropout)>(a, task); });
    });
  });
}

}  // namespace
