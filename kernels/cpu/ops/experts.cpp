// The forward primitives that multiply by experts, as ops. Their meaning: kernels/reference.py.

#include "experts.h"

namespace moe {

Experts up_experts(const Tensor& weight, const Maybe& bias, NamedActivation activation) {
  return {.type = type_of(weight), .activation = activation.kind, .gated = activation.gated, .hidden = weight.size(2),
          .width = weight.size(1) / (activation.gated ? 2 : 1), .up_weight = weight.const_data_ptr(), .up_bias = data(bias)};
}

Experts down_experts(const Tensor& weight, const Maybe& bias, NamedActivation activation) {
  return {.type = type_of(weight), .activation = activation.kind, .gated = activation.gated, .hidden = weight.size(1),
          .width = weight.size(2), .down_weight = weight.const_data_ptr(), .down_bias = data(bias)};
}

Tensor empty_in_plan_order(const Plan& plan, int64_t n, at::ScalarType type) {
  return plan.by_slot ? empty({plan.slots / plan.experts, plan.experts, n}, type) : empty({plan.slots, n}, type);
}

namespace {

// With the rest of `fw` given: its pre-activation, if it is kept.
Tensor make_pre(Forward& fw, const Tensor& up_weight, bool keep) {
  if (!keep) return {};
  Tensor pre = empty_in_plan_order(fw.plan, up_weight.size(1), up_weight.scalar_type());
  fw.pre = pre.mutable_data_ptr();
  return pre;
}

Tensor make_act(Forward& fw, const Tensor& up_weight) {
  Tensor act = empty_in_plan_order(fw.plan, fw.experts.width, up_weight.scalar_type());
  fw.act = act.mutable_data_ptr();
  return act;
}

Tensor make_rows(Forward& fw, at::ScalarType type) {
  Tensor rows = empty({fw.plan.slots, fw.experts.hidden}, type);
  fw.rows = mutable_rows(rows);
  return rows;
}

std::tuple<Tensor, Tensor> up(const Tensor& x, const Tensor& order, const Tensor& offsets, const Tensor& weight,
                              const Maybe& bias, int64_t top_k, std::string_view activation, bool keep) {
  Arguments arguments;
  Forward fw{.plan = plan_of(order, offsets, top_k), .experts = up_experts(weight, bias, activation_of(activation)),
             .x = arguments.rows(x)};
  Tensor act = make_act(fw, weight), pre = make_pre(fw, weight, keep);
  kernels(fw.experts.type).up(fw);
  return {act, pre};
}

Tensor down(const Tensor& act, const Tensor& order, const Tensor& offsets, const Tensor& weights,
            const Tensor& weight, const Maybe& bias, const Maybe& residual, at::ScalarType dtype) {
  Arguments arguments;
  Forward fw{.plan = plan_of(order, offsets, weights.size(1)), .experts = down_experts(weight, bias),
             .weights = floats(weights), .act = const_cast<void*>(act.const_data_ptr()),
             .residual = arguments.rows(residual)};
  Tensor y = make_rows(fw, readable(dtype));
  kernels(fw.experts.type).down(fw);
  return cast(y, dtype);
}

std::tuple<Tensor, Tensor> up_and_down(const Tensor& x, const Tensor& order, const Tensor& offsets,
                                       const Tensor& weights, const Tensor& up_weight, const Maybe& up_bias,
                                       const Tensor& down_weight, const Maybe& down_bias, const Maybe& residual,
                                       std::string_view activation, bool keep, at::ScalarType dtype) {
  Arguments arguments;
  Forward fw{.plan = plan_of(order, offsets, weights.size(1)),
             .experts = up_experts(up_weight, up_bias, activation_of(activation)), .x = arguments.rows(x),
             .weights = floats(weights), .residual = arguments.rows(residual)};
  fw.experts.down_weight = down_weight.const_data_ptr();
  fw.experts.down_bias = data(down_bias);
  Tensor pre = make_pre(fw, up_weight, keep), y = make_rows(fw, readable(dtype));
  kernels(fw.experts.type).up_and_down(fw);
  return {cast(y, dtype), pre};
}

// Every expert on every token: the same kernels, with rows [T, E, ...].

std::tuple<Tensor, Tensor> all_up(const Tensor& x, const Tensor& weights, const Tensor& weight, const Maybe& bias,
                                  std::string_view activation, bool keep) {
  Arguments arguments;
  FullPlan full(x.size(0), weight.size(0));
  Forward fw{.plan = full.plan(), .experts = up_experts(weight, bias, activation_of(activation)), .x = arguments.rows(x),
             .weights = floats(weights), .weighted_act = true};
  Tensor act = make_act(fw, weight), pre = make_pre(fw, weight, keep);
  kernels(fw.experts.type).up(fw);
  return {act, pre};
}

Tensor all_down(const Tensor& weighted_act, const Tensor& weights, const Tensor& weight, const Maybe& bias,
                const Maybe& residual, at::ScalarType dtype) {
  FullPlan full(weights.size(0), weight.size(0));
  Forward fw{.plan = full.plan(), .experts = down_experts(weight, bias), .weights = floats(weights),
             .act = const_cast<void*>(weighted_act.const_data_ptr()), .weighted_act = true};
  Tensor parts = make_rows(fw, at::kFloat);
  kernels(fw.experts.type).down(fw);
  return combine(parts, weight.size(0), residual, std::nullopt, dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("up(Tensor x, Tensor order, Tensor offsets, Tensor weight, Tensor? bias, int top_k, str activation, bool keep)"
        " -> (Tensor, Tensor)", up);
  m.def("down(Tensor act, Tensor order, Tensor offsets, Tensor weights, Tensor weight, Tensor? bias,"
        " Tensor? residual, ScalarType dtype) -> Tensor", down);
  m.def("up_and_down(Tensor x, Tensor order, Tensor offsets, Tensor weights, Tensor up_weight, Tensor? up_bias,"
        " Tensor down_weight, Tensor? down_bias, Tensor? residual, str activation, bool keep, ScalarType dtype)"
        " -> (Tensor, Tensor)", up_and_down);
  m.def("all_up(Tensor x, Tensor weights, Tensor weight, Tensor? bias, str activation, bool keep)"
        " -> (Tensor, Tensor)", all_up);
  m.def("all_down(Tensor weighted_act, Tensor weights, Tensor weight, Tensor? bias, Tensor? residual,"
        " ScalarType dtype) -> Tensor", all_down);
}

}  // namespace moe
