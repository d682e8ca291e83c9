/* Monotonic time and deadlines. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

#define CLOCK_NS_PER_S  UINT64_C(1000000000)
#define CLOCK_NS_PER_MS UINT64_C(1000000)

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t clock_now_ns(void);

/* Now plus a time-out; saturates. UINT64_MAX is never reached. */
uint64_t clock_deadline_ns(uint64_t timeout_ms);

/* Milliseconds left until a deadline, rounded up, for poll(): 0 when it has passed. */
int clock_left_ms(uint64_t deadline_ns);

static inline double clock_seconds(uint64_t from_ns, uint64_t to_ns)
{
    return (double)(to_ns - from_ns) / 1e9;
}

#endif
