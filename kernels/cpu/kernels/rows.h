// Rows of either type, known at run time only.

#pragma once

#include "../records.h"
#include "vector.h"

namespace {

// body(T{}) for the C++ type of a `Type`.
template <class Body>
INLINE void with_type(Type type, Body body) {
  if (type == Type::fp32)
    body(float{});
  else
    body(bf16{});
}

INLINE Floats load_any(Rows rows, int64_t at, int64_t n) {
  return rows.type == Type::fp32 ? load_first((const float*)rows.data + at, n) : load_first((const bf16*)rows.data + at, n);
}

INLINE void store_any(MutableRows rows, int64_t at, Floats value, int64_t n) {
  if (rows.type == Type::fp32)
    store_first((float*)rows.data + at, value, n);
  else
    store_first((bf16*)rows.data + at, value, n);
}

}  // namespace
