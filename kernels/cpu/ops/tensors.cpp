#include "tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "../runtime/pool.h"

namespace moe {

Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  at::TensorOptions options = at::TensorOptions().dtype(type);
  int64_t bytes = c10::elementSize(type);
  for (int64_t size : sizes) bytes *= size;
  if (bytes < PAGE) return at::empty(sizes, options);
  int64_t rounded = (bytes + PAGE - 1) / PAGE * PAGE;
  return at::from_blob(take_pages(rounded), sizes, [rounded](void* freed) { give_pages(freed, rounded); }, options);
}

}  // namespace moe
