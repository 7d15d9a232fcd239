// What dropout keeps: the hash of `dropout.dropout_hash`, the same on every backend.

#pragma once

#include "../records.h"
#include "vector.h"

namespace {

INLINE Words mix(Words h) {
  h = (h ^ (h >> 16)) * 0x7FEB352Du;
  h = (h ^ (h >> 15)) * 0x846CA68Bu;
  return h ^ (h >> 16);
}

// Which probabilities of LANES queries survive: the hash of `dropout.dropout_hash`.
struct Dropout {
  Words rows;
  uint32_t below;
  float scale;

  static INLINE Dropout make(const Attention& a, int64_t token, int64_t head) {
    Words rows;
    for (int i = 0; i < LANES; ++i) rows[i] = uint32_t((token + i) * a.heads + head);
    return {mix(rows ^ a.drop.seed), a.drop.below, a.drop.scale};
  }

  INLINE Floats operator()(int64_t column) const {
    Words hash = mix(rows + uint32_t(column) * 0x9E3779B9u);
    return select((Ints)(hash >= below), splat(scale), Floats{});
  }
};

struct NoDropout {
  static INLINE NoDropout make(const Attention&, int64_t, int64_t) {
    return {};
  }

  INLINE float operator()(int64_t) const {
    return 1.0f;
  }
};

// body(D{}) for the kind of dropout that there is.
template <class Body>
INLINE void with_dropout(const Attention& a, Body body) {
  if (a.drop.below)
    body(Dropout{});
  else
    body(NoDropout{});
}

// Which columns of a row survive: the hash of `dropout.dropout_hash`.
struct RowDropout {
  Words row, lanes;
  uint32_t below;
  float scale;

  static INLINE RowDropout make(const ResidualNorm& r, int64_t row) {
    Words lanes;
    for (int i = 0; i < LANES; ++i) lanes[i] = uint32_t(i) * 0x9E3779B9u;
    return {mix(splat_word(uint32_t(row) ^ r.drop.seed)), lanes, r.drop.below, r.drop.scale};
  }

  INLINE Floats operator()(int64_t column) const {
    if (!below) return splat(scale);
    Words hash = mix(row + lanes + uint32_t(column) * 0x9E3779B9u);
    return select((Ints)(hash >= below), splat(scale), Floats{});
  }
};

}  // namespace
