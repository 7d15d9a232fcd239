// A block of an encoder from its attention on, for inference: the output projection, the feed-forward part, the norms between,
// and the following block's q, k and v. A tile of tokens goes through all of it without leaving the cache. Its hidden
// states lie as C does, [features, tokens]: a product is added to them in its registers, and a norm has tokens in lanes.

#pragma once

#include "../records.h"
#include "parallel.h"
#include "rows.h"
#include "tiles.h"
#include "tokens.h"

namespace {

// A tile on its way. `hidden` is fp32, stripe by stripe of COLUMNS tokens.
template <class T>
struct Passage {
  const BlockEnd& b;
  int64_t first, n;
  float* hidden;
  Tokens<T> x, act;

  static Passage make(const BlockEnd& b, int64_t first, int64_t n, Frame& frame) {
    // `transposed` reads on, up to LANES rows: into the next tile, or memory behind the last.
    float* hidden = b.states ? b.states + first * b.hidden
                             : frame.take<float>(round_up(n, COLUMNS) * b.hidden + LANES * COLUMNS);
    return {b, first, n, hidden, Tokens<T>::make(n, b.hidden, frame), Tokens<T>::make(n, b.weights.width, frame)};
  }

  INLINE float* stripe(int64_t j) const {
    return hidden + j * b.hidden;
  }

  // hidden = rows, or hidden += rows
  template <class R>
  void take(const R* rows, bool add) const {
    rows += first * b.hidden;
    for (int64_t j = 0; j < n; j += COLUMNS)
      for (int v = 0; v < COLUMNS; v += LANES)
        for (int64_t f = 0; f < b.hidden; f += LANES) {
          Floats columns[LANES];
          load_columns(columns, n - j - v, b.hidden - f, [&](int64_t i) { return rows + (j + v + i) * b.hidden + f; });
          for (int64_t i = 0; i < least(LANES, b.hidden - f); ++i) {
            float* at = stripe(j) + (f + i) * COLUMNS + v;
            store(at, add ? load(at) + columns[i] : columns[i]);
          }
        }
  }

  // x = hidden, packed.
  void pack(int64_t j) const {
    const float* from = stripe(j);
    pack_units<Operand<T>>(b.hidden, x.stripe(j), [&](int64_t f, int v) { return load(from + f * COLUMNS + v); });
  }

  // x = the attention's output, packed.
  void gather() {
    const T* rows = (const T*)b.y.data + first * b.hidden;
    x.gather([&](int64_t i) { return rows + i * b.hidden; });
  }

  // hidden += weight * tokens, for features from..to; the bias waits for the norm.
  void project(const void* weight, const Tokens<T>& tokens, int64_t from, int64_t to) const {
    const T* rows = (const T*)weight;
    for (int64_t f = from; f < to; f += TILE_ROWS)
      for (int64_t j = 0; j < n; j += COLUMNS)
        multiply_tokens(rows + f * tokens.k, tokens.k, least(TILE_ROWS, to - f), tokens, j, stripe(j) + f * COLUMNS,
                        true);
  }

  // act = activation(up * x)
  void up(int64_t from, int64_t to) const {
    Frame frame;
    float* c = frame.take<float>(TILE_ROWS * COLUMNS);
    for (int64_t f = from; f < to; f += TILE_ROWS) {
      int64_t m = least(TILE_ROWS, to - f);
      Epilogue<T> epilogue = {c, nullptr, b.weights.up.bias ? (const T*)b.weights.up.bias + f : nullptr, nullptr};
      for (int64_t j = 0; j < n; j += COLUMNS) {
        multiply_tokens((const T*)b.weights.up.weight + f * b.hidden, b.hidden, m, x, j, c);
        with_activation(b.weights.activation, [&](auto activation) {
          epilogue.pack(activation, m, act.stripe(j) + f / UNIT<Operand<T>> * COLUMNS);
        });
      }
    }
  }

  // hidden = norm(hidden + bias), and packed into x.
  void normalize(const Norm& norm, const T* bias) const {
    for (int64_t j = 0; j < n; j += COLUMNS) {
      float* rows = stripe(j);
      Floats mean[2] = {}, power[2] = {};
      for (int64_t f = 0; f < b.hidden; ++f)
        for (int v = 0; v < 2; ++v) {
          float* at = rows + f * COLUMNS + v * LANES;
          Floats value = bias ? load(at) + widen(bias[f]) : load(at);
          mean[v] += value;
          store(at, value);
        }
      for (int v = 0; v < 2; ++v) mean[v] *= 1.0f / b.hidden;
      for (int64_t f = 0; f < b.hidden; ++f)
        for (int v = 0; v < 2; ++v) {
          Floats apart = load(rows + f * COLUMNS + v * LANES) - mean[v];
          power[v] += apart * apart;
        }
      for (int v = 0; v < 2; ++v) power[v] = 1.0f / sqrt(power[v] / float(b.hidden) + norm.eps);
      pack_units<Operand<T>>(b.hidden, x.stripe(j), [&](int64_t f, int at) {
        float* value = rows + f * COLUMNS + at;
        int v = at / LANES;
        Floats normal = (load(value) - mean[v]) * power[v] * norm.weight[f] + norm.bias[f];
        store(value, normal);
        return normal;
      });
    }
  }

