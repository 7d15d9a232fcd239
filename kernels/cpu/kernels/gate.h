// A router and its choice: logits from tokens, a stripe at a time.

#pragma once

#include "choose.h"
#include "few.h"
#include "rows.h"
#include "tokens.h"

namespace {

INLINE bool has_hidden_layer(const Gate& g) {
  return g.hidden_weight.data;
}

// What multiplies x, and how many rows it has.
INLINE Rows first_weight(const Gate& g) {
  return has_hidden_layer(g) ? g.hidden_weight : g.weight;
}

INLINE int64_t first_size(const Gate& g) {
  return has_hidden_layer(g) ? g.features : g.choose.experts;
}

// body(T{}, X{}) for the types of the first weight and of x.
template <class Body>
INLINE void with_gate_types(const Gate& g, Body body) {
  if (first_weight(g).type == Type::bf16) return body(bf16{}, bf16{});
  with_type(g.x.type, [&](auto x) { body(float{}, x); });
}

INLINE void add_bias_and_relu(float* c, int64_t rows, const float* bias, bool relu) {
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < COLUMNS; v += LANES) {
      Floats value = load(c + r * COLUMNS + v);
      if (bias) value += bias[r];
      store(c + r * COLUMNS + v, relu ? Relu::value(value) : value);
    }
}

// The products of n tokens, n <= COLUMNS, and the first weight; of the hidden layer, if there is one, what it makes of them.
// -> [first_size, COLUMNS]
template <class T, class X>
float* first_products(const Gate& g, int64_t first, int64_t n, Frame& frame) {
  int64_t size = first_size(g);
  float* c = frame.take<float>(round_up(size, LANES) * COLUMNS);
  Frame own;
  auto x = Tokens<T>::make(n, g.hidden, own);
  x.gather([&](int64_t i) { return (const X*)g.x.data + (first + i) * g.hidden; });
  const T* weight = (const T*)first_weight(g).data;
  for (int64_t r = 0; r < size; r += TILE_ROWS)
    multiply_tokens(weight + r * g.hidden, g.hidden, least(TILE_ROWS, size - r), x, 0, c + r * COLUMNS);
  if (has_hidden_layer(g)) add_bias_and_relu(c, size, g.hidden_bias, true);
  return c;
}

template <class T, class X>
void gate_logits(const Gate& g, int64_t first, int64_t n) {
  const Choose& c = g.choose;
  int64_t experts = c.experts;
  Frame frame;
  float* tile = first_products<T, X>(g, first, n, frame);
  if (has_hidden_layer(g)) {
    const float* features = tile;
    tile = frame.take<float>(round_up(experts, LANES) * COLUMNS);
    multiply((const float*)g.weight.data, g.features, experts, g.features, features, n > LANES ? 2 : 1, tile);
  }
  add_bias_and_relu(tile, experts, g.bias, false);
  transposed(tile, experts, n, [&](int64_t i, int64_t e, Floats values, int64_t count) {
    int64_t t = first + i, at = t * experts + e;
    if (g.noise) values += load_first(g.noise + at, count);
    store_first(c.logits + at, c.mask && !c.mask[t] ? Floats{} : values, count);
  });
}

// The same for a handful of tokens; threads share the features of the hidden layer.
template <class T, class X>
void gate_few_logits(const Gate& g) {
  const Choose& c = g.choose;
  int64_t n = c.tokens, hidden = g.hidden, features = g.features, experts = c.experts, stride = round_up(experts, LANES);
  Frame frame;
  const Operand<T>* x = few_rows<T>(n, hidden, frame, [&](int64_t i) { return (const X*)g.x.data + i * hidden; });
  float* logits = frame.take<float>(n * stride);
  if (has_hidden_layer(g)) {
    int64_t padded = round_up(features, LANES);
    float* products = frame.take<float>(n * padded);
    share_features(features, [&](int64_t f, int64_t end) {
      few_products(n, (const T*)g.hidden_weight.data + f * hidden, hidden, end - f, x, hidden, products + f, padded);
    });
    float* rows = frame.take<float>(n * features);
    for (int64_t t = 0; t < n; ++t)
      for (int64_t f = 0; f < features; f += LANES) {
        Floats values = load(products + t * padded + f);
        if (g.hidden_bias) values += load_first(g.hidden_bias + f, features - f);
        store_first(rows + t * features + f, Relu::value(values), features - f);
      }
    few_products(n, (const float*)g.weight.data, features, experts, rows, features, logits, stride);
  } else {
    few_products(n, (const T*)g.weight.data, hidden, experts, x, hidden, logits, stride);
  }
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
  if (few) with_gate_types(g, [&](auto weight, auto x) { gate_few_logits<decltype(weight), decltype(x)>(g); });
  choose_tiles(c, [&](int64_t first, int64_t last, float* sums) {
    for (int64_t t = first; t < last && !few; t += COLUMNS)
      with_gate_types(g, [&](auto weight, auto x) {
        gate_logits<decltype(weight), decltype(x)>(g, t, least(COLUMNS, last - t));
      });
    Frame frame;
    ChooseSpace space = ChooseSpace::make(c.experts, frame);
    for (int64_t t = first; t < last; ++t) choose_token(c, t, c.logits + t * c.experts, space, sums);
  });
}

// The hidden layer's features again, for the backward: [T, G].
void gate_features(const Gate& g, float* to) {
  int64_t tokens = g.choose.tokens;
  for_each((tokens + COLUMNS - 1) / COLUMNS, [&](int64_t i) {
    int64_t first = i * COLUMNS, n = least(COLUMNS, tokens - first);
    Frame frame;
    with_gate_types(g, [&](auto weight, auto x) {
      const float* c = first_products<decltype(weight), decltype(x)>(g, first, n, frame);
      transposed(c, g.features, n, [&](int64_t t, int64_t f, Floats values, int64_t count) {
        store_first(to + (first + t) * g.features + f, values, count);
      });
    });
  });
}

}  // namespace
