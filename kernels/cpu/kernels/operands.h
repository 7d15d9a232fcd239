// What a product is made of: units of values, and how many of them, of rows and of columns it takes at once.
//
// A "unit" is what one step over k takes from a row: a float, or two bf16 where the machine multiplies pairs. Elsewhere bf16 is
// widened on the way to B and to A. Where the machine has tile registers, a step is SIDE pairs.

#pragma once

#include "vector.h"

namespace {

#if defined(__AVX512F__)
constexpr int ROWS = 14;  // 14 x 2 accumulators, 2 vectors of B and one of A are 31 of 32 registers
#elif defined(__AVX2__)
constexpr int ROWS = 6;
#else
constexpr int ROWS = 4;
#endif
constexpr int COLUMNS = 2 * LANES;
constexpr int SIDE = 16;  // of a tile register: rows, and units of a row
constexpr int TILE_ROWS = HAS_TILES ? 8 * SIDE : 8 * ROWS;  // of C: a multiple of LANES

INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

INLINE int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

template <class T>
struct OperandOf {
  typedef float type;
};
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
template <>
struct OperandOf<bf16> {
  typedef bf16 type;
};
#endif

// What is multiplied where tensors are of type T.
template <class T>
using Operand = typename OperandOf<T>::type;

template <class O>
constexpr int64_t UNIT = sizeof(float) / sizeof(O);

// Whether products of O run on tile registers; fp32 has none.
template <class O>
constexpr bool IN_TILES = HAS_TILES && sizeof(O) == 2;

// How many values of a row one step of a product takes.
template <class O>
constexpr int64_t STEP = IN_TILES<O> ? SIDE * UNIT<O> : UNIT<O>;

// How many rows of A a product takes at once, and how many a panel has, at most.
template <class O>
constexpr int64_t MOST_ROWS = IN_TILES<O> ? 2 * SIDE : ROWS;
template <class O>
constexpr int64_t MOST_PANEL_ROWS = IN_TILES<O> ? SIDE : ROWS;

// How many units of so many values are packed: those of whole steps. What exceeds the values is zero.
template <class O>
constexpr int64_t units(int64_t values) {
  return (values + STEP<O> - 1) / STEP<O> * STEP<O> / UNIT<O>;
}

// Clears what `units` counts beyond the last of k values in B. Whatever writes B unit by unit leaves that alone.
template <class O>
INLINE void clear_rest(int64_t k, float* packed) {
  int64_t used = (k + UNIT<O> - 1) / UNIT<O>;
  if constexpr (IN_TILES<O>) memset(packed + used * COLUMNS, 0, (units<O>(k) - used) * COLUMNS * sizeof(float));
}

// As many rows each time: a few alone would wait for their own sums, and fewer than a tile register has would be copied.
template <class O>
INLINE int64_t rows_at_once(int64_t rows) {
  int64_t calls = (rows + MOST_ROWS<O> - 1) / MOST_ROWS<O>;
  return (rows + calls - 1) / calls;
}

// Rows of a panel of A, of so many.
template <class O>
INLINE int64_t panel_rows(int64_t rows) {
  return IN_TILES<O> ? SIDE : rows_at_once<O>(rows);
}

// Where a product usually goes: put(r, v, values) for vector v of row r.
struct InTile {
  float* c;

  INLINE void operator()(int64_t r, int v, Floats values) const {
    store(c + r * COLUMNS + v * LANES, values);
  }
};

}  // namespace
