// `up` and `down` for a handful of tokens.

#pragma once

#include "activations.h"
#include "few.h"
#include "tiles.h"

namespace {

// An expert's output, its bias added, times its weight, which may be in y already.
INLINE Floats weighted(const Forward& fw, Floats y, Floats bias, Floats weight) {
  return fw.weighted_act ? y + bias * weight : (y + bias) * weight;
}

// `up` for features from..to of a tile's tokens.
template <class T>
void few_up(const Forward& fw, const Tile& tile, int64_t from, int64_t to) {
  const Experts& experts = fw.experts;
  int64_t hidden = experts.hidden, width = experts.width, all = experts.gated ? 2 * width : width, m = to - from;
  Frame frame;
  const Operand<T>* x = nullptr;
  with_type(fw.x.type, [&](auto type) {
    const decltype(type)* rows = (const decltype(type)*)fw.x.data;
    x = few_rows<T>(tile.rows, hidden, frame, [&](int64_t i) { return rows + token_of(fw.plan, tile.first + i) * hidden; });
  });
  int64_t stride = round_up(m, LANES);
  float* halves[2] = {frame.take<float>(FEW * stride), frame.take<float>(FEW * stride)};
  for (int half = 0; half <= int(experts.gated); ++half) {
    int64_t first = half * width + from;
    const T* weight = (const T*)experts.up_weight + (tile.expert * all + first) * hidden;
    few_products(tile.rows, weight, hidden, m, x, hidden, halves[half], stride);
    for (int64_t i = 0; i < tile.rows; ++i)
      for (int64_t f = 0; f < m; f += LANES) {
        float* at = halves[half] + i * stride + f;
        Floats values = load(at);
        if (experts.up_bias) values += load_first((const T*)experts.up_bias + tile.expert * all + first + f, m - f);
        if (fw.pre) store_first((T*)fw.pre + row_of(fw.plan, tile.first + i) * all + first + f, values, m - f);
        store(at, values);
      }
  }
  with_activation(experts.activation, [&](auto activation) {
    for (int64_t i = 0; i < tile.rows; ++i) {
      int64_t row = row_of(fw.plan, tile.first + i);
      for (int64_t f = 0; f < m; f += LANES) {
        Floats values = activate<T>(activation, load(halves[0] + i * stride + f));
        if (experts.gated) values *= load(halves[1] + i * stride + f);
        if (fw.weighted_act) values *= fw.weights[row];
        store_first((T*)fw.act + row * width + from + f, values, m - f);
      }
    }
  });
}

// `down` for hidden dimensions from..to of a tile's tokens.
template <class T>
void few_down(const Forward& fw, const Tile& tile, int64_t from, int64_t to) {
  const Experts& experts = fw.experts;
  int64_t hidden = experts.hidden, width = experts.width, m = to - from, stride = round_up(m, LANES);
  Frame frame;
  const Operand<T>* act = few_rows<T>(tile.rows, width, frame, [&](int64_t i) {
    return (const T*)fw.act + row_of(fw.plan, tile.first + i) * width;
  });
  float* c = frame.take<float>(FEW * stride);
  const T* rows = (const T*)experts.down_weight + (tile.expert * hidden + from) * width;
  few_products(tile.rows, rows, width, m, act, width, c, stride);
  for (int64_t i = 0; i < tile.rows; ++i) {
    int64_t slot = fw.plan.order[tile.first + i];
    Floats weight = splat(fw.weights[slot]);
    for (int64_t h = 0; h < m; h += LANES) {
      Floats y = load(c + i * stride + h), shift = {};
      if (experts.down_bias) shift = load_first((const T*)experts.down_bias + tile.expert * hidden + from + h, m - h);
      y = weighted(fw, y, shift, weight);
      int64_t at = slot * hidden + from + h;
      if (fw.residual.data) y += load_any(fw.residual, at, m - h);
      store_any(fw.rows, at, y, m - h);
    }
  }
}

}  // namespace
