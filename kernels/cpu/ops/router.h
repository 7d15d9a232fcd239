// A gate, from tensors. The primitives' meaning: kernels/reference.py.

#pragma once

#include "arguments.h"
#include "names.h"

namespace moe {

struct GateWeights {
  const Maybe &hidden_weight, &hidden_bias;
  const Tensor& weight;
  const Maybe &bias, &selection_bias;
};

// How experts are chosen.
struct Rule {
  int64_t top_k;
  std::string_view router;
  bool renormalize;
};

// All but the logits, and what is chosen.
Gate gate_of(Arguments& arguments, const Tensor& x, const GateWeights& weights, const Maybe& noise, const Maybe& mask,
             const Rule& rule);

// What is chosen, made for a Choose, which writes there.
struct Routed {
  Tensor weights, indices, sums;

  explicit Routed(Choose& c);
};

}  // namespace moe
