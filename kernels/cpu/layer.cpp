// A whole layer without gradients, and all that follows an encoder, as one op each: for a few tokens, calls would cost more
// than they compute.

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

// The mean over each sequence; if there is a `weight`, a layer with its residual; lengths of 1 if they are asked for.
Tensor pool(const Tensor& x, const Tensor& starts, const Maybe& hidden_weight, const Maybe& hidden_bias,
            const Maybe& weight, const Maybe& bias, const Maybe& selection_bias, const Maybe& up_weight,
            const Maybe& up_bias, const Maybe& down_weight, const Maybe& down_bias, int64_t top_k, int64_t activation,
            int64_t router, bool renormalize, at::ScalarType type, bool normalize) {
  Tensor source = wide(x), out = empty({starts.size(0) - 1, x.size(1)}, at::kFloat);
  bool in_order = ints(starts)[0] == 0 && ints(starts)[out.size(0)] == x.size(0);
  for (int64_t i = 0; i < out.size(0); ++i) in_order &= ints(starts)[i] <= ints(starts)[i + 1];
  TORCH_CHECK(in_order, "cu_seqlens must go from 0 to ", x.size(0), " and not decrease");
  TORCH_CHECK(!weight || up_weight->size(2) == x.size(1), "x has ", x.size(1), " columns, the block takes ",
              up_weight->size(2));
  Mean m{};
  m.sequences = out.size(0);
  m.hidden = out.size(1);
  m.starts = ints(starts);
  m.x = floats(source);
  m.out = mutable_floats(out);
  kernels().mean(m);
  if (weight)
    out = std::get<0>(layer(out, hidden_weight, hidden_bias, *weight, bias, {}, selection_bias, {}, *up_weight, up_bias,
                            *down_weight, down_bias, top_k, activation, router, renormalize, true, type));
  if (normalize) kernels().scale_to_one({out.size(0), out.size(1), mutable_floats(out)});
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("layer(Tensor x, Tensor? hidden_weight, Tensor? hidden_bias, Tensor weight, Tensor? bias, Tensor? noise,"
        " Tensor? selection_bias, Tensor? mask, Tensor up_weight, Tensor? up_bias, Tensor down_weight,"
        " Tensor? down_bias, int top_k, int activation, int router, bool renormalize, bool residual, ScalarType type)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)", layer);
  m.def("pool(Tensor x, Tensor starts, Tensor? hidden_weight, Tensor? hidden_bias, Tensor? weight, Tensor? bias,"
        " Tensor? selection_bias, Tensor? up_weight, Tensor? up_bias, Tensor? down_weight, Tensor? down_bias, int top_k,"
        " int activation, int router, bool renormalize, ScalarType type, bool normalize) -> Tensor", pool);
}

}  // namespace moe
