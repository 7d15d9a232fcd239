// The backward of the choice: gradients of the logits.

#pragma once

#include "choose.h"

namespace {

INLINE void choose_backward_token(const ChooseBackward& b, int64_t t, ChooseSpace& space) {
  const Choose& c = b.choose;
  int64_t experts = c.experts, count = c.top_k ? c.top_k : experts;
  float *out = b.grad_logits + t * experts, *grad_scores = space.logits, *grads = space.gathered;
  memset(out, 0, experts * 4);
  if (c.mask && !c.mask[t]) return;
  const float *logits = c.logits + t * experts, *weights = c.weights + t * count;
  const int32_t* indices = c.indices + t * c.top_k;
  auto expert = [&](int64_t k) { return c.top_k ? (indices[k] < 0 ? 0 : int64_t(indices[k])) : k; };
  float scores_sum = 0.0f, lse = score(c, logits, space, scores_sum), dot = 0.0f;
  bool sigmoid = c.router == Router::sigmoid, normalized = c.renormalize || c.router == Router::topk_softmax;
  memset(grad_scores, 0, experts * 4);
  memcpy(grads, b.grad_weights + t * count, count * 4);
  for (int64_t k = 0; k < count; ++k) dot += grads[k] * weights[k];
  if (sigmoid && normalized) {
    float total = TINY;
    for (int64_t k = 0; k < count; ++k) total += space.scores[expert(k)];
    for (int64_t k = 0; k < count; ++k) grads[k] = (grads[k] - dot) / total;
  }
  if (!sigmoid && normalized) {
    for (int64_t k = 0; k < count; ++k) out[expert(k)] += weights[k] * (grads[k] - dot);
  } else {
    for (int64_t k = 0; k < count; ++k) grad_scores[expert(k)] += grads[k];
  }
  if (b.grad_sums) {
    const float *grad_probs = b.grad_sums + experts;
    float mean = 0.0f;
    for (int64_t e = 0; e < experts; ++e) mean += space.probs[e] * grad_probs[e];
    for (int64_t e = 0; e < experts; ++e)
      grad_scores[e] += sigmoid ? (grad_probs[e] - mean) / scores_sum : grad_probs[e];
    float factor = 2.0f * b.grad_sums[2 * experts] * lse;
    for (int64_t e = 0; e < experts; ++e) out[e] += factor * __builtin_expf(logits[e] - lse);
  }
  float mean = 0.0f;
  for (int64_t e = 0; e < experts; ++e) mean += grad_scores[e] * space.probs[e];
  for (int64_t e = 0; e < experts; ++e) {
    float s = space.scores[e];
    out[e] += sigmoid ? grad_scores[e] * s * (1.0f - s) : space.probs[e] * (grad_scores[e] - mean);
  }
}

void choose_backward(const ChooseBackward& b) {
  int64_t tokens = b.choose.tokens;
  for_each((tokens + GATE_TOKENS - 1) / GATE_TOKENS, [&](int64_t i) {
    Frame frame;
    ChooseSpace space = ChooseSpace::make(b.choose.experts, frame);
    for (int64_t t = i * GATE_TOKENS; t < least(tokens, (i + 1) * GATE_TOKENS); ++t)
      choose_backward_token(b, t, space);
  });
}

}  // namespace