  void store_hidden() const {
    for (int64_t j = 0; j < n; j += COLUMNS)
      transposed(stripe(j), b.hidden, least(COLUMNS, n - j), [&](int64_t i, int64_t f, Floats values, int64_t count) {
        store_first(b.out_hidden + (first + j + i) * b.hidden + f, values, count);
      });
  }

  // put(c, f, m, j) for products of `next_qkv`, m features from f on with the stripe of tokens from j on.
  template <class Put>
  void next_products(int64_t from, int64_t to, Put put) const {
    Frame frame;
    float* c = frame.take<float>(TILE_ROWS * COLUMNS);
    for (int64_t f = from; f < to; f += TILE_ROWS) {
      int64_t m = least(TILE_ROWS, to - f);
      for (int64_t j = 0; j < n; j += COLUMNS) {
        multiply_tokens((const T*)b.next_qkv.weight + f * b.hidden, b.hidden, m, x, j, c);
        put(c, f, m, j);
      }
    }
  }

  // The following block's q, k and v.
  void next_qkv(int64_t from, int64_t to) const {
    const T* bias = (const T*)b.next_qkv.bias;
    next_products(from, least(to, b.next_in_rows), [&](const float* c, int64_t f, int64_t m, int64_t j) {
      transposed(c, m, least(COLUMNS, n - j), [&](int64_t i, int64_t r, Floats values, int64_t count) {
        if (bias) values += load_first(bias + f + r, count);
        store_first((T*)b.out_next + (first + j + i) * b.next_in_rows + f + r, values, count);
      });
    });
    next_products(from > b.next_in_rows ? from : b.next_in_rows, to, [&](const float* c, int64_t f, int64_t m, int64_t j) {
      for (int64_t r = 0; r < m; ++r) {
        T* row = (T*)b.out_columns + (f + r - b.next_in_rows) * b.column_stride + first + j;
        for (int v = 0; v < COLUMNS && j + v < n; v += LANES) {
          Floats values = load(c + r * COLUMNS + v);
          store_first(row + v, bias ? values + widen(bias[f + r]) : values, n - j - v);
        }
      }
    });
  }
};

// Runs body(from, to) over a number of features.
struct Alone {
  template <class Body>
  INLINE void operator()(int64_t features, Body body) const {
    body(0, features);
  }
};

struct Shared {
  template <class Body>
  INLINE void operator()(int64_t features, Body body) const {
    share_features(features, body);
  }
};

template <class T, class Each>
void pass_tile(const BlockEnd& b, int64_t first, int64_t n, Each each) {
  Frame frame;
  auto tile = Passage<T>::make(b, first, n, frame);
  if (b.x) tile.take(b.x, false);
  if (b.y.data) {
    if (b.weights.out.weight) {
      tile.gather();
      each(b.hidden, [&](int64_t from, int64_t to) { tile.project(b.weights.out.weight, tile.x, from, to); });
    } else {
      with_type(b.y.type, [&](auto type) { tile.take((const decltype(type)*)b.y.data, true); });
    }
    tile.normalize(b.weights.norm, (const T*)b.weights.out.bias);
  } else {
    for (int64_t j = 0; j < n; j += COLUMNS) tile.pack(j);
  }
  if (b.weights.up.weight) {
    each(b.weights.width, [&](int64_t from, int64_t to) { tile.up(from, to); });
    each(b.hidden, [&](int64_t from, int64_t to) { tile.project(b.weights.down.weight, tile.act, from, to); });
    tile.normalize(b.weights.ffn_norm, (const T*)b.weights.down.bias);
  }
  if (b.out_hidden) tile.store_hidden();
  if (b.next_qkv.weight) each(b.next_size, [&](int64_t from, int64_t to) { tile.next_qkv(from, to); });
}

// Tiles that grow smaller towards the end, so that threads end at about the same time. Bits do not depend on tiles.
inline const Tile* make_token_tiles(int64_t tokens, int64_t threads, int64_t& count, Frame& frame) {
  Tile* tiles = frame.take<Tile>(tokens / COLUMNS + 1);
  count = 0;
  for (int64_t at = 0; at < tokens; at += tiles[count++].rows) {
    int64_t rows = least(TILE_TOKENS, round_up((tokens - at) / (2 * threads) + 1, COLUMNS));
    tiles[count] = {0, at, least(rows, tokens - at)};
  }
  return tiles;
}

void block_end(const BlockEnd& b) {
  with_type(b.type, [&](auto type) {
    typedef decltype(type) T;
    int64_t threads = num_threads(), count;
    if (threads > 1 && b.tokens <= TILE_TOKENS) {  // a query or two: threads share the features
      if (b.tokens) pass_tile<T>(b, 0, b.tokens, Shared{});
      return;
    }
    Frame frame;
    const Tile* tiles = make_token_tiles(b.tokens, threads, count, frame);
    for_each(count, [&](int64_t i) { pass_tile<T>(b, tiles[i].first, tiles[i].rows, Alone{}); });
  });
}

}  // namespace
