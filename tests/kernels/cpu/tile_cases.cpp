// What test_tiles.py runs: tile registers, and the products on them, in a program of their own.

#include "kernels/packing.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <initializer_list>
#include <vector>

namespace {

#define REQUIRE(condition)                                             \
  if (!(condition)) {                                                  \
    printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);             \
    exit(1);                                                           \
  }

uint32_t drawn = 1;

uint32_t draw() {
  return drawn = drawn * 1664525 + 1013904223;
}

bf16 small_number() {
  return narrow_one(float(draw() >> 8) / (1 << 23) - 1.0f);
}

// Of any size: also denormals, and such that products and sums are.
uint16_t any_number(bool tiny) {
  uint16_t sign = draw() >> 31 << 15, digits = (draw() >> 24) & 0x7f;
  static constexpr uint16_t EXPONENTS[] = {0, 0, 1, 2, 20, 40, 63, 64, 66, 100, 127, 128, 150};
  return sign | EXPONENTS[(draw() >> 8) % (tiny ? 8 : 13)] << 7 | digits;
}

struct Registers {
  uint32_t a[SIDE][SIDE], b[SIDE][SIDE], c[SIDE][SIDE];

  explicit Registers(bool tiny) {
    for (int i = 0; i < SIDE; ++i)
      for (int j = 0; j < SIDE; ++j) {
        a[i][j] = any_number(tiny) | uint32_t(any_number(tiny)) << 16;
        b[i][j] = any_number(tiny) | uint32_t(any_number(tiny)) << 16;
        c[i][j] = uint32_t(tiny ? any_number(true) & 0x80ff : any_number(false)) << 16 | draw() >> 16;
      }
  }

  template <class T>
  void multiply() {
    T tiles;
    tiles.template load<3>(c, sizeof c[0]);
    tiles.template load<4>(a, sizeof a[0]);
    tiles.template load<7>(b, sizeof b[0]);
    tiles.template multiply<3, 4, 7>();
    tiles.template store<3>(c, sizeof c[0]);
  }
};

// TDPBF16PS as Intel's manual has it, a number at a time.

