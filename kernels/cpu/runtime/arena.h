// Memory for what a computation needs on its way. What belongs to what:
//
// - Each thread has one arena, a stack of pieces. A function opens a frame on it and takes its pieces from that frame. They are
//   its own until the frame ends, with the function; then all of them go back at once.
// - What a function makes for its caller, it takes from the caller's frame, which it is given.
// - Frames nest as calls do, and only the innermost one takes: a frame is not used while a function that was called has its own.
// - Tasks may use the pieces of the function that shares its work among them, whose frame waits for them. What a task itself
//   needs, it takes from a frame of its own: the thread that runs it has another arena.
// - A piece has the size that it was taken with, begins at a multiple of 64 bytes, and holds what was there before.
//
// A breach of this ends the process, in every build: `take` refuses a frame that is not the innermost of its thread, and
// behind each piece lies a guard, which must be whole when the frame ends. There is no end of an arena to run over: it grows.
// Under AddressSanitizer, what is not taken is poisoned, so that reading beyond a piece is seen as well.

#pragma once

#include <stdint.h>

namespace moe {

class Frame {
 public:
  Frame();
  ~Frame();
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

  // Always inline: the objects of instruction sets share no code (see kernels/vector.h).
  template <class V>
  __attribute__((always_inline)) V* take(int64_t count) {
    return static_cast<V*>(take_bytes(count * int64_t(sizeof(V))));
  }

  void* take_bytes(int64_t bytes);

 private:
  const Frame* outer_;
  int64_t slab_;  // where the arena stood
  char *next_, *guard_;
};

// Ends all frames of this thread, for an exception that leaves functions without ending theirs, as those of kernels/ do.
void abandon_frames();

}  // namespace moe
