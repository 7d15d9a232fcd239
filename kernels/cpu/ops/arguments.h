// From the tensors that an op is given to what the kernels read: in their types, without gaps.

#pragma once

#include "tensors.h"

namespace moe {

// Conversions live as long as this does; what needs none is used as it is.
struct Arguments {
  at::ScalarType type = at::kFloat;  // of matrices
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
    return {floats(*weight), floats(*bias), float(eps)};
  }

  const float* floats(const Tensor& t) {
    return static_cast<const float*>(as(at::kFloat, t));
  }

  const float* floats(const Maybe& t) {
    return t ? floats(*t) : nullptr;
  }

  Rows rows(const Tensor& t) {
    at::ScalarType read = readable(t.scalar_type());
    return {as(read, t), type_of(read)};
  }

  Rows rows(const Maybe& t) {
    return t ? rows(*t) : Rows{};
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
