// The plan, as an op. Its meaning: kernels/reference.py.

#include "plan.h"

namespace moe {
namespace {

std::tuple<Tensor, Tensor> plan(const Tensor& indices, int64_t experts) {
  Tensor order = empty({indices.numel()}, at::kInt), offsets = empty({experts + 1}, at::kInt);
  Tensor source = indices.contiguous();
  kernels().plan({ints(source), source.numel(), experts, mutable_ints(order), mutable_ints(offsets)});
  return {order, offsets};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("plan(Tensor indices, int experts) -> (Tensor, Tensor)", plan);
}

}  // namespace moe
