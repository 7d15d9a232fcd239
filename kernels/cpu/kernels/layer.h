// A whole layer without gradients, on a few tokens or many: the gate, the plan, the experts, the sum of each token's rows. Nothing
// that its parts pass on is a tensor, because for a few tokens calls cost more than they compute.

#pragma once

#include "combine.h"
#include "experts.h"
#include "gate.h"
#include "plan.h"

namespace {

void layer(const Layer& l) {
  Gate g = l.gate;
  Choose& c = g.choose;
  int64_t slots = c.tokens * c.top_k, count = c.experts;
  bool single = c.top_k == 1;  // the row of its slot is a token's result
  Frame frame;
  int32_t *order = frame.take<int32_t>(slots), *offsets = frame.take<int32_t>(count + 1);
  if (!c.sums) {
    c.logits = frame.take<float>(c.tokens * count);
    c.weights = frame.take<float>(slots);
    c.sums = frame.take<float>(2 * count + 2);
    c.indices = frame.take<int32_t>(slots);
  }
  Forward fw{};
  fw.plan = {order, offsets, slots, count, c.top_k, false};
  fw.experts = l.experts;
  fw.x = g.x;
  fw.weights = c.weights;
  fw.rows = l.y;
  if (single)
    fw.residual = l.residual;
  else
    fw.rows = {frame.take_bytes(slots * l.experts.hidden * (l.experts.type == Type::bf16 ? 2 : 4)), l.experts.type};
  gate(g);
  plan({c.indices, slots, count, order, offsets});
  up_and_down(fw);
  if (single) return;
  Combine sum{};
  sum.tokens = c.tokens;
  sum.top_k = c.top_k;
  sum.hidden = l.experts.hidden;
  sum.rows = {fw.rows.data, fw.rows.type};
  sum.residual = l.residual;
  sum.mask = c.mask;
  sum.y = l.y;
  combine(sum);
}

}  // namespace
