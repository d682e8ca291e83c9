/* Whole programs as what is measured: `rfork serve` and `rfork fork` as processes of their own. */
#include "base/clock.h"
#include "cli/bench/bench.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PROGRAM_READY_MS = 300000 };

enum rf_code program_start(char *const words[], struct program *ret_program, struct rf_error *err)
{
    int out[2];
    posix_spawn_file_actions_t actions;

    if (pipe2(out, O_CLOEXEC) != 0)
        return rf_fail_sys(err, "pipe");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    int failed = posix_spawn(&ret_program->pid, "/proc/self/exe", &actions, NULL, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    ret_program->out_fd = out[0];
    if (failed == 0)
        return RF_OK;
    close(out[0]);
    errno = failed;
    return rf_fail_sys(err, "start rfork %s", words[1]);
}

enum rf_code program_ready(const struct program *program, char ret_url[BENCH_TEXT_BYTES],
                           struct rf_error *err)
{
    uint64_t deadline_ns = clock_deadline_ns(PROGRAM_READY_MS);
    char line[1024];
    size_t used = 0;

    while (used + 1 < sizeof(line)) {
        struct pollfd wait = {.fd = program->out_fd, .events = POLLIN};

        if (poll(&wait, 1, clock_left_ms(deadline_ns)) <= 0)
            return rf_fail(err, RF_E_TIMEOUT, "rfork serve was not ready within %d s",
                           PROGRAM_READY_MS / 1000);
        ssize_t got = read(program->out_fd, line + used, 1);
        if (got <= 0)
            return rf_fail(err, RF_E_FAILED, "rfork serve ended before it was ready");
        if (line[used] == '\n')
            break;
        used++;
    }
    line[used] = '\0';
    const char *url = strstr(line, "url=");
    if (url == NULL)
        return rf_fail(err, RF_E_FAILED, "rfork serve said: %s", line);
    snprintf(ret_url, BENCH_TEXT_BYTES, "%.*s", (int)strcspn(url + 4, " "), url + 4);
    return RF_OK;
}

double program_number(const struct program *program, const char *key)
{
    uint64_t deadline_ns = clock_deadline_ns(PROGRAM_READY_MS);
    char text[4096];
    size_t used = 0;

    while (used + 1 < sizeof(text)) {
        struct pollfd wait = {.fd = program->out_fd, .events = POLLIN};

        if (poll(&wait, 1, clock_left_ms(deadline_ns)) <= 0)
            break;
        ssize_t got = read(program->out_fd, text + used, sizeof(text) - 1 - used);
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    text[used] = '\0';
    const char *at = strstr(text, key);
    return at != NULL ? strtod(at + strlen(key), NULL) : 0;
}

void program_end(struct program *program, int signal_number)
{
    int status;

    if (signal_number != 0)
        kill(program->pid, signal_number);
    while (waitpid(program->pid, &status, 0) < 0 && errno == EINTR) {
    }
    close(program->out_fd);
}

/* ---- its memory ---- */

/* A file that was counted: the same memory may be open under several descriptors. */
struct counted {
    ino_t inodes[64];
    unsigned count;
};

static bool count_once(struct counted *counted, ino_t inode)
{
    for (unsigned i = 0; i < counted->count; i++) {
        if (counted->inodes[i] == inode)
            return false;
    }
    if (counted->count < sizeof(counted->inodes) / sizeof(counted->inodes[0]))
        counted->inodes[counted->count++] = inode;
    return true;
}

uint64_t program_shared_memory(const struct program *program)
{
    struct counted counted = {.count = 0};
    uint64_t bytes = 0;
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)program->pid);
    DIR *fds = opendir(path);
    for (struct dirent *entry; fds != NULL && (entry = readdir(fds)) != NULL;) {
        char target[128] = "";
        struct stat st;

        if (readlinkat(dirfd(fds), entry->d_name, target, sizeof(target) - 1) > 0 &&
            strncmp(target, "/memfd:", 7) == 0 && fstatat(dirfd(fds), entry->d_name, &st, 0) == 0 &&
            count_once(&counted, st.st_ino))
            bytes += (uint64_t)st.st_blocks * 512;
    }
    if (fds != NULL)
        closedir(fds);
    return bytes;
}

uint64_t program_anonymous_memory(const struct program *program)
{
    char path[64];
    char line[256];
    uint64_t kib = 0;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)program->pid);
    FILE *status = fopen(path, "re");
    while (status != NULL && kib == 0 && fgets(line, sizeof(line), status) != NULL) {
        if (strncmp(line, "RssAnon:", 8) == 0)
            kib = strtoull(line + 8, NULL, 10);
    }
    if (status != NULL)
        fclose(status);
    return kib * 1024;
}
