// Threads are torch's.

#pragma once

#include <stdint.h>

namespace moe {

// Runs task(context, 0..count), each once, on whatever thread is free. A task owns what it writes, so no result depends
// on the number of threads. `end`, if it is not null, runs once on each of these threads, after the last of its tasks.
void parallel(int64_t count, void (*task)(void*, int64_t), void* context, void (*end)());

// How many take part in `parallel`: one, within a task.
int64_t num_threads();

}  // namespace moe
