#include "tensors.h"

namespace moe {

TORCH_LIBRARY_FRAGMENT(moe_retrieval_cpu, m) {
  m.def("levels() -> str[]", levels);
  m.def("choose_level(str name) -> ()", [](std::string name) { choose_level(name); });
}

}  // namespace moe
