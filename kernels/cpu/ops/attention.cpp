// Attention, as ops. Its meaning: kernels/reference.py.

#include "tensors.h"

namespace moe {
namespace {

Attention attention_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& starts, double dropout,
                       int64_t seed) {
  return {.tokens = q.size(0), .heads = q.size(1), .head_size = q.size(2), .sequences = starts.size(0) - 1,
          .stride = q.stride(0), .type = type_of(q), .starts = ints(starts), .drop = drop_of(dropout, seed),
          .q = q.const_data_ptr(), .k = k.const_data_ptr(), .v = v.const_data_ptr()};
}

// q, k and v as they are, if their tokens lie equally far apart and each token's heads side by side.
std::array<Tensor, 3> aligned(const Tensor& q, const Tensor& k, const Tensor& v) {
  auto fits = [&](const Tensor& t) {
    return t.stride(2) == 1 && t.stride(1) == t.size(2) && t.stride(0) == q.stride(0);
  };
  if (fits(q) && fits(k) && fits(v)) return {q, k, v};
  return {q.contiguous(), k.contiguous(), v.contiguous()};
}

std::tuple<Tensor, Tensor> attention(const Tensor& any_q, const Tensor& any_k, const Tensor& any_v,
                                     const Tensor& starts, double dropout, int64_t seed) {
  auto [q, k, v] = aligned(any_q, any_k, any_v);
  Attention a = attention_of(q, k, v, starts, dropout, seed);
  Tensor out = empty(q.sizes(), q.scalar_type());
  Tensor lse = empty({a.tokens, a.heads}, at::kFloat);
  a.out = out.mutable_data_ptr();
  a.lse = mutable_floats(lse);
  kernels(a.type).attention(a);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& any_q, const Tensor& any_k,
                                                      const Tensor& any_v, const Tensor& out, const Tensor& lse,
                                                      const Tensor& starts, double dropout, int64_t seed) {
  auto [q, k, v] = aligned(any_q, any_k, any_v);
  Attention a = attention_of(q, k, v, starts, dropout, seed);
  a.out = const_cast<void*>(out.const_data_ptr());
  a.lse = const_cast<float*>(floats(lse));
  a.grad = grad.const_data_ptr();
  Tensor grad_q = empty(q.sizes(), q.scalar_type());
  Tensor grad_k = empty(q.sizes(), q.scalar_type());
  Tensor grad_v = empty(q.sizes(), q.scalar_type());
  a.grad_q = grad_q.mutable_data_ptr();
  a.grad_k = grad_k.mutable_data_ptr();
  a.grad_v = grad_v.mutable_data_ptr();
  kernels(a.type).attention_backward(a);
  return {grad_q, grad_k, grad_v};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, Tensor starts, float dropout, int seed) -> (Tensor, Tensor)",
        attention);
  m.def("attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor starts,"
        " float dropout, int seed) -> (Tensor, Tensor, Tensor)", attention_backward);
}

}  // namespace moe
