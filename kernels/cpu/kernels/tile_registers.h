// The eight tile registers of AMX, each 16 rows of 64 bytes, and the few instructions on them; and a twin of those in plain
// vectors, of which the level `amx_emulated` is made, so that a machine without AMX can run the same kernels.
//
// C += A B of `multiply` has 16 pairs of bf16 in each row of A, and a pair for each of 16 columns in each row of B. Its arithmetic
// is that of TDPBF16PS in Intel's manual: the products of the even and of the odd halves of the pairs are summed apart, from zero
// and in the order of the pairs, by fused multiply-adds; the two sums are added, and what comes of it is added to C. Each step is
// rounded to the nearest, ties to even; denormals are zeros, read or written; no mode of the thread is asked for.

#pragma once

#include "operands.h"

namespace {

#if defined(__AMX_BF16__)
// Not the compiler's intrinsics: to GCC 12 theirs do not touch memory, so that it moves stores across them. Registers hold what
// they were given until `release`; using one before `configure` is an illegal instruction.
struct MachineTiles {
  static void configure() {
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } how = {};
    how.palette = 1;
    for (int i = 0; i < 8; ++i) {
      how.row_bytes[i] = 4 * SIDE;
      how.rows[i] = SIDE;
    }
    asm volatile("ldtilecfg %0" : : "m"(how));
  }

  static void release() {
    asm volatile("tilerelease");
  }

  template <int R>
  INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(R));
  }

  template <int R>
  INLINE void load(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(R) : "memory");
  }

  template <int R>
  INLINE void store(void* rows, int64_t stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(R) : "memory");
  }

  template <int C, int A, int B>
  INLINE void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};
#endif

#if defined(EMULATED_TILES)
// What the modes of a thread decide elsewhere is set around this, and nothing of it may be moved there: hence noipa.
__attribute__((noipa)) void emulate_multiply(float (*c)[SIDE], const uint32_t (*a)[SIDE], const uint32_t (*b)[SIDE]) {
  constexpr int AT_ONCE = 4;
  auto even_half = [](Words pairs) { return as_floats(pairs << 16); };
  auto odd_half = [](Words pairs) { return as_floats(pairs & 0xffff0000u); };
  for (int r = 0; r < SIDE; r += AT_ONCE) {
    Floats even[AT_ONCE] = {}, odd[AT_ONCE] = {};
    for (int k = 0; k < SIDE; ++k) {
      Words columns = as_words(load((const float*)(const void*)b[k]));
#pragma GCC unroll 4
      for (int i = 0; i < AT_ONCE; ++i) {
        Words row = splat_word(a[r + i][k]);
        even[i] = (Floats)_mm512_fmadd_ps((__m512)even_half(row), (__m512)even_half(columns), (__m512)even[i]);
        odd[i] = (Floats)_mm512_fmadd_ps((__m512)odd_half(row), (__m512)odd_half(columns), (__m512)odd[i]);
      }
    }
    for (int i = 0; i < AT_ONCE; ++i) store(c[r + i], load(c[r + i]) + (even[i] + odd[i]));
  }
}

struct EmulatedTiles {
  alignas(64) uint32_t registers[8][SIDE][SIDE];

  static void configure() {}
  static void release() {}

  template <int R>
  INLINE void zero() {
    memset(registers[R], 0, sizeof registers[R]);
  }

  template <int R>
  INLINE void load(const void* rows, int64_t stride) {
    for (int i = 0; i < SIDE; ++i) memcpy(registers[R][i], (const char*)rows + i * stride, sizeof registers[R][i]);
  }

  template <int R>
  INLINE void store(void* rows, int64_t stride) const {
    for (int i = 0; i < SIDE; ++i) memcpy((char*)rows + i * stride, registers[R][i], sizeof registers[R][i]);
  }

  template <int C, int A, int B>
  INLINE void multiply() {
    constexpr uint32_t NEAREST_AND_NO_DENORMALS = 0x9fc0;
    uint32_t before = _mm_getcsr();
    _mm_setcsr(NEAREST_AND_NO_DENORMALS);
    emulate_multiply((float(*)[SIDE])(void*)registers[C], registers[A], registers[B]);
    _mm_setcsr(before);
  }
};
#endif

#if defined(EMULATED_TILES)
typedef EmulatedTiles Tiles;
#elif defined(__AMX_BF16__)
typedef MachineTiles Tiles;
#endif

#if defined(EMULATED_TILES) || defined(__AMX_BF16__)
// Registers are configured by the first product of a thread, and given back after the last of its tasks (`parallel`): what is not
// ours may configure them in its own way, and a thread that holds none costs the system nothing when it is switched.
thread_local bool tiles_are_configured = false;

INLINE void configure_tiles() {
  if (tiles_are_configured) return;
  Tiles::configure();
  tiles_are_configured = true;
}

void release_tiles() {
  if (!tiles_are_configured) return;
  Tiles::release();
  tiles_are_configured = false;
}
#endif

}  // namespace
