// The sum that ends a layer, as an op. Its meaning: kernels/reference.py.

#include "experts.h"

namespace moe {

Tensor combine(const Tensor& source, int64_t top_k, const Maybe& residual, const Maybe& mask, at::ScalarType dtype) {
  Arguments arguments;
  Tensor y = empty({source.size(0) / top_k, source.size(1)}, readable(dtype));
  kernels().combine({.tokens = y.size(0), .top_k = top_k, .hidden = y.size(1), .rows = rows(source),
                     .residual = arguments.rows(residual), .mask = arguments.mask(mask), .y = mutable_rows(y)});
  return cast(y, dtype);
}

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("combine(Tensor rows, int top_k, Tensor? residual, Tensor? mask, ScalarType dtype) -> Tensor", combine);
}

}  // namespace moe
