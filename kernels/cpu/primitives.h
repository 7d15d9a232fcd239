// What one file of ops offers to another. The primitives' meaning: kernels/reference.py.

#pragma once

#include "arguments.h"

namespace moe {

// All but the logits, and what is chosen.
Gate gate_of(Arguments& arguments, const Tensor& x, const Maybe& hidden_weight, const Maybe& hidden_bias,
             const Tensor& weight, const Maybe& bias, const Maybe& noise, const Maybe& selection_bias, const Maybe& mask,
             int64_t top_k, int64_t router, bool renormalize);

// What is chosen, made for a Choose, which writes there.
struct Routed {
  Tensor weights, indices, sums;

  explicit Routed(Choose& c);
};

// Slots in the order of their experts, those of none last, and where each expert's begin. `offsets` and `next`, which is for
// counting, have experts + 1 places.
void make_plan(const int32_t* expert, int64_t slots, int64_t experts, int32_t* order, int32_t* offsets, int32_t* next);

Experts experts_of(Type type, int64_t hidden, int64_t width, int64_t activation);

// Whether up and down should run tile by tile, so that their activations need no memory.
bool in_tiles(int64_t slots, int64_t experts);

// Up and down, tile by tile if there is no memory for activations.
void up_and_down(const Serve& s);

// What follows the means of sequences, in their place. `block` has the parameters of a layer, in the order in which `layer`
// takes them, and the layer has a residual; without any, there is none. `settings`: top_k, activation, router, renormalize.
// Lengths of 1 if they are asked for.
Tensor finish(const Tensor& x, const c10::List<Maybe>& block, at::IntArrayRef settings, at::ScalarType type,
              bool normalize);

}  // namespace moe
