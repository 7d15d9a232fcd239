// The end of each half of a block of a Transformer, as ops. Their meaning: kernels/encoder/residual.py.

#include "arguments.h"

namespace moe {
namespace {

ResidualNorm norm_of(const Tensor& x, const Tensor& y, const float* weight, double dropout, int64_t seed) {
  return {.rows = x.numel() / x.size(-1), .hidden = x.size(-1), .drop = drop_of(dropout, seed),
          .x = rows(x), .y = rows(y), .weight = weight};
}

std::tuple<Tensor, Tensor> residual_norm(const Tensor& x, const Tensor& y, const Tensor& weight, const Tensor& bias,
                                         double eps, double dropout, int64_t seed) {
  Arguments arguments;
  ResidualNorm r = norm_of(x, y, arguments.floats(weight), dropout, seed);
  r.eps = float(eps);
  r.bias = arguments.floats(bias);
  Tensor out = empty(x.sizes(), c10::promoteTypes(x.scalar_type(), y.scalar_type()));
  std::vector<int64_t> pairs = x.sizes().vec();
  pairs.back() = 2;
  Tensor stats = empty(pairs, at::kFloat);
  r.out = mutable_rows(out);
  r.stats = mutable_floats(stats);
  kernels().residual_norm(r);
  return {out, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_norm_backward(const Tensor& grad, const Tensor& x,
                                                                  const Tensor& y, const Tensor& weight,
                                                                  const Tensor& bias, const Tensor& stats,
                                                                  double dropout, int64_t seed) {
  Arguments arguments;
  ResidualNorm r = norm_of(x, y, arguments.floats(weight), dropout, seed);
  r.grad = rows(grad);
  r.stats = const_cast<float*>(floats(stats));
  Tensor grad_x = empty(x.sizes(), x.scalar_type()), grad_y = empty(y.sizes(), y.scalar_type());
  Tensor grad_weight = empty(weight.sizes(), at::kFloat), grad_bias = empty(bias.sizes(), at::kFloat);
  r.grad_x = mutable_rows(grad_x);
  r.grad_y = mutable_rows(grad_y);
  r.grad_weight = mutable_floats(grad_weight);
  r.grad_bias = mutable_floats(grad_bias);
  kernels().residual_norm_backward(r);
  return {grad_x, grad_y, grad_weight.to(weight.scalar_type()), grad_bias.to(bias.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("residual_norm(Tensor x, Tensor y, Tensor weight, Tensor bias, float eps, float dropout, int seed)"
        " -> (Tensor, Tensor)", residual_norm);
  m.def("residual_norm_backward(Tensor grad, Tensor x, Tensor y, Tensor weight, Tensor bias, Tensor stats,"
        " float dropout, int seed) -> (Tensor, Tensor, Tensor, Tensor)", residual_norm_backward);
}

}  // namespace moe
