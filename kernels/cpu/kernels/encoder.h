// An encoder from token ids to hidden states or their means, for inference. Groups of sequences go through all blocks
// without waiting for one another, each on one thread. A few sequences are one group, whose parts the threads share.

#pragma once

#include "attention.h"
#include "block_end.h"
#include "embed.h"
#include "layer.h"
#include "pooling.h"

namespace {

constexpr int64_t GROUP_TOKENS = 512, LEAST_TOKENS = 128;
// A group's experts share its tokens, and each reads its weights anew for every group: with groups of 512 tokens, top-1 of 8
// experts in half of the blocks took 1.15 times as long as no experts, with these 1.08 times. A few sequences are cut smaller, for
// as many threads as there may be.
constexpr int64_t ROUTED_TOKENS = 1024, LEAST_ROUTED_TOKENS = 768, LEAST_OF_FEW = 256;

struct Group {
  int64_t first, last;  // sequences
};

inline bool has_experts(const Encoder& encoder) {
  for (int64_t i = 0; i < encoder.depth; ++i)
    if (encoder.blocks[i].routed) return true;
  return false;
}

// Groups that grow smaller towards the end, so that threads end at about the same time; bits do not depend on them. With
// experts they do, since a handful of tokens has kernels of its own: then the sequences alone decide about groups.
inline const Group* make_groups(const Encoder& encoder, int64_t threads, int64_t& count, Frame& frame) {
  const Embed& e = encoder.embed;
  Group* groups = frame.take<Group>(e.sequences);
  bool routed = has_experts(encoder), shared = e.tokens < threads * GROUP_TOKENS / 2;
  count = 0;
  for (int64_t first = 0; first < e.sequences; first = groups[count++].last) {
    int64_t share = (e.tokens - e.starts[first]) / (routed ? 8 : 2 * threads), last = first + 1;
    int64_t least_routed = e.tokens < 4 * ROUTED_TOKENS ? LEAST_OF_FEW : LEAST_ROUTED_TOKENS;
    int64_t fewest = routed ? least_routed : shared ? e.tokens : LEAST_TOKENS;
    int64_t limit = share < fewest ? fewest : least(share, routed ? ROUTED_TOKENS : GROUP_TOKENS);
    while (last < e.sequences && e.starts[last + 1] - e.starts[first] <= limit) ++last;
    groups[count] = {first, last};
  }
  return groups;
}

// A group's part of the embeddings. Its hidden states end where they began, in `out`.
inline Embed group_embed(const Encoder& encoder, Group group, Frame& frame) {
  Embed e = encoder.embed;
  int64_t start = e.starts[group.first];
  int32_t* starts = frame.take<int32_t>(group.last - group.first + 1);
  for (int64_t i = group.first; i <= group.last; ++i) starts[i - group.first] = e.starts[i] - start;
  e.tokens = e.starts[group.last] - start;
  e.sequences = group.last - group.first;
  e.ids += start;
  e.starts = starts;
  e.out = encoder.means ? frame.take<float>(e.tokens * e.hidden) : e.out + start * e.hidden;
  return e;
}

// From the attention's output to the following block's q, k and v. A layer of experts has hidden states in rows: they leave their
// tiles for it, and its output is added to what stays there.
inline void end_block(BlockEnd& b, const EncoderBlock& block, Linear next_qkv, float* out_hidden) {
  b.weights = block.end;
  if (block.routed) {
    Frame frame;
    float *x = frame.take<float>(b.tokens * b.hidden), *y = frame.take<float>(b.tokens * b.hidden);
    b.next_qkv = {};
    b.out_hidden = x;
    block_end(b);
    Layer l{block.gate, block.experts, {}, {y, Type::fp32}};
    l.gate.x = {x, Type::fp32};
    l.gate.choose.tokens = b.tokens;
    layer(l);
    Rows attended = b.y;
    b.y = {y, Type::fp32};
    b.weights = {};
    b.weights.norm = block.end.ffn_norm;
    b.next_qkv = next_qkv;
    b.out_hidden = out_hidden;
    block_end(b);
    b.y = attended;
    return;
  }
  b.next_qkv = next_qkv;
  b.out_hidden = out_hidden;
  block_end(b);
}

template <class T>
void encode_group(const Encoder& encoder, Group group) {
  Frame frame;
  Embed e = group_embed(encoder, group, frame);
  int64_t hidden = e.hidden, padded = round_up(e.tokens, COLUMNS);
  int64_t column_stride = (padded / COLUMNS | 1) * COLUMNS;  // odd, so that rows of v lie in different sets of a cache
  T *qk = frame.take<T>(e.tokens * 2 * hidden), *v = frame.take<T>(column_stride * hidden);

  Attention a{};
  a.tokens = e.tokens;
  a.heads = encoder.heads;
  a.head_size = hidden / encoder.heads;
  a.sequences = e.sequences;
  a.stride = 2 * hidden;
  a.v_stride = column_stride;
  a.type = encoder.type;
  a.starts = e.starts;
  a.q = qk;
  a.k = qk + hidden;
  a.v = v;
  a.out = frame.take<T>(e.tokens * hidden);

  BlockEnd b{};
  b.type = encoder.type;
  b.tokens = e.tokens;
  b.hidden = hidden;
  b.states = frame.take<float>(padded * hidden + LANES * COLUMNS);  // `transposed` reads on
  b.next_size = 3 * hidden;
  b.next_in_rows = 2 * hidden;
  b.out_next = qk;
  b.out_columns = v;
  b.column_stride = column_stride;

  // The first block's q, k and v come from the embeddings, those of the others from the end of the block before.
  embed(e);
  b.x = e.out;
  b.next_qkv = encoder.blocks[0].qkv;
  block_end(b);
  b.x = nullptr;
  b.y = {a.out, encoder.type};
  for (int64_t i = 0; i < encoder.depth; ++i) {
    bool last = i + 1 == encoder.depth;
    attention(a);
    end_block(b, encoder.blocks[i], last ? Linear{} : encoder.blocks[i + 1].qkv, last ? e.out : nullptr);
  }
  if (encoder.means) mean({e.sequences, hidden, e.starts, e.out, encoder.means + group.first * hidden});
}

void encode(const Encoder& encoder) {
  with_type(encoder.type, [&](auto type) {
    typedef decltype(type) T;
    Frame frame;
    int64_t count;
    const Group* groups = make_groups(encoder, num_threads(), count, frame);
    if (count == 1) return encode_group<T>(encoder, groups[0]);
    for_each(count, [&](int64_t i) { encode_group<T>(encoder, groups[i]); });
  });
}

}  // namespace
