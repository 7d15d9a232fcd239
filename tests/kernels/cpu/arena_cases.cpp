// What the arena allows and what it refuses, each a run of its own: argv[1] is the name of a case. See test_arena.py.

#include "runtime/arena.h"
#include "runtime/poison.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

using moe::Frame;

int main(int, char** arguments) {
  std::string name = arguments[1];
  Frame outer;
  char* piece = outer.take<char>(100);
  std::memset(piece, 1, 100);
  if (name == "pieces") {
    for (int round = 0; round < 3; ++round) {
      Frame inner;
      for (int64_t count = 0; count < 100; ++count) {  // small ones, and some that fit into no slab yet
        int64_t bytes = count % 10 == 9 ? count << 17 : count;
        char* other = inner.take<char>(bytes);
        if (uintptr_t(other) % 64) return 1;
        if (other < piece + 100 && piece < other + bytes) return 2;
        std::memset(other, 2, bytes);
      }
    }
    for (int i = 0; i < 100; ++i)
      if (piece[i] != 1) return 3;
    std::thread([] { Frame().take<double>(1000)[999] = 1.0; }).join();
    float* first = nullptr;
    for (int round = 0; round < 3; ++round) {
      Frame inner;
      float* taken = inner.take<float>(10);
      if (round && taken != first) return 4;
      first = taken;
    }
  } else if (name == "poisoned") {
    static bool wanted;
    moe::ask_whether_to_poison([] { return wanted; });
    for (int64_t count : {10, 1 << 20, 10}) {
      Frame inner;
      wanted = true;
      float* taken = inner.take<float>(count);
      for (int64_t i = 0; i < count; ++i)
        if (taken[i] == taken[i]) return 1;  // no NaN
      wanted = false;
      taken[0] = 1;
    }
    Frame inner;
    if (*inner.take<float>(10) != 1) return 2;  // what was there before
  } else if (name == "written beyond its end") {
    Frame inner;
    inner.take<char>(1);
    inner.take<char>(7)[7] = 0;
  } else if (name == "the last of many") {
    Frame inner;
    for (int i = 0; i < 7; ++i) inner.take<float>(96);
    inner.take<float>(96)[96] = 0.0f;
  } else if (name == "in an earlier slab") {
    Frame inner;
    inner.take<char>(64)[64] = 0;
    inner.take<char>(64 << 20)[0] = 0;
  } else if (name == "not the innermost") {
    Frame inner;
    outer.take<char>(1);
  } else if (name == "of another thread") {
    std::thread([&] { outer.take<char>(1); }).join();
  } else if (name == "a negative size") {
    outer.take<float>(-1);
  }
  std::puts("done");
}
