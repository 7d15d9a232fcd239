// For tests, and whoever else tells torch to be deterministic and to fill memory (`torch.utils.deterministic`): memory that is
// taken holds NaN (as float, bf16 or fp16), so that what is read before it is written shows.

#pragma once

#include <stdint.h>

namespace moe {

// Who knows whether memory is to be poisoned now; nobody, at first.
void ask_whether_to_poison(bool (*asked)());

// Fills what was taken, if it is to be.
void poison(void* data, int64_t bytes);

}  // namespace moe
