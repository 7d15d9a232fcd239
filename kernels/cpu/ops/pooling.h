#pragma once

#include "router.h"

namespace moe {

// The pooled layer, which has a residual. `parameters`: those of the op `layer`, in its order; empty where there is no layer.
struct PooledLayer {
  const c10::List<Maybe>& parameters;
  Rule rule;
  std::string_view activation;
  at::ScalarType type;  // of the experts' products
};

// What follows the means of sequences, in their place: the pooled layer, and lengths of 1.
Tensor finish(const Tensor& means, const PooledLayer& layer, bool normalize);

}  // namespace moe
