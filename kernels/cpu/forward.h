// up, down, and both at once. A tile of tokens is packed, lane by lane, and the expert's weight rows are broadcast over
// it: C is [features, tokens]. Its activations are packed as they leave the registers, and feed the second product from the
// second-level cache.

#pragma once

#include "few.h"

namespace {

constexpr int64_t TILE_TOKENS = 128;  // their activations and a block of the weight fit into a cache of 1 MB

// The tokens of a tile, packed.
template <class T>
struct Tokens {
  int64_t n, k;
  float* packed;

  static Tokens make(int64_t n, int64_t k, Scratch name) {
    return {n, k, floats(name, round_up(n, COLUMNS) * units<Operand<T>>(k))};
  }

  INLINE float* stripe(int64_t j) const {
    return packed + j * units<Operand<T>>(k);
  }

  template <class Row>
  void gather(Row row) {
    for (int64_t j = 0; j < n; j += COLUMNS)
      pack_rows<Operand<T>>(n - j, k, stripe(j), [&](int64_t i) { return row(j + i); });
  }
};

// C (+)= `rows` rows of a weight times the stripe of tokens from `j` on.
template <class T>
void multiply_tokens(const T* weight, int64_t stride, int64_t rows, const Tokens<T>& tokens, int64_t j, float* c,
                     bool accumulate = false) {
  int64_t k = tokens.k, new_stride;
  float* widened = sizeof(T) == sizeof(Operand<T>) ? nullptr : floats(Scratch::weights, TILE_ROWS * k);
  const Operand<T>* operands = as_operands(weight, stride, rows, k, widened, new_stride);
  multiply(operands, new_stride, rows, k, tokens.stripe(j), tokens.n - j > LANES ? 2 : 1, c, accumulate);
}

// A stripe of units from value(row, first lane), which is called once for each.
template <class O, class Value>
INLINE void pack_units(int64_t rows, float* packed, Value value) {
  for (int64_t r = 0; r < rows; r += UNIT<O>)
    for (int v = 0; v < COLUMNS; v += LANES) {
      Floats unit = value(r, v);
      if constexpr (UNIT<O> == 2) unit = pair(unit, r + 1 < rows ? value(r + 1, v) : Floats{});
      store(packed + r / UNIT<O> * COLUMNS + v, unit);
    }
}

// Rows of C from one half of `up`, or both halves where it is gated, to activations.
template <class T>
struct Epilogue {
  const float *c, *gated;     // gated: null if it is not
  const T *bias, *gated_bias;  // null: none

  INLINE Floats half(const float* part, const T* shift, int64_t r, int v) const {
    Floats value = load(part + r * COLUMNS + v);
    return shift ? value + widen(shift[r]) : value;
  }

  template <class A>
  INLINE Floats act(A activation, int64_t r, int v) const {
    Floats x = activate<T>(activation, half(c, bias, r, v));
    return gated ? x * half(gated, gated_bias, r, v) : x;
  }

