// Matrix products on tiles that fit into a cache. C = A B, where
//
//   B is packed: for each k, COLUMNS values side by side, one or two vectors.
//   A is read one value at a time, which is broadcast: from rows as they lie in memory, or from a packed panel.
//   C is a small fp32 tile, which the caller's epilogue reads while it is hot.
//
// In the forward, A is an expert's weight and B its tokens: weights are used as they are, and only tokens are packed, so
// there is no packed copy of a weight that could be out of date. Units are those of `operands.h`.
// A sum runs over k in order, whatever the tile: that, and no timing, decides the bits of a result.
// Where there are tile registers, products of bf16 run on those instead (`tile_products.h`), on the same operands.

#pragma once

#include "tile_products.h"

namespace {

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

// C[rows][COLUMNS] (+)= A B, `a` with rows as they lie in memory. The second vector of B may be left out.
template <class O>
void multiply(const O* a, int64_t stride, int64_t rows, int64_t k, const float* b, int vectors, float* c,
              bool accumulate = false) {
  if constexpr (IN_TILES<O>) {
    multiply_in_tiles(a, stride, rows, k, b, vectors, c, accumulate);
  } else {
    int64_t step = rows ? rows_at_once<O>(rows) : 1;
    for (int64_t r = 0; r < rows; r += step)
      micro_rows<O, false, ROWS>(least(step, rows - r), vectors, k, (const char*)(a + r * stride), stride * sizeof(O), b,
                                 c + r * COLUMNS, accumulate, InTile{c + r * COLUMNS});
  }
}

// The same with `a` in panels of `height` rows, each `steps` units long; put(row, v, values) takes what comes of it. Rows of C
// up to a whole panel may be written.
template <class O, class Put>
void multiply_panels(const float* a, int64_t rows, int64_t height, int64_t steps, const float* b, const float* c,
                     bool accumulate, Put put) {
  if constexpr (IN_TILES<O>) {
    multiply_panels_in_tiles(a, rows, steps, b, c, accumulate, put);
  } else {
    for (int64_t r = 0; r < rows; r += height)
      micro_rows<O, true, ROWS>(least(height, rows - r), 2, steps * UNIT<O>, (const char*)(a + r * steps), 4 * height, b,
                                c + r * COLUMNS, accumulate,
                                [=](int64_t i, int v, Floats values) { put(r + i, v, values); });
  }
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
