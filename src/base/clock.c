#include "base/clock.h"

#include <limits.h>
#include <time.h>

uint64_t clock_now_ns(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * CLOCK_NS_PER_S + (uint64_t)now.tv_nsec;
}

uint64_t clock_deadline_ns(uint64_t timeout_ms)
{
    uint64_t timeout_ns = 0;
    uint64_t deadline_ns = 0;

    if (__builtin_mul_overflow(timeout_ms, CLOCK_NS_PER_MS, &timeout_ns) ||
        __builtin_add_overflow(clock_now_ns(), timeout_ns, &deadline_ns))
        return UINT64_MAX;
    return deadline_ns;
}

int clock_left_ms(uint64_t deadline_ns)
{
    uint64_t now_ns = clock_now_ns();

    if (deadline_ns <= now_ns)
        return 0;
    uint64_t left_ms = (deadline_ns - now_ns - 1) / CLOCK_NS_PER_MS + 1;
    return left_ms > INT_MAX ? INT_MAX : (int)left_ms;
}
