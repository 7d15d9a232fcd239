// The rows of a plan, cut into tiles for threads to take; and the activation, chosen once for a tile.

#pragma once

#include "api.h"
#include "gemm.h"

namespace {

using namespace moe;

struct Tile {
  int64_t expert, first, rows;
};

template <class Body>
void for_each(int64_t count, Body body) {
  parallel(count, [](void* context, int64_t i) { (*(Body*)context)(i); }, &body);
}

INLINE float* floats(Scratch name, int64_t count) {
  return (float*)scratch(name, count * 4);
}

// How many features a task takes where threads share them: as many tasks for each thread, of about the same size.
inline int64_t features_a_task(int64_t features) {
  int64_t threads = num_threads(), tasks = threads * ((features + threads * TILE_ROWS - 1) / (threads * TILE_ROWS));
  return tasks ? round_up((features + tasks - 1) / tasks, LANES) : TILE_ROWS;
}

// body(from, to) over the features, shared by threads.
template <class Body>
void share_features(int64_t features, Body body) {
  int64_t step = features_a_task(features);
  for_each((features + step - 1) / step, [&](int64_t i) { body(i * step, least((i + 1) * step, features)); });
}

// Each expert's rows in tiles of about the same size, at most `limit`. Their number is written to `count`. Large tiles come
// first, so that threads end at about the same time.
inline const Tile* make_tiles(const Plan& plan, int64_t limit, int64_t& count) {
  Tile* tiles = (Tile*)scratch(Scratch::tiles, (plan.slots / limit + plan.experts + 1) * sizeof(Tile));
  count = 0;
  for (int64_t e = 0; e < plan.experts; ++e) {
    int64_t first = plan.offsets[e], rows = plan.offsets[e + 1] - first;
    if (!rows) continue;
    int64_t parts = (rows + limit - 1) / limit, step = round_up((rows + parts - 1) / parts, LANES);
    for (int64_t at = 0; at < rows; at += step) tiles[count++] = {e, first + at, least(step, rows - at)};
  }
  if (count <= 64)
    for (int64_t i = 1; i < count; ++i) {
      Tile tile = tiles[i];
      int64_t j = i;
      for (; j && tiles[j - 1].rows < tile.rows; --j) tiles[j] = tiles[j - 1];
      tiles[j] = tile;
    }
  return tiles;
}

// Where the i-th row of the plan lies among tensors "in plan order".
INLINE int64_t row_of(const Plan& plan, int64_t i) {
  return plan.by_slot ? plan.order[i] : i;
}

INLINE int64_t token_of(const Plan& plan, int64_t i) {
  return plan.order[i] / plan.top_k;
}

// body(T{}) for the C++ type of a `Type`.
template <class Body>
INLINE void with_type(Type type, Body body) {
  if (type == Type::fp32)
    body(float{});
  else
    body(bf16{});
}

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

// An expert's output, its bias added, times its weight, which may be in y already.
INLINE Floats weighted(const Serve& s, Floats y, Floats bias, Floats weight) {
  return s.weighted_act ? y + bias * weight : (y + bias) * weight;
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

// Rows that nobody serves: they come last in the plan.
inline void clear_unserved(const Plan& plan, MutableRows rows, int64_t width) {
  for (int64_t i = plan.offsets[plan.experts]; i < plan.slots; ++i)
    for (int64_t j = 0; j < width; j += LANES) store_any(rows, plan.order[i] * width + j, Floats{}, width - j);
}

inline void clear_tail(const Plan& plan, Type type, void* rows, int64_t width) {
  int64_t size = width * (type == Type::fp32 ? 4 : 2), served = plan.offsets[plan.experts];
  memset((char*)rows + served * size, 0, (plan.slots - served) * size);
}

}  // namespace
