// What every operating system and processor does in its own way. system.cpp says it once for each system.
#pragma once

#include <cstddef>
#include <cstdint>

namespace os {

// Memory from the start of a cache line on; null if there is none. bytes: of whole cache lines. Not by
// operator new, which throws inside where there is none, even if told not to.
void* allocate(size_t bytes);
void release(void* memory);

// Give the processor to another thread.
void yield();

// Call this in every child of fork(), where there is one.
void call_after_fork(void (*function)());

// Ask for the registers of AMX, which Linux keeps only for processes that asked.
bool may_use_tiles();

// Tell the processor that this is a spin-wait loop. Static: each file has its own, compiled with its
// own flags.
#if defined(__x86_64__)
static inline void relax() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
static inline void relax() { asm volatile("yield"); }
#else
static inline void relax() {}
#endif

// A turn of a loop that waits for another thread: spin, but from the `patience`-th turn on give the
// processor away. That thread may need it: where there are more threads than processors, or where one
// of a higher priority waits for one of a lower.
static inline void wait_turn(int64_t turn, int64_t patience) { turn < patience ? relax() : yield(); }

}  // namespace os
