// The parameters of an encoder's parts, from tensors to what the kernels read.

#pragma once

#include "tensors.h"

namespace moe {

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

}  // namespace moe
