// The router: logits, and what they choose; its backward; and the sum that ends a layer.

#pragma once

#include "backward.h"
#include "forward.h"
#include "weight_grad.h"

namespace {

constexpr int64_t GATE_TOKENS = 2 * COLUMNS;  // a task's
constexpr float TINY = 1e-20f, INFINITY_ = __builtin_inff();

// Rows of E values, padded to whole vectors, for one token.
struct ChooseSpace {
  int64_t padded;
  float *logits, *probs, *scores, *gathered;
  int32_t* keys;

  static ChooseSpace make(int64_t experts) {
    int64_t padded = round_up(experts, LANES);
    float* memory = floats(Scratch::dots, 5 * padded);
    return {padded, memory, memory + padded, memory + 2 * padded, memory + 3 * padded, (int32_t*)(memory + 4 * padded)};
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

// How the losses see a token, and what its weights are made of; -> log-sum-exp of the logits.
INLINE float score(const Choose& c, const float* logits, ChooseSpace& space, float& scores_sum) {
  memcpy(space.logits, logits, c.experts * 4);
  float lse = softmax(space.probs, space.logits, c.experts, space.padded);
  if (c.router != Router::sigmoid) {
    memcpy(space.scores, space.probs, c.experts * 4);
    return lse;
  }
  scores_sum = TINY;
  for (int64_t e = 0; e < space.padded; e += LANES) store(space.scores + e, sigmoid(load(space.logits + e)));
  for (int64_t e = 0; e < c.experts; ++e) scores_sum += space.scores[e];
  for (int64_t e = 0; e < c.experts; ++e) space.probs[e] = space.scores[e] / scores_sum;
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

INLINE void best_experts(const Choose& c, ChooseSpace& space, int32_t* indices) {
  const float* ranking = c.router == Router::sigmoid ? space.scores : space.logits;
  for (int64_t e = 0; e < space.padded; ++e)
    space.keys[e] = e < c.experts ? sortable(ranking[e] + (c.selection_bias ? c.selection_bias[e] : 0.0f)) : INT32_MIN;
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
  float scores_sum = 0.0f, lse = score(c, logits, space, scores_sum), zero = 0.0f;
  for (int64_t e = 0; e < experts; ++e) zero += logits[e] * 0.0f;
  if (!c.top_k) {
    const float* from = c.router == Router::sigmoid && c.renormalize ? space.probs : space.scores;
    for (int64_t e = 0; e < experts; ++e) weights[e] = from[e] + zero;
    for (int64_t e = 0; e < experts; ++e) sums[e] += 1.0f;
  } else {
    best_experts(c, space, indices);
    bool soft = c.router != Router::sigmoid && (c.renormalize || c.router == Router::topk_softmax);
    for (int64_t k = 0; k < count; ++k) space.gathered[k] = (soft ? space.logits : space.scores)[indices[k]];
    if (soft) {
      softmax(space.scores, space.gathered, count, round_up(count, LANES));
      memcpy(space.gathered, space.scores, count * 4);
    } else if (c.router == Router::sigmoid && c.renormalize) {
      float sum = TINY;
      for (int64_t k = 0; k < count; ++k) sum += space.gathered[k];
      for (int64_t k = 0; k < count; ++k) space.gathered[k] /= sum;
    }
    for (int64_t k = 0; k < count; ++k) weights[k] = space.gathered[k] + zero;
    for (int64_t k = 0; k < count; ++k) sums[indices[k]] += 1.0f;
  }
  for (int64_t e = 0; e < experts; ++e) sums[experts + e] += space.probs[e];
  sums[2 * experts] += lse * lse;
  sums[2 * experts + 1] += 1.0f;
}

// body(first, last, sums of these tokens) for blocks of tokens; then the blocks' sums are added in their order.
template <class Body>
void choose_blocks(const Choose& c, Body body) {
  int64_t length = 2 * c.experts + 2, blocks = (c.tokens + GATE_TOKENS - 1) / GATE_TOKENS;
  float* partials = floats(Scratch::more, (blocks + 1) * length);
  memset(partials, 0, blocks * length * 4);
  for_each(blocks, [&](int64_t i) {
    body(i * GATE_TOKENS, least(c.tokens, (i + 1) * GATE_TOKENS), partials + i * length);
  });
  memset(c.sums, 0, length * 4);
  for (int64_t i = 0; i < blocks; ++i)
    for (int64_t j = 0; j < length; ++j) c.sums[j] += partials[i * length + j];
}

void choose(const Choose& c) {
  choose_blocks(c, [&](int64_t first, int64_t last, float* sums) {
    ChooseSpace space = ChooseSpace::make(c.experts);
    for (int64_t t = first; t < last; ++t) choose_token(c, t, c.logits + t * c.experts, space, sums);
  });
}

INLINE void add_bias_and_relu(float* c, int64_t rows, const float* bias, bool relu) {
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < COLUMNS; v += LANES) {
      Floats value = load(c + r * COLUMNS + v);
      if (bias) value += bias[r];
      store(c + r * COLUMNS + v, relu ? Relu::value(value) : value);
    }
}

template <class X>
void gate_logits(const Gate& g, int64_t first, int64_t n) {
  const Choose& c = g.choose;
  int64_t hidden = g.hidden, experts = c.experts;
  float* features = floats(Scratch::tokens, hidden * COLUMNS);
  pack_rows<float>(n, hidden, features, [&](int64_t i) { return (const X*)g.x.data + (first + i) * hidden; });
  int vectors = n > LANES ? 2 : 1;
  if (g.hidden_weight) {
    float* packed = floats(Scratch::act, g.features * COLUMNS);
    multiply(g.hidden_weight, hidden, g.features, hidden, features, vectors, packed);
    add_bias_and_relu(packed, g.features, g.hidden_bias, true);
    features = packed;
  }
  float* tile = floats(Scratch::tile, round_up(experts, LANES) * COLUMNS);
  multiply(g.weight, g.features, experts, g.features, features, vectors, tile);
  add_bias_and_relu(tile, experts, g.bias, false);
  transposed(tile, experts, n, [&](int64_t i, int64_t e, Floats values, int64_t count) {
    int64_t t = first + i, at = t * experts + e;
    if (g.noise) values += load_first(g.noise + at, count);
    store_first(c.logits + at, c.mask && !c.mask[t] ? Floats{} : values, count);
  });
}

// The same for a handful of tokens; threads share the features of the hidden layer.
template <class X>
void gate_few_logits(const Gate& g) {
  const Choose& c = g.choose;
  int64_t n = c.tokens, hidden = g.hidden, features = g.features, experts = c.experts, stride = round_up(experts, LANES);
  const float* x = few_rows<float>(n, hidden, Scratch::tokens, [&](int64_t i) { return (const X*)g.x.data + i * hidden; });
  if (g.hidden_weight) {
    int64_t padded = round_up(features, LANES);
    float* products = floats(Scratch::columns, n * padded);
    share_features(features, [&](int64_t f, int64_t end) {
      few_products(n, g.hidden_weight + f * hidden, hidden, end - f, x, hidden, products + f, padded);
    });
    float* rows = floats(Scratch::act, n * features);
    for (int64_t t = 0; t < n; ++t)
      for (int64_t f = 0; f < features; f += LANES) {
        Floats values = load(products + t * padded + f);
        if (g.hidden_bias) values += load_first(g.hidden_bias + f, features - f);
        store_first(rows + t * features + f, Relu::value(values), features - f);
      }
    x = rows;
  }
  float* logits = floats(Scratch::tile, n * stride);
  few_products(n, g.weight, features, experts, x, features, logits, stride);
  for (int64_t t = 0; t < n; ++t)
    for (int64_t e = 0; e < experts; e += LANES) {
      int64_t at = t * experts + e, count = experts - e;
      Floats values = load(logits + t * stride + e);
      if (g.bias) values += load_first(g.bias + e, count);
      if (g.noise) values += load_first(g.noise + at, count);
      store_first(c.logits + at, c.mask && !c.mask[t] ? Floats{} : values, count);
    }
}

void gate(const Gate& g) {
  const Choose& c = g.choose;
  bool few = c.tokens && c.tokens <= FEW;
  if (few) with_type(g.x.type, [&](auto x) { gate_few_logits<decltype(x)>(g); });
  choose_blocks(c, [&](int64_t first, int64_t last, float* sums) {
    for (int64_t t = first; t < last && !few; t += COLUMNS)
      with_type(g.x.type, [&](auto x) { gate_logits<decltype(x)>(g, t, least(COLUMNS, last - t)); });
    ChooseSpace space = ChooseSpace::make(c.experts);
    for (int64_t t = first; t < last; ++t) choose_token(c, t, c.logits + t * c.experts, space, sums);
  });
}

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
    ChooseSpace space = ChooseSpace::make(b.choose.experts);
    for (int64_t t = i * GATE_TOKENS; t < least(tokens, (i + 1) * GATE_TOKENS); ++t)
      choose_backward_token(b, t, space);
  });
}

