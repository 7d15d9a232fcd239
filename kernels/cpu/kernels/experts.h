// up, down, and both at once. A tile of tokens is packed, lane by lane, and the expert's weight rows are broadcast over
// it: C is [features, tokens]. Its activations are packed as they leave the registers, and feed the second product from the
// second-level cache.

#pragma once

#include "experts_few.h"
#include "tokens.h"

namespace {

// Activations of the tile's tokens for features f..f + m: to act[row][f], or packed into `packed`.
template <class T>
void up_features(const Forward& fw, const Tile& tile, const Tokens<T>& x, int64_t f, int64_t m, const Tokens<T>* packed) {
  const Experts& experts = fw.experts;
  int64_t hidden = experts.hidden, width = experts.width, all = experts.gated ? 2 * width : width;
  const T* weight = (const T*)experts.up_weight + tile.expert * all * hidden;
  const T* bias = experts.up_bias ? (const T*)experts.up_bias + tile.expert * all + f : nullptr;
  Frame frame;
  float *c = frame.take<float>(TILE_ROWS * COLUMNS), *gated = frame.take<float>(TILE_ROWS * COLUMNS);
  Epilogue<T> epilogue = {c, experts.gated ? gated : nullptr, bias, bias ? bias + width : nullptr};
  for (int64_t j = 0; j < x.n; j += COLUMNS) {
    int64_t columns = least(COLUMNS, x.n - j), first = tile.first + j;
    for (int half = 0; half <= int(experts.gated); ++half) {
      float* part = half ? gated : c;
      int64_t at = f + half * width;
      multiply_tokens(weight + at * hidden, hidden, m, x, j, part);
      if (fw.pre)
        transposed(part, m, columns, [&](int64_t i, int64_t r, Floats values, int64_t n) {
          if (bias) values += load_first(bias + half * width + r, n);
          store_first((T*)fw.pre + row_of(fw.plan, first + i) * all + at + r, values, n);
        });
    }
    with_activation(experts.activation, [&](auto activation) {
      if (packed) return epilogue.pack(activation, m, packed->stripe(j) + f / UNIT<Operand<T>> * COLUMNS);
      for (int64_t r = 0; r < m; ++r)
        for (int v = 0; v < COLUMNS; v += LANES) store(c + r * COLUMNS + v, epilogue.act(activation, r, v));
    });
    if (!packed)
      transposed(c, m, columns, [&](int64_t i, int64_t r, Floats values, int64_t n) {
        int64_t row = row_of(fw.plan, first + i);
        if (fw.weighted_act) values *= fw.weights[row];
        store_first((T*)fw.act + row * width + f + r, values, n);
      });
  }
}

// Outputs of the tile's tokens for hidden dimensions h..h + m, to the rows of their slots.
template <class T>
void down_features(const Forward& fw, const Tile& tile, const Tokens<T>& act, int64_t h, int64_t m) {
  const Experts& experts = fw.experts;
  int64_t hidden = experts.hidden, width = experts.width;
  const T* weight = (const T*)experts.down_weight + (tile.expert * hidden + h) * width;
  const T* bias = experts.down_bias ? (const T*)experts.down_bias + tile.expert * hidden + h : nullptr;
  Frame frame;
  float* c = frame.take<float>(TILE_ROWS * COLUMNS);
  for (int64_t j = 0; j < act.n; j += COLUMNS) {
    int64_t columns = least(COLUMNS, act.n - j);
    const int32_t* slots = fw.plan.order + tile.first + j;
    multiply_tokens(weight, width, m, act, j, c);
    float weights[COLUMNS] = {};
    for (int64_t i = 0; i < columns; ++i) weights[i] = fw.weights[slots[i]];
    for (int64_t r = 0; r < m; ++r)
      for (int v = 0; v < COLUMNS; v += LANES) {
        Floats y = load(c + r * COLUMNS + v), shift = splat(bias ? widen(bias[r]) : 0.0f);
        store(c + r * COLUMNS + v, weighted(fw, y, shift, load(weights + v)));
      }
    transposed(c, m, columns, [&](int64_t i, int64_t r, Floats values, int64_t n) {
      int64_t at = slots[i] * hidden + h + r;
      if (fw.residual.data) values += load_any(fw.residual, at, n);
      store_any(fw.rows, at, values, n);
    });
  }
}

template <class T>
Tokens<T> gather_tokens(const Forward& fw, const Tile& tile, Frame& frame) {
  auto x = Tokens<T>::make(tile.rows, fw.experts.hidden, frame);
  with_type(fw.x.type, [&](auto type) {
    typedef decltype(type) X;
    x.gather([&](int64_t i) {
      return (const X*)fw.x.data + token_of(fw.plan, tile.first + i) * fw.experts.hidden;
    });
  });
  return x;
}

template <class T>
Tokens<T> gather_act(const Forward& fw, const Tile& tile, Frame& frame) {
  auto act = Tokens<T>::make(tile.rows, fw.experts.width, frame);
  act.gather([&](int64_t i) { return (const T*)fw.act + row_of(fw.plan, tile.first + i) * fw.experts.width; });
  return act;
}

// Few tiles: threads share them by features.
template <class Body>
void for_each_part(const Plan& plan, int64_t features, Body body) {
  Frame frame;
  int64_t count;
  const Tile* tiles = make_tiles(plan, TILE_TOKENS, count, frame);
  int64_t step = plan.slots <= 2 * FEW ? features_a_task(features) : 4 * TILE_ROWS, parts = (features + step - 1) / step;
  for_each(count * parts, [&](int64_t i) {
    int64_t from = i % parts * step;
    body(tiles[i / parts], from, least(from + step, features));
  });
}

void up(const Forward& fw) {
  with_type(fw.experts.type, [&](auto type) {
    typedef decltype(type) T;
    for_each_part(fw.plan, fw.experts.width, [&](const Tile& tile, int64_t from, int64_t to) {
      if (tile.rows <= FEW) return few_up<T>(fw, tile, from, to);
      Frame frame;
      auto x = gather_tokens<T>(fw, tile, frame);
      for (int64_t f = from; f < to; f += TILE_ROWS) up_features<T>(fw, tile, x, f, least(TILE_ROWS, to - f), nullptr);
    });
  });
  clear_tail(fw.plan, fw.experts.type, fw.act, fw.experts.width);
  if (fw.pre) clear_tail(fw.plan, fw.experts.type, fw.pre, fw.experts.width * (fw.experts.gated ? 2 : 1));
}

void down(const Forward& fw) {
  with_type(fw.experts.type, [&](auto type) {
    typedef decltype(type) T;
    for_each_part(fw.plan, fw.experts.hidden, [&](const Tile& tile, int64_t from, int64_t to) {
      if (tile.rows <= FEW) return few_down<T>(fw, tile, from, to);
      Frame frame;
      auto act = gather_act<T>(fw, tile, frame);
      for (int64_t h = from; h < to; h += TILE_ROWS) down_features<T>(fw, tile, act, h, least(TILE_ROWS, to - h));
    });
  });
  clear_unassigned(fw.plan, fw.rows, fw.experts.hidden);
}

// Both, a tile at a time: the activations never leave the cache.
void in_tiles(const Forward& fw) {
  Frame frame;
  int64_t count;
  bool many = fw.plan.slots >= 4 * TILE_TOKENS * num_threads();  // else small tiles, so that no thread waits long for another
  const Tile* tiles = make_tiles(fw.plan, many ? TILE_TOKENS : TILE_TOKENS / 2, count, frame);
  with_type(fw.experts.type, [&](auto type) {
    typedef decltype(type) T;
    for_each(count, [&](int64_t i) {
      const Tile& tile = tiles[i];
      Frame frame;
      auto x = gather_tokens<T>(fw, tile, frame);
      auto act = Tokens<T>::make(tile.rows, fw.experts.width, frame);
      for (int64_t f = 0; f < fw.experts.width; f += TILE_ROWS)
        up_features<T>(fw, tile, x, f, least(TILE_ROWS, fw.experts.width - f), &act);
      for (int64_t h = 0; h < fw.experts.hidden; h += TILE_ROWS)
        down_features<T>(fw, tile, act, h, least(TILE_ROWS, fw.experts.hidden - h));
    });
  });
  if (fw.pre) clear_tail(fw.plan, fw.experts.type, fw.pre, fw.experts.width * (fw.experts.gated ? 2 : 1));
  clear_unassigned(fw.plan, fw.rows, fw.experts.hidden);
}

// With few rows the activations are small, and threads share the experts by features instead.
void up_and_down(const Forward& fw) {
  if (fw.plan.slots >= 512 && fw.plan.slots >= 16 * fw.plan.experts) return in_tiles(fw);
  Frame frame;
  Forward apart = fw;
  apart.act = frame.take_bytes(fw.plan.slots * fw.experts.width * (fw.experts.type == Type::bf16 ? 2 : 4));
  up(apart);
  down(apart);
}

}  // namespace
