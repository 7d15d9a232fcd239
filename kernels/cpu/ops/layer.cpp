// A whole layer without gradients, as one op: for a few tokens, calls would cost more than they compute. Nothing that its parts
// pass on is a tensor, for the same reason.

#include "layer.h"

#include "../runtime/arena.h"

namespace moe {

Experts read_experts(Arguments& arguments, const ExpertWeights& weights) {
  const auto& [up_weight, up_bias, down_weight, down_bias, name] = weights;
  NamedActivation activation = activation_of(name);
  return {.type = type_of(arguments.type), .activation = activation.kind, .gated = activation.gated,
          .hidden = down_weight.size(1), .width = down_weight.size(2), .up_weight = arguments.matrix(up_weight),
          .up_bias = arguments.matrix(up_bias), .down_weight = arguments.matrix(down_weight),
          .down_bias = arguments.matrix(down_bias)};
}

void mix(Gate& gate, const Experts& experts, Rows residual, MutableRows y) {
  Choose& c = gate.choose;
  int64_t slots = c.tokens * c.top_k, count = c.experts, size = experts.type == Type::bf16 ? 2 : 4;
  bool single = c.top_k == 1;  // the row of its slot is a token's result
  Frame frame;
  int32_t *order = frame.take<int32_t>(slots), *offsets = frame.take<int32_t>(count + 1);
  Forward fw{.plan = {order, offsets, slots, count, c.top_k, false}, .experts = experts, .x = gate.x};
  fw.act = in_tiles(slots, count) ? nullptr : frame.take_bytes(slots * experts.width * size);
  fw.rows = single ? y : MutableRows{frame.take_bytes(slots * experts.hidden * size), experts.type};
  if (single) fw.residual = residual;
  if (!c.sums) {
    c.logits = frame.take<float>(c.tokens * count);
    c.weights = frame.take<float>(slots);
    c.sums = frame.take<float>(2 * count + 2);
    c.indices = frame.take<int32_t>(slots);
  }
  fw.weights = c.weights;
  kernels().gate(gate);
  make_plan(c.indices, slots, count, order, offsets, frame.take<int32_t>(count + 1));
  run_up_and_down(fw);
  if (single) return;
  kernels().combine({.tokens = c.tokens, .top_k = c.top_k, .hidden = experts.hidden,
                     .rows = {fw.rows.data, fw.rows.type}, .residual = residual, .mask = c.mask, .y = y});
}

namespace {

// `type` is that of the experts' products. Its other arguments and results: moe_forward in kernels/functional.py.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer(
    const Tensor& x, const Maybe& hidden_weight, const Maybe& hidden_bias, const Tensor& weight, const Maybe& bias,
    const Maybe& noise, const Maybe& selection_bias, const Maybe& mask, const Tensor& up_weight, const Maybe& up_bias,
    const Tensor& down_weight, const Maybe& down_bias, int64_t top_k, std::string_view activation, std::string_view router,
    bool renormalize, bool residual, at::ScalarType type) {
  Arguments arguments{type};
  Gate gate = gate_of(arguments, x, {hidden_weight, hidden_bias, weight, bias, selection_bias}, noise, mask,
                      {top_k, router, renormalize});
  Tensor logits = empty({x.size(0), weight.size(0)}, at::kFloat);
  gate.choose.logits = mutable_floats(logits);
  Routed routed(gate.choose);
  Tensor y = empty(x.sizes(), readable(x.scalar_type()));
  mix(gate, read_experts(arguments, {up_weight, up_bias, down_weight, down_bias, activation}),
      residual ? gate.x : Rows{}, mutable_rows(y));
  return {cast(y, x.scalar_type()), logits, routed.weights, routed.indices, routed.sums};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("layer(Tensor x, Tensor? hidden_weight, Tensor? hidden_bias, Tensor weight, Tensor? bias, Tensor? noise,"
        " Tensor? selection_bias, Tensor? mask, Tensor up_weight, Tensor? up_bias, Tensor down_weight,"
        " Tensor? down_bias, int top_k, str activation, str router, bool renormalize, bool residual, ScalarType type)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)", layer);
}

}  // namespace moe
