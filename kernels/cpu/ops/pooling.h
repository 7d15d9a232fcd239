// What follows the means of sequences.

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

// The pooled layer, if there is one, in the place of the means, and lengths of 1, if they are asked for.
Tensor finish(const Tensor& means, const PooledLayer& layer, bool normalize);

}  // namespace moe
