// What the object of an instruction set offers: its kernels.

#pragma once

#include "../records.h"

namespace moe {

struct Kernels {
  void (*up)(const Forward&);
  void (*down)(const Forward&);
  void (*up_and_down)(const Forward&);
  void (*plan)(const Sort&);
  void (*layer)(const Layer&);
  void (*down_backward)(const DownBackward&);
  void (*up_backward)(const UpBackward&);
  void (*weight_grad)(const WeightGrad&);
  void (*choose)(const Choose&);
  void (*gate)(const Gate&);
  void (*gate_features)(const Gate&, float*);
  void (*choose_backward)(const ChooseBackward&);
  void (*product)(const Product&);
  void (*combine)(const Combine&);
  void (*attention)(const Attention&);
  void (*attention_backward)(const Attention&);
  void (*encode)(const Encoder&);
  void (*mean)(const Mean&);
  void (*scale_to_one)(const Lengths&);
  void (*residual_norm)(const ResidualNorm&);
  void (*residual_norm_backward)(const ResidualNorm&);
};

}  // namespace moe
