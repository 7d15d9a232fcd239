#include "names.h"

#include <c10/util/Exception.h>

#include <string>
#include <utility>

namespace moe {
namespace {

constexpr std::pair<std::string_view, NamedActivation> ACTIVATIONS[] = {
    {"gelu", {Activation::gelu, false}}, {"gelu_tanh", {Activation::gelu_tanh, false}},
    {"relu", {Activation::relu, false}}, {"silu", {Activation::silu, false}},
    {"swiglu", {Activation::silu, true}}, {"geglu", {Activation::gelu, true}},
};

constexpr std::pair<std::string_view, Router> ROUTERS[] = {
    {"softmax", Router::softmax}, {"topk_softmax", Router::topk_softmax}, {"sigmoid", Router::sigmoid}};

template <class Value, size_t N>
std::string names(const std::pair<std::string_view, Value> (&table)[N]) {
  std::string all;
  for (const auto& entry : table) all.append(all.empty() ? "" : ", ").append(entry.first);
  return all;
}

template <class Value, size_t N>
Value find(const char* what, std::string_view name, const std::pair<std::string_view, Value> (&table)[N]) {
  size_t i = 0;
  while (i < N && table[i].first != name) ++i;
  TORCH_CHECK(i < N, what, " must be one of ", names(table), "; got '", name, "'");
  return table[i].second;
}

}  // namespace

NamedActivation activation_of(std::string_view name) {
  return find("activation", name, ACTIVATIONS);
}

Activation plain_activation_of(std::string_view name) {
  NamedActivation activation = activation_of(name);
  TORCH_CHECK(!activation.gated, "activation must not be gated, got '", name, "'");
  return activation.kind;
}

Router router_of(std::string_view name) {
  return find("router", name, ROUTERS);
}

}  // namespace moe
