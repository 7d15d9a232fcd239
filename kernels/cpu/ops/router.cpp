// The router's primitives, as ops. Their meaning: kernels/reference.py.

#include "router.h"

#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/where.h>

namespace moe {
namespace {

Choose choose_of(Arguments& arguments, int64_t tokens, int64_t experts, const Maybe& selection_bias, const Maybe& mask,
                 const Rule& rule) {
  return {.tokens = tokens, .experts = experts, .top_k = rule.top_k, .router = router_of(rule.router),
          .renormalize = rule.renormalize, .selection_bias = arguments.floats(selection_bias),
          .mask = arguments.mask(mask)};
}

}  // namespace

Routed::Routed(Choose& c)
    : weights(empty({c.tokens, c.top_k ? c.top_k : c.experts}, at::kFloat)),
      indices(empty({c.tokens, c.top_k}, at::kInt)),
      sums(empty({1, 2 * c.experts + 2}, at::kFloat)) {
  c.weights = mutable_floats(weights);
  c.indices = mutable_ints(indices);
  c.sums = mutable_floats(sums);
}

Gate gate_of(Arguments& arguments, const Tensor& x, const GateWeights& weights, const Maybe& noise, const Maybe& mask,
             const Rule& rule) {
  const auto& [hidden_weight, hidden_bias, weight, bias, selection_bias] = weights;
  auto of_x = [&](const Tensor& w) {  // the weight that multiplies x
    bool exact = x.scalar_type() == at::kBFloat16 && w.scalar_type() == at::kBFloat16;
    return exact ? arguments.rows(w) : Rows{arguments.floats(w), Type::fp32};
  };
  return {.choose = choose_of(arguments, x.size(0), weight.size(0), selection_bias, mask, rule),
          .hidden = x.size(1), .features = weight.size(1), .x = arguments.rows(x),
          .hidden_weight = hidden_weight ? of_x(*hidden_weight) : Rows{}, .hidden_bias = arguments.floats(hidden_bias),
          .weight = hidden_weight ? Rows{arguments.floats(weight), Type::fp32} : of_x(weight),
          .bias = arguments.floats(bias), .noise = arguments.floats(noise)};
}

namespace {

std::tuple<Tensor, Tensor, Tensor> choose(const Tensor& logits, const Maybe& selection_bias, const Maybe& mask,
                                          int64_t top_k, std::string_view router, bool renormalize) {
  Arguments arguments;
  Choose c = choose_of(arguments, logits.size(0), logits.size(1), selection_bias, mask, {top_k, router, renormalize});
  c.logits = const_cast<float*>(floats(logits));
  Routed routed(c);
  kernels().choose(c);
  return {routed.weights, routed.indices, routed.sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gate(const Tensor& x, const Maybe& hidden_weight,
                                                const Maybe& hidden_bias, const Tensor& weight, const Maybe& bias,
                                                const Maybe& noise, const Maybe& selection_bias, const Maybe& mask,
                                                int64_t top_k, std::string_view router, bool renormalize) {
  Arguments arguments;
  Gate g = gate_of(arguments, x, {hidden_weight, hidden_bias, weight, bias, selection_bias}, noise, mask,
                   {top_k, router, renormalize});
  Tensor logits = empty({x.size(0), weight.size(0)}, at::kFloat);
  g.choose.logits = mutable_floats(logits);
  Routed routed(g.choose);
  kernels().gate(g);
  return {logits, routed.weights, routed.indices, routed.sums};
}

Tensor choose_backward(const Tensor& grad_weights, const Maybe& grad_sums, const Tensor& logits,
                       const Tensor& weights, const Tensor& indices, const Maybe& mask, std::string_view router,
                       bool renormalize) {
  Tensor summed = (grad_weights.size(1) == 1 ? grad_weights : grad_weights.sum(-1)).contiguous();
  Arguments arguments;
  Tensor grad_logits = empty(logits.sizes(), at::kFloat);
  ChooseBackward b{};
  b.choose = choose_of(arguments, logits.size(0), logits.size(1), {}, mask, {indices.size(1), router, renormalize});
  b.choose.logits = const_cast<float*>(floats(logits));
  b.choose.weights = const_cast<float*>(floats(weights));
  b.choose.indices = const_cast<int32_t*>(ints(indices));
  b.grad_weights = floats(summed);
  b.grad_sums = arguments.floats(grad_sums);
  b.grad_logits = mutable_floats(grad_logits);
  kernels().choose_backward(b);
  return grad_logits;
}

Tensor as_rows(const Tensor& t) {
  return cast(t, readable(t.scalar_type())).contiguous();
}

Tensor multiply(Product p, at::ScalarType type) {
  Tensor c = empty({p.m, p.n}, readable(type));
  p.c = mutable_rows(c);
  kernels().product(p);
  return cast(c, type);
}

Tensor product(const Tensor& a, const Tensor& b) {
  return multiply({a.size(0), b.size(1), a.size(1), floats(a), rows(b), false, {}}, at::kFloat);
}

// a^T b
Tensor outer_product(const Tensor& a, const Tensor& b, at::ScalarType type) {
  return multiply({a.size(1), b.size(1), a.size(0), floats(a), rows(b), true, {}}, type);
}

Tensor column_sums(const Tensor& a, at::ScalarType type) {
  return multiply({a.size(1), 1, a.size(0), floats(a), {}, true, {}}, type).squeeze(1);
}

constexpr int64_t FEW_EXPERTS = 32;  // whose gradients reach x without a product of their own

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gate_backward(
    const Tensor& grad_weights, const Maybe& grad_sums, const Maybe& grad_x_slots, const Maybe& grad_y,
    const Tensor& logits, const Tensor& weights, const Tensor& indices, const Maybe& mask, const Tensor& x,
    const Maybe& hidden_weight, const Maybe& hidden_bias, const Tensor& weight, std::string_view router, bool renormalize) {
  Tensor grad_logits = choose_backward(grad_weights, grad_sums, logits, weights, indices, mask, router, renormalize);
  Tensor source = as_rows(x), last = as_rows(weight), first = hidden_weight ? as_rows(*hidden_weight) : last;
  if (mask) source = at::where(mask->unsqueeze(1), source, 0.0);  // a masked row can be NaN
  Arguments arguments;
  at::ScalarType type = weight.scalar_type();
  Tensor grad_bias = column_sums(grad_logits, type), grad_weight, grad_hidden_weight, grad_hidden_bias;
  Tensor grad_input = grad_logits, through, grad_x;
  if (hidden_weight) {
    Rule rule = {indices.size(1), router, renormalize};
    Tensor hidden = empty({x.size(0), weight.size(1)}, at::kFloat);
    kernels().gate_features(gate_of(arguments, source, {hidden_weight, hidden_bias, weight, {}, {}}, {}, {}, rule),
                            mutable_floats(hidden));
    grad_weight = outer_product(grad_logits, hidden, type);
    grad_input = at::threshold_backward(product(grad_logits, last), hidden, 0);
    grad_hidden_weight = outer_product(grad_input, source, hidden_weight->scalar_type());
    grad_hidden_bias = column_sums(grad_input, hidden_weight->scalar_type());
  } else {
    grad_weight = outer_product(grad_logits, source, type);
  }
  if (grad_x_slots) {
    grad_x = empty(x.sizes(), readable(x.scalar_type()));
    Combine c{.tokens = x.size(0), .top_k = x.size(0) ? grad_x_slots->size(0) / x.size(0) : 1, .hidden = x.size(1),
              .rows = arguments.rows(grad_x_slots), .residual = arguments.rows(grad_y),
              .mask = arguments.mask(mask), .y = mutable_rows(grad_x)};
    if (grad_input.size(1) <= FEW_EXPERTS) {
      c.terms = grad_input.size(1);
      c.scales = floats(grad_input);
      c.term_rows = arguments.floats(first);
    } else {
      through = product(grad_input, first);
      c.second = rows(through);
    }
    kernels().combine(c);
    grad_x = cast(grad_x, x.scalar_type());
  }
  return {grad_x, grad_hidden_weight, grad_hidden_bias, grad_weight, grad_bias, grad_logits};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("gate(Tensor x, Tensor? hidden_weight, Tensor? hidden_bias, Tensor weight, Tensor? bias, Tensor? noise,"
        " Tensor? selection_bias, Tensor? mask, int top_k, str router, bool renormalize)"
        " -> (Tensor, Tensor, Tensor, Tensor)", gate);
  m.def("choose(Tensor logits, Tensor? selection_bias, Tensor? mask, int top_k, str router, bool renormalize)"
        " -> (Tensor, Tensor, Tensor)", choose);
  m.def("choose_backward(Tensor grad_weights, Tensor? grad_sums, Tensor logits, Tensor weights, Tensor indices,"
        " Tensor? mask, str router, bool renormalize) -> Tensor", choose_backward);
  m.def("gate_backward(Tensor grad_weights, Tensor? grad_sums, Tensor? grad_x, Tensor? grad_y, Tensor logits,"
        " Tensor weights, Tensor indices, Tensor? mask, Tensor x, Tensor? hidden_weight, Tensor? hidden_bias,"
        " Tensor weight, str router, bool renormalize)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", gate_backward);
}

}  // namespace moe
