#include "tensors.h"

namespace moe {

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("levels() -> str[]", levels);
  m.def("choose_level(str bf16, str fp32) -> ()", [](std::string bf16, std::string fp32) { choose_level(bf16, fp32); });
}

}  // namespace moe
