#include "level.h"

#include <c10/util/Exception.h>

#include <atomic>

namespace moe {

#define DECLARE(level) extern const Kernels kernels_##level;
MOE_LEVELS(DECLARE)

namespace {

bool runs_here(const std::string& level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (level == "avx512_bf16") return avx512 && __builtin_cpu_supports("avx512bf16");
  if (level == "avx512") return avx512;
  if (level == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return level == "portable";
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

std::vector<std::string> levels() {
  std::vector<std::string> names;
#define APPEND(level) \
  if (runs_here(#level)) names.push_back(#level);
  MOE_LEVELS(APPEND)
  return names;
}

void choose_level(const std::string& name) {
#define CHOOSE(level) \
  if (name == #level && runs_here(name)) chosen = &kernels_##level;
  MOE_LEVELS(CHOOSE)
  TORCH_CHECK(chosen && name == chosen.load()->name, "no kernels for ", name, " here");
}

const Kernels& kernels() {
  return *chosen.load(std::memory_order_relaxed);
}

}  // namespace moe
