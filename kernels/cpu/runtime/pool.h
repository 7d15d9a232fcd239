// Large memory, in whole pages.
//
// The system takes large memory back when it is freed, and clears it, page by page, when it is asked for again: for a step's
// gradients that costs more than computing them. So freed pieces are kept for the next one of their size, up to a limit,
// and they are aligned to large pages, whose first touch is cheaper.

#pragma once

#include <stdint.h>

namespace moe {

constexpr int64_t PAGE = 2 << 20;

// `bytes` is a multiple of PAGE, and the same for both.
void* take_pages(int64_t bytes);
void give_pages(void* data, int64_t bytes);

}  // namespace moe
