// Activations and routers by the names that they have in Python.

#pragma once

#include <string_view>

#include "../records.h"

namespace moe {

struct NamedActivation {
  Activation kind;
  bool gated;
};

NamedActivation activation_of(std::string_view name);

// One that is not gated: an encoder's.
Activation plain_activation_of(std::string_view name);

Router router_of(std::string_view name);

}  // namespace moe
