// The backward of the choice: gradients of the logits.

#pragma once

#include "choose.h"

namespace {

INLINE void choose_backward_token(const ChooseBackward& b, int64_t t, ChooseSpace& space) {
  const Choose& c = b.choose;
  int64_t experts = c.experts, count = c.top_k ? c.top_k : experts;
  float* out = b.grad_logits + t * experts;
  memset(out, 0, experts * 4);
  if (c.mask && !c.mask[t]) return;
  const float *logits = c.logits + t * experts, *weights = c.weights + t * count, *grads = b.grad_weights + t * count;
  const int32_t* indices = c.indices + t * c.top_k;
  auto expert = [&](int64_t k) { return c.top_k ? (indices[k] < 0 ? 0 : int64_t(indices[k])) : k; };
  float lse = score(c, logits, space), sum = 0.0f;
  bool relative = c.renormalize || c.router == Router::topk_softmax;
  // First with respect to the logarithm of a score, which for a softmax is a logit and what they share.
  for (int64_t k = 0; k < count; ++k) sum += grads[k] * weights[k];
  for (int64_t k = 0; k < count; ++k) out[expert(k)] += weights[k] * (relative ? grads[k] - sum : grads[k]);
  if (!relative && c.router == Router::softmax)
    for (int64_t e = 0; e < experts; ++e) out[e] -= space.probs[e] * sum;
  if (b.grad_sums) {
    const float* grad_probs = b.grad_sums + experts;
    float mean = 0.0f;
    for (int64_t e = 0; e < experts; ++e) mean += space.probs[e] * grad_probs[e];
    for (int64_t e = 0; e < experts; ++e) out[e] += space.probs[e] * (grad_probs[e] - mean);
  }
  if (c.router == Router::sigmoid)
    for (int64_t e = 0; e < experts; e += LANES)
      store_first(out + e, load_first(out + e, experts - e) * sigmoid(-load(space.logits + e)), experts - e);
  if (b.grad_sums) {
    float factor = 2.0f * b.grad_sums[2 * experts] * lse;
    for (int64_t e = 0; e < experts; ++e) out[e] += factor * __builtin_expf(logits[e] - lse);
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
