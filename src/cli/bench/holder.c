/* The holder: a process of its own that plays the seed, so that its CPU time and memory can be
 * told from the reader's. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "cli/bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { HOLDER_ANSWER_MS = 300000 }; /* writing untouched memory can take a second for 300 MB */

struct holder {
    pid_t pid;
    FILE *to;
    int from_fd;
};

static enum rf_code holder_spawn(struct holder *holder, uint64_t bytes, struct rf_error *err)
{
    char bytes_text[32];
    char *words[] = {(char[]){"rfork"}, (char[]){"bench"}, (char[]){"--holder"}, bytes_text, NULL};
    int to[2] = {-1, -1};
    int from[2] = {-1, -1};
    posix_spawn_file_actions_t actions;

    snprintf(bytes_text, sizeof(bytes_text), "%" PRIu64, bytes);
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) {
        enum rf_code code = rf_fail_sys(err, "pipe");

        close(to[0]);
        close(to[1]);
        return code;
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, from[1], STDOUT_FILENO);
    int failed = posix_spawn(&holder->pid, "/proc/self/exe", &actions, NULL, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(to[0]);
    close(from[1]);
    if (failed != 0) {
        close(to[1]);
        close(from[0]);
        errno = failed;
        return rf_fail_sys(err, "start the holder process");
    }
    holder->to = fdopen(to[1], "w");
    holder->from_fd = from[0];
    return RF_OK;
}

/* One line without its newline, within the deadline. */
static enum rf_code read_line(int fd, char *line, size_t room, struct rf_error *err)
{
    uint64_t deadline_ns = clock_deadline_ns(HOLDER_ANSWER_MS);
    size_t used = 0;

    for (;;) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        int ready = poll(&wait, 1, clock_left_ms(deadline_ns));
        char byte;

        if (ready < 0 && errno == EINTR)
            return rf_fail(err, RF_E_CANCELLED, "interrupted");
        if (ready == 0)
            return rf_fail(err, RF_E_TIMEOUT, "the holder process did not answer within %d s",
                           HOLDER_ANSWER_MS / 1000);
        if (read(fd, &byte, 1) != 1)
            return rf_fail(err, RF_E_FAILED, "the holder process ended");
        if (byte == '\n')
            break;
        if (used + 1 < room)
            line[used++] = byte;
    }
    line[used] = '\0';
    return RF_OK;
}

static enum rf_code read_answer(struct holder *holder, char ret_answer[BENCH_TEXT_BYTES],
                                struct rf_error *err)
{
    char line[512];
    enum rf_code code = read_line(holder->from_fd, line, sizeof(line), err);

    if (code != RF_OK)
        return code;
    if (strncmp(line, "ok ", 3) != 0)
        return rf_fail(err, RF_E_FAILED, "the holder process: %s", line);
    snprintf(ret_answer, BENCH_TEXT_BYTES, "%.190s", line + 3);
    return RF_OK;
}

enum rf_code bench_holder(struct bench *bench, struct holder **ret_holder, struct rf_error *err)
{
    char answer[BENCH_TEXT_BYTES];
    uint64_t bytes =
        bench->size_bytes > bench->map_max_bytes ? bench->size_bytes : bench->map_max_bytes;

    if (bench->holder == NULL) {
        struct holder *holder = calloc(1, sizeof(*holder));
        enum rf_code code = holder != NULL ? holder_spawn(holder, bytes, err)
                                           : rf_fail(err, RF_E_NOMEM, "no memory");

        if (code != RF_OK) {
            free(holder);
            return code;
        }
        bench->holder = holder;
        code = read_answer(holder, answer, err);
        if (code != RF_OK)
            return code;
    }
    *ret_holder = bench->holder;
    return RF_OK;
}

void holder_stop(struct holder *holder)
{
    int status;

    if (holder == NULL)
        return;
    if (holder->to != NULL)
        fclose(holder->to); /* its stdin ends, and so does it */
    close(holder->from_fd);
    while (waitpid(holder->pid, &status, 0) < 0 && errno == EINTR) {
    }
    free(holder);
}

pid_t holder_pid(const struct holder *holder)
{
    return holder->pid;
}

enum rf_code holder_ask(struct holder *holder, char ret_answer[BENCH_TEXT_BYTES],
                        struct rf_error *err, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vfprintf(holder->to, fmt, args);
    va_end(args);
    fputc('\n', holder->to);
    if (fflush(holder->to) != 0)
        return rf_fail(err, RF_E_FAILED, "the holder process ended");
    return read_answer(holder, ret_answer, err);
}

enum rf_code holder_cpu(struct holder *holder, double *ret_seconds, struct rf_error *err)
{
    char answer[BENCH_TEXT_BYTES];
    enum rf_code code = holder_ask(holder, answer, err, "cpu");

    if (code == RF_OK)
        *ret_seconds = strtod(answer, NULL);
    return code;
}
