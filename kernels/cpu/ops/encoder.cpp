// A dense encoder and its embeddings, as ops. Their meaning: kernels/fused.py.

#include "arguments.h"
#include "pooling.h"

namespace moe {
namespace {

Embed embed_of(Arguments& arguments, const Tensor& ids, const Tensor& starts, const Tensor& token_rows,
               const Tensor& position_rows, const Norm& norm) {
  Embed e{.tokens = ids.size(0), .sequences = starts.size(0) - 1, .hidden = token_rows.size(1),
          .ids = arguments.ids(ids), .starts = ints(starts), .token_rows = arguments.floats(token_rows),
          .position_rows = arguments.floats(position_rows), .norm = norm};
  bool known = true;
  for (int64_t t = 0; t < e.tokens; ++t) known &= uint64_t(e.ids[t]) < uint64_t(token_rows.size(0));
  TORCH_CHECK(known, "input_ids must be at least 0 and below ", token_rows.size(0));
  return e;
}

Tensor embed(const Tensor& ids, const Tensor& starts, const Tensor& token_rows, const Tensor& position_rows,
             const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  Arguments arguments;
  Embed e = embed_of(arguments, ids, starts, token_rows, position_rows, arguments.norm(norm_weight, norm_bias, eps));
  Tensor out = empty({e.tokens, e.hidden}, at::kFloat);
  e.out = mutable_floats(out);
  kernels().embed(e);
  return out;
}

// `parameters`: weight and bias of qkv, out, norm, up, down and ffn_norm for each block, `eps`: two numbers a block.
std::vector<EncoderBlock> blocks_of(Arguments& arguments, int64_t hidden, const c10::List<Maybe>& parameters,
                                    at::ArrayRef<double> eps) {
  constexpr size_t EACH = 12;
  std::vector<EncoderBlock> blocks(parameters.size() / EACH);
  for (size_t i = 0; i < blocks.size(); ++i) {
    EndWeights& end = blocks[i].end;
    Maybe p[EACH];
    for (size_t j = 0; j < EACH; ++j) p[j] = parameters.get(EACH * i + j);
    end.width = p[6]->size(0);
    auto check = [&](const char* name, const Maybe& weight, at::IntArrayRef sizes) {
      TORCH_CHECK(weight->sizes() == sizes, "blocks[", i, "].", name, ".weight must have shape ", sizes, ", got ",
                  weight->sizes());
    };
    check("qkv", p[0], {3 * hidden, hidden});
    check("out", p[2], {hidden, hidden});
    check("norm", p[4], {hidden});
    check("up", p[6], {end.width, hidden});
    check("down", p[8], {hidden, end.width});
    check("ffn_norm", p[10], {hidden});
    blocks[i].qkv = arguments.linear(p[0], p[1]);
    end.out = arguments.linear(p[2], p[3]);
    end.norm = arguments.norm(p[4], p[5], eps[2 * i]);
    end.up = arguments.linear(p[6], p[7]);
    end.down = arguments.linear(p[8], p[9]);
    end.ffn_norm = arguments.norm(p[10], p[11], eps[2 * i + 1]);
  }
  return blocks;
}

struct EncoderWeights {
  const Tensor &token_rows, &position_rows, &norm_weight, &norm_bias;
  const c10::List<Maybe>& blocks;
  at::ArrayRef<double> eps;  // begins with that of the embeddings' norm
  int64_t heads;
  std::string_view activation;
};

// -> hidden states, or the mean of each sequence's.
Tensor run_encoder(const Tensor& ids, const Tensor& starts, const EncoderWeights& weights, at::ScalarType type, bool mean) {
  Arguments arguments{type};
  int64_t hidden = weights.token_rows.size(1);
  std::vector<EncoderBlock> blocks = blocks_of(arguments, hidden, weights.blocks, weights.eps.slice(1));
  Norm norm = arguments.norm(weights.norm_weight, weights.norm_bias, weights.eps[0]);
  Encoder encoder{.embed = embed_of(arguments, ids, starts, weights.token_rows, weights.position_rows, norm),
                  .type = type_of(type), .activation = plain_activation_of(weights.activation), .heads = weights.heads,
                  .depth = int64_t(blocks.size()), .blocks = blocks.data()};
  Tensor out = empty({mean ? encoder.embed.sequences : encoder.embed.tokens, hidden}, at::kFloat);
  (mean ? encoder.means : encoder.embed.out) = mutable_floats(out);
  kernels().encode(encoder);
  return out;
}

Tensor encode(const Tensor& ids, const Tensor& starts, const Tensor& token_rows, const Tensor& position_rows,
              const Tensor& norm_weight, const Tensor& norm_bias, const c10::List<Maybe>& blocks,
              at::ArrayRef<double> eps, int64_t heads, std::string_view activation, at::ScalarType type) {
  return run_encoder(ids, starts, {token_rows, position_rows, norm_weight, norm_bias, blocks, eps, heads, activation},
                     type, false);
}

Tensor retrieve(const Tensor& ids, const Tensor& starts, const Tensor& token_rows, const Tensor& position_rows,
                const Tensor& norm_weight, const Tensor& norm_bias, const c10::List<Maybe>& blocks,
                at::ArrayRef<double> eps, int64_t heads, std::string_view activation, at::ScalarType type,
                const c10::List<Maybe>& layer, int64_t top_k, std::string_view layer_activation, std::string_view router,
                bool renormalize, at::ScalarType layer_type, bool normalize) {
  Tensor means = run_encoder(
      ids, starts, {token_rows, position_rows, norm_weight, norm_bias, blocks, eps, heads, activation}, type, true);
  return finish(means, {layer, {top_k, router, renormalize}, layer_activation, layer_type}, normalize);
}

}  // namespace

#define ENCODER                                                                                            \
  "Tensor ids, Tensor starts, Tensor token_rows, Tensor position_rows, Tensor norm_weight, Tensor norm_bias," \
  " Tensor?[] parameters, float[] eps, int heads, str activation, ScalarType type"

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("embed(Tensor ids, Tensor starts, Tensor token_rows, Tensor position_rows, Tensor norm_weight,"
        " Tensor norm_bias, float eps) -> Tensor", embed);
  m.def("encode(" ENCODER ") -> Tensor", encode);
  m.def("retrieve(" ENCODER ", Tensor?[] layer, int top_k, str layer_activation, str router, bool renormalize,"
        " ScalarType layer_type, bool normalize) -> Tensor", retrieve);
}

}  // namespace moe
