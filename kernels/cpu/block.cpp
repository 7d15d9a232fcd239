// The parts of an encoder that are fused for inference, as ops. Their meaning: kernels/fused.py.

#include <ATen/ops/max.h>
#include <ATen/ops/min.h>

#include "tensors.h"

namespace moe {
namespace {

// Weights and norms as the kernels read them; conversions live as long as this does.
struct Arguments {
  at::ScalarType type;
  std::vector<Tensor> held;

  const void* matrix(const Maybe& t) {
    if (!t) return nullptr;
    held.push_back(t->to(type).contiguous());
    return held.back().const_data_ptr();
  }

  Linear linear(const Maybe& weight, const Maybe& bias) {
    return {matrix(weight), matrix(bias)};
  }

  Norm norm(const Maybe& weight, const Maybe& bias, double eps) {
    if (!weight) return {};
    held.push_back(wide(*weight));
    held.push_back(wide(*bias));
    return {floats(held[held.size() - 2]), floats(held.back()), float(eps)};
  }
};

std::tuple<Tensor, Tensor> block(const Tensor& x, const Maybe& y, const Maybe& out_weight, const Maybe& out_bias,
                                 const Maybe& norm_weight, const Maybe& norm_bias, const Maybe& up_weight,
                                 const Maybe& up_bias, const Maybe& down_weight, const Maybe& down_bias,
                                 const Maybe& ffn_norm_weight, const Maybe& ffn_norm_bias, const Maybe& next_weight,
                                 const Maybe& next_bias, double eps, int64_t activation, at::ScalarType type,
                                 const Maybe& into) {
  Arguments arguments{type, {}};
  Tensor source = wide(x), added, next;
  Block b{};
  b.type = type == at::kBFloat16 ? Type::bf16 : Type::fp32;
  b.activation = Activation(activation);
  b.tokens = x.size(0);
  b.hidden = x.size(1);
  b.x = floats(source);
  if (y) {
    added = out_weight ? y->to(type).contiguous() : readable(*y);
    b.y = rows(added);
    b.norm = arguments.norm(norm_weight, norm_bias, eps);
  }
  b.out = arguments.linear(out_weight, out_bias);
  b.up = arguments.linear(up_weight, up_bias);
  b.down = arguments.linear(down_weight, down_bias);
  if (up_weight) {
    b.width = up_weight->size(0);
    b.ffn_norm = arguments.norm(ffn_norm_weight, ffn_norm_bias, eps);
  }
  b.next = arguments.linear(next_weight, next_bias);
  Tensor hidden = source;
  if (y || up_weight) {
    hidden = into ? *into : empty(x.sizes(), at::kFloat);
    b.out_hidden = mutable_floats(hidden);
  }
  if (next_weight) {
    b.next_size = next_weight->size(0);
    next = empty({b.tokens, b.next_size}, type);
    b.out_next = next.mutable_data_ptr();
  }
  kernels().block(b);
  return {hidden, next};
}

Tensor embed(const Tensor& ids, const Tensor& starts, const Tensor& token_rows, const Tensor& position_rows,
             const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  Tensor sources[] = {ids.contiguous(), wide(token_rows), wide(position_rows), wide(norm_weight), wide(norm_bias)};
  Tensor out = empty({ids.size(0), token_rows.size(1)}, at::kFloat);
  TORCH_CHECK(!ids.numel() || (ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < token_rows.size(0)),
              "input_ids must be at least 0 and below ", token_rows.size(0));
  Embed e{};
  e.tokens = ids.size(0);
  e.sequences = starts.size(0) - 1;
  e.hidden = token_rows.size(1);
  e.ids = static_cast<const int64_t*>(sources[0].const_data_ptr());
  e.starts = ints(starts);
  e.token_rows = floats(sources[1]);
  e.position_rows = floats(sources[2]);
  e.norm = {floats(sources[3]), floats(sources[4]), float(eps)};
  e.out = mutable_floats(out);
  kernels().embed(e);
  return out;
}

Tensor mean(const Tensor& x, const Tensor& starts) {
  Tensor source = wide(x), out = empty({starts.size(0) - 1, x.size(1)}, at::kFloat);
  Mean m{};
  m.sequences = starts.size(0) - 1;
  m.hidden = x.size(1);
  m.starts = ints(starts);
  m.x = floats(source);
  m.out = mutable_floats(out);
  kernels().mean(m);
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("block(Tensor x, Tensor? y, Tensor? out_weight, Tensor? out_bias, Tensor? norm_weight, Tensor? norm_bias,"
        " Tensor? up_weight, Tensor? up_bias, Tensor? down_weight, Tensor? down_bias, Tensor? ffn_norm_weight,"
        " Tensor? ffn_norm_bias, Tensor? next_weight, Tensor? next_bias, float eps, int activation, ScalarType type,"
        " Tensor(a!)? into)"
        " -> (Tensor, Tensor)", block);
  m.def("embed(Tensor ids, Tensor starts, Tensor token_rows, Tensor position_rows, Tensor norm_weight,"
        " Tensor norm_bias, float eps) -> Tensor", embed);
  m.def("mean(Tensor x, Tensor starts) -> Tensor", mean);
}

}  // namespace moe
