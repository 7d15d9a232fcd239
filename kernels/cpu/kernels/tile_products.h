// The products of `microkernel.h` on tile registers, of bf16. Registers fit the operands as these are: sixteen rows of a weight,
// 32 terms of each, are loaded from where they lie; B has its pairs side by side; C is [rows, columns]. Two by two registers of C
// stay for the whole sum. Neither k nor rows need be multiples of anything: what a register would read beyond a row's end is copied
// and filled with zeros, and sixteen rows that would begin within the last sixteen begin with those, some of which are then computed
// twice.

#pragma once

#include "../runtime/arena.h"
#include "tile_registers.h"

namespace {

#if defined(EMULATED_TILES) || defined(__AMX_BF16__)

static_assert(SIDE == LANES, "a register is as wide as a vector");
constexpr int64_t LINE_OF_C = COLUMNS * sizeof(float);

// A side of up to two registers: rows of A step by step, the last step apart if it is not whole, and rows of C.
struct TileRows {
  const char *a, *last;  // `last`: SIDE rows of a register's width, or null
  const float* from;
  float* to;
};

template <int R, int V>
void sum_registers(const TileRows (&rows)[2], int64_t stride, int64_t step_bytes, int64_t steps, const float* b,
                   bool accumulate) {
  Tiles tiles;
  if (accumulate) {
    tiles.load<0>(rows[0].from, LINE_OF_C);
    if (V == 2) tiles.load<1>(rows[0].from + SIDE, LINE_OF_C);
    if (R == 2) tiles.load<2>(rows[1].from, LINE_OF_C);
    if (R == 2 && V == 2) tiles.load<3>(rows[1].from + SIDE, LINE_OF_C);
  } else {
    tiles.zero<0>();
    if (V == 2) tiles.zero<1>();
    if (R == 2) tiles.zero<2>();
    if (R == 2 && V == 2) tiles.zero<3>();
  }
  auto advance = [&](const char* first, const char* second, int64_t stride) __attribute__((always_inline)) {
    tiles.load<6>(b, LINE_OF_C);
    tiles.load<4>(first, stride);
    tiles.multiply<0, 4, 6>();
    if (V == 2) tiles.load<7>(b + SIDE, LINE_OF_C);
    if (V == 2) tiles.multiply<1, 4, 7>();
    if (R == 2) tiles.load<5>(second, stride);
    if (R == 2) tiles.multiply<2, 5, 6>();
    if (R == 2 && V == 2) tiles.multiply<3, 5, 7>();
    b += SIDE * COLUMNS;
  };
  const char *first = rows[0].a, *second = rows[1].a;
  for (; steps; --steps, first += step_bytes, second += step_bytes) advance(first, second, stride);
  if (rows[0].last) advance(rows[0].last, rows[1].last, SIDE * sizeof(float));
  tiles.store<0>(rows[0].to, LINE_OF_C);
  if (V == 2) tiles.store<1>(rows[0].to + SIDE, LINE_OF_C);
  if (R == 2) tiles.store<2>(rows[1].to, LINE_OF_C);
  if (R == 2 && V == 2) tiles.store<3>(rows[1].to + SIDE, LINE_OF_C);
}

INLINE void sum_tiles(const TileRows (&rows)[2], int64_t stride, int64_t step_bytes, int64_t steps, const float* b, int vectors,
                      bool accumulate) {
  auto two = vectors == 2 ? sum_registers<2, 2> : sum_registers<2, 1>;
  auto one = vectors == 2 ? sum_registers<1, 2> : sum_registers<1, 1>;
  auto run = rows[1].a ? two : one;
  run(rows, stride, step_bytes, steps, b, accumulate);
}

// Row `row` from k on, `values` of it, as a row of a register.
INLINE void copy_step(const bf16* row, int64_t values, float* to) {
  store(to, (Floats)_mm512_maskz_loadu_epi16(values >= 2 * LANES ? ~0u : (1u << values) - 1, row));
}

// C[rows][COLUMNS] (+)= A B, where SIDE rows of A are there to be read, if less of them.
inline void multiply_whole_registers(const bf16* a, int64_t stride, int64_t rows, int64_t k, const float* b, int vectors,
                                     float* c, bool accumulate) {
  constexpr int64_t WIDTH = STEP<bf16>;
  int64_t steps = k / WIDTH, rest = k % WIDTH;
  alignas(64) float last[2][SIDE * SIDE], sums[SIDE * COLUMNS];
  for (int64_t r = 0; r < rows; r += 2 * SIDE) {
    TileRows tiles[2] = {};
    int64_t twice = 0;  // rows of the last register that another one has as well
    for (int i = 0; i < 2 && r + i * SIDE < rows; ++i) {
      int64_t at = r + i * SIDE;
      float* to = c + at * COLUMNS;
      if (at + SIDE > rows) {
        twice = rows < SIDE ? 0 : at + SIDE - rows;
        if (accumulate) memcpy(sums + twice * COLUMNS, to, (rows - at) * LINE_OF_C);
        at -= twice;
        to = sums;
      }
      const bf16* from = a + at * stride;
      for (int64_t j = 0; rest && j < SIDE; ++j) copy_step(from + j * stride + steps * WIDTH, rest, last[i] + j * SIDE);
      tiles[i] = {(const char*)from, rest ? (const char*)last[i] : nullptr, to, to};
    }
    sum_tiles(tiles, stride * sizeof(bf16), SIDE * sizeof(float), steps, b, vectors, accumulate);
    int64_t whole = rows / SIDE * SIDE;
    if (whole >= r && whole < rows && whole < r + 2 * SIDE)
      memcpy(c + whole * COLUMNS, sums + twice * COLUMNS, (rows - whole) * LINE_OF_C);
  }
}

// C[rows][COLUMNS] (+)= A B, `a` with rows as they lie in memory.
inline void multiply_in_tiles(const bf16* a, int64_t stride, int64_t rows, int64_t k, const float* b, int vectors, float* c,
                              bool accumulate) {
  configure_tiles();
  if (rows >= SIDE || !rows) return multiply_whole_registers(a, stride, rows, k, b, vectors, c, accumulate);
  Frame frame;  // too few for a register: a copy has the rest, which nothing is made of
  int64_t width = units<bf16>(k);
  float* copy = frame.take<float>(SIDE * width);
  for (int64_t r = 0; r < SIDE; ++r)
    for (int64_t at = 0; at < width; at += SIDE)
      copy_step(a + r * stride + 2 * at, r < rows ? least(2 * SIDE, k - 2 * at) : 0, copy + r * width + at);
  multiply_whole_registers((const bf16*)(const void*)copy, 2 * width, rows, 2 * width, b, vectors, c, accumulate);
}

INLINE float* place(const InTile& put, int64_t r, float*) {
  return put.c + r * COLUMNS;
}

template <class Put>
INLINE float* place(const Put&, int64_t, float* elsewhere) {
  return elsewhere;
}

INLINE void finish(const InTile&, int64_t, int64_t, const float*) {}

template <class Put>
INLINE void finish(const Put& put, int64_t r, int64_t rows, const float* sums) {
  for (int64_t i = 0; i < rows; ++i)
    for (int v = 0; v < 2; ++v) put(r + i, v, load(sums + i * COLUMNS + v * LANES));
}

// The same with `a` in panels of SIDE rows, `steps` units long, which lie register by register.
template <class Put>
void multiply_panels_in_tiles(const float* a, int64_t rows, int64_t steps, const float* b, const float* c, bool accumulate,
                              Put put) {
  configure_tiles();
  alignas(64) float sums[2 * SIDE * COLUMNS];
  for (int64_t r = 0; r < rows; r += 2 * SIDE) {
    TileRows tiles[2] = {};
    for (int64_t i = 0; i < 2 && r + i * SIDE < rows; ++i) {
      int64_t at = r + i * SIDE;
      tiles[i] = {(const char*)(a + at * steps), nullptr, c + at * COLUMNS, place(put, at, sums + i * SIDE * COLUMNS)};
    }
    sum_tiles(tiles, SIDE * sizeof(float), SIDE * SIDE * sizeof(float), steps / SIDE, b, 2, accumulate);
    finish(put, r, least(2 * SIDE, rows - r), sums);
  }
}

#else

inline void release_tiles() {}

#endif

}  // namespace
