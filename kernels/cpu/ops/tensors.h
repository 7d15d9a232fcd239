// From tensors to the parts of records.h.

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>

#include "../runtime/level.h"

namespace moe {

using at::Tensor;
using Maybe = std::optional<Tensor>;

inline Type type_of(at::ScalarType type) {
  return type == at::kBFloat16 ? Type::bf16 : Type::fp32;
}

inline Type type_of(const Tensor& t) {
  return type_of(t.scalar_type());
}

// Most conversions convert nothing, and the dispatcher would take longer to find that out.
inline Tensor cast(const Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type ? t : t.to(type);
}

// In which type the kernels read and write rows of any type.
inline at::ScalarType readable(at::ScalarType type) {
  return type == at::kBFloat16 ? type : at::kFloat;
}

inline Tensor wide(const Tensor& t) {
  return cast(t, at::kFloat).contiguous();
}

inline Rows rows(const Tensor& t) {
  return {t.const_data_ptr(), type_of(t)};
}

inline MutableRows mutable_rows(const Tensor& t) {
  return {t.mutable_data_ptr(), type_of(t)};
}

inline const void* data(const Maybe& t) {
  return t ? t->const_data_ptr() : nullptr;
}

inline const float* floats(const Tensor& t) {
  return static_cast<const float*>(t.const_data_ptr());
}

inline float* mutable_floats(const Tensor& t) {
  return static_cast<float*>(t.mutable_data_ptr());
}

inline const int32_t* ints(const Tensor& t) {
  return static_cast<const int32_t*>(t.const_data_ptr());
}

inline int32_t* mutable_ints(const Tensor& t) {
  return static_cast<int32_t*>(t.mutable_data_ptr());
}

// What the ops return: large memory is kept when it is freed (see runtime/pool.h).
Tensor empty(at::IntArrayRef sizes, at::ScalarType type);

inline Drop drop_of(double rate, int64_t seed) {
  return {uint32_t(uint64_t(seed)), uint32_t(int64_t(rate * 4294967296.0)), float(1 / (1 - rate))};
}

}  // namespace moe
