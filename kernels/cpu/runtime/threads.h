// Threads are torch's.

#pragma once

#include <stdint.h>

namespace moe {

// Runs task(context, 0..count), each once, on whatever thread is free. A task owns what it writes, so no result depends
// on the number of threads.
void parallel(int64_t count, void (*task)(void*, int64_t), void* context);

// How many take part in `parallel`: one, within a task.
int64_t num_threads();

}  // namespace moe
