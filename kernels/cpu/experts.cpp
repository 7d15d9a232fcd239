// The primitives that multiply by experts, as ops. Their meaning: kernels/reference.py.

#include "primitives.h"

namespace moe {

// The activations in the order of backend.py; the gated ones follow the others.
Experts experts_of(Type type, int64_t hidden, int64_t width, int64_t activation) {
  constexpr Activation names[] = {Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                  Activation::silu, Activation::silu,      Activation::gelu};
  Experts experts{};
  experts.type = type;
  experts.activation = names[activation];
  experts.gated = activation >= 4;
  experts.hidden = hidden;
  experts.width = width;
  return experts;
}

Experts up_experts(const Tensor& weight, const Maybe& bias, int64_t activation) {
  Experts experts = experts_of(type_of(weight), weight.size(2), weight.size(1) / (activation >= 4 ? 2 : 1), activation);
  experts.up_weight = weight.const_data_ptr();
  experts.up_bias = data(bias);
  return experts;
}

Experts down_experts(const Tensor& weight, const Maybe& bias, int64_t activation) {
  Experts experts = experts_of(type_of(weight), weight.size(1), weight.size(2), activation);
  experts.down_weight = weight.const_data_ptr();
  experts.down_bias = data(bias);
  return experts;
}

std::tuple<Tensor, Tensor> up(const Tensor& x, const Tensor& order, const Tensor& offsets, const Tensor& weight,
                              const Maybe& bias, int64_t top_k, int64_t activation, bool keep) {
  Arguments arguments;
  Serve s{};
  s.plan = plan_of(order, offsets, top_k);
  s.experts = up_experts(weight, bias, activation);
  s.x = arguments.rows(x);
  Tensor act = empty({s.plan.slots, s.experts.width}, weight.scalar_type()), pre;
  if (keep) pre = empty({s.plan.slots, weight.size(1)}, weight.scalar_type());
  s.act = act.mutable_data_ptr();
  s.pre = keep ? pre.mutable_data_ptr() : nullptr;
  kernels().up(s);
  return {act, pre};
}

Tensor down(const Tensor& act, const Tensor& order, const Tensor& offsets, const Tensor& weights,
            const Tensor& weight, const Maybe& bias, const Maybe& residual, at::ScalarType dtype) {
  Arguments arguments;
  Serve s{};
  s.plan = plan_of(order, offsets, weights.size(1));
  s.experts = down_experts(weight, bias, 0);
  s.weights = floats(weights);
  s.act = const_cast<void*>(act.const_data_ptr());
  s.residual = arguments.rows(residual);
  Tensor y = empty({s.plan.slots, s.experts.hidden}, readable(dtype));
  s.rows = mutable_rows(y);
  kernels().down(s);
  return cast(y, dtype);
}

// With few rows the activations are small, and threads share the experts by features instead.
bool in_tiles(int64_t slots, int64_t experts) {
  return slots >= 512 && slots >= 16 * experts;
}

void up_and_down(const Serve& s) {
  if (!s.act) return kernels().serve(s);
  kernels().up(s);
  kernels().down(s);
}

// Both at once.
std::tuple<Tensor, Tensor> serve(const Tensor& x, const Tensor& order, const Tensor& offsets, const Tensor& weights,
                                 const Tensor& up_weight, const Maybe& up_bias, const Tensor& down_weight,
                                 const Maybe& down_bias, const Maybe& residual, int64_t activation, bool keep,
                                 at::ScalarType dtype) {
  Arguments arguments;
  Tensor act, pre;
  Serve s{};
  s.plan = plan_of(order, offsets, weights.size(1));
  s.experts = up_experts(up_weight, up_bias, activation);
  s.experts.down_weight = down_weight.const_data_ptr();
  s.experts.down_bias = data(down_bias);
  s.x = arguments.rows(x);
  s.weights = floats(weights);
  s.residual = arguments.rows(residual);
  if (keep) pre = empty({s.plan.slots, up_weight.size(1)}, up_weight.scalar_type());
  s.pre = keep ? pre.mutable_data_ptr() : nullptr;
  Tensor y = empty({s.plan.slots, s.experts.hidden}, readable(dtype));
  s.rows = mutable_rows(y);
  if (!in_tiles(s.plan.slots, s.plan.experts)) {
    act = empty({s.plan.slots, s.experts.width}, up_weight.scalar_type());
    s.act = act.mutable_data_ptr();
  }
  up_and_down(s);
  return {cast(y, dtype), pre};
}

std::tuple<Tensor, Tensor, Tensor> backward_rows(const Plan& plan, const Tensor& grad_y, const Tensor& pre,
                                                 const Tensor& weights, const Tensor& weight, const Maybe& bias,
                                                 int64_t activation, at::IntArrayRef act_shape) {
  Arguments arguments;
  DownBackward d{};
  d.plan = plan;
  d.experts = down_experts(weight, bias, activation);
  d.grad_y = arguments.rows(grad_y);
  d.pre = pre.const_data_ptr();
  d.weights = floats(weights);
  // Few rows: several threads share an expert. By the shapes alone, since it decides the order of a sum.
  d.parts = plan.slots >= 4096 ? 1 : (d.experts.width + 511) / 512;
  Tensor grad_pre = empty(pre.sizes(), pre.scalar_type()), weighted_act = empty(act_shape, pre.scalar_type());
  Tensor grad_weights = empty({plan.slots, d.parts}, at::kFloat);
  d.grad_pre = grad_pre.mutable_data_ptr();
  d.weighted_act = weighted_act.mutable_data_ptr();
  d.grad_weights = mutable_floats(grad_weights);
  kernels().down_backward(d);
  return {grad_pre, weighted_act, grad_weights};
}

std::tuple<Tensor, Tensor, Tensor> down_backward(const Tensor& grad_y, const Tensor& pre, const Tensor& order,
                                                 const Tensor& offsets, const Tensor& weights, const Tensor& weight,
                                                 const Maybe& bias, int64_t activation) {
  Plan plan = plan_of(order, offsets, weights.size(1));
  return backward_rows(plan, grad_y, pre, weights, weight, bias, activation, {plan.slots, weight.size(2)});
}

Tensor up_backward(const Tensor& grad_pre, const Tensor& order, const Tensor& offsets, const Tensor& weight) {
  UpBackward u{};
  u.plan = plan_of(order, offsets, 1);
  u.experts = experts_of(type_of(weight), weight.size(2), weight.size(1), 0);  // its rows alone matter, gated or not
  u.experts.up_weight = weight.const_data_ptr();
  u.grad_pre = grad_pre.const_data_ptr();
  Tensor grad_x = empty({u.plan.slots, weight.size(2)}, grad_pre.scalar_type());
  u.grad_x = mutable_rows(grad_x);
  kernels().up_backward(u);
  return grad_x;
}

std::tuple<Tensor, Tensor> weight_grad(const Plan& plan, Rows left, bool left_by_token, int64_t left_size, Rows right,
                                       bool right_by_token, int64_t right_size, const float* scales,
                                       at::ScalarType dtype, bool has_bias) {
  WeightGrad w{};
  w.plan = plan;
  w.type = type_of(dtype);
  w.left_size = left_size;
  w.right_size = right_size;
  w.left = left;
  w.right = right;
  w.left_by_token = left_by_token;
  w.right_by_token = right_by_token;
  w.scales = scales;
  Tensor grad_weight = empty({plan.experts, left_size, right_size}, dtype), grad_bias;
  if (has_bias) grad_bias = empty({plan.experts, left_size}, dtype);
  w.grad_weight = grad_weight.mutable_data_ptr();
  w.grad_bias = has_bias ? grad_bias.mutable_data_ptr() : nullptr;
  kernels().weight_grad(w);
  return {grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> down_weight_grad(const Tensor& grad_y, const Tensor& weighted_act, const Tensor& order,
                                            const Tensor& offsets, const Tensor& weights, bool has_bias) {
  Arguments arguments;
  return weight_grad(plan_of(order, offsets, weights.size(1)), arguments.rows(grad_y), true, grad_y.size(1),
                     rows(weighted_act), false, weighted_act.size(1), floats(weights), weighted_act.scalar_type(),
                     has_bias);
}

std::tuple<Tensor, Tensor> up_weight_grad(const Tensor& x, const Tensor& grad_pre, const Tensor& order,
                                          const Tensor& offsets, int64_t top_k, bool has_bias) {
  Arguments arguments;
  return weight_grad(plan_of(order, offsets, top_k), rows(grad_pre), false, grad_pre.size(1), arguments.rows(x), true,
                     x.size(1), nullptr, grad_pre.scalar_type(), has_bias);
}

Tensor combine_rows(const Tensor& source, int64_t top_k, const Maybe& residual, const Maybe& mask,
                    at::ScalarType dtype) {
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

Tensor combine(const Tensor& source, int64_t top_k, const Maybe& residual, const Maybe& mask, at::ScalarType dtype) {
  return combine_rows(source, top_k, residual, mask, dtype);
}

// Every expert on every token: the same kernels, with rows [T, E, ...].

std::tuple<Tensor, Tensor> all_up(const Tensor& x, const Tensor& weights, const Tensor& weight, const Maybe& bias,
                                  int64_t activation, bool keep) {
  Arguments arguments;
  FullPlan full(x.size(0), weight.size(0));
  Serve s{};
  s.plan = full.plan();
  s.experts = up_experts(weight, bias, activation);
  s.x = arguments.rows(x);
  s.weights = floats(weights);
  s.weighted_act = true;
  Tensor act = empty({x.size(0), weight.size(0), s.experts.width}, weight.scalar_type()), pre;
  if (keep) pre = empty({x.size(0), weight.size(0), weight.size(1)}, weight.scalar_type());
  s.act = act.mutable_data_ptr();
  s.pre = keep ? pre.mutable_data_ptr() : nullptr;
  kernels().up(s);
  return {act, pre};
}

Tensor all_down(const Tensor& weighted_act, const Tensor& weights, const Tensor& weight, const Maybe& bias,
                const Maybe& residual, at::ScalarType dtype) {
  FullPlan full(weights.size(0), weight.size(0));
  Serve s{};
  s.plan = full.plan();
  s.experts = down_experts(weight, bias, 0);
  s.weights = floats(weights);
  s.weighted_act = true;
  s.act = const_cast<void*>(weighted_act.const_data_ptr());
  Tensor parts = empty({s.plan.slots, weight.size(1)}, at::kFloat);
  s.rows = mutable_rows(parts);
  kernels().down(s);
  return combine_rows(parts, weight.size(0), residual, std::nullopt, dtype);
}

std::tuple<Tensor, Tensor, Tensor> all_down_backward(const Tensor& grad_y, const Tensor& pre, const Tensor& weights,
                                                     const Tensor& weight, const Maybe& bias, int64_t activation) {
  FullPlan full(grad_y.size(0), weight.size(0));
  return backward_rows(full.plan(), grad_y, pre, weights, weight, bias, activation,
                       {grad_y.size(0), weight.size(0), weight.size(2)});
}

std::tuple<Tensor, Tensor> all_down_weight_grad(const Tensor& grad_y, const Tensor& weighted_act,
                                                const Tensor& weights, bool has_bias) {
  Arguments arguments;
  FullPlan full(grad_y.size(0), weighted_act.size(1));
  return weight_grad(full.plan(), arguments.rows(grad_y), true, grad_y.size(1), rows(weighted_act), false,
                     weighted_act.size(2), floats(weights), weighted_act.scalar_type(), has_bias);
}

Tensor all_up_backward(const Tensor& grad_pre, const Tensor& weight) {
  FullPlan full(grad_pre.size(0), weight.size(0));
  UpBackward u{};
  u.plan = full.plan();
  u.experts = experts_of(type_of(weight), weight.size(2), weight.size(1), 0);
  u.experts.up_weight = weight.const_data_ptr();
  u.grad_pre = grad_pre.const_data_ptr();
  Tensor parts = empty({u.plan.slots, weight.size(2)}, at::kFloat);
  u.grad_x = mutable_rows(parts);
  kernels().up_backward(u);
  return combine_rows(parts, weight.size(0), std::nullopt, std::nullopt, grad_pre.scalar_type());
}

std::tuple<Tensor, Tensor> all_up_weight_grad(const Tensor& x, const Tensor& grad_pre, bool has_bias) {
  Arguments arguments;
  FullPlan full(x.size(0), grad_pre.size(1));
  return weight_grad(full.plan(), rows(grad_pre), false, grad_pre.size(2), arguments.rows(x), true, x.size(1), nullptr,
                     grad_pre.scalar_type(), has_bias);
}

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("up(Tensor x, Tensor order, Tensor offsets, Tensor weight, Tensor? bias, int top_k, int activation, bool keep)"
        " -> (Tensor, Tensor)", up);
  m.def("down(Tensor act, Tensor order, Tensor offsets, Tensor weights, Tensor weight, Tensor? bias,"
        " Tensor? residual, ScalarType dtype) -> Tensor", down);
  m.def("serve(Tensor x, Tensor order, Tensor offsets, Tensor weights, Tensor up_weight, Tensor? up_bias,"
        " Tensor down_weight, Tensor? down_bias, Tensor? residual, int activation, bool keep, ScalarType dtype)"
        " -> (Tensor, Tensor)", serve);
  m.def("down_backward(Tensor grad_y, Tensor pre, Tensor order, Tensor offsets, Tensor weights, Tensor weight,"
        " Tensor? bias, int activation) -> (Tensor, Tensor, Tensor)", down_backward);
  m.def("down_weight_grad(Tensor grad_y, Tensor weighted_act, Tensor order, Tensor offsets, Tensor weights,"
        " bool has_bias) -> (Tensor, Tensor)", down_weight_grad);
  m.def("up_backward(Tensor grad_pre, Tensor order, Tensor offsets, Tensor weight) -> Tensor", up_backward);
  m.def("up_weight_grad(Tensor x, Tensor grad_pre, Tensor order, Tensor offsets, int top_k, bool has_bias)"
        " -> (Tensor, Tensor)", up_weight_grad);
  m.def("combine(Tensor rows, int top_k, Tensor? residual, Tensor? mask, ScalarType dtype) -> Tensor", combine);
  m.def("all_up(Tensor x, Tensor weights, Tensor weight, Tensor? bias, int activation, bool keep)"
        " -> (Tensor, Tensor)", all_up);
  m.def("all_down(Tensor weighted_act, Tensor weights, Tensor weight, Tensor? bias, Tensor? residual,"
        " ScalarType dtype) -> Tensor", all_down);
  m.def("all_down_backward(Tensor grad_y, Tensor pre, Tensor weights, Tensor weight, Tensor? bias, int activation)"
        " -> (Tensor, Tensor, Tensor)", all_down_backward);
  m.def("all_down_weight_grad(Tensor grad_y, Tensor weighted_act, Tensor weights, bool has_bias)"
        " -> (Tensor, Tensor)", all_down_weight_grad);
  m.def("all_up_backward(Tensor grad_pre, Tensor weight) -> Tensor", all_up_backward);
  m.def("all_up_weight_grad(Tensor x, Tensor grad_pre, bool has_bias) -> (Tensor, Tensor)", all_up_weight_grad);
}

}  // namespace moe
