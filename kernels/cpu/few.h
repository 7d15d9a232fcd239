// A handful of tokens, multiplied by a weight's rows as both lie in memory: there is nothing to pack, and nothing to wait for
// but the weight. A result is [tokens, features]. And `up` and `down` made of such products.

#pragma once

#include "tiles.h"

namespace {

constexpr int64_t FEW = 4;  // tokens

// Rows as operands of a product.
template <class T, class Row>
const Operand<T>* few_rows(int64_t n, int64_t k, Scratch name, Row row) {
  Operand<T>* rows = (Operand<T>*)floats(name, n * k);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t at = 0; at < k; at += LANES)
      store_first(rows + i * k + at, load_first(row(i) + at, k - at), k - at);
  return rows;
}

// A vector of sums over lanes, each in the order of `sum_lanes`.
INLINE Floats sum_each(Floats (&rows)[LANES]) {
  transpose(rows);
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) rows[i] += rows[i + half];
  return rows[0];
}

// c[t][r] = <weight row r, token t> for N tokens; c has rows of whole vectors.
template <class T, int N>
void dot_products(const T* weight, int64_t stride, int64_t rows, const Operand<T>* tokens, int64_t k, float* c,
                  int64_t c_stride) {
  typedef Operand<T> O;
  constexpr int STEP = LANES * UNIT<O>, AT_ONCE = 4;
  for (int64_t r = 0; r < rows; r += LANES) {
    Floats sums[N][LANES] = {};
    for (int first = 0; first < LANES && r + first < rows; first += AT_ONCE) {
      const T* w[AT_ONCE];
#pragma GCC unroll 4
      for (int i = 0; i < AT_ONCE; ++i) w[i] = weight + least(r + first + i, rows - 1) * stride;
      Floats parts[AT_ONCE][N] = {};
      for (int64_t at = 0; at < k; at += STEP) {
        Floats x[N];
#pragma GCC unroll 4
        for (int t = 0; t < N; ++t) x[t] = load_units<O>(tokens + t * k + at, k - at);
#pragma GCC unroll 4
        for (int i = 0; i < AT_ONCE; ++i) {
          Floats values = load_units<O>(w[i] + at, k - at);
          __builtin_prefetch(w[i] + AT_ONCE * stride + at);  // of the next rows
#pragma GCC unroll 4
          for (int t = 0; t < N; ++t) parts[i][t] = multiply_add<O>(values, x[t], parts[i][t]);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < AT_ONCE; ++i)
        for (int t = 0; t < N; ++t) sums[t][first + i] = parts[i][t];
    }
    for (int t = 0; t < N; ++t) store(c + t * c_stride + r, sum_each(sums[t]));
  }
}

// For n tokens, 1 to FEW.
template <class T>
void few_products(int64_t n, const T* weight, int64_t stride, int64_t rows, const Operand<T>* tokens, int64_t k, float* c,
                  int64_t c_stride) {
  auto run = n == 1   ? dot_products<T, 1>
             : n == 2 ? dot_products<T, 2>
             : n == 3 ? dot_products<T, 3>
                      : dot_products<T, 4>;
  run(weight, stride, rows, tokens, k, c, c_stride);
}

// `up` for features from..to of a tile's tokens.
template <class T>
void few_up(const Serve& s, const Tile& tile, int64_t from, int64_t to) {
  const Experts& experts = s.experts;
  int64_t hidden = experts.hidden, width = experts.width, all = experts.gated ? 2 * width : width, m = to - from;
  const Operand<T>* x = nullptr;
  with_type(s.x.type, [&](auto type) {
    const decltype(type)* rows = (const decltype(type)*)s.x.data;
    x = few_rows<T>(tile.rows, hidden, Scratch::tokens,
                    [&](int64_t i) { return rows + token_of(s.plan, tile.first + i) * hidden; });
  });
  int64_t stride = round_up(m, LANES);
  float* halves[2] = {floats(Scratch::tile, 2 * FEW * stride)};
  halves[1] = halves[0] + FEW * stride;
  for (int half = 0; half <= int(experts.gated); ++half) {
    int64_t first = half * width + from;
    const T* weight = (const T*)experts.up_weight + (tile.expert * all + first) * hidden;
    few_products(tile.rows, weight, hidden, m, x, hidden, halves[half], stride);
    for (int64_t i = 0; i < tile.rows; ++i)
      for (int64_t f = 0; f < m; f += LANES) {
        float* at = halves[half] + i * stride + f;
        Floats values = load(at);
        if (experts.up_bias) values += load_first((const T*)experts.up_bias + tile.expert * all + first + f, m - f);
        if (s.pre) store_first((T*)s.pre + row_of(s.plan, tile.first + i) * all + first + f, values, m - f);
        store(at, values);
      }
  }
  with_activation(experts.activation, [&](auto activation) {
    for (int64_t i = 0; i < tile.rows; ++i) {
      int64_t row = row_of(s.plan, tile.first + i);
      for (int64_t f = 0; f < m; f += LANES) {
        Floats values = activate<T>(activation, load(halves[0] + i * stride + f));
        if (experts.gated) values *= load(halves[1] + i * stride + f);
        if (s.weighted_act) values *= s.weights[row];
        store_first((T*)s.act + row * width + from + f, values, m - f);
      }
    }
  });
}

// `down` for hidden dimensions from..to of a tile's tokens.
template <class T>
void few_down(const Serve& s, const Tile& tile, int64_t from, int64_t to) {
  const Experts& experts = s.experts;
  int64_t hidden = experts.hidden, width = experts.width, m = to - from, stride = round_up(m, LANES);
  const Operand<T>* act = few_rows<T>(tile.rows, width, Scratch::act, [&](int64_t i) {
    return (const T*)s.act + row_of(s.plan, tile.first + i) * width;
  });
  float* c = floats(Scratch::tile, FEW * stride);
  const T* rows = (const T*)experts.down_weight + (tile.expert * hidden + from) * width;
  few_products(tile.rows, rows, width, m, act, width, c, stride);
  for (int64_t i = 0; i < tile.rows; ++i) {
    int64_t slot = s.plan.order[tile.first + i];
    Floats weight = splat(s.weights[slot]);
    for (int64_t h = 0; h < m; h += LANES) {
      Floats y = load(c + i * stride + h), shift = {};
      if (experts.down_bias) shift = load_first((const T*)experts.down_bias + tile.expert * hidden + from + h, m - h);
      y = weighted(s, y, shift, weight);
      int64_t at = slot * hidden + from + h;
      if (s.residual.data) y += load_any(s.residual, at, m - h);
      store_any(s.rows, at, y, m - h);
    }
  }
}

}  // namespace