void product(const Product& p) {
  if (!p.transpose_a) {
    int64_t step = 8 * ROWS;
    for_each((p.m + step - 1) / step, [&](int64_t i) {
      int64_t first = i * step;
      multiply_weight<float>(p.a + first * p.k, least(step, p.m - first), p.k, (const float*)p.b.data, p.n, 0, p.n,
                             [&](int64_t row, int64_t column, const float* c) {
                               float* to = p.c + (first + row) * p.n + column;
                               int64_t n = p.n - column;
                               store_first(to, load(c), n);
                               if (n > LANES) store_first(to + LANES, load(c + LANES), n - LANES);
                             });
    });
    return;
  }
  static constexpr float ONE = 1.0f;
  int64_t step = 2 * COLUMNS, across = (p.n + step - 1) / step;
  with_type(p.b.type, [&](auto type) {
    typedef decltype(type) B;
    for_each((p.m + TILE_ROWS - 1) / TILE_ROWS * across, [&](int64_t i) {
      int64_t m0 = i / across * TILE_ROWS, n0 = i % across * step;
      int64_t m = least(TILE_ROWS, p.m - m0), n = least(step, p.n - n0);
      if (!p.k) {
        for (int64_t r = 0; r < m; ++r) memset(p.c + (m0 + r) * p.n + n0, 0, n * 4);
        return;
      }
      auto a = [&](int64_t k) { return p.a + k * p.m + m0; };
      auto b = [&](int64_t k) { return p.b.data ? (const B*)p.b.data + k * p.n + n0 : (const B*)(const void*)&ONE; };
      outer_products<float>(p.k, m, n, a, b, Gradient<float>{p.c + m0 * p.n + n0, p.n, n, false},
                            [](int64_t, int64_t, int64_t, int64_t) {});
    });
  });
}

void combine(const Combine& c) {
  constexpr int64_t STEP = 64;
  for_each((c.tokens + STEP - 1) / STEP, [&](int64_t i) {
    for (int64_t t = i * STEP; t < least(c.tokens, (i + 1) * STEP); ++t) {
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
