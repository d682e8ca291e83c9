/* memory_available() with the places it reads from named, for tests. */
#ifndef MEMORY_AVAILABLE_H
#define MEMORY_AVAILABLE_H

#include <stdint.h>

/* root stands before /proc/meminfo, /proc/self/cgroup and /sys/fs/cgroup; "" is the machine itself.
 * What cannot be read sets no limit. */
uint64_t memory_available_under(const char *root);

#endif
