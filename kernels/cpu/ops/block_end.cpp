// A block of an encoder from its attention on, as an op. Its meaning: kernels/fused.py.

#include "arguments.h"
#include "names.h"

namespace moe {
namespace {

std::tuple<Tensor, Tensor> block(const Tensor& x, const Maybe& y, const Maybe& out_weight, const Maybe& out_bias,
                                 const Maybe& norm_weight, const Maybe& norm_bias, const Maybe& up_weight,
                                 const Maybe& up_bias, const Maybe& down_weight, const Maybe& down_bias,
                                 const Maybe& ffn_norm_weight, const Maybe& ffn_norm_bias, const Maybe& next_weight,
                                 const Maybe& next_bias, double eps, double ffn_eps, std::string_view activation,
                                 at::ScalarType type, const Maybe& into) {
  Arguments arguments{type};
  Tensor source = wide(x), hidden = source, next;
  BlockEnd b{.type = type_of(type), .activation = plain_activation_of(activation), .tokens = x.size(0),
             .hidden = x.size(1), .x = floats(source)};
  EndWeights& weights = b.weights;
  if (y) {
    b.y = out_weight ? Rows{arguments.as(type, *y), b.type} : arguments.rows(*y);
    weights.norm = arguments.norm(norm_weight, norm_bias, eps);
  }
  weights.out = arguments.linear(out_weight, out_bias);
  weights.up = arguments.linear(up_weight, up_bias);
  weights.down = arguments.linear(down_weight, down_bias);
  if (up_weight) {
    weights.width = up_weight->size(0);
    weights.ffn_norm = arguments.norm(ffn_norm_weight, ffn_norm_bias, ffn_eps);
  }
  b.next_qkv = arguments.linear(next_weight, next_bias);
  if (y || up_weight) {
    hidden = into ? *into : empty(x.sizes(), at::kFloat);
    b.out_hidden = mutable_floats(hidden);
  }
  if (next_weight) {
    b.next_size = b.next_in_rows = next_weight->size(0);
    next = empty({b.tokens, b.next_size}, type);
    b.out_next = next.mutable_data_ptr();
  }
  kernels().block_end(b);
  return {hidden, next};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("block(Tensor x, Tensor? y, Tensor? out_weight, Tensor? out_bias, Tensor? norm_weight, Tensor? norm_bias,"
        " Tensor? up_weight, Tensor? up_bias, Tensor? down_weight, Tensor? down_bias, Tensor? ffn_norm_weight,"
        " Tensor? ffn_norm_bias, Tensor? next_weight, Tensor? next_bias, float eps, float ffn_eps, str activation,"
        " ScalarType type, Tensor(a!)? into)"
        " -> (Tensor, Tensor)", block);
}

}  // namespace moe
