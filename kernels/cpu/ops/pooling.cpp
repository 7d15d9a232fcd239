// From hidden states to embeddings, as an op. Its meaning: kernels/fused.py.

#include "pooling.h"

#include "layer.h"

namespace moe {

Tensor finish(const Tensor& means, const PooledLayer& layer, bool normalize) {
  if (!layer.parameters.empty()) {
    Maybe p[9];
    for (size_t i = 0; i < 9; ++i) p[i] = layer.parameters.get(i);
    const auto& [hidden_weight, hidden_bias, weight, bias, selection_bias, up_weight, up_bias, down_weight, down_bias] = p;
    TORCH_CHECK(up_weight->size(2) == means.size(1), "x has ", means.size(1), " columns, the pooled layer takes ",
                up_weight->size(2));
    Arguments arguments{layer.type};
    Gate gate = gate_of(arguments, means, {hidden_weight, hidden_bias, *weight, bias, selection_bias}, {}, {},
                        layer.rule);
    mix(gate, read_experts(arguments, {*up_weight, up_bias, *down_weight, down_bias, layer.activation}), gate.x,
        mutable_rows(means));
  }
  if (normalize) kernels().scale_to_one({means.size(0), means.size(1), mutable_floats(means)});
  return means;
}

namespace {

// The mean over each sequence, and what follows it.
Tensor pool(const Tensor& x, const Tensor& starts, const c10::List<Maybe>& layer, int64_t top_k, std::string_view activation,
            std::string_view router, bool renormalize, at::ScalarType type, bool normalize) {
  Arguments arguments;
  Tensor means = empty({starts.size(0) - 1, x.size(1)}, at::kFloat);
  bool in_order = ints(starts)[0] == 0 && ints(starts)[means.size(0)] == x.size(0);
  for (int64_t i = 0; i < means.size(0); ++i) in_order &= ints(starts)[i] <= ints(starts)[i + 1];
  TORCH_CHECK(in_order, "cu_seqlens must go from 0 to ", x.size(0), " and not decrease");
  kernels().mean({means.size(0), means.size(1), ints(starts), arguments.floats(x), mutable_floats(means)});
  return finish(means, {layer, {top_k, router, renormalize}, activation, type}, normalize);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("pool(Tensor x, Tensor starts, Tensor?[] layer, int top_k, str activation, str router, bool renormalize,"
        " ScalarType type, bool normalize) -> Tensor", pool);
}

}  // namespace moe
