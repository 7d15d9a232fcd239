// exp and what is made of it, a vector at a time, to 1e-6 in fp32.

#pragma once

#include "vector.h"

namespace {

constexpr float LOG2E = 1.44269504f, SQRT_HALF = 0.70710678f, SQRT_2_OVER_PI = 0.79788456f, INV_SQRT_2PI = 0.39894228f;

// e^x: 0 below -87.3, the largest power it has above 88.
INLINE Floats exp(Floats x) {
  constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  Floats clamped = min(splat(88.37f), max(splat(-87.33f), x));
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

// 2^x, for x below 127: to 1e-7, or to 1e-4 for what is rounded to bf16 at once.
template <bool ROUGH>
INLINE Floats exp2(Floats x) {
#if defined(__AVX512F__)
  Floats n = (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  constexpr float SHIFT = 12582912.0f;
  Floats shifted = max(splat(-126.0f), x) + SHIFT, n = shifted - SHIFT;
#endif
  Floats r = x - n, p;
  if (ROUGH) {
    p = 5.517164171e-2f * r + 2.426111201e-1f;
    p = p * r + 6.932609905e-1f;
    p = p * r + 9.999280738e-1f;
  } else {
    p = 1.327646886e-3f * r + 9.67554131e-3f;
    p = p * r + 5.550713283e-2f;
    p = p * r + 2.402211972e-1f;
    p = p * r + 6.931469671e-1f;
    p = p * r + 1.000000072f;
  }
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  Words exponent = (as_words(shifted) << 23) + 0x3f800000;
  return select(x < -126.0f, Floats{}, p * as_floats(exponent));
#endif
}

// Of numbers that are neither tiny nor huge, to 1e-4.
INLINE Floats rough_reciprocal(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_rcp14_ps((__m512)x);
#else
  return 1.0f / x;
#endif
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

// The normal distribution function, a half more than a ratio of polynomials: within 2e-8 of it from |x| = 5.5 on, and 0 below
// -5.5, however large the x that it is multiplied with.
INLINE Floats normal_cdf(Floats x) {
  Floats c = min(splat(5.5f), max(splat(-5.5f), x));
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
  return select(x < -5.5f, Floats{}, c * p * reciprocal(q) + 0.5f);
}

// 0 below -87.3, for the same reason.
INLINE Floats sigmoid(Floats x) {
  return select(x < -87.33f, Floats{}, reciprocal(1.0f + exp(-x)));
}

// The normal distribution function to 4e-5, for what is rounded to bf16 at once.
INLINE Floats rough_normal_cdf(Floats x) {
  Floats c = min(splat(4.4f), max(splat(-4.4f), x));
  Floats t = c * c;
  Floats p = 3.3874661776673637e-5f * t + 3.8466896297867075e-3f;
  p = p * t + 2.7136952154583165e-2f;
  p = p * t + 3.9893951703409175e-1f;
  Floats q = 1.1784500092052372e-3f * t + 2.3718225224004602e-2f;
  q = q * t + 2.3470378825913002e-1f;
  q = q * t + 1.0f;
  return select(x < -4.4f, Floats{}, c * p * rough_reciprocal(q) + 0.5f);
}

}  // namespace
