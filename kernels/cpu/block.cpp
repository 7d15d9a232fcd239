// The parts of an encoder that are fused for inference, as ops. Their meaning: kernels/fused.py.

#include "tensors.h"

namespace moe {
namespace {

// Weights and norms as the kernels read them; conversions live as long as this does.
struct Arguments {
  at::ScalarType type;
  std::vector<Tensor> held;

  const void* matrix(const Maybe& t) {
    if (!t) return nullptr;
    held.push_back(cast(*t, type).contiguous());
    return held.back().const_data_ptr();
  }

  Linear linear(const Maybe& weight, const Maybe& bias) {
    return {matrix(weight), matrix(bias)};
  }

  Norm norm(const Maybe& weight, const Maybe& bias, double eps) {
    if (!weight) return {};
    TORCH_CHECK(bias, "a norm must have a bias");
    return {rows(*weight), rows(*bias), float(eps)};
  }

  const float* rows(const Tensor& t) {
    held.push_back(wide(t));
    return floats(held.back());
  }

  const int64_t* ids(const Tensor& t) {
    held.push_back(t.contiguous());
    return static_cast<const int64_t*>(held.back().const_data_ptr());
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
  b.type = type_of(type);
  b.activation = Activation(activation);
  b.tokens = x.size(0);
  b.hidden = x.size(1);
  b.x = floats(source);
  if (y) {
    added = out_weight ? cast(*y, type).contiguous() : readable(*y);
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

Embed embed_of(Arguments& arguments, const Tensor& ids, const Tensor& starts, const Tensor& token_rows,
               const Tensor& position_rows, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
               const Tensor& out) {
  Embed e{};
  e.tokens = ids.size(0);
  e.sequences = starts.size(0) - 1;
  e.hidden = token_rows.size(1);
  e.ids = arguments.ids(ids);
  e.starts = ints(starts);
  e.token_rows = arguments.rows(token_rows);
  e.position_rows = arguments.rows(position_rows);
  e.norm = arguments.norm(norm_weight, norm_bias, eps);
  e.out = mutable_floats(out);
  bool known = true;
  for (int64_t t = 0; t < e.tokens; ++t) known &= uint64_t(e.ids[t]) < uint64_t(token_rows.size(0));
  TORCH_CHECK(known, "input_ids must be at least 0 and below ", token_rows.size(0));
  return e;
}

Tensor embed(const Tensor& ids, const Tensor& starts, const Tensor& token_rows, const Tensor& position_rows,
             const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  Arguments arguments{at::kFloat, {}};
  Tensor out = empty({ids.size(0), token_rows.size(1)}, at::kFloat);
  kernels().embed(embed_of(arguments, ids, starts, token_rows, position_rows, norm_weight, norm_bias, eps, out));
  return out;
}

// `parameters` has weight and bias of qkv, out, norm, up, down and ffn_norm for each block, `eps` that of the first norm,
// then two a block.
Tensor encode(const Tensor& ids, const Tensor& starts, const Tensor& token_rows, const Tensor& position_rows,
              const Tensor& norm_weight, const Tensor& norm_bias, const c10::List<Maybe>& parameters,
              at::ArrayRef<double> eps, int64_t heads, int64_t activation, at::ScalarType type) {
  constexpr size_t EACH = 12;
  Arguments arguments{type, {}};
  std::vector<Layer> layers(parameters.size() / EACH);
  int64_t hidden = token_rows.size(1);
  Tensor out = empty({ids.size(0), hidden}, at::kFloat);
  for (size_t i = 0; i < layers.size(); ++i) {
    Layer& layer = layers[i];
    Maybe p[EACH];
    for (size_t j = 0; j < EACH; ++j) p[j] = parameters.get(EACH * i + j);
    layer.width = p[6]->size(0);
    auto check = [&](const char* name, const Maybe& weight, at::IntArrayRef sizes) {
      TORCH_CHECK(weight->sizes() == sizes, "blocks[", i, "].", name, ".weight must have shape ", sizes, ", got ",
                  weight->sizes());
    };
    check("qkv", p[0], {3 * hidden, hidden});
    check("out", p[2], {hidden, hidden});
    check("norm", p[4], {hidden});
    check("up", p[6], {layer.width, hidden});
    check("down", p[8], {hidden, layer.width});
    check("ffn_norm", p[10], {hidden});
    layer.qkv = arguments.linear(p[0], p[1]);
    layer.out = arguments.linear(p[2], p[3]);
    layer.norm = arguments.norm(p[4], p[5], eps[2 * i + 1]);
    layer.up = arguments.linear(p[6], p[7]);
    layer.down = arguments.linear(p[8], p[9]);
    layer.ffn_norm = arguments.norm(p[10], p[11], eps[2 * i + 2]);
  }
  Encoder encoder{};
  encoder.embed = embed_of(arguments, ids, starts, token_rows, position_rows, norm_weight, norm_bias, eps[0], out);
  encoder.type = type_of(type);
  encoder.activation = Activation(activation);
  encoder.heads = heads;
  encoder.depth = layers.size();
  encoder.layers = layers.data();
  kernels().encode(encoder);
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
  m.def("encode(Tensor ids, Tensor starts, Tensor token_rows, Tensor position_rows, Tensor norm_weight,"
        " Tensor norm_bias, Tensor?[] parameters, float[] eps, int heads, int activation, ScalarType type) -> Tensor",
        encode);
}

}  // namespace moe
