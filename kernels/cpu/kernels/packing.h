// From rows in memory to the operands of a product: what `microkernel.h` calls B and panels of A.

#pragma once

#include "microkernel.h"

namespace {

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
      Floats square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        square[i] = first + i < n ? load_units<O>(row(first + i) + at, k - at) : Floats{};
      transpose(square);
      float* to = packed + at / UNIT<O> * COLUMNS + first;
      int64_t count = least(LANES, units<O>(k - at));
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        if (i < count) store(to + i * COLUMNS, square[i]);
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
  for (int64_t i = 0; i < n; i += COLUMNS) clear_rest<O>(k, packed + i / COLUMNS * size);
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

// A's panels for vectors: the rows of a panel side by side, step by step.
template <class O, class Row>
void pack_panels_of_columns(int64_t n, int64_t height, int64_t k, float* panels, Row row) {
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

// A's panels for tile registers: a tile holds the rows of A for a step, one behind the other. Pairs of rows of memory become
// units, and their square is turned.
template <class O, class Row>
void pack_panels_of_tiles(int64_t n, int64_t k, float* panels, Row row) {
  int64_t steps = units<O>(k);
  for (int64_t at = 0; at < k; at += STEP<O>) {
    decltype(row(0)) rows[STEP<O>] = {};
    for (int64_t i = 0; i < least(STEP<O>, k - at); ++i) {
      rows[i] = row(at + i);
      if (at + i + AHEAD < k) fetch(row(at + i + AHEAD), n);
    }
    for (int64_t r = 0; r < n; r += SIDE) {
      Floats square[LANES];  // as many as SIDE
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) {
        auto even = rows[2 * i], odd = rows[2 * i + 1];
        square[i] = even ? interleave<O>(even + r, odd ? odd + r : odd, n - r) : Floats{};
      }
      transpose(square);
      float* to = panels + r * steps + at / STEP<O> * SIDE * SIDE;
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) store(to + i * SIDE, square[i]);
    }
  }
}

// A's panels from columns: row r of A is column r of the rows that row(k) points to, r < n.
template <class O, class Row>
void pack_panels(int64_t n, int64_t height, int64_t k, float* panels, Row row) {
  if constexpr (IN_TILES<O>)
    pack_panels_of_tiles<O>(n, k, panels, row);
  else
    pack_panels_of_columns<O>(n, height, k, panels, row);
}

// Rows [n, k] of T as rows of operands: as they are, or copied to `widened`.
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

}  // namespace
