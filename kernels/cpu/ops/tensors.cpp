#include "tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>

#include "../runtime/pool.h"

namespace moe {

Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  at::TensorOptions options = at::TensorOptions().dtype(type);
  int64_t bytes = c10::elementSize(type);
  for (int64_t size : sizes) bytes *= size;
  if (bytes < PAGE) return at::empty(sizes, options);
  int64_t rounded = (bytes + PAGE - 1) / PAGE * PAGE;
  // The allocator is the one that a caller's resize_ takes more memory from, as for any tensor.
  return at::for_blob(take_pages(rounded), sizes)
      .deleter([rounded](void* freed) { give_pages(freed, rounded); })
      .options(options)
      .resizeable_storage()
      .allocator(c10::GetCPUAllocator())
      .make_tensor();
}

}  // namespace moe
