// Work for threads.

#pragma once

#include "../runtime/threads.h"
#include "microkernel.h"

namespace {

constexpr int64_t ROWS_A_TASK = 64;  // of work that is light

template <class Body>
void for_each(int64_t count, Body body) {
  parallel(count, [](void* context, int64_t i) { (*(Body*)context)(i); }, &body, HAS_TILES ? release_tiles : nullptr);
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

}  // namespace
