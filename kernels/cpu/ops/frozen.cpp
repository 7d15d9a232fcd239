// A frozen encoder: weights that were read once, and the pass over them. Its meaning: kernels/encoder/frozen.py, which hands over
// tensors in the types that the pass reads, contiguous, of sizes that fit.

#include <torch/custom_class.h>

#include "layer.h"

namespace moe {
namespace {

using Weights = std::vector<Maybe>;
using NormWeights = std::tuple<Tensor, Tensor, double>;

class FrozenEncoder : public torch::CustomClassHolder {
 public:
  FrozenEncoder(Tensor token_rows, Tensor position_rows, NormWeights norm, int64_t heads, at::ScalarType type)
      : words_(token_rows.size(0)) {
    arguments_.type = type;
    encoder_.type = type_of(type);
    encoder_.heads = heads;
    encoder_.embed.hidden = token_rows.size(1);
    encoder_.embed.token_rows = floats(hold(token_rows));
    encoder_.embed.position_rows = floats(hold(position_rows));
    encoder_.embed.norm = norm_of(norm);
  }

  void add_dense_block(Weights attention, NormWeights norm, Weights dense, std::string activation, NormWeights ffn_norm) {
    EncoderBlock& block = add_block(attention, norm, ffn_norm);
    hold(dense);
    block.end.up = arguments_.linear(dense[0], dense[1]);
    block.end.down = arguments_.linear(dense[2], dense[3]);
    block.end.width = dense[0]->size(0);
    block.end.activation = plain_activation_of(activation);
  }

  void add_routed_block(Weights attention, NormWeights norm, Weights gate, Weights experts, int64_t top_k,
                        std::string router, bool renormalize, std::string activation, NormWeights ffn_norm) {
    EncoderBlock& block = add_block(attention, norm, ffn_norm);
    block.routed = true;
    std::tie(block.gate, block.experts) = routed(gate, experts, {top_k, router, renormalize}, activation);
  }

  // The layer of experts that follows the means.
  void set_pooled(Weights gate, Weights experts, int64_t top_k, std::string router, bool renormalize,
                  std::string activation) {
    pooled_ = routed(gate, experts, {top_k, router, renormalize}, activation);
  }

  Tensor hidden_states(const Tensor& ids, const Tensor& starts) {
    return run(ids, starts, false);
  }

  Tensor embed(const Tensor& ids, const Tensor& starts, bool normalize) {
    return finish(run(ids, starts, true), normalize);
  }

  // What follows the hidden states.
  Tensor pool(const Tensor& hidden, const Tensor& starts, bool normalize) {
    Arguments arguments;
    Tensor means = empty({starts.size(0) - 1, hidden.size(1)}, at::kFloat);
    kernels().mean({means.size(0), means.size(1), ints(starts), arguments.floats(hidden), mutable_floats(means)});
    return finish(means, normalize);
  }

 private:
  const Tensor& hold(const Tensor& t) {
    arguments_.held.push_back(t);
    return t;
  }

  void hold(const Weights& weights) {
    for (const Maybe& weight : weights)
      if (weight) hold(*weight);
  }

  Norm norm_of(const NormWeights& norm) {
    const auto& [weight, bias, eps] = norm;
    return {floats(hold(weight)), floats(hold(bias)), float(eps)};
  }

  // `attention`: weight and bias of the projections to q, k and v, and of the one from the attention's output.
  EncoderBlock& add_block(const Weights& attention, const NormWeights& norm, const NormWeights& ffn_norm) {
    hold(attention);
    EncoderBlock& block = blocks_.emplace_back();
    block.qkv = arguments_.linear(attention[0], attention[1]);
    block.end.out = arguments_.linear(attention[2], attention[3]);
    block.end.norm = norm_of(norm);
    block.end.ffn_norm = norm_of(ffn_norm);
    return block;
  }

  // A layer of experts, without tokens.
  std::pair<Gate, Experts> routed(const Weights& gate, const Weights& experts, const Rule& rule, std::string_view activation) {
    hold(gate);
    hold(experts);
    Tensor none = empty({0, encoder_.embed.hidden}, at::kFloat);
    Gate made = gate_of(arguments_, none, {gate[0], gate[1], *gate[2], gate[3], gate[4]}, {}, {}, rule);
    return {made, read_experts(arguments_, {*experts[0], experts[1], *experts[2], experts[3], activation})};
  }

  // -> hidden states, or the mean of each sequence's.
  Tensor run(const Tensor& ids, const Tensor& starts, bool mean) const {
    Arguments arguments;
    Encoder encoder = encoder_;
    Embed& e = encoder.embed;
    e.tokens = ids.size(0);
    e.sequences = starts.size(0) - 1;
    e.ids = arguments.ids(ids);
    e.starts = ints(starts);
    bool known = true;
    for (int64_t t = 0; t < e.tokens; ++t) known &= uint64_t(e.ids[t]) < uint64_t(words_);
    TORCH_CHECK(known, "input_ids must be at least 0 and below ", words_);
    encoder.blocks = blocks_.data();
    encoder.depth = blocks_.size();
    Tensor out = empty({mean ? e.sequences : e.tokens, e.hidden}, at::kFloat);
    (mean ? encoder.means : e.out) = mutable_floats(out);
    kernels(encoder.type).encode(encoder);
    return out;
  }

  // What follows the means, in their place.
  Tensor finish(const Tensor& means, bool normalize) const {
    if (pooled_) {
      Layer layer{pooled_->first, pooled_->second, rows(means), mutable_rows(means)};
      layer.gate.x = rows(means);
      layer.gate.choose.tokens = means.size(0);
      kernels(layer.experts.type).layer(layer);
    }
    if (normalize) kernels().scale_to_one({means.size(0), means.size(1), mutable_floats(means)});
    return means;
  }

  Arguments arguments_;  // holds what the records point to
  int64_t words_;
  Encoder encoder_{};
  std::vector<EncoderBlock> blocks_;
  std::optional<std::pair<Gate, Experts>> pooled_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.class_<FrozenEncoder>("FrozenEncoder")
      .def(torch::init<Tensor, Tensor, NormWeights, int64_t, at::ScalarType>())
      .def("add_dense_block", &FrozenEncoder::add_dense_block)
      .def("add_routed_block", &FrozenEncoder::add_routed_block)
      .def("set_pooled", &FrozenEncoder::set_pooled)
      .def("hidden_states", &FrozenEncoder::hidden_states)
      .def("embed", &FrozenEncoder::embed)
      .def("pool", &FrozenEncoder::pool);
}

}  // namespace moe
