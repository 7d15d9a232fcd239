// Attention of one head of one sequence at a time. Queries lie in lanes, keys in rows: scores are C = K Q^T, their maximum
// and sum over keys need nothing across lanes, and the probabilities are already packed for the product with V.

#pragma once

#include "../runtime/arena.h"
#include "dropout.h"
#include "elementary.h"
#include "packing.h"
#include "parallel.h"
#include "rows.h"

namespace {

constexpr int64_t KEYS = 4 * TILE_ROWS;  // at a time; a longer sequence is rescaled as its maximum grows

// One head of one sequence: rows of a tensor [T, A, D].
template <class T>
struct Head {
  int64_t first, length, size, dense, sparse, column;

  static Head make(const Attention& a, int64_t task) {
    int64_t sequence = task / a.heads, head = task % a.heads, first = a.starts[sequence];
    return {first, a.starts[sequence + 1] - first, a.head_size, a.heads * a.head_size, a.stride, head * a.head_size};
  }

  INLINE T* row(const void* tensor, int64_t i) const {
    return (T*)tensor + (first + i) * dense + column;
  }

  // Of q, k or v, if its tokens are rows.
  INLINE const T* input(const void* tensor, int64_t i) const {
    return (const T*)tensor + (first + i) * sparse + column;
  }

  // All rows of an input, side by side, as operands of a product.
  const Operand<T>* operands(const void* tensor, Frame& frame) const {
    Operand<T>* copy = frame.take<Operand<T>>(length * size);
    for (int64_t i = 0; i < length; ++i) {
      if (i + AHEAD < length) fetch(input(tensor, i + AHEAD), size);
      for (int64_t d = 0; d < size; d += LANES)
        store_first(copy + i * size + d, load_first(input(tensor, i) + d, size - d), size - d);
    }
    return copy;
  }
};

// The maximum of a column of scores and those before, a vector at a time, in two chains.
INLINE Floats column_max(const float* column, int64_t count, Floats most) {
  Floats other = most;
  int64_t j = 0;
  for (; j + 1 < count; j += 2) {
    most = max(load(column + j * COLUMNS), most);
    other = max(load(column + (j + 1) * COLUMNS), other);
  }
  if (j < count) most = max(load(column + j * COLUMNS), most);
  return max(most, other);
}

// Probabilities, not yet divided by their sum, of keys from `from` on: packed for a product. Returns the sum.
template <class O, class D>
INLINE Floats softmax_column(const float* column, int64_t count, float scale, Floats most, D dropout, int64_t from,
                             float* probs) {
  constexpr bool ROUGH = UNIT<O> == 2;
  Floats sum = {}, other = {}, shift = most * scale;
  int64_t j = 0;
  for (; j + UNIT<O> <= count; j += UNIT<O>) {
    Floats p = exp2<ROUGH>(load(column + j * COLUMNS) * scale - shift);
    sum += p;
    p *= dropout(from + j);
    if constexpr (UNIT<O> == 2) {
      Floats odd = exp2<ROUGH>(load(column + (j + 1) * COLUMNS) * scale - shift);
      other += odd;
      p = pair(p, odd * dropout(from + j + 1));
    }
    store(probs + j / UNIT<O> * COLUMNS, p);
  }
  if (j < count) {
    Floats p = exp2<ROUGH>(load(column + j * COLUMNS) * scale - shift);
    sum += p;
    if constexpr (UNIT<O> == 2) p = pair(p * dropout(from + j), Floats{});
    store(probs + j / UNIT<O> * COLUMNS, p);
  }
  return sum + other;
}

// A head's values as operands of a product with probabilities: rows of features as they lie, or panels from rows of tokens.
template <class T>
struct Values {
  typedef Operand<T> O;
  const O* rows;
  float* panels;
  int64_t size, stride, height, panel;

  static Values of(const Head<T>& head) {
    int64_t height = panel_rows<O>(head.size);
    return {nullptr, nullptr, head.size, 0, height, round_up(head.size, height) * units<O>(KEYS)};
  }

  // How many floats `read` takes.
  int64_t space(int64_t length) const {
    return round_up(length, KEYS) / KEYS * panel + LANES;
  }

