// Vectors of floats as wide as the instruction set of this object has them, and bf16.
//
// GCC's and Clang's vector types: arithmetic, comparisons and shuffles are ordinary operators, which the compiler turns
// into AVX-512, AVX2, SSE2 or NEON. Intrinsics stand only where the compiler does not find the instruction.
//
// Everything here has internal linkage: an inline function compiled for AVX-512 must never be the one that the linker
// keeps for a machine without it. For the same reason no file of an object includes the C++ library.

#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace moe {}

namespace {

using namespace moe;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// Whether products of bf16 pairs are one instruction. Otherwise bf16 is widened and multiplied as fp32.
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
constexpr bool HAS_PAIRS = true;
#else
constexpr bool HAS_PAIRS = false;
#endif

// Whether they are instructions on tile registers, of the machine or emulated (tile_registers.h).
#if defined(__AMX_BF16__) || defined(EMULATED_TILES)
constexpr bool HAS_TILES = true;
#else
constexpr bool HAS_TILES = false;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct bf16 {
  uint16_t bits;
};

INLINE Floats splat(float value) {
  return value - (Floats){};
}

INLINE Words splat_word(uint32_t value) {
  return value - (Words){};
}

INLINE Floats as_floats(Words words) {
  return (Floats)words;
}

INLINE Words as_words(Floats floats) {
  return (Words)floats;
}

// Where `condition` is true (all ones) a, else b.
INLINE Floats select(Ints condition, Floats a, Floats b) {
  return condition ? a : b;
}

// The second where one of them is a NaN.
INLINE Floats max(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

INLINE Floats min(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}

INLINE Floats sqrt(Floats a) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)a);
#else
  for (int i = 0; i < LANES; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

INLINE float widen(float value) {
  return value;
}

INLINE float widen(bf16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

INLINE Words as_wide_words(Halves halves) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)halves);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)halves);
#else
  return __builtin_convertvector(halves, Words);
#endif
}

INLINE Floats widen(Halves halves) {
  return as_floats(as_wide_words(halves) << 16);
}

// To the nearest, ties to even; a NaN stays one.
INLINE Halves narrow(Floats floats) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)floats);
#else
  Words bits = as_words(floats);
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector((Words)(floats == floats ? (Ints)rounded : (Ints)quiet), Halves);
#endif
}

INLINE bf16 narrow_one(float value) {
  Halves halves = narrow(splat(value));
  return {halves[0]};
}

INLINE void assign(float& target, float value) {
  target = value;
}

INLINE void assign(bf16& target, float value) {
  target = narrow_one(value);
}

INLINE Floats load(const float* p) {
  Floats result;
  memcpy(&result, p, sizeof result);
  return result;
}

INLINE Floats load(const bf16* p) {
  Halves halves;
  memcpy(&halves, p, sizeof halves);
  return widen(halves);
}

INLINE void store(float* p, Floats value) {
  memcpy(p, &value, sizeof value);
}

INLINE void store(bf16* p, Floats value) {
  Halves halves = narrow(value);
  memcpy(p, &halves, sizeof halves);
}

#if defined(__AVX512F__)
INLINE __mmask16 first(int64_t n) {
  return __mmask16((1u << n) - 1);
}
#endif

// The first n lanes, the others zero; nothing beyond is read.
INLINE Floats load_first(const float* p, int64_t n) {
  if (n >= LANES) return load(p);
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_loadu_ps(first(n), p);
#else
  Floats result = {};
  memcpy(&result, p, n * 4);
  return result;
#endif
}

INLINE Floats load_first(const bf16* p, int64_t n) {
  if (n >= LANES) return load(p);
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  return widen((Halves)_mm256_maskz_loadu_epi16(first(n), p));
#else
  Halves halves = {};
  memcpy(&halves, p, n * 2);
  return widen(halves);
#endif
}

INLINE void store_first(float* p, Floats value, int64_t n) {
  if (n >= LANES) return store(p, value);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, first(n), (__m512)value);
#else
  memcpy(p, &value, n * 4);
#endif
}

INLINE void store_first(bf16* p, Floats value, int64_t n) {
  if (n >= LANES) return store(p, value);
  Halves halves = narrow(value);
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  _mm256_mask_storeu_epi16(p, first(n), (__m256i)halves);
#else
  memcpy(p, &halves, n * 2);
#endif
}

// To aligned memory, past the caches: for results that are larger than those, and are not read soon. A task must not end before
// `finish_streams`.
INLINE void stream(float* p, Floats values) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)values);
#else
  store(p, values);
#endif
}

INLINE void stream(bf16* p, Floats values) {
#if defined(__AVX512F__)
  _mm256_stream_si256((__m256i*)(void*)p, (__m256i)narrow(values));
#else
  store(p, values);
#endif
}

INLINE void finish_streams() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// The order of a sum over lanes is part of the result: always this one, halves onto each other.
INLINE float sum_lanes(Floats value) {
  float lanes[LANES];
  store(lanes, value);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// rows[i][j] <-> rows[j][i], in log2(LANES) rounds, each of which swaps the off-diagonal squares of one size.
#if defined(__AVX512F__)
template <int CONTROL>
INLINE Floats quarters(Floats a, Floats b) {
  return (Floats)_mm512_shuffle_f32x4((__m512)a, (__m512)b, CONTROL);
}

INLINE void transpose(Floats (&rows)[LANES]) {
  Floats other[LANES];
#pragma GCC unroll 8
  for (int i = 0; i < LANES; i += 2) {
    other[i] = (Floats)_mm512_unpacklo_ps((__m512)rows[i], (__m512)rows[i + 1]);
    other[i + 1] = (Floats)_mm512_unpackhi_ps((__m512)rows[i], (__m512)rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < LANES; i += 4)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512d a = (__m512d)other[i + half], b = (__m512d)other[i + half + 2];
      rows[i + 2 * half] = (Floats)_mm512_unpacklo_pd(a, b);
      rows[i + 2 * half + 1] = (Floats)_mm512_unpackhi_pd(a, b);
    }
  // Each quarter of a register is right now; the quarters are a matrix of 4 x 4.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
    for (int half = 0; half < LANES; half += 8) {
      other[i + half] = quarters<0x88>(rows[i + half], rows[i + half + 4]);
      other[i + half + 4] = quarters<0xdd>(rows[i + half], rows[i + half + 4]);
    }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    rows[i] = quarters<0x88>(other[i], other[i + 8]);
    rows[i + 8] = quarters<0xdd>(other[i], other[i + 8]);
  }
}
#else
INLINE void transpose(Floats (&rows)[LANES]) {
#pragma GCC unroll 4
  for (int side = 1; side < LANES; side *= 2) {
    Ints low, high;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      low[i] = i & side ? LANES + i - side : i;
      high[i] = i & side ? LANES + i : i + side;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
      if (!(i & side)) {
        Floats a = rows[i], b = rows[i + side];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + side] = __builtin_shuffle(a, b, high);
      }
  }
}
#endif

// The first n of `count` rows at the given addresses, `width` wide, as columns: a lane a row, a vector a column.
template <class Row>
INLINE void load_columns(Floats (&columns)[LANES], int64_t n, int64_t width, Row row) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) columns[i] = i < n ? load_first(row(i), width) : Floats{};
  transpose(columns);
}

}  // namespace
