// What one file of ops offers to another, as tensors see it. The primitives' meaning: kernels/reference.py.

#pragma once

#include "tensors.h"

namespace moe {

std::tuple<Tensor, Tensor, Tensor, Tensor> gate(const Tensor& x, const Maybe& hidden_weight, const Maybe& hidden_bias,
                                                const Tensor& weight, const Maybe& bias, const Maybe& noise,
                                                const Maybe& selection_bias, const Maybe& mask, int64_t top_k,
                                                int64_t router, bool renormalize);

std::tuple<Tensor, Tensor> plan(const Tensor& indices, int64_t experts);

std::tuple<Tensor, Tensor> serve(const Tensor& x, const Tensor& order, const Tensor& offsets, const Tensor& weights,
                                 const Tensor& up_weight, const Maybe& up_bias, const Tensor& down_weight,
                                 const Maybe& down_bias, const Maybe& residual, int64_t activation, bool keep,
                                 at::ScalarType dtype);

Tensor combine(const Tensor& rows, int64_t top_k, const Maybe& residual, const Maybe& mask, at::ScalarType dtype);

// What follows the means of sequences, which it may write to. `block` has the parameters of a layer, in the order in which `layer`
// takes them, and the layer has a residual; without any, there is none. `settings`: top_k, activation, router, renormalize.
// Lengths of 1 if they are asked for.
Tensor finish(const Tensor& x, const c10::List<Maybe>& block, at::IntArrayRef settings, at::ScalarType type,
              bool normalize);

}  // namespace moe
