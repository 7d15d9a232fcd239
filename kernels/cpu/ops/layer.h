// A whole layer without gradients, on a few tokens or many.

#pragma once

#include "experts.h"
#include "router.h"

namespace moe {

// With the activation between them.
struct ExpertWeights {
  const Tensor& up_weight;
  const Maybe& up_bias;
  const Tensor& down_weight;
  const Maybe& down_bias;
  std::string_view activation;
};

Experts read_experts(Arguments& arguments, const ExpertWeights& weights);

}  // namespace moe
