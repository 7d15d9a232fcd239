// A dense encoder from token ids to hidden states or their means, for inference. Groups of sequences go through all blocks
// without waiting for one another, each on one thread. A few sequences are one group, whose parts the threads share.

#pragma once

#include "attention.h"
#include "block.h"
#include "sequences.h"

namespace {

constexpr int64_t GROUP_TOKENS = 512, LEAST_TOKENS = 128;

struct Group {
  int64_t first, last;  // sequences
};

// Groups that grow smaller towards the end, so that threads end at about the same time. Bits do not depend on groups.
inline const Group* make_groups(const Embed& e, int64_t threads, int64_t& count) {
  Group* groups = (Group*)scratch(Scratch::groups, e.sequences * sizeof(Group));
  count = 0;
  for (int64_t first = 0; first < e.sequences; first = groups[count++].last) {
    int64_t share = (e.tokens - e.starts[first]) / (2 * threads), last = first + 1;
    int64_t limit = share < LEAST_TOKENS ? LEAST_TOKENS : least(share, GROUP_TOKENS);
    while (last < e.sequences && e.starts[last + 1] - e.starts[first] <= limit) ++last;
    groups[count] = {first, last};
  }
  return groups;
}

template <class T>
void encode_group(const Encoder& encoder, Group group) {
  Embed e = encoder.embed;
  int64_t hidden = e.hidden, start = e.starts[group.first];
  e.tokens = e.starts[group.last] - start;
  e.sequences = group.last - group.first;
  e.ids += start;
  int64_t padded = round_up(e.tokens, COLUMNS);
  int64_t column_stride = (padded / COLUMNS | 1) * COLUMNS;  // odd, so that rows of v lie in different sets of a cache
  int64_t bytes = 4 * (2 * padded * hidden + LANES * COLUMNS + e.sequences + 1) +
                  sizeof(T) * (3 * e.tokens + column_stride) * hidden;
  Pieces pieces{(char*)scratch(Scratch::group, bytes + 384)};
  e.out = encoder.means ? pieces.take<float>(e.tokens * hidden) : e.out + start * hidden;
  int32_t* starts = pieces.take<int32_t>(e.sequences + 1);
  for (int64_t i = 0; i <= e.sequences; ++i) starts[i] = e.starts[group.first + i] - start;
  e.starts = starts;
  T* qk = pieces.take<T>(e.tokens * 2 * hidden);
  T* v = pieces.take<T>(column_stride * hidden);

  Attention a{};
  a.tokens = e.tokens;
  a.heads = encoder.heads;
  a.head_size = hidden / encoder.heads;
  a.sequences = e.sequences;
  a.stride = 2 * hidden;
  a.v_stride = column_stride;
  a.type = encoder.type;
  a.starts = starts;
  a.q = qk;
  a.k = qk + hidden;
  a.v = v;
  a.out = pieces.take<T>(e.tokens * hidden);

  Block b{};
  b.type = encoder.type;
  b.activation = encoder.activation;
  b.tokens = e.tokens;
  b.hidden = hidden;
  b.states = pieces.take<float>(padded * hidden + LANES * COLUMNS);  // `transposed` reads on
  b.x = e.out;
  b.next = encoder.layers[0].qkv;
  b.next_size = 3 * hidden;
  b.next_rows = 2 * hidden;
  b.column_stride = column_stride;
  b.out_next = qk;
  b.out_columns = v;

  embed(e);
  block(b);
  b.x = nullptr;
  b.y = {a.out, encoder.type};
  for (int64_t i = 0; i < encoder.depth; ++i) {
    const Layer& layer = encoder.layers[i];
    attention(a);
    b.width = layer.width;
    b.out = layer.out;
    b.norm = layer.norm;
    b.up = layer.up;
    b.down = layer.down;
    b.ffn_norm = layer.ffn_norm;
    bool last = i + 1 == encoder.depth;
    b.next = last ? Linear{} : encoder.layers[i + 1].qkv;
    b.out_hidden = last ? e.out : nullptr;
    block(b);
  }
  if (encoder.means) mean({e.sequences, hidden, starts, e.out, encoder.means + group.first * hidden});
}

void encode(const Encoder& encoder) {
  with_type(encoder.type, [&](auto type) {
    typedef decltype(type) T;
    const Embed& e = encoder.embed;
    int64_t threads = num_threads(), count;
    if (e.tokens < threads * GROUP_TOKENS / 2 || e.sequences == 1) {
      if (e.sequences) encode_group<T>(encoder, {0, e.sequences});
      return;
    }
    const Group* groups = make_groups(e, threads, count);
    for_each(count, [&](int64_t i) { encode_group<T>(encoder, groups[i]); });
  });
}

}  // namespace
