// A whole layer without gradients, as one op.

#include "layer.h"

namespace moe {

Experts read_experts(Arguments& arguments, const ExpertWeights& weights) {
  const auto& [up_weight, up_bias, down_weight, down_bias, name] = weights;
  NamedActivation activation = activation_of(name);
  return {.type = type_of(arguments.type), .activation = activation.kind, .gated = activation.gated,
          .hidden = down_weight.size(1), .width = down_weight.size(2), .up_weight = arguments.matrix(up_weight),
          .up_bias = arguments.matrix(up_bias), .down_weight = arguments.matrix(down_weight),
          .down_bias = arguments.matrix(down_bias)};
}

namespace {

// The fields of the records, in their order: splatting them costs a call least. `type` is that of the experts' products.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer(
    const Tensor& x, const Maybe& mask, const Maybe& noise, const Maybe& hidden_weight, const Maybe& hidden_bias,
    const Tensor& weight, const Maybe& bias, const Maybe& selection_bias, const Tensor& up_weight, const Maybe& up_bias,
    const Tensor& down_weight, const Maybe& down_bias, int64_t top_k, std::string_view router, bool renormalize,
    std::string_view activation, bool residual, at::ScalarType type) {
  Arguments arguments{type};
  Gate gate = gate_of(arguments, x, {hidden_weight, hidden_bias, weight, bias, selection_bias}, noise, mask,
                      {top_k, router, renormalize});
  Tensor logits = empty({x.size(0), weight.size(0)}, at::kFloat);
  gate.choose.logits = mutable_floats(logits);
  Routed routed(gate.choose);
  Tensor y = empty(x.sizes(), readable(x.scalar_type()));
  Experts experts = read_experts(arguments, {up_weight, up_bias, down_weight, down_bias, activation});
  kernels(experts.type).layer({gate, experts, residual ? gate.x : Rows{}, mutable_rows(y)});
  return {cast(y, x.scalar_type()), routed.weights, routed.indices, logits, routed.sums};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("layer(Tensor x, Tensor? mask, Tensor? noise, Tensor? hidden_weight, Tensor? hidden_bias, Tensor weight,"
        " Tensor? bias, Tensor? selection_bias, Tensor up_weight, Tensor? up_bias, Tensor down_weight,"
        " Tensor? down_bias, int top_k, str router, bool renormalize, str activation, bool residual, ScalarType type)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)", layer);
}

}  // namespace moe
