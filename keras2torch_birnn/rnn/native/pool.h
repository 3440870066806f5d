// Threads that wait for work. The caller of `run` works too, so tasks are done even if no thread
// can be had, and several callers at once share the same threads.
#pragma once

namespace pool {

using Function = void (*)(void* context, long index);

// Call function(context, 0 .. count - 1), each once, on at most `threads` threads with the caller.
void run(long threads, long count, Function function, void* context);

}  // namespace pool
