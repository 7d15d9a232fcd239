// A router and its choice: logits from tokens, a tile at a time.

#pragma once

#include "activations.h"
#include "choose.h"
#include "few.h"
#include "rows.h"

namespace {

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
  Frame frame;
  float* features = frame.take<float>(hidden * COLUMNS);
  pack_rows<float>(n, hidden, features, [&](int64_t i) { return (const X*)g.x.data + (first + i) * hidden; });
  int vectors = n > LANES ? 2 : 1;
  if (g.hidden_weight) {
    float* packed = frame.take<float>(g.features * COLUMNS);
    multiply(g.hidden_weight, hidden, g.features, hidden, features, vectors, packed);
    add_bias_and_relu(packed, g.features, g.hidden_bias, true);
    features = packed;
  }
  float* tile = frame.take<float>(round_up(experts, LANES) * COLUMNS);
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
  Frame frame;
  const float* x = few_rows<float>(n, hidden, frame, [&](int64_t i) { return (const X*)g.x.data + i * hidden; });
  if (g.hidden_weight) {
    int64_t padded = round_up(features, LANES);
    float* products = frame.take<float>(n * padded);
    share_features(features, [&](int64_t f, int64_t end) {
      few_products(n, g.hidden_weight + f * hidden, hidden, end - f, x, hidden, products + f, padded);
    });
    float* rows = frame.take<float>(n * features);
    for (int64_t t = 0; t < n; ++t)
      for (int64_t f = 0; f < features; f += LANES) {
        Floats values = load(products + t * padded + f);
        if (g.hidden_bias) values += load_first(g.hidden_bias + f, features - f);
        store_first(rows + t * features + f, Relu::value(values), features - f);
      }
    x = rows;
  }
  float* logits = frame.take<float>(n * stride);
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
  choose_tiles(c, [&](int64_t first, int64_t last, float* sums) {
    for (int64_t t = first; t < last && !few; t += COLUMNS)
      with_type(g.x.type, [&](auto x) { gate_logits<decltype(x)>(g, t, least(COLUMNS, last - t)); });
    Frame frame;
    ChooseSpace space = ChooseSpace::make(c.experts, frame);
    for (int64_t t = first; t < last; ++t) choose_token(c, t, c.logits + t * c.experts, space, sums);
  });
}

}  // namespace
