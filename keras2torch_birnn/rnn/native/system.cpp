#include "system.h"

#include <cstdlib>
#include <thread>

#if defined(_WIN32)
#include <malloc.h>
#else
#include <pthread.h>
#endif

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace os {

void yield() { std::this_thread::yield(); }

#if defined(_WIN32)

void* allocate(size_t bytes) { return _aligned_malloc(bytes, 64); }
void release(void* memory) { _aligned_free(memory); }
void call_after_fork(void (*)()) {}

#else

void* allocate(size_t bytes) { return std::aligned_alloc(64, bytes); }
void release(void* memory) { std::free(memory); }
void call_after_fork(void (*function)()) { pthread_atfork(nullptr, nullptr, function); }

#endif

#if defined(__linux__) && defined(__x86_64__)

bool may_use_tiles() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

#else

bool may_use_tiles() { return false; }

#endif

}  // namespace os
