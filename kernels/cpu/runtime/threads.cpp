#include "threads.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "arena.h"

namespace moe {

namespace {

struct AtEnd {
  void (*end)();

  ~AtEnd() {
    if (end) end();
  }
};

}  // namespace

void parallel(int64_t count, void (*task)(void*, int64_t), void* context, void (*end)()) {
  int64_t threads = std::min(count, num_threads());
  if (threads <= 1) {
    AtEnd at_end{end};
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  std::atomic<int64_t> next{0};
  try {
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      AtEnd at_end{end};
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
    });
  } catch (...) {
    abandon_frames();
    throw;
  }
}

int64_t num_threads() {
  return at::in_parallel_region() ? 1 : at::get_num_threads();
}

}  // namespace moe
