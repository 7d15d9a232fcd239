#include "level.h"

#include <c10/util/Exception.h>

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe {

#define DECLARE(level) extern const Kernels kernels_##level;
MOE_LEVELS(DECLARE)

namespace {

#if defined(__x86_64__)
bool has_tiles() {
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & AMX_BF16 && d & AMX_TILE;
}
#endif

// Whether the system lets this process use tile registers, for which it has to be asked.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
#else
  return false;
#endif
}

bool runs_here(const std::string& level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
  if (level == "amx_bf16") return pairs && has_tiles();
  if (level == "avx512_bf16" || level == "amx_emulated") return pairs;
  if (level == "avx512") return avx512;
  if (level == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return level == "portable";
}

std::atomic<const Kernels*> chosen[2];  // by Type

const Kernels* find(const std::string& name) {
  TORCH_CHECK(name != "amx_bf16" || may_use_tiles(), "the system refuses tile registers");
#define FIND(level) \
  if (name == #level && runs_here(name)) return &kernels_##level;
  MOE_LEVELS(FIND)
  TORCH_CHECK(false, "no kernels for ", name, " here");
}

}  // namespace

std::vector<std::string> levels() {
  std::vector<std::string> names;
#define APPEND(level) \
  if (runs_here(#level)) names.push_back(#level);
  MOE_LEVELS(APPEND)
  return names;
}

void choose_level(const std::string& bf16, const std::string& fp32) {
  const Kernels *of_bf16 = find(bf16), *of_fp32 = find(fp32);
  chosen[int(Type::bf16)] = of_bf16;
  chosen[int(Type::fp32)] = of_fp32;
}

const Kernels& kernels(Type type) {
  return *chosen[int(type)].load(std::memory_order_relaxed);
}

}  // namespace moe
