// The plan: slots by expert. A counting sort, stable.

#pragma once

#include "parallel.h"

namespace {

void plan(const Sort& s) {
  auto expert_of = [&](int64_t slot) {
    int64_t expert = s.indices[slot];
    return expert < 0 || expert >= s.experts ? s.experts : expert;
  };
  Frame frame;
  int32_t* next = frame.take<int32_t>(s.experts + 1);
  for (int64_t e = 0; e <= s.experts; ++e) next[e] = 0;
  for (int64_t i = 0; i < s.slots; ++i) ++next[expert_of(i)];
  int32_t sum = 0;
  for (int64_t e = 0; e <= s.experts; ++e) {
    int32_t count = next[e];
    s.offsets[e] = next[e] = sum;
    sum += count;
  }
  for (int64_t i = 0; i < s.slots; ++i) s.order[next[expert_of(i)]++] = i;
}

}  // namespace
