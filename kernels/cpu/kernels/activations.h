// The activations, a vector at a time, and the choice among them, made once for a tile.

#pragma once

#include "../records.h"
#include "elementary.h"

namespace {

// An activation has value(x); value_and_slope, which shares what the two have in common; and both as good as bf16 can show:
// rough(x), rough_and_slope.

struct Gelu {
  static INLINE Floats value(Floats x) {
    return x * normal_cdf(x);
  }
  static INLINE Floats rough(Floats x) {
    return x * rough_normal_cdf(x);
  }
  static INLINE Floats value_and_slope(Floats x, Floats& slope) {
    Floats below = normal_cdf(x);
    slope = below + x * INV_SQRT_2PI * exp(-0.5f * x * x);
    return x * below;
  }
  static INLINE Floats rough_and_slope(Floats x, Floats& slope) {
    Floats below = rough_normal_cdf(x), c = min(splat(20.0f), max(splat(-20.0f), x));  // its square is finite
    slope = below + c * INV_SQRT_2PI * exp2<true>(-0.5f * LOG2E * c * c);
    return x * below;
  }
};

struct GeluTanh {
  // (1 + tanh(u)) / 2 = sigmoid(2u). It has reached 0 and 1 where x is cut, and the powers of x stay finite.
  static INLINE Floats cut(Floats x) {
    return min(splat(12.0f), max(splat(-12.0f), x));
  }
  static INLINE Floats below(Floats c) {
    return sigmoid(2.0f * SQRT_2_OVER_PI * (c + 0.044715f * c * c * c));
  }
  static INLINE Floats value(Floats x) {
    return x * below(cut(x));
  }
  static INLINE Floats rough(Floats x) {
    return value(x);
  }
  static INLINE Floats value_and_slope(Floats x, Floats& slope) {
    Floats c = cut(x), s = below(c);
    slope = s + c * s * (1.0f - s) * (2.0f * SQRT_2_OVER_PI) * (1.0f + 3.0f * 0.044715f * c * c);
    return x * s;
  }
  static INLINE Floats rough_and_slope(Floats x, Floats& slope) {
    return value_and_slope(x, slope);
  }
};

struct Relu {
  static INLINE Floats value(Floats x) {
    return select(x <= 0.0f, Floats{}, x);  // a NaN stays one
  }
  static INLINE Floats rough(Floats x) {
    return value(x);
  }
  static INLINE Floats value_and_slope(Floats x, Floats& slope) {
    slope = select(x <= 0.0f, Floats{}, splat(1.0f));
    return value(x);
  }
  static INLINE Floats rough_and_slope(Floats x, Floats& slope) {
    return value_and_slope(x, slope);
  }
};

struct Silu {
  static INLINE Floats value(Floats x) {
    return x * sigmoid(x);
  }
  static INLINE Floats rough(Floats x) {
    return value(x);
  }
  static INLINE Floats value_and_slope(Floats x, Floats& slope) {
    Floats s = sigmoid(x);
    slope = s + x * s * (1.0f - s);
    return x * s;
  }
  static INLINE Floats rough_and_slope(Floats x, Floats& slope) {
    return value_and_slope(x, slope);
  }
};

template <class Body>
INLINE void with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::gelu:
      return body(Gelu{});
    case Activation::gelu_tanh:
      return body(GeluTanh{});
    case Activation::relu:
      return body(Relu{});
    case Activation::silu:
      return body(Silu{});
  }
}

// As good as T can show.
template <class T, class A>
INLINE Floats activate(A activation, Floats x) {
  return sizeof(T) == 2 ? activation.rough(x) : activation.value(x);
}

}  // namespace