float flushed(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

float half(uint32_t pair, int odd) {
  return flushed(widen(bf16{uint16_t(odd ? pair >> 16 : pair)}));
}

void multiply_by_the_manual(Registers& r) {
  for (int m = 0; m < SIDE; ++m)
    for (int n = 0; n < SIDE; ++n) {
      float sums[2] = {};
      for (int k = 0; k < SIDE; ++k)
        for (int odd = 0; odd < 2; ++odd) sums[odd] = flushed(std::fma(half(r.a[m][k], odd), half(r.b[k][n], odd), sums[odd]));
      float before, sum = flushed(sums[0] + sums[1]);
      memcpy(&before, &r.c[m][n], 4);
      sum = flushed(flushed(before) + sum);
      memcpy(&r.c[m][n], &sum, 4);
    }
}

void the_twin_is_the_manual() {
  int denormals = 0;
  for (int round = 0; round < 50; ++round) {
    Registers twin(round % 2), manual = twin;
    twin.multiply<EmulatedTiles>();
    multiply_by_the_manual(manual);
    REQUIRE(!memcmp(&twin, &manual, sizeof twin));
    for (auto& row : twin.a)
      for (uint32_t pair : row) denormals += !(pair & 0x7f80) && pair & 0x7f;
  }
  REQUIRE(denormals > 100);
  float tiny = 1e-39f, two = 2.0f;
  asm volatile("" : "+x"(tiny), "+x"(two));
  REQUIRE(tiny * two != 0);  // the thread's own mode is what it was
}

void the_instruction_is_the_twin() {
  if (syscall(SYS_arch_prctl, 0x1023, 18)) {
    puts("no tile registers here");
    exit(77);
  }
#if defined(__AMX_BF16__)
  MachineTiles::configure();
  for (int round = 0; round < 1000; ++round) {
    Registers twin(round % 2), machine = twin;
    twin.multiply<EmulatedTiles>();
    machine.multiply<MachineTiles>();
    REQUIRE(!memcmp(&twin, &machine, sizeof twin));
  }
  MachineTiles::release();
#endif
}

// A matrix that ends where memory ends: reading a byte beyond it ends the program.
struct AtTheEnd {
  int64_t pages;
  char* memory;
  bf16* data;

  explicit AtTheEnd(int64_t values) : pages((2 * values + 4095) / 4096) {
    memory = (char*)mmap(nullptr, (pages + 1) * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(memory + pages * 4096, 4096, PROT_NONE);
    data = (bf16*)(memory + pages * 4096 - 2 * values);
    for (int64_t i = 0; i < values; ++i) data[i] = small_number();
  }

  ~AtTheEnd() {
    munmap(memory, (pages + 1) * 4096);
  }
};

constexpr float UNTOUCHED = 12345.0f;

// Of C, which begins with 1 where it is added to: rows below `rows` are the product, those below `free` anything.
void check_product(const std::vector<float>& c, int64_t rows, int64_t free, int64_t columns, int64_t k, bool added,
                   const bf16* a, int64_t a_row, int64_t a_step, const bf16* b, int64_t b_row, int64_t b_step) {
  for (int64_t r = 0; r < int64_t(c.size()) / COLUMNS; ++r)
    for (int64_t j = 0; j < columns; ++j) {
      double sum = added;
      for (int64_t i = 0; r < rows && i < k; ++i)
        sum += double(widen(a[r * a_row + i * a_step])) * widen(b[j * b_row + i * b_step]);
      float got = c[r * COLUMNS + j];
      REQUIRE(r < rows ? std::fabs(got - sum) < 1e-4 : r < free || got == UNTOUCHED);
    }
}

void products_of_any_size() {
  for (int64_t rows : {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 70, 128})
    for (int64_t k : {1, 2, 3, 31, 32, 33, 63, 64, 70, 97})
      for (int64_t n : {1, 16, 17, 32})
        for (int added = 0; added < 2; ++added) {
          int64_t stride = k + 5 * (rows & 1);
          AtTheEnd a((rows - 1) * stride + k), x(n * k);
          std::vector<float> packed(units<bf16>(k) * COLUMNS, NAN), c((rows + 3) * COLUMNS, UNTOUCHED);
          for (int64_t i = 0; i < rows * COLUMNS; ++i) c[i] = added ? 1.0f : NAN;
          pack_rows<bf16>(n, k, packed.data(), [&](int64_t i) { return x.data + i * k; });
          multiply(a.data, stride, rows, k, packed.data(), n > LANES ? 2 : 1, c.data(), added);
          check_product(c, rows, rows, n, k, added, a.data, stride, 1, x.data, k, 1);
        }
}

void panels_of_any_size() {
  for (int64_t rows : {1, 15, 16, 17, 32, 33, 70})
    for (int64_t k : {1, 2, 31, 32, 33, 64, 97})
      for (int added = 0; added < 2; ++added) {
        int64_t n = COLUMNS, steps = units<bf16>(k), whole = round_up(rows, SIDE);
        AtTheEnd left(k * rows), right(k * n);
        std::vector<float> panels(whole * steps, NAN), packed(steps * COLUMNS, NAN), c((whole + 1) * COLUMNS, UNTOUCHED);
        for (int64_t i = 0; i < rows * COLUMNS; ++i) c[i] = added ? 1.0f : NAN;
        pack_panels<bf16>(rows, SIDE, k, panels.data(), [&](int64_t i) { return left.data + i * rows; });
        pack_columns<bf16>(n, k, packed.data(), [&](int64_t i) { return right.data + i * n; });
        auto check = [&](const std::vector<float>& got, int64_t free) {
          check_product(got, rows, free, n, k, added, left.data, 1, rows, right.data, 1, n);
        };
        std::vector<float> elsewhere(c.size(), UNTOUCHED);
        multiply_panels<bf16>(panels.data(), rows, SIDE, steps, packed.data(), c.data(), added,
                              [&](int64_t r, int v, Floats values) { store(&elsewhere[r * COLUMNS + v * LANES], values); });
        check(elsewhere, rows);
        multiply_panels<bf16>(panels.data(), rows, SIDE, steps, packed.data(), c.data(), added, InTile{c.data()});
        check(c, whole);
      }
}

// An element's bits do not depend on what is multiplied with it: how many rows, and which, a call has.
void bits_of_a_row() {
  constexpr int64_t ROWS_HERE = 75, K = 83;
  AtTheEnd a(ROWS_HERE * K), x(COLUMNS * K);
  std::vector<float> packed(units<bf16>(K) * COLUMNS), whole(ROWS_HERE * COLUMNS), part(ROWS_HERE * COLUMNS);
  pack_rows<bf16>(COLUMNS, K, packed.data(), [&](int64_t i) { return x.data + i * K; });
  multiply(a.data, K, ROWS_HERE, K, packed.data(), 2, whole.data());
  for (int64_t step : {1, 7, 16, 21, 40}) {
    for (int64_t r = 0; r < ROWS_HERE; r += step)
      multiply(a.data + r * K, K, least(step, ROWS_HERE - r), K, packed.data(), 2, part.data() + r * COLUMNS);
    REQUIRE(part == whole);
  }
}

struct Case {
  const char* name;
  void (*run)();
};

constexpr Case CASES[] = {
    {"the twin is the manual", the_twin_is_the_manual}, {"the instruction is the twin", the_instruction_is_the_twin},
    {"products of any size", products_of_any_size},     {"panels of any size", panels_of_any_size},
    {"bits of a row", bits_of_a_row},
};

}  // namespace

int main(int, char** arguments) {
  for (const Case& c : CASES)
    if (!strcmp(c.name, arguments[1])) c.run();
  release_tiles();
  puts("done");
}
