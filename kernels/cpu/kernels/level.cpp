// Everything that depends on the instruction set. Compiled once for each, with its flags and -DLEVEL=its_name.

#include "attention_backward.h"
#include "choose_backward.h"
#include "combine.h"
#include "encoder.h"
#include "experts.h"
#include "experts_backward.h"
#include "gate.h"
#include "product.h"
#include "residual_norm.h"
#include "table.h"
#include "weight_grad.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

namespace moe {

extern const Kernels JOIN(kernels_, LEVEL);
const Kernels JOIN(kernels_, LEVEL) = {
    up, down, up_and_down, plan, layer, down_backward, up_backward, weight_grad, choose, gate, gate_features,
    choose_backward, product, combine, attention, attention_backward, encode, mean, scale_to_one, residual_norm,
    residual_norm_backward,
};

}  // namespace moe
