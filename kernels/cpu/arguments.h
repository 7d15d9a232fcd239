// The parameters of an encoder's parts and of a layer's, from tensors to what the kernels read.

#pragma once

#include "tensors.h"

namespace moe {

// Weights and norms as the kernels read them. Conversions live as long as this does; what needs none is used as it is.
struct Arguments {
  at::ScalarType type;  // of matrices
  std::vector<Tensor> held = {};

  const void* as(at::ScalarType wanted, const Tensor& t) {
    if (t.scalar_type() == wanted && t.is_contiguous()) return t.const_data_ptr();
    held.push_back(cast(t, wanted).contiguous());
    return held.back().const_data_ptr();
  }

  const void* matrix(const Maybe& t) {
    return t ? as(type, *t) : nullptr;
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
    return static_cast<const float*>(as(at::kFloat, t));
  }

  const float* rows(const Maybe& t) {
    return t ? rows(*t) : nullptr;
  }

  // In either type that the kernels read.
  Rows any_rows(const Tensor& t) {
    at::ScalarType read = t.scalar_type() == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
    return {as(read, t), type_of(read)};
  }

  const int64_t* ids(const Tensor& t) {
    return static_cast<const int64_t*>(as(at::kLong, t));
  }

  // A mask may be a view with gaps.
  const bool* mask(const Maybe& t) {
    return t ? static_cast<const bool*>(as(at::kBool, *t)) : nullptr;
  }
};

}  // namespace moe
