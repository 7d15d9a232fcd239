// One level's product of weights and tokens, on one core: `microkernel TYPE hot|cold PASSES` prints how many FLOPs it did and the
// seconds that they took. A pass is a tile of a weight times a packed tile of tokens, for each tile of a weight: the same one again
// and again, from the second-level cache, or each of so many that they come from memory. See bench/levels.py.

#include "kernels/tokens.h"

#include <stdio.h>
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <stdlib.h>
#include <time.h>

namespace {

constexpr int64_t HIDDEN = 384, TILES = 1024;

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

template <class T>
void measure(bool cold, int64_t passes) {
  int64_t distinct = cold ? TILES : 1, size = TILE_ROWS * HIDDEN;
  T* weights = (T*)malloc(distinct * size * sizeof(T));
  T* x = (T*)malloc(TILE_TOKENS * HIDDEN * sizeof(T));
  for (int64_t i = 0; i < distinct * size; ++i) assign(weights[i], 1.0f / (1 + i % 13));
  for (int64_t i = 0; i < TILE_TOKENS * HIDDEN; ++i) assign(x[i], 1.0f / (1 + i % 17));
  Frame frame;
  auto tokens = Tokens<T>::make(TILE_TOKENS, HIDDEN, frame);
  tokens.gather([&](int64_t i) { return x + i * HIDDEN; });
  float* c = frame.take<float>(TILE_ROWS * COLUMNS);
  double began = 0;
  for (int64_t pass = -1; pass < passes; ++pass) {  // the first is not counted
    if (pass == 0) began = now();
    for (int64_t tile = 0; tile < TILES; ++tile)
      for (int64_t j = 0; j < TILE_TOKENS; j += COLUMNS)
        multiply_tokens(weights + tile % distinct * size, HIDDEN, TILE_ROWS, tokens, j, c);
  }
  printf("%.0f %.9f %g\n", 2.0 * passes * TILES * size * TILE_TOKENS, now() - began, c[0]);
}

}  // namespace

int main(int, char** arguments) {
#if defined(__AMX_BF16__)
  if (syscall(SYS_arch_prctl, 0x1023, 18)) {  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: each process asks for itself
    fputs("the system refuses tile registers\n", stderr);
    return 1;
  }
#endif
  bool cold = !strcmp(arguments[2], "cold");
  int64_t passes = atoi(arguments[3]);
  if (!strcmp(arguments[1], "bf16"))
    measure<bf16>(cold, passes);
  else
    measure<float>(cold, passes);
  release_tiles();
}
