// Prints, for calls one after the other, whether ThreadGain says that they waited for a processor: the time of a
// call and that of the caller's own tasks in microseconds, and whether the threads gained.
#include <cstdio>

#include "thread_gain.h"

int main() {
    ThreadGain gain;
    long all, own;
    int gained;
    while (std::scanf("%ld %ld %d", &all, &own, &gained) == 3)
        std::putchar("01"[gain.has_stalled(std::chrono::microseconds{all}, std::chrono::microseconds{own}, gained)]);
}
