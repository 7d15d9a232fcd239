// What the objects of the instruction sets need from the process: threads, memory, and the choice among them.

#include "runtime.h"

#include <c10/util/Exception.h>

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace moe {

void parallel(int64_t count, void (*task)(void*, int64_t), void* context) {
  int64_t threads = std::min(count, num_threads());
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  });
}

int64_t num_threads() {
  return at::in_parallel_region() ? 1 : at::get_num_threads();
}

namespace {

struct Memory {
  struct Piece {
    void* data = nullptr;
    int64_t bytes = 0;
  } pieces[int(Scratch::count)];

  ~Memory() {
    for (Piece& piece : pieces) std::free(piece.data);
  }
};

thread_local Memory memory;

}  // namespace

void* scratch(Scratch name, int64_t bytes) {
  Memory::Piece& piece = memory.pieces[int(name)];
#if defined(__SANITIZE_ADDRESS__)
  int64_t wanted = bytes;  // exactly, so that one byte beyond is seen
  bool fits = piece.data && piece.bytes == wanted;
#else
  int64_t wanted = bytes + bytes / 4;
  bool fits = piece.data && piece.bytes >= bytes;
#endif
  if (!fits) {
    std::free(piece.data);
    piece = {};
    if (posix_memalign(&piece.data, 4096, wanted + (wanted == 0))) throw std::bad_alloc();
    piece.bytes = wanted;
  }
  return piece.data;
}

#define DECLARE(level) extern const Kernels kernels_##level;
MOE_LEVELS(DECLARE)

namespace {

bool runs_here(const std::string& level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (level == "avx512_bf16") return avx512 && __builtin_cpu_supports("avx512bf16");
  if (level == "avx512") return avx512;
  if (level == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return level == "portable";
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

std::vector<std::string> levels() {
  std::vector<std::string> names;
#define APPEND(level) \
  if (runs_here(#level)) names.push_back(#level);
  MOE_LEVELS(APPEND)
  return names;
}

void choose_level(const std::string& name) {
#define CHOOSE(level) \
  if (name == #level && runs_here(name)) chosen = &kernels_##level;
  MOE_LEVELS(CHOOSE)
  TORCH_CHECK(chosen && name == chosen.load()->name, "no kernels for ", name, " here");
}

const Kernels& kernels() {
  return *chosen.load(std::memory_order_relaxed);
}

}  // namespace moe
