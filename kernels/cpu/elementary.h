// exp and the activations, a vector at a time, to 1e-6 in fp32.

#pragma once

#include "vector.h"

namespace {

constexpr float LOG2E = 1.44269504f, SQRT_HALF = 0.70710678f, SQRT_2_OVER_PI = 0.79788456f, INV_SQRT_2PI = 0.39894228f;

// e^x: 0 below -87.3, the largest power it knows above 88.
INLINE Floats exp(Floats x) {
  constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  Floats clamped = select(x < -87.33f, splat(-87.33f), x);
  clamped = select(clamped > 88.37f, splat(88.37f), clamped);
  Floats shifted = clamped * LOG2E + SHIFT;
  Floats n = shifted - SHIFT;
  Floats r = clamped - n * 0.693145752f;  // log 2 in two parts, the first of them exact in the product
  r = r - n * 1.42860677e-6f;
  Floats p = 0.001381463255f * r + 0.008368710055f;
  p = p * r + 0.041668385267f;
  p = p * r + 0.166665211320f;
  p = p * r + 0.499999940395f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Words exponent = (as_words(shifted) << 23) + 0x3f800000;
  return select(x < -87.33f, Floats{}, p * as_floats(exponent));
}

INLINE Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
  Floats guess = (Floats)_mm512_rcp14_ps((__m512)x);
  Floats better = guess * (2.0f - x * guess);
  return better == better ? better : guess;  // infinity times zero
#else
  return 1.0f / x;
#endif
}

// The normal distribution function minus a half, as a ratio of polynomials; within 2e-8 of it from |x| = 5.5 on.
INLINE Floats normal_cdf(Floats x) {
  Floats c = select(x < -5.5f, splat(-5.5f), x);
  c = select(c > 5.5f, splat(5.5f), c);
  Floats t = c * c;
  Floats p = 2.2749512496e-8f * t + 6.3520847107e-6f;
  p = p * t + 1.6882299678e-4f;
  p = p * t + 4.6772444621e-3f;
  p = p * t + 3.3852398396e-2f;
  p = p * t + 3.9894223213e-1f;
  Floats q = 1.1975057532e-6f * t + 7.3646559031e-5f;
  q = q * t + 1.8844298320e-3f;
  q = q * t + 2.8645727783e-2f;
  q = q * t + 2.5152128935e-1f;
  q = q * t + 1.0f;
  return c * p * reciprocal(q) + 0.5f;
}

INLINE Floats sigmoid(Floats x) {
  return reciprocal(1.0f + exp(-x));
}

// An activation has value(x), and value_and_slope, which shares what the two have in common.

struct Gelu {
  static INLINE Floats value(Floats x) {
    return x * normal_cdf(x);
  }
  static INLINE Floats value_and_slope(Floats x, Floats& slope) {
    Floats below = normal_cdf(x);
    slope = below + x * INV_SQRT_2PI * exp(-0.5f * x * x);
    return x * below;
  }
};

struct GeluTanh {
  static INLINE Floats value(Floats x) {
    return x * sigmoid(2.0f * SQRT_2_OVER_PI * (x + 0.044715f * x * x * x));  // (1 + tanh(u)) / 2 = sigmoid(2u)
  }
  static INLINE Floats value_and_slope(Floats x, Floats& slope) {
    Floats s = sigmoid(2.0f * SQRT_2_OVER_PI * (x + 0.044715f * x * x * x));
    slope = s + x * s * (1.0f - s) * (2.0f * SQRT_2_OVER_PI) * (1.0f + 3.0f * 0.044715f * x * x);
    return x * s;
  }
};

struct Relu {
  static INLINE Floats value(Floats x) {
    return select(x <= 0.0f, Floats{}, x);  // a NaN stays one
  }
  static INLINE Floats value_and_slope(Floats x, Floats& slope) {
    slope = select(x <= 0.0f, Floats{}, splat(1.0f));
    return value(x);
  }
};

struct Silu {
  static INLINE Floats value(Floats x) {
    return x * sigmoid(x);
  }
  static INLINE Floats value_and_slope(Floats x, Floats& slope) {
    Floats s = sigmoid(x);
    slope = s + x * s * (1.0f - s);
    return x * s;
  }
};

}  // namespace