  void read(const Attention& a, const Head<T>& head, float* memory) {
    if (a.v_stride) {
      const T* first = (const T*)a.v + head.column * a.v_stride + head.first;
      rows = as_operands(first, a.v_stride, size, head.length, memory, stride);
      return;
    }
    panels = memory;
    for (int64_t b = 0; b * KEYS < head.length; ++b)
      pack_panels<O>(size, height, least(KEYS, head.length - b * KEYS), panels + b * panel,
                     [&](int64_t j) { return head.input(a.v, b * KEYS + j); });
  }

  // out (+)= values times the packed probabilities of `count` keys of span b
  INLINE void multiply_by(const float* probs, int vectors, int64_t b, int64_t count, float* out) const {
    if (rows) return multiply(rows + b * KEYS, stride, size, count, probs, vectors, out, b > 0);
    multiply_panels<O>(panels + b * panel, size, height, units<O>(count), probs, out, b > 0, InTile{out});
  }
};

template <class T, class D>
void attention_head(const Attention& a, int64_t task) {
  typedef Operand<T> O;
  Head<T> head = Head<T>::make(a, task);
  int64_t length = head.length, size = head.size, spans = (length + KEYS - 1) / KEYS;
  auto values = Values<T>::of(head);
  if (!length) return;
  Frame frame;
  const O* keys = head.operands(a.k, frame);
  float* queries = frame.take<float>(units<O>(size) * COLUMNS);
  float* scores = frame.take<float>(KEYS * COLUMNS);
  float* probs = frame.take<float>(units<O>(KEYS) * COLUMNS);
  float* out = frame.take<float>(round_up(size, LANES) * COLUMNS);
  values.read(a, head, frame.take<float>(values.space(length)));
  float scale = LOG2E / __builtin_sqrtf(float(size));
  for (int64_t q = 0; q < length; q += COLUMNS) {
    int64_t n = least(COLUMNS, length - q);
    int vectors = n > LANES ? 2 : 1;
    pack_rows<O>(n, size, queries, [&](int64_t i) { return head.input(a.q, q + i); });
    for (int64_t i = q + COLUMNS; i < least(length, q + 2 * COLUMNS); ++i) fetch(head.input(a.q, i), size);
    Floats most[2] = {splat(-3e38f), splat(-3e38f)}, sums[2] = {};
    for (int64_t b = 0; b < spans; ++b) {
      int64_t from = b * KEYS, count = least(KEYS, length - from);
      multiply(keys + from * size, size, count, size, queries, vectors, scores);
      for (int v = 0; v < vectors; ++v) {
        const float* column = scores + v * LANES;
        Floats before = most[v];
        most[v] = column_max(column, count, before);
        if (b) {
          Floats shrink = exp2<false>((before - most[v]) * scale);
          sums[v] *= shrink;
          for (int64_t d = 0; d < size; ++d) {
            float* at = out + d * COLUMNS + v * LANES;
            store(at, load(at) * shrink);
          }
        }
        D dropout = D::make(a, head.first + q + v * LANES, task % a.heads);
        sums[v] += softmax_column<O>(column, count, scale, most[v], dropout, from, probs + v * LANES);
      }
      clear_rest<O>(count, probs);
      values.multiply_by(probs, vectors, b, count, out);
    }
    for (int v = 0; v < vectors; ++v) {
      Floats factor = 1.0f / sums[v];
      for (int64_t d = 0; d < size; ++d) {
        float* at = out + d * COLUMNS + v * LANES;
        store(at, load(at) * factor);
      }
      for (int64_t i = 0; a.lse && i < least(LANES, n - v * LANES); ++i)
        a.lse[(head.first + q + v * LANES + i) * a.heads + task % a.heads] =
            most[v][i] * (scale / LOG2E) + __builtin_logf(sums[v][i]);
    }
    transposed(out, size, n, [&](int64_t i, int64_t d, Floats row, int64_t count) {
      store_first(head.row(a.out, q + i) + d, row, count);
    });
  }
}

void attention(const Attention& a) {
  with_type(a.type, [&](auto type) {
    with_dropout(a, [&](auto dropout) {
      for_each(a.sequences * a.heads,
               [&](int64_t task) { attention_head<decltype(type), decltype(dropout)>(a, task); });
    });
  });
}

}  // namespace
