// The sum that ends a layer, as an op. Its meaning: kernels/reference.py.

#include "experts.h"

namespace moe {

Tensor combine(const Tensor& source, int64_t top_k, const Maybe& residual, const Maybe& mask, at::ScalarType dtype) {
  Arguments arguments;
  Combine c{};
  c.tokens = source.size(0) / top_k;
  c.top_k = top_k;
  c.hidden = source.size(1);
  c.rows = rows(source);
  c.residual = arguments.rows(residual);
  c.mask = arguments.mask(mask);
  Tensor y = empty({c.tokens, c.hidden}, readable(dtype));
  c.y = mutable_rows(y);
  kernels().combine(c);
  return cast(y, dtype);
}

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("combine(Tensor rows, int top_k, Tensor? residual, Tensor? mask, ScalarType dtype) -> Tensor", combine);
}

}  // namespace moe
