// A sum in memory that is kept (see runtime/pool.h), as an op. Its meaning: kernels/contract.py.

#include "tensors.h"

#include <ATen/ops/add.h>

namespace moe {
namespace {

Tensor add(const Tensor& own, const Tensor& shared) {
  Tensor sum = empty(own.sizes(), own.scalar_type());
  at::add_out(sum, own, shared);
  return sum;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("add(Tensor own, Tensor shared) -> Tensor", add);
}

}  // namespace moe