  // As units of a stripe that feeds the next product.
  template <class A>
  void pack(A activation, int64_t rows, float* packed) const {
    pack_units<Operand<T>>(rows, packed, [&](int64_t r, int v) { return act(activation, r, v); });
  }
};

// Activations of the tile's tokens for features f..f + m: to act[row][f], or packed into `packed`.
template <class T>
void up_features(const Serve& s, const Tile& tile, const Tokens<T>& x, int64_t f, int64_t m, const Tokens<T>* packed) {
  const Experts& experts = s.experts;
  int64_t hidden = experts.hidden, width = experts.width, all = experts.gated ? 2 * width : width;
  const T* weight = (const T*)experts.up_weight + tile.expert * all * hidden;
  const T* bias = experts.up_bias ? (const T*)experts.up_bias + tile.expert * all + f : nullptr;
  float* c = floats(Scratch::tile, 2 * TILE_ROWS * COLUMNS);
  float* gated = c + TILE_ROWS * COLUMNS;
  Epilogue<T> epilogue = {c, experts.gated ? gated : nullptr, bias, bias ? bias + width : nullptr};
  for (int64_t j = 0; j < x.n; j += COLUMNS) {
    int64_t columns = least(COLUMNS, x.n - j), first = tile.first + j;
    for (int half = 0; half <= int(experts.gated); ++half) {
      float* part = half ? gated : c;
      int64_t at = f + half * width;
      multiply_tokens(weight + at * hidden, hidden, m, x, j, part);
      if (s.pre)
        transposed(part, m, columns, [&](int64_t i, int64_t r, Floats values, int64_t n) {
          if (bias) values += load_first(bias + half * width + r, n);
          store_first((T*)s.pre + row_of(s.plan, first + i) * all + at + r, values, n);
        });
    }
    with_activation(experts.activation, [&](auto activation) {
      if (packed) return epilogue.pack(activation, m, packed->stripe(j) + f / UNIT<Operand<T>> * COLUMNS);
      for (int64_t r = 0; r < m; ++r)
        for (int v = 0; v < COLUMNS; v += LANES) store(c + r * COLUMNS + v, epilogue.act(activation, r, v));
    });
    if (!packed)
      transposed(c, m, columns, [&](int64_t i, int64_t r, Floats values, int64_t n) {
        int64_t row = row_of(s.plan, first + i);
        if (s.weighted_act) values *= s.weights[row];
        store_first((T*)s.act + row * width + f + r, values, n);
      });
  }
}

// Outputs of the tile's tokens for hidden dimensions h..h + m, to the rows of their slots.
template <class T>
void down_features(const Serve& s, const Tile& tile, const Tokens<T>& act, int64_t h, int64_t m) {
  const Experts& experts = s.experts;
  int64_t hidden = experts.hidden, width = experts.width;
  const T* weight = (const T*)experts.down_weight + (tile.expert * hidden + h) * width;
  const T* bias = experts.down_bias ? (const T*)experts.down_bias + tile.expert * hidden + h : nullptr;
  float* c = floats(Scratch::tile, 2 * TILE_ROWS * COLUMNS);
  for (int64_t j = 0; j < act.n; j += COLUMNS) {
    int64_t columns = least(COLUMNS, act.n - j);
    const int32_t* slots = s.plan.order + tile.first + j;
    multiply_tokens(weight, width, m, act, j, c);
    float weights[COLUMNS] = {};
    for (int64_t i = 0; i < columns; ++i) weights[i] = s.weights[slots[i]];
    for (int64_t r = 0; r < m; ++r)
      for (int v = 0; v < COLUMNS; v += LANES) {
        Floats y = load(c + r * COLUMNS + v), shift = splat(bias ? widen(bias[r]) : 0.0f);
        store(c + r * COLUMNS + v, weighted(s, y, shift, load(weights + v)));
      }
    transposed(c, m, columns, [&](int64_t i, int64_t r, Floats values, int64_t n) {
      int64_t at = slots[i] * hidden + h + r;
      if (s.residual.data) values += load_any(s.residual, at, n);
      store_any(s.rows, at, values, n);
    });
  }
}

template <class T>
Tokens<T> gather_tokens(const Serve& s, const Tile& tile) {
  auto x = Tokens<T>::make(tile.rows, s.experts.hidden, Scratch::tokens);
  with_type(s.x.type, [&](auto type) {
    typedef decltype(type) X;
    x.gather([&](int64_t i) {
      return (const X*)s.x.data + token_of(s.plan, tile.first + i) * s.experts.hidden;
    });
  });
  return x;
}

template <class T>
Tokens<T> gather_act(const Serve& s, const Tile& tile) {
  auto act = Tokens<T>::make(tile.rows, s.experts.width, Scratch::act);
  act.gather([&](int64_t i) { return (const T*)s.act + row_of(s.plan, tile.first + i) * s.experts.width; });
  return act;
}

// Few tiles: threads share them by features.
template <class Body>
void for_each_part(const Plan& plan, int64_t features, Body body) {
  int64_t count;
  const Tile* tiles = make_tiles(plan, TILE_TOKENS, count);
  int64_t step = plan.slots <= 2 * FEW ? features_a_task(features) : 4 * TILE_ROWS, parts = (features + step - 1) / step;
  for_each(count * parts, [&](int64_t i) {
    int64_t from = i % parts * step;
    body(tiles[i / parts], from, least(from + step, features));
  });
}

void up(const Serve& s) {
  with_type(s.experts.type, [&](auto type) {
    typedef decltype(type) T;
    for_each_part(s.plan, s.experts.width, [&](const Tile& tile, int64_t from, int64_t to) {
      if (tile.rows <= FEW) return few_up<T>(s, tile, from, to);
      auto x = gather_tokens<T>(s, tile);
      for (int64_t f = from; f < to; f += TILE_ROWS) up_features<T>(s, tile, x, f, least(TILE_ROWS, to - f), nullptr);
    });
  });
  clear_tail(s.plan, s.experts.type, s.act, s.experts.width);
  if (s.pre) clear_tail(s.plan, s.experts.type, s.pre, s.experts.width * (s.experts.gated ? 2 : 1));
}

void down(const Serve& s) {
  with_type(s.experts.type, [&](auto type) {
    typedef decltype(type) T;
    for_each_part(s.plan, s.experts.hidden, [&](const Tile& tile, int64_t from, int64_t to) {
      if (tile.rows <= FEW) return few_down<T>(s, tile, from, to);
      auto act = gather_act<T>(s, tile);
      for (int64_t h = from; h < to; h += TILE_ROWS) down_features<T>(s, tile, act, h, least(TILE_ROWS, to - h));
    });
  });
  clear_unserved(s.plan, s.rows, s.experts.hidden);
}

// Both, a tile at a time: the activations never leave the cache.
void serve(const Serve& s) {
  int64_t count;
  bool many = s.plan.slots >= 4 * TILE_TOKENS * num_threads();  // else small tiles, so that no thread waits long for another
  const Tile* tiles = make_tiles(s.plan, many ? TILE_TOKENS : TILE_TOKENS / 2, count);
  with_type(s.experts.type, [&](auto type) {
    typedef decltype(type) T;
    for_each(count, [&](int64_t i) {
      const Tile& tile = tiles[i];
      auto x = gather_tokens<T>(s, tile);
      auto act = Tokens<T>::make(tile.rows, s.experts.width, Scratch::act);
      for (int64_t f = 0; f < s.experts.width; f += TILE_ROWS)
        up_features<T>(s, tile, x, f, least(TILE_ROWS, s.experts.width - f), &act);
      for (int64_t h = 0; h < s.experts.hidden; h += TILE_ROWS)
        down_features<T>(s, tile, act, h, least(TILE_ROWS, s.experts.hidden - h));
    });
  });
  if (s.pre) clear_tail(s.plan, s.experts.type, s.pre, s.experts.width * (s.experts.gated ? 2 : 1));
  clear_unserved(s.plan, s.rows, s.experts.hidden);
}

}  // namespace
