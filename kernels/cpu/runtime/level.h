// Which instruction sets were compiled into this library (MOE_LEVELS, from build.py, best first), and which of them run.

#pragma once

#include <string>
#include <vector>

#include "../kernels/table.h"

namespace moe {

std::vector<std::string> levels();  // compiled and able to run here, best first

// Those of products of each type; must have been called before anything else.
void choose_level(const std::string& bf16, const std::string& fp32);
const Kernels& kernels(Type type = Type::fp32);

}  // namespace moe
