#pragma once

#include "tensors.h"

namespace moe {

// What follows the means of sequences, in their place: the pooled layer, which has a residual, and lengths of 1.
// `layer` has its parameters in the order in which the op `layer` takes them; it is empty where there is none. `settings`: top_k,
// activation, router, renormalize.
Tensor finish(const Tensor& means, const c10::List<Maybe>& layer, at::IntArrayRef settings, at::ScalarType type,
              bool normalize);

}  // namespace moe
