// Memory of the tensors that the ops return.
//
// The system takes large memory back when it is freed, and clears it, page by page, when it is asked for again: for a step's
// gradients that costs more than computing them. So freed pieces are kept for the next tensor of their size, up to a limit,
// and they are aligned to large pages, whose first touch is cheaper.

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstdlib>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "tensors.h"

namespace moe {
namespace {

constexpr size_t PAGE = 2 << 20, KEPT = size_t(256) << 20;

class Pool {
 public:
  void* take(size_t bytes) {
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

  void give(void* data, size_t bytes) {
    if (bytes > KEPT) return std::free(data);
    std::lock_guard<std::mutex> lock(mutex_);
    for (; kept_ + bytes > KEPT; free_.erase(free_.begin())) {
      std::free(free_.front().data);
      kept_ -= free_.front().bytes;
    }
    free_.push_back({data, bytes});
    kept_ += bytes;
  }

 private:
  struct Piece {
    void* data;
    size_t bytes;
  };
  std::mutex mutex_;
  std::vector<Piece> free_;
  size_t kept_ = 0;
};

// Never destroyed: tensors may outlive everything that has a destructor.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

void* allocate(size_t bytes) {
  if (void* data = pool().take(bytes)) return data;
  void* data = nullptr;
  if (posix_memalign(&data, PAGE, bytes)) throw std::bad_alloc();
#if defined(__linux__)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace

Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  at::TensorOptions options = at::TensorOptions().dtype(type);
  size_t bytes = c10::elementSize(type);
  for (int64_t size : sizes) bytes *= size;
  if (bytes < PAGE) return at::empty(sizes, options);
  size_t rounded = (bytes + PAGE - 1) / PAGE * PAGE;
  void* data = allocate(rounded);
  return at::from_blob(data, sizes, [rounded](void* freed) { pool().give(freed, rounded); }, options);
}

}  // namespace moe
