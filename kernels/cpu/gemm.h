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

#include "elementary.h"

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

// Packing.

// LANES units of a row of X, from unit `k` on, of which `values` elements exist; X is converted to the operand's type.
template <class O, class X>
INLINE Floats load_units(const X* row, int64_t values) {
  if constexpr (UNIT<O> == 1) {
    return load_first(row, values);
  } else {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    if constexpr (sizeof(X) == 2) {
      if (values >= 2 * LANES) return load((const float*)(const void*)row);
      return (Floats)_mm512_maskz_loadu_epi16((1u << values) - 1, row);
    } else {
      Floats low = load_first(row, values), high = values > LANES ? load_first(row + LANES, values - LANES) : Floats{};
      return (Floats)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    }
#endif
  }
}

// B from rows: column j is the row of X that row(j) points to, for j < n; the other columns are zero.
template <class O, class Row>
void pack_rows(int64_t n, int64_t k, float* packed, Row row) {
  for (int64_t first = 0; first < COLUMNS && first < n; first += LANES)
    for (int64_t at = 0; at < k; at += LANES * UNIT<O>) {
      Floats block[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        block[i] = first + i < n ? load_units<O>(row(first + i) + at, k - at) : Floats{};
      transpose(block);
      float* to = packed + at / UNIT<O> * COLUMNS + first;
      int64_t count = least(LANES, units<O>(k - at));
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        if (i < count) store(to + i * COLUMNS, block[i]);
    }
}

INLINE Words load_words(const bf16* p, int64_t n) {
  return as_words(load_first(p, n)) >> 16;
}

INLINE Words load_words(const float* p, int64_t n) {
  return as_wide_words(narrow(load_first(p, n)));
}

// Units of two bf16, the first in the low half.
INLINE Floats pair(Floats low, Floats high) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  alignas(64) static constexpr uint16_t ORDER[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (Floats)_mm512_permutexvar_epi16(_mm512_load_si512(ORDER), both);
#else
  return as_floats(as_wide_words(narrow(high)) << 16 | as_wide_words(narrow(low)));
#endif
}

// A unit for each of the first n columns, from rows k and k + 1 (null: zeros) where a unit is a pair, else from row k.
template <class O, class X>
INLINE Floats interleave(const X* even, const X* odd, int64_t n) {
  if constexpr (UNIT<O> == 1) return load_first(even, n);
  Words pairs = load_words(even, n);
  if (odd) pairs |= load_words(odd, n) << 16;
  return as_floats(pairs);
}

// Rows that are packed soon, which lie apart.
constexpr int64_t AHEAD = 48;

template <int LOCALITY = 3, class X>
INLINE void fetch(const X* row, int64_t n) {
  for (int64_t i = 0; i < n * int64_t(sizeof(X)); i += 64) __builtin_prefetch((const char*)row + i, 0, LOCALITY);
}

// B from columns: step k is the first n elements of the row that row(k) points to. What exceeds COLUMNS continues in
// another B, behind this one.
template <class O, class Row>
void pack_columns(int64_t n, int64_t k, float* packed, Row row) {
  int64_t size = units<O>(k) * COLUMNS;
  for (int64_t at = 0; at < k; at += UNIT<O>, packed += COLUMNS) {
    auto even = row(at);
    auto odd = UNIT<O> == 2 && at + 1 < k ? row(at + 1) : nullptr;
    if (at + AHEAD < k) {
      fetch(row(at + AHEAD), n);
      if (UNIT<O> == 2 && at + AHEAD + 1 < k) fetch(row(at + AHEAD + 1), n);
    }
    float* to = packed;
    for (int64_t i = 0; i < n; i += COLUMNS, to += size) {
      store(to, interleave<O>(even + i, odd ? odd + i : odd, n - i));
      bool second = n - i > LANES;
      int64_t j = i + LANES;
      store(to + LANES, second ? interleave<O>(even + j, odd ? odd + j : odd, n - j) : Floats{});
    }
  }
}

// A's panels from columns: row r of A is column r of the rows that row(k) points to, r < n.
template <class O, class Row>
void pack_panels(int64_t n, int64_t height, int64_t k, float* panels, Row row) {
  int64_t steps = units<O>(k);
  for (int64_t at = 0; at < k; at += UNIT<O>) {
    auto even = row(at);
    auto odd = UNIT<O> == 2 && at + 1 < k ? row(at + 1) : nullptr;
    if (at + AHEAD < k) {
      fetch(row(at + AHEAD), n);
      if (UNIT<O> == 2 && at + AHEAD + 1 < k) fetch(row(at + AHEAD + 1), n);
    }
    for (int64_t r = 0; r < n; r += height) {
      float* to = panels + r * steps + at / UNIT<O> * height;
      // A whole vector may be stored over the next step's place, which is filled later; not so at the end.
      Floats values = interleave<O>(even + r, odd ? odd + r : odd, least(n - r, LANES));
      store_first(to, values, at + UNIT<O> < k ? LANES : height);
    }
  }
}

// Rows [n, k] of T as rows of operands: as they are, or widened into scratch.
template <class T>
const Operand<T>* as_operands(const T* rows, int64_t stride, int64_t n, int64_t k, float* widened, int64_t& new_stride) {
  if constexpr (sizeof(T) == sizeof(Operand<T>)) {
    new_stride = stride;
    return rows;
  } else {
    new_stride = k;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; j += LANES)
        store_first(widened + i * k + j, load_first(rows + i * stride + j, k - j), k - j);
    return widened;
  }
}

// A tile of C, transposed, to rows of the caller: finish(column, row, values, n) gets n values from C's row `row` on.
template <class Finish>
INLINE void transposed(const float* c, int64_t rows, int64_t columns, Finish finish) {
  for (int64_t j = 0; j < columns; j += LANES)
    for (int64_t r = 0; r < rows; r += LANES) {
      Floats block[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) block[i] = load(c + (r + i) * COLUMNS + j);
      transpose(block);
      int64_t here = least(LANES, columns - j);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        if (i < here) finish(j + i, r, block[i], rows - r);
    }
}

}  // namespace
