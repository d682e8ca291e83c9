/* Two hosts on one machine: network namespaces joined by a veth pair, perhaps with a shaped
 * link. */
#include "base/cleanup.h"
#include "cli/bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { NET_MAX_WORDS = 32, NET_NAME_BYTES = 32, NET_LATENCY_MS = 50 };

struct netpair {
    char seed[NET_NAME_BYTES];
    char reader[NET_NAME_BYTES];
    bool seed_made;
    bool reader_made;
    int home_fd;
};

/* Runs a command line of simple words; its own words on stderr are kept from the table. */
static bool run_words(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static bool run_words(const char *fmt, ...)
{
    char line[256];
    char *words[NET_MAX_WORDS + 1] = {NULL};
    unsigned count = 0;
    char *rest = NULL;
    posix_spawn_file_actions_t actions;
    va_list args;
    pid_t pid;
    int status = -1;

    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    for (char *word = strtok_r(line, " ", &rest); word != NULL && count < NET_MAX_WORDS;
         word = strtok_r(NULL, " ", &rest))
        words[count++] = word;
    if (count == 0 || posix_spawn_file_actions_init(&actions) != 0)
        return false;
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    int failed = posix_spawnp(&pid, words[0], &actions, NULL, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed != 0)
        return false;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status == 0;
}

static bool netpair_links(struct netpair *pair, unsigned mtu)
{
    return run_words("ip link add rfb0 netns %s mtu %u type veth peer name rfb1 netns %s mtu %u",
                     pair->seed, mtu, pair->reader, mtu) &&
           run_words("ip -n %s addr add 10.213.7.1/30 dev rfb0", pair->seed) &&
           run_words("ip -n %s addr add 10.213.7.2/30 dev rfb1", pair->reader) &&
           run_words("ip -n %s link set rfb0 mtu %u up", pair->seed, mtu) &&
           run_words("ip -n %s link set rfb1 mtu %u up", pair->reader, mtu) &&
           run_words("ip -n %s link set lo up", pair->seed) &&
           run_words("ip -n %s link set lo up", pair->reader);
}

enum rf_code netpair_create(uint64_t rate_bytes_per_s, unsigned mtu, struct netpair **ret_pair,
                            struct rf_error *err)
{
    struct netpair *pair = calloc(1, sizeof(*pair));

    if (pair == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory");
    snprintf(pair->seed, sizeof(pair->seed), "rfb-%d-s", (int)getpid());
    snprintf(pair->reader, sizeof(pair->reader), "rfb-%d-r", (int)getpid());
    pair->home_fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    pair->seed_made = run_words("ip netns add %s", pair->seed);
    pair->reader_made = run_words("ip netns add %s", pair->reader);
    bool made =
        pair->home_fd >= 0 && pair->seed_made && pair->reader_made && netpair_links(pair, mtu);
    if (made && rate_bytes_per_s > 0)
        made = run_words("tc -n %s qdisc add dev rfb0 root tbf rate %" PRIu64
                         "bit burst 2mb latency %dms",
                         pair->seed, rate_bytes_per_s * 8, NET_LATENCY_MS);
    if (!made) {
        netpair_destroy(pair);
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "no network namespaces here: needs root, and ip and tc of iproute2");
    }
    *ret_pair = pair;
    return RF_OK;
}

void netpair_destroy(struct netpair *pair)
{
    if (pair == NULL)
        return;
    if (pair->seed_made)
        (void)run_words("ip netns delete %s", pair->seed);
    if (pair->reader_made)
        (void)run_words("ip netns delete %s", pair->reader);
    if (pair->home_fd >= 0)
        close(pair->home_fd);
    free(pair);
}

const char *netpair_seed_namespace(const struct netpair *pair)
{
    return pair->seed;
}

const char *netpair_seed_address(const struct netpair *pair)
{
    (void)pair;
    return "10.213.7.1";
}

enum rf_code namespace_enter(const char *name, struct rf_error *err)
{
    char path[64];

    snprintf(path, sizeof(path), "/run/netns/%s", name);
    rf_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) != 0)
        return rf_fail_sys(err, "enter network namespace %s", name);
    return RF_OK;
}

enum rf_code netpair_enter(struct netpair *pair, struct rf_error *err)
{
    return namespace_enter(pair->reader, err);
}

void netpair_leave(struct netpair *pair)
{
    /* Cannot fail for a namespace that this process came from; were it to, the next connect
     * would say so. */
    (void)setns(pair->home_fd, CLONE_NEWNET);
}
