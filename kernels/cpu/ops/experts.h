// What multiplies by experts, from tensors. The primitives' meaning: kernels/reference.py.

#pragma once

#include "arguments.h"
#include "names.h"
#include "plan.h"

namespace moe {

// Experts with one of the two weights.
Experts up_experts(const Tensor& weight, const Maybe& bias, NamedActivation activation = {});
Experts down_experts(const Tensor& weight, const Maybe& bias, NamedActivation activation = {});

// A matrix in plan order: [S, n], or [T, E, n] where every expert runs on every token.
Tensor empty_in_plan_order(const Plan& plan, int64_t n, at::ScalarType type);

// The sum of each token's rows, and of the residual where the mask lets it.
Tensor combine(const Tensor& source, int64_t top_k, const Maybe& residual, const Maybe& mask, at::ScalarType dtype);

}  // namespace moe
