// Slots in the order of their experts.

#pragma once

#include "tensors.h"

namespace moe {

inline Plan plan_of(const Tensor& order, const Tensor& offsets, int64_t top_k) {
  return {ints(order), ints(offsets), order.size(0), offsets.size(0) - 1, top_k, false};
}

// Every expert runs on every token: slot t * E + e, in the order of the experts.
struct FullPlan {
  Tensor order, offsets;

  FullPlan(int64_t tokens, int64_t experts)
      : order(empty({tokens * experts}, at::kInt)), offsets(empty({experts + 1}, at::kInt)) {
    int32_t* slot = mutable_ints(order);
    int32_t* first = mutable_ints(offsets);
    for (int64_t e = 0; e < experts; ++e)
      for (int64_t t = 0; t < tokens; ++t) *slot++ = t * experts + e;
    for (int64_t e = 0; e <= experts; ++e) first[e] = e * tokens;
  }

  Plan plan() const {
    return {ints(order), ints(offsets), order.size(0), offsets.size(0) - 1, offsets.size(0) - 1, true};
  }
};

}  // namespace moe
