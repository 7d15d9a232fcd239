// Attention of one head of one sequence at a time. Queries lie in lanes, keys in rows: scores are C = K Q^T, their maximum
// and sum over keys need nothing across lanes, and the probabilities are already packed for the product with V.

#pragma once

#include "tiles.h"

namespace {

constexpr int64_t KEYS = 4 * TILE_ROWS;  // at a time; a longer sequence is rescaled as its maximum grows

// Pieces of one allocation.
struct Pieces {
  char* next;

  template <class V>
  V* take(int64_t count) {
    V* piece = (V*)next;
    next += round_up(count * int64_t(sizeof(V)), 64);
    return piece;
  }
};

INLINE Words mix(Words h) {
  h = (h ^ (h >> 16)) * 0x7FEB352Du;
  h = (h ^ (h >> 15)) * 0x846CA68Bu;
  return h ^ (h >> 16);
}

// Which probabilities of LANES queries survive: the hash of `reference.dropout_hash`.
struct Dropout {
  Words rows;
  uint32_t below;
  float scale;

  static INLINE Dropout make(const Attention& a, int64_t token, int64_t head) {
    Words rows;
    for (int i = 0; i < LANES; ++i) rows[i] = uint32_t((token + i) * a.heads + head);
    return {mix(rows ^ a.seed), a.drop_below, a.keep_scale};
  }

  INLINE Floats operator()(int64_t column) const {
    if (scale == 1.0f && !below) return splat(1.0f);
    Words hash = mix(rows + uint32_t(column) * 0x9E3779B9u);
    return select((Ints)(hash >= below), splat(scale), Floats{});
  }
};

// One head of one sequence: rows of a tensor [T, A, D].
template <class T>
struct Head {
  int64_t first, length, size, stride, column;

  static Head make(const Attention& a, int64_t task) {
    int64_t sequence = task / a.heads, head = task % a.heads, first = a.starts[sequence];
    return {first, a.starts[sequence + 1] - first, a.head_size, a.heads * a.head_size, head * a.head_size};
  }

  INLINE T* row(const void* tensor, int64_t i) const {
    return (T*)tensor + (first + i) * stride + column;
  }

  // All rows as operands of a product: where they are, or widened.
  const Operand<T>* operands(const void* tensor, Pieces& pieces, int64_t& new_stride) const {
    float* widened = sizeof(T) == sizeof(Operand<T>) ? nullptr : pieces.take<float>(length * size);
    return as_operands((const T*)row(tensor, 0), stride, length, size, widened, new_stride);
  }
};

template <class T>
void attention_head(const Attention& a, int64_t task) {
  typedef Operand<T> O;
  Head<T> head = Head<T>::make(a, task);
  int64_t length = head.length, size = head.size, blocks = (length + KEYS - 1) / KEYS;
  int64_t key_steps = units<O>(KEYS), panel = round_up(size, ROWS) * key_steps;
  if (!length) return;
  int64_t bytes = 4 * (length * size + blocks * panel + ROWS + units<O>(size) * COLUMNS +
                       (KEYS + key_steps + round_up(size, LANES)) * COLUMNS);
  Pieces pieces{(char*)scratch(Scratch::tile, bytes + 1024)};
  int64_t key_stride;
  const O* keys = head.operands(a.k, pieces, key_stride);
  float* queries = pieces.take<float>(units<O>(size) * COLUMNS);
  float* scores = pieces.take<float>(KEYS * COLUMNS);
  float* probs = pieces.take<float>(key_steps * COLUMNS);
  float* out = pieces.take<float>(round_up(size, LANES) * COLUMNS);
  float* values = pieces.take<float>(blocks * panel + ROWS);
  for (int64_t b = 0; b < blocks; ++b)
    pack_panels<O>(size, least(KEYS, length - b * KEYS), values + b * panel,
                   [&](int64_t j) { return (const T*)head.row(a.v, b * KEYS + j); });
  float scale = 1.0f / __builtin_sqrtf(float(size));
  for (int64_t q = 0; q < length; q += COLUMNS) {
    int64_t n = least(COLUMNS, length - q);
    int vectors = n > LANES ? 2 : 1;
    pack_rows<O>(n, size, queries, [&](int64_t i) { return (const T*)head.row(a.q, q + i); });
    Floats most[2] = {splat(-3e38f), splat(-3e38f)}, sums[2] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      int64_t from = b * KEYS, count = least(KEYS, length - from);
      multiply(keys + from * key_stride, key_stride, count, size, queries, vectors, scores);
      for (int v = 0; v < vectors; ++v) {
        float* column = scores + v * LANES;
        Floats before = most[v];
        for (int64_t j = 0; j < count; ++j) most[v] = max(load(column + j * COLUMNS), most[v]);
        Floats shrink = exp((before - most[v]) * scale), sum = sums[v] * shrink;
        if (b)
          for (int64_t d = 0; d < size; ++d) {
            float* at = out + d * COLUMNS + v * LANES;
            store(at, load(at) * shrink);
          }
        Dropout dropout = Dropout::make(a, head.first + q + v * LANES, task % a.heads);
        for (int64_t j = 0; j < count; j += UNIT<O>) {
          Floats p = exp((load(column + j * COLUMNS) - most[v]) * scale);
          sum += p;
          p *= dropout(from + j);
          if constexpr (UNIT<O> == 2) {
            Floats odd = {};
            if (j + 1 < count) {
              odd = exp((load(column + (j + 1) * COLUMNS) - most[v]) * scale);
              sum += odd;
              odd *= dropout(from + j + 1);
            }
            p = pair(p, odd);
          }
          store(probs + j / UNIT<O> * COLUMNS + v * LANES, p);
        }
        sums[v] = sum;
      }
      multiply_panels<O>(values + b * panel, size, units<O>(count), probs, out, b > 0);
    }
    for (int v = 0; v < vectors; ++v) {
      Floats factor = 1.0f / sums[v];
      for (int64_t d = 0; d < size; ++d) {
        float* at = out + d * COLUMNS + v * LANES;
        store(at, load(at) * factor);
      }
      for (int64_t i = 0; i < least(LANES, n - v * LANES); ++i)
        a.lse[(head.first + q + v * LANES + i) * a.heads + task % a.heads] =
            most[v][i] * scale + __builtin_logf(sums[v][i]);
    }
    transposed(out, size, n, [&](int64_t i, int64_t d, Floats row, int64_t count) {
      store_first(head.row(a.out, q + i) + d, row, count);
    });
  }
}

void attention(const Attention& a) {
  with_type(a.type, [&](auto type) {
    for_each(a.sequences * a.heads, [&](int64_t task) { attention_head<decltype(type)>(a, task); });
  });
}

}  // namespace
