// The backward primitives that multiply by experts, as ops. Their meaning: kernels/reference.py.

#include "experts.h"

namespace moe {
namespace {

std::tuple<Tensor, Tensor, Tensor> run_down_backward(const Plan& plan, const Tensor& grad_y, const Tensor& pre,
                                                     const Tensor& weights, const Experts& experts) {
  Arguments arguments;
  // Few rows: several threads share an expert. By the shapes alone, since it decides the order of a sum.
  int64_t parts = plan.slots >= 4096 ? 1 : (experts.width + 511) / 512;
  Tensor grad_pre = empty(pre.sizes(), pre.scalar_type());
  Tensor weighted_act = empty_in_plan_order(plan, experts.width, pre.scalar_type());
  Tensor grad_weights = empty({plan.slots, parts}, at::kFloat);
  kernels(experts.type).down_backward(
      {.plan = plan, .experts = experts, .grad_y = arguments.rows(grad_y), .pre = pre.const_data_ptr(),
       .weights = floats(weights), .grad_pre = grad_pre.mutable_data_ptr(),
       .weighted_act = weighted_act.mutable_data_ptr(), .parts = parts, .grad_weights = mutable_floats(grad_weights)});
  return {grad_pre, weighted_act, grad_weights};
}

std::tuple<Tensor, Tensor, Tensor> down_backward(const Tensor& grad_y, const Tensor& pre, const Tensor& order,
                                                 const Tensor& offsets, const Tensor& weights, const Tensor& weight,
                                                 const Maybe& bias, std::string_view activation) {
  return run_down_backward(plan_of(order, offsets, weights.size(1)), grad_y, pre, weights,
                           down_experts(weight, bias, activation_of(activation)));
}

Tensor run_up_backward(const Plan& plan, const Tensor& grad_pre, const Tensor& weight, at::ScalarType type) {
  Tensor grad_x = empty({plan.slots, weight.size(2)}, type);
  // Of the experts, the rows of the weight alone matter, gated or not.
  kernels(type_of(weight)).up_backward({.plan = plan, .experts = up_experts(weight, {}),
                                        .grad_pre = grad_pre.const_data_ptr(), .grad_x = mutable_rows(grad_x)});
  return grad_x;
}

Tensor up_backward(const Tensor& grad_pre, const Tensor& order, const Tensor& offsets, const Tensor& weight) {
  return run_up_backward(plan_of(order, offsets, 1), grad_pre, weight, grad_pre.scalar_type());
}

std::tuple<Tensor, Tensor> run_weight_grad(WeightGrad w, at::ScalarType type, bool has_bias) {
  Tensor grad_weight = empty({w.plan.experts, w.left.size, w.right.size}, type), grad_bias;
  if (has_bias) grad_bias = empty({w.plan.experts, w.left.size}, type);
  w.grad_weight = grad_weight.mutable_data_ptr();
  w.grad_bias = has_bias ? grad_bias.mutable_data_ptr() : nullptr;
  kernels(w.type).weight_grad(w);
  return {grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> run_down_weight_grad(const Plan& plan, const Tensor& grad_y, const Tensor& weighted_act,
                                                const Tensor& weights, bool has_bias) {
  Arguments arguments;
  WeightGrad w{.plan = plan, .type = type_of(weighted_act), .left = {arguments.rows(grad_y), grad_y.size(1), true},
               .right = {rows(weighted_act), weighted_act.size(-1), false}, .scales = floats(weights)};
  return run_weight_grad(w, weighted_act.scalar_type(), has_bias);
}

std::tuple<Tensor, Tensor> down_weight_grad(const Tensor& grad_y, const Tensor& weighted_act, const Tensor& order,
                                            const Tensor& offsets, const Tensor& weights, bool has_bias) {
  return run_down_weight_grad(plan_of(order, offsets, weights.size(1)), grad_y, weighted_act, weights, has_bias);
}

std::tuple<Tensor, Tensor> run_up_weight_grad(const Plan& plan, const Tensor& x, const Tensor& grad_pre, bool has_bias) {
  Arguments arguments;
  WeightGrad w{.plan = plan, .type = type_of(grad_pre), .left = {rows(grad_pre), grad_pre.size(-1), false},
               .right = {arguments.rows(x), x.size(1), true}};
  return run_weight_grad(w, grad_pre.scalar_type(), has_bias);
}

std::tuple<Tensor, Tensor> up_weight_grad(const Tensor& x, const Tensor& grad_pre, const Tensor& order,
                                          const Tensor& offsets, int64_t top_k, bool has_bias) {
  return run_up_weight_grad(plan_of(order, offsets, top_k), x, grad_pre, has_bias);
}

// Every expert on every token: the same kernels, with rows [T, E, ...].

std::tuple<Tensor, Tensor, Tensor> all_down_backward(const Tensor& grad_y, const Tensor& pre, const Tensor& weights,
                                                     const Tensor& weight, const Maybe& bias, std::string_view activation) {
  FullPlan full(grad_y.size(0), weight.size(0));
  return run_down_backward(full.plan(), grad_y, pre, weights, down_experts(weight, bias, activation_of(activation)));
}

std::tuple<Tensor, Tensor> all_down_weight_grad(const Tensor& grad_y, const Tensor& weighted_act,
                                                const Tensor& weights, bool has_bias) {
  FullPlan full(grad_y.size(0), weighted_act.size(1));
  return run_down_weight_grad(full.plan(), grad_y, weighted_act, weights, has_bias);
}

Tensor all_up_backward(const Tensor& grad_pre, const Tensor& weight) {
  FullPlan full(grad_pre.size(0), weight.size(0));
  Tensor parts = run_up_backward(full.plan(), grad_pre, weight, at::kFloat);
  return combine(parts, weight.size(0), std::nullopt, std::nullopt, grad_pre.scalar_type());
}

std::tuple<Tensor, Tensor> all_up_weight_grad(const Tensor& x, const Tensor& grad_pre, bool has_bias) {
  FullPlan full(x.size(0), grad_pre.size(1));
  return run_up_weight_grad(full.plan(), x, grad_pre, has_bias);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("down_backward(Tensor grad_y, Tensor pre, Tensor order, Tensor offsets, Tensor weights, Tensor weight,"
        " Tensor? bias, str activation) -> (Tensor, Tensor, Tensor)", down_backward);
  m.def("down_weight_grad(Tensor grad_y, Tensor weighted_act, Tensor order, Tensor offsets, Tensor weights,"
        " bool has_bias) -> (Tensor, Tensor)", down_weight_grad);
  m.def("up_backward(Tensor grad_pre, Tensor order, Tensor offsets, Tensor weight) -> Tensor", up_backward);
  m.def("up_weight_grad(Tensor x, Tensor grad_pre, Tensor order, Tensor offsets, int top_k, bool has_bias)"
        " -> (Tensor, Tensor)", up_weight_grad);
  m.def("all_down_backward(Tensor grad_y, Tensor pre, Tensor weights, Tensor weight, Tensor? bias, str activation)"
        " -> (Tensor, Tensor, Tensor)", all_down_backward);
  m.def("all_down_weight_grad(Tensor grad_y, Tensor weighted_act, Tensor weights, bool has_bias)"
        " -> (Tensor, Tensor)", all_down_weight_grad);
  m.def("all_up_backward(Tensor grad_pre, Tensor weight) -> Tensor", all_up_backward);
  m.def("all_up_weight_grad(Tensor x, Tensor grad_pre, bool has_bias) -> (Tensor, Tensor)", all_up_weight_grad);
}

}  // namespace moe
