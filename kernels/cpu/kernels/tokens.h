// A tile of tokens, packed lane by lane: its products with rows of a weight, and the activations of those.

#pragma once

#include "../runtime/arena.h"
#include "activations.h"
#include "packing.h"

namespace {

constexpr int64_t TILE_TOKENS = 128;  // their activations and a part of the weight fit into a cache of 1 MB

// The tokens of a tile, packed.
template <class T>
struct Tokens {
  int64_t n, k;
  float* packed;

  static Tokens make(int64_t n, int64_t k, Frame& frame) {
    Tokens tokens = {n, k, frame.take<float>(round_up(n, COLUMNS) * units<Operand<T>>(k))};
    for (int64_t j = 0; j < n; j += COLUMNS) clear_rest<Operand<T>>(k, tokens.stripe(j));
    return tokens;
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
  Frame frame;
  float* widened = sizeof(T) == sizeof(Operand<T>) ? nullptr : frame.take<float>(TILE_ROWS * k);
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

}  // namespace
