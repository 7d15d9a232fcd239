#include "arena.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "poison.h"
#include "pool.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes)
#endif

namespace moe {
namespace {

constexpr int64_t LINE = 64, KEPT = 16 << 20;  // bytes; more than KEPT is not kept by a thread

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "kernels/cpu/runtime/arena: %s\n", what);
  std::abort();
}

struct Slab {
  char* data;
  int64_t bytes;
};

// What stands behind a piece, at any address.
struct Guard {
  static constexpr uint64_t WHOLE = 0x5AFE5AFE5AFE5AFE;
  uint64_t word;
  char* before;  // the guard of the piece before
};

struct Arena {
  std::vector<Slab> slabs;
  int64_t slab = -1;  // in which the next piece begins; those behind it are empty
  char *next = nullptr, *end = nullptr;
  char* guard = nullptr;  // the last one
  const Frame* innermost = nullptr;
  int64_t wanted = 0;  // size of the first slab, so that what took several before takes one

  ~Arena() {
    give_back(0);
  }

  void give_back(size_t from) {
    for (; slabs.size() > from; slabs.pop_back()) {
      ASAN_UNPOISON_MEMORY_REGION(slabs.back().data, slabs.back().bytes);
      give_pages(slabs.back().data, slabs.back().bytes);
    }
  }

  // Moves on to a slab with room for so much.
  void grow(int64_t bytes) {
    size_t next_slab = slab + 1;
    if (next_slab < slabs.size() && slabs[next_slab].bytes < bytes) give_back(next_slab);
    if (next_slab == slabs.size()) {
      int64_t size = bytes > wanted ? bytes : wanted;
      size = (size + PAGE - 1) / PAGE * PAGE;
      char* data = static_cast<char*>(take_pages(size));
      ASAN_POISON_MEMORY_REGION(data, size);
      slabs.push_back({data, size});
      wanted = 0;
    }
    slab = next_slab;
    next = slabs[slab].data;
    end = next + slabs[slab].bytes;
  }

  // Back to where a frame began.
  void rewind(int64_t to_slab, char* to_next) {
    for (int64_t i = to_slab + 1; i <= slab; ++i) ASAN_POISON_MEMORY_REGION(slabs[i].data, slabs[i].bytes);
    slab = to_slab;
    next = to_next;
    end = slab < 0 ? nullptr : slabs[slab].data + slabs[slab].bytes;
    if (slab >= 0) ASAN_POISON_MEMORY_REGION(next, end - next);
  }

  // Nothing is taken: one slab in place of several, and none that is larger than a thread should keep.
  void settle() {
    slab = -1;
    next = end = guard = nullptr;
    int64_t total = 0;
    for (const Slab& s : slabs) total += s.bytes;
    if (slabs.size() == 1 && total <= KEPT) return;
    give_back(0);
    wanted = total <= KEPT ? total : 0;
  }
};

thread_local Arena arena;

}  // namespace

Frame::Frame() : outer_(arena.innermost), slab_(arena.slab), next_(arena.next), guard_(arena.guard) {
  arena.innermost = this;
}

void* Frame::take_bytes(int64_t bytes) {
  Arena& a = arena;
  if (a.innermost != this) fail("memory is taken from a frame that is not the innermost of its thread");
  if (bytes < 0) fail("a piece of a negative size is taken");
  int64_t whole = (bytes + int64_t(sizeof(Guard)) + LINE - 1) / LINE * LINE;
  if (whole > a.end - a.next) {
    try {
      a.grow(whole);
    } catch (...) {
      abandon_frames();
      throw;
    }
  }
  char* piece = a.next;
  a.next += whole;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(piece, bytes);
#else
  Guard guard = {Guard::WHOLE, a.guard};
  a.guard = piece + bytes;
  std::memcpy(a.guard, &guard, sizeof guard);
#endif
  poison(piece, bytes);
  return piece;
}

Frame::~Frame() {
  Arena& a = arena;
  while (a.guard != guard_) {
    Guard guard;
    std::memcpy(&guard, a.guard, sizeof guard);
    if (guard.word != Guard::WHOLE) fail("a piece of memory was written beyond its end");
    a.guard = guard.before;
  }
  a.rewind(slab_, next_);
  a.innermost = outer_;
  if (!outer_) a.settle();
}

void abandon_frames() {
  arena.innermost = nullptr;
  arena.guard = nullptr;
  arena.rewind(-1, nullptr);
}

}  // namespace moe
