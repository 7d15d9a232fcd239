// Which instruction sets were compiled into this library (MOE_LEVELS, from build.py, best first), and which one runs.

#pragma once

#include <string>
#include <vector>

#include "../kernels/table.h"

namespace moe {

std::vector<std::string> levels();           // compiled and able to run here, best first
void choose_level(const std::string& name);  // must have been called before anything else
const Kernels& kernels();

}  // namespace moe
