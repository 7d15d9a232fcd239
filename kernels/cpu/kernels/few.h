// A handful of tokens, multiplied by a weight's rows as both lie in memory: there is nothing to pack, and nothing to wait for
// but the weight. A result is [tokens, features].

#pragma once

#include "../runtime/arena.h"
#include "packing.h"

namespace {

// Tokens. With tile registers, too: a kilobyte of a weight, 16 rows by 32 terms, takes 16 multiply-adds of vectors for each token, of
// two cycles where they are slow: at most 128 cycles, about as many as the kilobyte takes from memory (some 10 bytes a cycle).
// From five tokens on, one register of 16 columns, which takes 16 cycles however few of them are used, does as much.
constexpr int64_t FEW = 4;

// Rows as operands of a product.
template <class T, class Row>
const Operand<T>* few_rows(int64_t n, int64_t k, Frame& frame, Row row) {
  Operand<T>* rows = frame.take<Operand<T>>(n * k);
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

}  // namespace
