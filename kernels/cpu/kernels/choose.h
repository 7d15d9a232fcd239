// What a router's logits choose: probabilities, the best experts, their weights, and the sums that the losses need.

#pragma once

#include "../runtime/arena.h"
#include "elementary.h"
#include "parallel.h"

namespace {

constexpr int64_t GATE_TOKENS = COLUMNS;  // a task's
constexpr float INFINITY_ = __builtin_inff();

// Rows of E values, padded to whole vectors, for one token.
struct ChooseSpace {
  int64_t padded;
  float *logits, *probs, *scores, *gathered;
  int32_t* keys;

  static ChooseSpace make(int64_t experts, Frame& frame) {
    int64_t padded = round_up(experts, LANES);
    auto floats = [&] { return frame.take<float>(padded); };
    return {padded, floats(), floats(), floats(), floats(), frame.take<int32_t>(padded)};
  }
};

// probs[0..n) = softmax(logits), both padded; -> log-sum-exp. What pads the logits is minus infinity.
INLINE float softmax(float* probs, float* logits, int64_t n, int64_t padded) {
  float most = -INFINITY_, sum = 0.0f;
  for (int64_t e = n; e < padded; ++e) logits[e] = -INFINITY_;
  for (int64_t e = 0; e < n; ++e) most = logits[e] > most ? logits[e] : most;
  for (int64_t e = 0; e < padded; e += LANES) store(probs + e, exp(load(logits + e) - most));
  for (int64_t e = 0; e < n; ++e) sum += probs[e];
  for (int64_t e = 0; e < padded; e += LANES) store(probs + e, load(probs + e) / sum);
  return most + __builtin_logf(sum);
}

// shares[0..n) = each sigmoid(logits) over their sum, both padded. A sigmoid is e^min(x, 0) / (1 + e^-|x|), and the largest of the
// powers is divided out: so sigmoids that underflow have shares, too.
INLINE void sigmoid_shares(float* shares, float* logits, int64_t n, int64_t padded) {
  float most = -INFINITY_, sum = 0.0f;
  for (int64_t e = n; e < padded; ++e) logits[e] = -INFINITY_;
  for (int64_t e = 0; e < n; ++e) most = logits[e] > most ? logits[e] : most;
  most = most < 0.0f ? most : 0.0f;
  for (int64_t e = 0; e < padded; e += LANES) {
    Floats x = load(logits + e);
    store(shares + e, exp(min(splat(0.0f), x) - most) * sigmoid(max(x, -x)));
  }
  for (int64_t e = 0; e < n; ++e) sum += shares[e];
  for (int64_t e = 0; e < padded; e += LANES) store(shares + e, load(shares + e) / sum);
}

// What the losses take from a token, and what its weights are made of; -> log-sum-exp of the logits.
INLINE float score(const Choose& c, const float* logits, ChooseSpace& space) {
  memcpy(space.logits, logits, c.experts * 4);
  float lse = softmax(space.probs, space.logits, c.experts, space.padded);
  if (c.router != Router::sigmoid) {
    memcpy(space.scores, space.probs, c.experts * 4);
    return lse;
  }
  for (int64_t e = 0; e < space.padded; e += LANES) store(space.scores + e, sigmoid(load(space.logits + e)));
  sigmoid_shares(space.probs, space.logits, c.experts, space.padded);
  return lse;
}

// Integers in the order of the floats, NaN above all: its own order is total, so that ties and NaN are the same everywhere.
INLINE int32_t sortable(float value) {
  if (value != value) return INT32_MAX;
  value += 0.0f;  // -0 is 0
  int32_t bits;
  memcpy(&bits, &value, 4);
  return bits < 0 ? bits ^ INT32_MAX : bits;
}

// The logits decide; where there is a bias, which is added to a sigmoid, only between equals.
INLINE void best_experts(const Choose& c, ChooseSpace& space, int32_t* indices) {
  const float *bias = c.selection_bias, *ranking = bias && c.router == Router::sigmoid ? space.scores : space.logits;
  for (int64_t e = 0; e < space.padded; ++e)
    space.keys[e] = e < c.experts ? sortable(ranking[e] + (bias ? bias[e] : 0.0f)) : INT32_MIN;
  for (int64_t k = 0; k < c.top_k; ++k) {
    Ints most;
    memcpy(&most, space.keys, sizeof most);
    for (int64_t e = LANES; e < space.padded; e += LANES) {
      Ints keys;
      memcpy(&keys, space.keys + e, sizeof keys);
      most = keys > most ? keys : most;
    }
    int32_t best = most[0];
    for (int i = 1; i < LANES; ++i) best = most[i] > best ? most[i] : best;
    int32_t e = 0;
    while (space.keys[e] != best) ++e;
    for (int32_t other = e + 1; bias && other < c.experts; ++other)
      if (space.keys[other] == best && sortable(space.logits[other]) > sortable(space.logits[e])) e = other;
    indices[k] = e;
    space.keys[e] = INT32_MIN;
  }
}

INLINE void choose_token(const Choose& c, int64_t t, const float* logits, ChooseSpace& space, float* sums) {
  int64_t experts = c.experts, count = c.top_k ? c.top_k : experts;
  float* weights = c.weights + t * count;
  int32_t* indices = c.indices + t * c.top_k;
  if (c.mask && !c.mask[t]) {
    memset(weights, 0, count * 4);
    for (int64_t k = 0; k < c.top_k; ++k) indices[k] = -1;
    return;
  }
  float lse = score(c, logits, space), zero = 0.0f;
  bool relative = c.renormalize || c.router == Router::topk_softmax;
  for (int64_t e = 0; e < experts; ++e) zero += logits[e] * 0.0f;
  if (!c.top_k) {
    const float* from = relative ? space.probs : space.scores;
    for (int64_t e = 0; e < experts; ++e) weights[e] = from[e] + zero;
    for (int64_t e = 0; e < experts; ++e) sums[e] += 1.0f;
  } else {
    best_experts(c, space, indices);
    for (int64_t k = 0; k < count; ++k) space.gathered[k] = (relative ? space.logits : space.scores)[indices[k]];
    float* chosen = space.gathered;
    if (relative) {
      chosen = space.scores;
      int64_t padded = round_up(count, LANES);
      if (c.router == Router::sigmoid)
        sigmoid_shares(chosen, space.gathered, count, padded);
      else
        softmax(chosen, space.gathered, count, padded);
    }
    for (int64_t k = 0; k < count; ++k) weights[k] = chosen[k] + zero;
    for (int64_t k = 0; k < count; ++k) sums[indices[k]] += 1.0f;
  }
  for (int64_t e = 0; e < experts; ++e) sums[experts + e] += space.probs[e];
  sums[2 * experts] += lse * lse;
  sums[2 * experts + 1] += 1.0f;
}

// body(first, last, sums of these tokens) for tiles of tokens; then the tiles' sums are added in their order.
template <class Body>
void choose_tiles(const Choose& c, Body body) {
  int64_t length = 2 * c.experts + 2, tiles = (c.tokens + GATE_TOKENS - 1) / GATE_TOKENS;
  Frame frame;
  float* partials = frame.take<float>(tiles * length);
  memset(partials, 0, tiles * length * 4);
  for_each(tiles, [&](int64_t i) {
    body(i * GATE_TOKENS, least(c.tokens, (i + 1) * GATE_TOKENS), partials + i * length);
  });
  memset(c.sums, 0, length * 4);
  for (int64_t i = 0; i < tiles; ++i)
    for (int64_t j = 0; j < length; ++j) c.sums[j] += partials[i * length + j];
}

void choose(const Choose& c) {
  choose_tiles(c, [&](int64_t first, int64_t last, float* sums) {
    Frame frame;
    ChooseSpace space = ChooseSpace::make(c.experts, frame);
    for (int64_t t = first; t < last; ++t) choose_token(c, t, c.logits + t * c.experts, space, sums);
  });
}

}  // namespace
