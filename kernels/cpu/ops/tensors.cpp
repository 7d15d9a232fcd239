#include "tensors.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>

#include "../runtime/poison.h"
#include "../runtime/pool.h"

namespace moe {
namespace {

// As `torch.empty` does.
bool fills_uninitialized_memory() {
  const at::Context& context = at::globalContext();
  return context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory();
}

const bool asked = (ask_whether_to_poison(fills_uninitialized_memory), true);

}  // namespace

Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  at::TensorOptions options = at::TensorOptions().dtype(type);
  int64_t bytes = c10::elementSize(type);
  for (int64_t size : sizes) bytes *= size;
  if (bytes < PAGE) return at::empty(sizes, options);
  int64_t rounded = (bytes + PAGE - 1) / PAGE * PAGE;
  void* data = take_pages(rounded);
  poison(data, rounded);
  // The allocator is the one that a caller's resize_ takes more memory from, as for any tensor.
  return at::for_blob(data, sizes)
      .deleter([rounded](void* freed) { give_pages(freed, rounded); })
      .options(options)
      .resizeable_storage()
      .allocator(c10::GetCPUAllocator())
      .make_tensor();
}

// For tests: what ops return, before they write to it.
TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("empty(int[] sizes) -> Tensor", [](at::IntArrayRef sizes) { return empty(sizes, at::kFloat); });
}

}  // namespace moe
