// down_backward and up_backward: gradients of rows.

#pragma once

#include "activations.h"
#include "tiles.h"
#include "weight_panels.h"

namespace {

// As many rows as leave room for the weight's panel in a cache of 1 MB.
INLINE int64_t backward_rows(int64_t k, int64_t size) {
  int64_t rows = (512 << 10) / (k * size) / ROWS * ROWS;
  return rows < 4 * ROWS ? 4 * ROWS : least(rows, 24 * ROWS);
}

struct BackwardRow {  // of down_backward: where its parts lie
  float weight;
  int64_t pre, act;
};

template <class T, class A>
INLINE void backward_vector(const DownBackward& d, A activation, const BackwardRow& row, int64_t f, Floats grad,
                            Floats& dot) {
  int64_t width = d.experts.width, n = width - f;
  const T* pre = (const T*)d.pre + row.pre + f;
  T* grad_pre = (T*)d.grad_pre + row.pre + f;
  Floats x = load_first(pre, n), slope;
  Floats act = sizeof(T) == 2 ? activation.rough_and_slope(x, slope) : activation.value_and_slope(x, slope);
  Floats weighted = grad * row.weight;
  if (d.experts.gated) {
    Floats value = load_first(pre + width, n);
    store_first(grad_pre, weighted * value * slope, n);
    store_first(grad_pre + width, weighted * act, n);
    act *= value;
  } else {
    store_first(grad_pre, weighted * slope, n);
  }
  store_first((T*)d.weighted_act + row.act + f, act * row.weight, n);
  dot += grad * act;
}

// What the next rows' epilogue touches is far from what this one did.
template <class T>
INLINE void fetch_row(const DownBackward& d, const BackwardRow& row, int64_t f) {
  for (int64_t at = row.pre + f, half = 0; half <= int64_t(d.experts.gated); ++half, at += d.experts.width) {
    __builtin_prefetch((const T*)d.pre + at, 0, 3);
    __builtin_prefetch((const T*)d.grad_pre + at, 1, 3);
  }
  __builtin_prefetch((const T*)d.weighted_act + row.act + f, 1, 3);
}

template <class T>
INLINE float dot_with_bias(const DownBackward& d, int64_t expert, int64_t token) {
  const T* bias = (const T*)d.experts.down_bias + expert * d.experts.hidden;
  Floats sum = {};
  for (int64_t h = 0; h < d.experts.hidden; h += LANES) {
    int64_t n = d.experts.hidden - h;
    sum += load_any(d.grad_y, token * d.experts.hidden + h, n) * load_first(bias + h, n);
  }
  return sum_lanes(sum);
}

template <class T>
void down_backward_tile(const DownBackward& d, const Tile& tile, int64_t part) {
  typedef Operand<T> O;
  const Experts& experts = d.experts;
  int64_t hidden = experts.hidden, width = experts.width, all = experts.gated ? 2 * width : width;
  const int32_t* slots = d.plan.order + tile.first;
  Frame frame;
  O* grads = frame.take<O>(tile.rows * hidden);
  BackwardRow* rows = frame.take<BackwardRow>(tile.rows);
  float* dots = frame.take<float>(tile.rows * LANES);
  for (int64_t i = 0; i < tile.rows; ++i) {
    int64_t token = slots[i] / d.plan.top_k;
    for (int64_t h = 0; h < hidden; h += LANES)
      store_first(grads + i * hidden + h, load_any(d.grad_y, token * hidden + h, hidden - h), hidden - h);
    int64_t row = row_of(d.plan, tile.first + i);
    rows[i] = {d.weights[slots[i]], row * all, row * width};
    store(dots + i * LANES, Floats{});
  }
  int64_t step = round_up((width + d.parts - 1) / d.parts, COLUMNS);
  const T* weight = (const T*)experts.down_weight + tile.expert * hidden * width;
  with_activation(experts.activation, [&](auto activation) {
    multiply_weight(grads, tile.rows, hidden, weight, width, part * step, least(width, part * step + step),
                    [&](int64_t i, int64_t f, const float* c) {
                      if (i + ROWS < tile.rows) fetch_row<T>(d, rows[i + ROWS], f);
                      Floats dot = load(dots + i * LANES);
                      backward_vector<T>(d, activation, rows[i], f, load(c), dot);
                      if (f + LANES < width)
                        backward_vector<T>(d, activation, rows[i], f + LANES, load(c + LANES), dot);
                      store(dots + i * LANES, dot);
                    });
  });
  for (int64_t i = 0; i < tile.rows; ++i) {
    float dot = sum_lanes(load(dots + i * LANES));
    if (part == 0 && experts.down_bias) dot += dot_with_bias<T>(d, tile.expert, slots[i] / d.plan.top_k);
    d.grad_weights[slots[i] * d.parts + part] = dot;
  }
}

void down_backward(const DownBackward& d) {
  Frame frame;
  int64_t count, width = d.experts.width;
  int64_t size = HAS_PAIRS && d.experts.type == Type::bf16 ? 2 : 4;
  const Tile* tiles = make_tiles(d.plan, backward_rows(d.experts.hidden, size), count, frame);
  with_type(d.experts.type, [&](auto type) {
    typedef decltype(type) T;
    for_each(count * d.parts, [&](int64_t i) { down_backward_tile<T>(d, tiles[i / d.parts], i % d.parts); });
  });
  clear_tail(d.plan, d.experts.type, d.grad_pre, d.experts.gated ? 2 * width : width);
  clear_tail(d.plan, d.experts.type, d.weighted_act, width);
  for (int64_t i = d.plan.offsets[d.plan.experts]; i < d.plan.slots; ++i)
    memset(d.grad_weights + d.plan.order[i] * d.parts, 0, d.parts * 4);
}

void up_backward(const UpBackward& u) {
  Frame frame;
  int64_t count, hidden = u.experts.hidden, all = u.experts.gated ? 2 * u.experts.width : u.experts.width;
  int64_t size = HAS_PAIRS && u.experts.type == Type::bf16 ? 2 : 4;
  const Tile* tiles = make_tiles(u.plan, backward_rows(all, size), count, frame);
  int64_t step = 4 * COLUMNS, parts = (hidden + step - 1) / step;
  with_type(u.experts.type, [&](auto type) {
    typedef decltype(type) T;
    for_each(count * parts, [&](int64_t task) {
      const Tile& tile = tiles[task / parts];
      int64_t from = task % parts * step;
      // Rows that lie together and need no conversion are multiplied where they are.
      typedef Operand<T> O;
      Frame frame;
      const T* grads = (const T*)u.grad_pre;
      O* copies = nullptr;
      if (u.plan.by_slot || sizeof(T) != sizeof(O)) {
        copies = frame.take<O>(tile.rows * all);
        for (int64_t i = 0; i < tile.rows; ++i) {
          const T* from = grads + row_of(u.plan, tile.first + i) * all;
          for (int64_t j = 0; j < all; j += LANES) store_first(copies + i * all + j, load_first(from + j, all - j), all - j);
        }
      }
      const O* a = copies ? copies : (const O*)(const void*)(grads + tile.first * all);
      const int32_t* slots = u.plan.order + tile.first;
      multiply_weight(a, tile.rows, all, (const T*)u.experts.up_weight + tile.expert * all * hidden, hidden, from,
                      least(hidden, from + step), [&](int64_t i, int64_t h, const float* c) {
                        int64_t at = slots[i] * hidden + h, n = hidden - h;
                        store_any(u.grad_x, at, load(c), n);
                        if (n > LANES) store_any(u.grad_x, at + LANES, load(c + LANES), n - LANES);
                      });
    });
  });
  clear_unassigned(u.plan, u.grad_x, hidden);
}

}  // namespace
