// The plan, as an op. Its meaning: kernels/reference.py.

#include "plan.h"

#include <algorithm>

namespace moe {

void make_plan(const int32_t* expert, int64_t slots, int64_t experts, int32_t* order, int32_t* offsets, int32_t* next) {
  auto place = [&](int64_t s) { return expert[s] < 0 || expert[s] >= experts ? experts : int64_t(expert[s]); };
  std::fill_n(next, experts + 1, 0);
  for (int64_t s = 0; s < slots; ++s) ++next[place(s)];
  int32_t sum = 0;
  for (int64_t e = 0; e <= experts; ++e) {
    offsets[e] = sum;
    sum += next[e];
    next[e] = offsets[e];
  }
  for (int64_t s = 0; s < slots; ++s) order[next[place(s)]++] = s;
}

namespace {

std::tuple<Tensor, Tensor> plan(const Tensor& indices, int64_t experts) {
  Tensor order = empty({indices.numel()}, at::kInt), offsets = empty({experts + 1}, at::kInt);
  Tensor source = indices.contiguous();
  std::vector<int32_t> next(experts + 1);
  make_plan(ints(source), source.numel(), experts, mutable_ints(order),
            mutable_ints(offsets), next.data());
  return {order, offsets};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("plan(Tensor indices, int experts) -> (Tensor, Tensor)", plan);
}

}  // namespace moe
