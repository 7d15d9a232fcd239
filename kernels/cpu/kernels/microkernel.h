// Matrix products on tiles that fit into a cache. C = A B, where
//
//   B is packed: for each k, COLUMNS values side by side, one or two vectors.
//   A is read one value at a time, which is broadcast: from rows as they lie in memory, or from a packed panel.
//   C is a small fp32 tile, which the caller's epilogue reads while it is hot.
//
// In the forward, A is an expert's weight and B its tokens: weights are used as they are, and only tokens are packed, so
// there is no packed copy of a weight that could be out of date. A "unit" is what one step over k takes from a row: a
// float, or two bf16 where the machine multiplies pairs. Elsewhere bf16 is widened on the way to B and to A.
// A sum runs over k in order, whatever the tile: that, and no timing, decides the bits of a result.

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
constexpr int TILE_ROWS = 8 * ROWS;  // of C: a multiple of LANES

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

template <class O>
constexpr int64_t units(int64_t values) {
  return (values + UNIT<O> - 1) / UNIT<O>;
}

template <class O>
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  if (UNIT<O> == 2) return (Floats)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#endif
  return a * b + c;
}

INLINE Floats broadcast(const char* p) {
  float unit;
  memcpy(&unit, p, 4);
  return splat(unit);
}

INLINE Floats broadcast_half(const char* p) {
  uint16_t half;
  memcpy(&half, p, 2);
  return as_floats(splat_word(half));
}

// Where a product usually goes: put(r, v, values) for vector v of row r.
struct InTile {
  float* c;

  INLINE void operator()(int64_t r, int v, Floats values) const {
    store(c + r * COLUMNS + v * LANES, values);
  }
};

// put(C[r][..] +) sum over k of A(r, k) * B[k]. A(r, k) lies at a + r * row_bytes + k * sizeof(O); in a panel, whose k is
// padded to whole units, at a + unit * row_bytes + r * 4.
template <class O, bool PANEL, int R, int VECTORS, class Put>
void micro(int64_t k, const char* a, int64_t row_bytes, const float* b, const float* c, bool accumulate, Put put) {
  Floats sums[R][VECTORS];
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = accumulate ? load(c + r * COLUMNS + v * LANES) : Floats{};
  // One pointer for three rows, reached as p, p + row_bytes and p + 2 * row_bytes: all of them stay in registers.
  constexpr int POINTERS = PANEL ? 1 : (R + 2) / 3;
  const char* p[POINTERS];
#pragma GCC unroll 5
  for (int i = 0; i < POINTERS; ++i) p[i] = a + 3 * i * row_bytes;
  auto advance = [&]() __attribute__((always_inline)) {
    Floats columns[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) columns[v] = load(b + v * LANES);
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      Floats value = broadcast(PANEL ? p[0] + 4 * r : p[r / 3 % POINTERS] + (r % 3) * row_bytes);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = multiply_add<O>(value, columns[v], sums[r][v]);
    }
    b += COLUMNS;
#pragma GCC unroll 5
    for (int i = 0; i < POINTERS; ++i) p[i] += PANEL ? row_bytes : 4;
  };
  constexpr int64_t LINE = 16;
  int64_t steps = k / UNIT<O>;
  for (; !PANEL && steps >= LINE; steps -= LINE) {
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) __builtin_prefetch(p[r / 3 % POINTERS] + (r % 3) * row_bytes + R * row_bytes);
#pragma GCC unroll 1
    for (int64_t step = 0; step < LINE; ++step) advance();
  }
#pragma GCC unroll 1
  for (; steps; --steps) advance();
  if (!PANEL && k % UNIT<O>)  // half a unit: what follows it in memory belongs to the next row
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      Floats value = broadcast_half(p[r / 3 % POINTERS] + (r % 3) * row_bytes);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v)
        sums[r][v] = multiply_add<O>(value, load(b + v * LANES), sums[r][v]);
    }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) put(r, v, sums[r][v]);
}

template <class O, bool PANEL, int R, class Put>
INLINE void micro_rows(int64_t rows, int vectors, int64_t k, const char* a, int64_t row_bytes, const float* b,
                       const float* c, bool accumulate, Put put) {
  if (rows >= R) {
    auto run = PANEL || vectors == 2 ? micro<O, PANEL, R, 2, Put> : micro<O, PANEL, R, 1, Put>;
    run(k, a, row_bytes, b, c, accumulate, put);
  } else if constexpr (R > 1) {
    micro_rows<O, PANEL, R - 1>(rows, vectors, k, a, row_bytes, b, c, accumulate, put);
  }
}

// Rows that one call of `micro` takes: about as many each time, since a few rows alone would wait for their own sums.
INLINE int64_t rows_at_once(int64_t rows) {
  int64_t calls = (rows + ROWS - 1) / ROWS;
  return (rows + calls - 1) / calls;
}

// C[rows][COLUMNS] (+)= A B, `a` with rows as they lie in memory. The second vector of B may be left out.
template <class O>
void multiply(const O* a, int64_t stride, int64_t rows, int64_t k, const float* b, int vectors, float* c,
              bool accumulate = false) {
  int64_t step = rows ? rows_at_once(rows) : 1;
  for (int64_t r = 0; r < rows; r += step)
    micro_rows<O, false, ROWS>(least(step, rows - r), vectors, k, (const char*)(a + r * stride), stride * sizeof(O), b,
                               c + r * COLUMNS, accumulate, InTile{c + r * COLUMNS});
}

// The same with `a` in panels of `height` rows, each `steps` units long; put(row, v, values) takes what comes of it.
template <class O, class Put>
void multiply_panels(const float* a, int64_t rows, int64_t height, int64_t steps, const float* b, const float* c,
                     bool accumulate, Put put) {
  for (int64_t r = 0; r < rows; r += height)
    micro_rows<O, true, ROWS>(least(height, rows - r), 2, steps * UNIT<O>, (const char*)(a + r * steps), 4 * height, b,
                              c + r * COLUMNS, accumulate,
                              [=](int64_t i, int v, Floats values) { put(r + i, v, values); });
}

// A tile of C, transposed, to rows of the caller: finish(column, row, values, n) gets n values from C's row `row` on.
template <class Finish>
INLINE void transposed(const float* c, int64_t rows, int64_t columns, Finish finish) {
  for (int64_t j = 0; j < columns; j += LANES)
    for (int64_t r = 0; r < rows; r += LANES) {
      Floats square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) square[i] = load(c + (r + i) * COLUMNS + j);
      transpose(square);
      int64_t here = least(LANES, columns - j);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        if (i < here) finish(j + i, r, square[i], rows - r);
    }
}

}  // namespace
