// A whole layer without gradients, as one op: for a few tokens, calls would cost more than they compute.

#include "primitives.h"

namespace moe {
namespace {

// `type` is that of the experts' products. Its other arguments and results: moe_forward in kernels/functional.py.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer(
    const Tensor& x, const Maybe& hidden_weight, const Maybe& hidden_bias, const Tensor& weight, const Maybe& bias,
    const Maybe& noise, const Maybe& selection_bias, const Maybe& mask, const Tensor& up_weight, const Maybe& up_bias,
    const Tensor& down_weight, const Maybe& down_bias, int64_t top_k, int64_t activation, int64_t router,
    bool renormalize, bool residual, at::ScalarType type) {
  auto [logits, weights, indices, sums] = gate(x, hidden_weight, hidden_bias, weight, bias, noise, selection_bias, mask,
                                               top_k, router, renormalize);
  auto [order, offsets] = plan(indices, weight.size(0));
  bool single = top_k == 1;  // the row of its slot is a token's result
  Maybe added = residual ? Maybe(x) : std::nullopt;
  Tensor y = std::get<0>(serve(x, order, offsets, weights, cast(up_weight, type), cast(up_bias, type), cast(down_weight, type),
                               cast(down_bias, type), single ? added : std::nullopt, activation, false,
                               single ? x.scalar_type() : type));
  if (!single) y = combine(y, top_k, added, mask, x.scalar_type());
  return {y, logits, weights, indices, sums};
}

}  // namespace

Tensor finish(const Tensor& x, const c10::List<Maybe>& block, at::IntArrayRef settings, at::ScalarType type,
              bool normalize) {
  Tensor out = x;
  if (!block.empty()) {
    Maybe p[9];
    for (size_t i = 0; i < 9; ++i) p[i] = block.get(i);
    const auto& [hidden_weight, hidden_bias, weight, bias, selection_bias, up_weight, up_bias, down_weight, down_bias] = p;
    TORCH_CHECK(up_weight->size(2) == x.size(1), "x has ", x.size(1), " columns, the block takes ", up_weight->size(2));
    out = std::get<0>(layer(x, hidden_weight, hidden_bias, *weight, bias, {}, selection_bias, {}, *up_weight, up_bias,
                            *down_weight, down_bias, settings[0], settings[1], settings[2], settings[3], true, type));
  }
  if (normalize) kernels().scale_to_one({out.size(0), out.size(1), mutable_floats(out)});
  return out;
}

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("layer(Tensor x, Tensor? hidden_weight, Tensor? hidden_bias, Tensor weight, Tensor? bias, Tensor? noise,"
        " Tensor? selection_bias, Tensor? mask, Tensor up_weight, Tensor? up_bias, Tensor down_weight,"
        " Tensor? down_bias, int top_k, int activation, int router, bool renormalize, bool residual, ScalarType type)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)", layer);
}

}  // namespace moe
