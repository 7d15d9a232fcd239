// A whole layer without gradients, as one op: for a few tokens, calls would cost more than they compute. Nothing that its parts
// pass on is a tensor, for the same reason.

#include "primitives.h"

namespace moe {
namespace {

// Pieces of this thread's memory, or of memory that is given back, if they are large.
class Places {
 public:
  explicit Places(int64_t bytes) {
    bytes += 64 * MOST;
    if (bytes > KEPT) large_ = empty({bytes}, at::kByte);
    next_ = static_cast<char*>(bytes > KEPT ? large_.mutable_data_ptr() : scratch(Scratch::layer, bytes));
    end_ = next_ + bytes;
  }

  template <class V>
  V* take(int64_t count) {
    return static_cast<V*>(take(count, sizeof(V)));
  }

  void* take(int64_t count, int64_t size) {
    void* place = next_;
    next_ += (count * size + 63) / 64 * 64;
    TORCH_INTERNAL_ASSERT(next_ <= end_);
    return place;
  }

 private:
  static constexpr int64_t MOST = 10, KEPT = 1 << 20;  // pieces, bytes
  Tensor large_;
  char *next_, *end_;
};

// y = residual + the mix of experts. The routing goes where `gate` says; if that is nowhere, nobody looks at it.
void mix(Gate& gate, const Experts& experts, Rows residual, MutableRows y) {
  Choose& c = gate.choose;
  int64_t slots = c.tokens * c.top_k, count = c.experts;
  bool single = c.top_k == 1;  // the row of its slot is a token's result
  int64_t size = experts.type == Type::bf16 ? 2 : 4;
  int64_t act = in_tiles(slots, count) ? 0 : slots * experts.width, rows = single ? 0 : slots * experts.hidden;
  Places places(4 * (c.tokens * count + 3 * slots + 4 * count + 4) + size * (act + rows));
  int32_t *order = places.take<int32_t>(slots), *offsets = places.take<int32_t>(count + 1);
  Serve s{};
  s.plan = {order, offsets, slots, count, c.top_k, false};
  s.experts = experts;
  s.x = gate.x;
  s.act = act ? places.take(act, size) : nullptr;
  s.rows = single ? y : MutableRows{places.take(rows, size), experts.type};
  if (single) s.residual = residual;
  if (!c.sums) {
    c.logits = places.take<float>(c.tokens * count);
    c.weights = places.take<float>(slots);
    c.sums = places.take<float>(2 * count + 2);
    c.indices = places.take<int32_t>(slots);
  }
  s.weights = c.weights;
  kernels().gate(gate);
  make_plan(c.indices, slots, count, order, offsets, places.take<int32_t>(count + 1));
  up_and_down(s);
  if (single) return;
  Combine sum{};
  sum.tokens = c.tokens;
  sum.top_k = c.top_k;
  sum.hidden = experts.hidden;
  sum.rows = {s.rows.data, s.rows.type};
  sum.residual = residual;
  sum.mask = c.mask;
  sum.y = y;
  kernels().combine(sum);
}

Experts read_experts(Arguments& arguments, const Tensor& up_weight, const Maybe& up_bias, const Tensor& down_weight,
                     const Maybe& down_bias, int64_t activation) {
  Experts experts = experts_of(type_of(arguments.type), down_weight.size(1), down_weight.size(2), activation);
  experts.up_weight = arguments.matrix(up_weight);
  experts.up_bias = arguments.matrix(up_bias);
  experts.down_weight = arguments.matrix(down_weight);
  experts.down_bias = arguments.matrix(down_bias);
  return experts;
}

// `type` is that of the experts' products. Its other arguments and results: moe_forward in kernels/functional.py.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer(
    const Tensor& x, const Maybe& hidden_weight, const Maybe& hidden_bias, const Tensor& weight, const Maybe& bias,
    const Maybe& noise, const Maybe& selection_bias, const Maybe& mask, const Tensor& up_weight, const Maybe& up_bias,
    const Tensor& down_weight, const Maybe& down_bias, int64_t top_k, int64_t activation, int64_t router,
    bool renormalize, bool residual, at::ScalarType type) {
  Arguments arguments{type};
  Gate gate = gate_of(arguments, x, hidden_weight, hidden_bias, weight, bias, noise, selection_bias, mask, top_k, router,
                      renormalize);
  Tensor logits = empty({x.size(0), weight.size(0)}, at::kFloat);
  gate.choose.logits = mutable_floats(logits);
  Routed routed(gate.choose);
  Tensor y = empty(x.sizes(), readable(x.scalar_type()));
  mix(gate, read_experts(arguments, up_weight, up_bias, down_weight, down_bias, activation), residual ? gate.x : Rows{},
      mutable_rows(y));
  return {cast(y, x.scalar_type()), logits, routed.weights, routed.indices, routed.sums};
}

}  // namespace

Tensor finish(const Tensor& x, const c10::List<Maybe>& block, at::IntArrayRef settings, at::ScalarType type,
              bool normalize) {
  if (!block.empty()) {
    Maybe p[9];
    for (size_t i = 0; i < 9; ++i) p[i] = block.get(i);
    const auto& [hidden_weight, hidden_bias, weight, bias, selection_bias, up_weight, up_bias, down_weight, down_bias] = p;
    TORCH_CHECK(up_weight->size(2) == x.size(1), "x has ", x.size(1), " columns, the block takes ", up_weight->size(2));
    Arguments arguments{type};
    Gate gate = gate_of(arguments, x, hidden_weight, hidden_bias, *weight, bias, {}, selection_bias, {}, settings[0],
                        settings[2], settings[3]);
    Experts experts = read_experts(arguments, *up_weight, up_bias, *down_weight, down_bias, settings[1]);
    mix(gate, experts, gate.x, mutable_rows(x));
  }
  if (normalize) kernels().scale_to_one({x.size(0), x.size(1), mutable_floats(x)});
  return x;
}

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("layer(Tensor x, Tensor? hidden_weight, Tensor? hidden_bias, Tensor weight, Tensor? bias, Tensor? noise,"
        " Tensor? selection_bias, Tensor? mask, Tensor up_weight, Tensor? up_bias, Tensor down_weight,"
        " Tensor? down_bias, int top_k, int activation, int router, bool renormalize, bool residual, ScalarType type)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)", layer);
}

}  // namespace moe
