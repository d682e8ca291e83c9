/* A plain socket as a peer, so that nothing of our own stands between it and what is tested. All fail
 * the test that they are called by. */
#ifndef TESTS_UTIL_PLAIN_H
#define TESTS_UTIL_PLAIN_H

#include <stddef.h>
#include <stdint.h>

/* Not connected; waits no longer than timeout_ms for anything. */
int plain_socket(uint64_t timeout_ms);
/* All at once. */
void plain_say(int fd, const void *data, size_t bytes);
/* Exactly so many. */
void plain_hear(int fd, void *data, size_t bytes);
/* Nothing more comes; the end does. */
void plain_hear_end(int fd);

#endif
