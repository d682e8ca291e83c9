#include "util/plain.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cmocka.h>

int plain_socket(uint64_t timeout_ms)
{
    const struct timeval patience = {.tv_sec = (time_t)(timeout_ms / 1000),
                                     .tv_usec = (suseconds_t)(timeout_ms % 1000 * 1000)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience), 0);
    return fd;
}

void plain_say(int fd, const void *data, size_t bytes)
{
    assert_int_equal(send(fd, data, bytes, MSG_NOSIGNAL), (ssize_t)bytes);
}

void plain_hear(int fd, void *data, size_t bytes)
{
    ssize_t got = bytes > 0 ? recv(fd, data, bytes, MSG_WAITALL) : 0;

    if (got != (ssize_t)bytes)
        fail_msg("expected %zu bytes, got %zd", bytes, got);
}

void plain_hear_end(int fd)
{
    uint8_t byte;

    assert_int_equal(recv(fd, &byte, 1, 0), 0);
}
