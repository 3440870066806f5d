// What every operating system does in its own way. system.cpp says it once for each.
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

using Thread = uint64_t;
Thread this_thread();

// The processor that this thread runs on; below 0 where a system does not tell.
int this_processor();

// Keep a thread away from a processor; return whether it may run on another one.
bool keep_away(Thread thread, int processor);

}  // namespace os
