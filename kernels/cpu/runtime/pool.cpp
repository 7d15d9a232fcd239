#include "pool.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace moe {
namespace {

// A step of 16384 tokens in fp32 frees more than 512 MB, and clearing that again each time is a fifth of its time.
constexpr int64_t MOST_KEPT = int64_t(1) << 30;

// Of a process; an eighth of the memory, where a container has its own or the machine has little.
int64_t limit() {
#if defined(__linux__)
  int64_t memory = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE), own = 0;
  if (FILE* file = fopen("/sys/fs/cgroup/memory.max", "r")) {  // "max" where there is no limit
    if (fscanf(file, "%" SCNd64, &own) == 1) memory = std::min(memory, own);
    fclose(file);
  }
  return std::min(MOST_KEPT, memory / 8);
#else
  return MOST_KEPT / 4;
#endif
}

class Pool {
 public:
  void* take(int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = free_.size(); i--;)  // the last one freed is the likeliest to be in a cache
      if (free_[i].bytes == bytes) {
        void* data = free_[i].data;
        free_.erase(free_.begin() + i);
        kept_ -= bytes;
        return data;
      }
    return nullptr;
  }

  void give(void* data, int64_t bytes) {
    if (bytes > limit_) return std::free(data);
    std::lock_guard<std::mutex> lock(mutex_);
    for (; kept_ + bytes > limit_; free_.erase(free_.begin())) {
      std::free(free_.front().data);
      kept_ -= free_.front().bytes;
    }
    free_.push_back({data, bytes});
    kept_ += bytes;
  }

 private:
  struct Freed {
    void* data;
    int64_t bytes;
  };
  std::mutex mutex_;
  std::vector<Freed> free_;
  const int64_t limit_ = limit();
  int64_t kept_ = 0;
};

// Never destroyed: tensors and threads may outlive everything that has a destructor.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void* take_pages(int64_t bytes) {
  if (void* data = pool().take(bytes)) return data;
  void* data = nullptr;
  if (posix_memalign(&data, PAGE, bytes)) throw std::bad_alloc();
#if defined(__linux__)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

void give_pages(void* data, int64_t bytes) {
  pool().give(data, bytes);
}

}  // namespace moe
