// The rows of a plan, cut into tiles for threads to take.

#pragma once

#include "../runtime/arena.h"
#include "parallel.h"
#include "rows.h"

namespace {

struct Tile {
  int64_t expert, first, rows;
};

// Each expert's rows in tiles of about the same size, at most `limit`. Their number is written to `count`. Large tiles come
// first, so that threads end at about the same time.
inline const Tile* make_tiles(const Plan& plan, int64_t limit, int64_t& count, Frame& frame) {
  Tile* tiles = frame.take<Tile>(plan.slots / limit + plan.experts + 1);
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

// Rows of slots without an expert, which come last in the plan: in slot order, and in plan order.
inline void clear_unassigned(const Plan& plan, MutableRows rows, int64_t width) {
  for (int64_t i = plan.offsets[plan.experts]; i < plan.slots; ++i)
    for (int64_t j = 0; j < width; j += LANES) store_any(rows, plan.order[i] * width + j, Floats{}, width - j);
}

inline void clear_tail(const Plan& plan, Type type, void* rows, int64_t width) {
  int64_t size = width * (type == Type::fp32 ? 4 : 2), assigned = plan.offsets[plan.experts];
  memset((char*)rows + assigned * size, 0, (plan.slots - assigned) * size);
}

}  // namespace
