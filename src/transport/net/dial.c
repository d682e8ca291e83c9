#include "transport/net/dial.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

enum { NET_CANCEL_POLL_MS = 100 }; /* how often a flag without a descriptor is looked at */

/* ---- judging ---- */

void net_judge(const struct endpoint *endpoint, int rank, const char *within, const char *between,
               struct transport_verdict *ret_verdict)
{
    struct net_address address = {.bytes = 0};
    struct rf_error error = {0};
    char host_id[64];

    *ret_verdict = (struct transport_verdict){.rank = rank};
    if (net_address_parse(endpoint->address, &address, &error) != RF_OK) {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "%.200s", error.text);
        return;
    }
    if (net_address_is_any(&address)) {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason,
                 "the seed names no address, only a port");
        return;
    }
    bool same_host =
        endpoint->host_id[0] != '\0' && strcmp(endpoint->host_id, transport_host_id(host_id)) == 0;
    ret_verdict->usable = true;
    snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "%s", same_host ? within : between);
}

/* ---- waiting ---- */

bool net_is_cancelled(const struct net_peer *peer)
{
    /* Relaxed: no data comes with the flag. */
    return peer->cancel != NULL && atomic_load_explicit(peer->cancel, memory_order_relaxed);
}

enum rf_code net_wait(const struct net_peer *peer, int fd, short events, uint64_t deadline_ns)
{
    struct pollfd fds[2] = {
        {.fd = fd, .events = events},
        {.fd = peer->cancel_fd, .events = POLLIN},
    };

    for (;;) {
        if (net_is_cancelled(peer))
            return RF_E_CANCELLED;
        int left_ms = clock_left_ms(deadline_ns);
        int slice_ms = left_ms;
        if (peer->cancel != NULL && peer->cancel_fd < 0 && slice_ms > NET_CANCEL_POLL_MS)
            slice_ms = NET_CANCEL_POLL_MS;
        int ready = poll(fds, 2, slice_ms);
        if (ready > 0 && fds[1].revents != 0)
            return RF_E_CANCELLED;
        if (ready > 0)
            return RF_OK;
        if (ready == 0 && left_ms == 0)
            return RF_E_TIMEOUT;
    }
}

enum rf_code net_wait_answer(const struct net_peer *peer, int fd, bool unsent, uint64_t heard_ns,
                             uint32_t open, uint64_t deadline_ns, bool *ret_over,
                             struct rf_error *err)
{
    uint64_t silent_ns = heard_ns + peer->timeout_ms * CLOCK_NS_PER_MS;
    bool silence_first = silent_ns < deadline_ns;
    enum rf_code code = net_wait(peer, fd, (short)(POLLIN | (unsent ? POLLOUT : 0)),
                                 silence_first ? silent_ns : deadline_ns);

    *ret_over = code == RF_E_CANCELLED || (code == RF_E_TIMEOUT && silence_first);
    if (code == RF_E_CANCELLED)
        return net_fail_wait(peer, code, "reading", err);
    if (*ret_over)
        return rf_fail(err, code, "%s %s: silent for %" PRIu64 " ms, %" PRIu32 " reads were open",
                       peer->kind, peer->text, peer->timeout_ms, open);
    return code;
}

void net_set_low_water(int fd, int bytes, int *low_water)
{
    if (bytes != *low_water && setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes) == 0)
        *low_water = bytes;
}

enum rf_code net_fail_wait(const struct net_peer *peer, enum rf_code code, const char *what,
                           struct rf_error *err)
{
    if (code == RF_E_CANCELLED)
        return rf_fail(err, code, "%s %s: cancelled while %s", peer->kind, peer->text, what);
    return rf_fail(err, code, "%s %s: %s took longer than %" PRIu64 " ms", peer->kind, peer->text,
                   what, peer->timeout_ms);
}

enum rf_code net_fail_gone(const struct net_peer *peer, const char *what, int sys_errno,
                           struct rf_error *err)
{
    char reason[128];

    /* net_tune() gives the kernel our own deadline: which of the two is noticed first is chance. */
    if (sys_errno == ETIMEDOUT)
        return net_fail_wait(peer, RF_E_TIMEOUT, what, err);
    return rf_fail(err, RF_E_UNREACHABLE, "%s %s: %s: %s", peer->kind, peer->text, what,
                   strerror_r(sys_errno, reason, sizeof reason));
}

/* ---- connecting ---- */

enum rf_code net_connect_begin(const struct net_peer *peer, const struct net_address *address,
                               int *ret_fd, struct rf_error *err)
{
    rf_autoclose int fd =
        socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return rf_fail_sys(err, "socket for %s", peer->text);
    net_tune(fd, peer->timeout_ms);
    if (connect(fd, &address->any, address->bytes) != 0 && errno != EINPROGRESS && errno != EINTR)
        return net_fail_gone(peer, "connecting", errno, err);
    *ret_fd = rf_take(fd, -1);
    return RF_OK;
}

enum rf_code net_connect(const struct net_peer *peer, const struct net_address *address,
                         uint64_t deadline_ns, int *ret_fd, struct rf_error *err)
{
    rf_autoclose int fd = -1;
    int error = 0;
    socklen_t bytes = sizeof error;
    enum rf_code code = net_connect_begin(peer, address, &fd, err);

    if (code != RF_OK)
        return code;
    code = net_wait(peer, fd, POLLOUT, deadline_ns);
    if (code != RF_OK)
        return net_fail_wait(peer, code, "connecting", err);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0)
        return rf_fail_sys(err, "SO_ERROR of %s", peer->text);
    if (error != 0)
        return net_fail_gone(peer, "connecting", error, err);
    *ret_fd = rf_take(fd, -1);
    return RF_OK;
}

void net_flush(struct net_unsent *unsent, int fd)
{
    while (net_has_unsent(unsent) && !unsent->broken) {
        ssize_t put = send(fd, unsent->out.data + unsent->sent, unsent->out.bytes - unsent->sent,
                           MSG_NOSIGNAL);
        if (put >= 0)
            unsent->sent += (size_t)put;
        else if (errno == EAGAIN)
            return;
        else if (errno != EINTR)
            unsent->broken = true;
    }
    unsent->out.bytes = 0;
    unsent->sent = 0;
}

enum rf_code net_send_all(const struct net_peer *peer, int fd, const void *data, size_t bytes,
                          const char *what, uint64_t deadline_ns, struct rf_error *err)
{
    size_t sent = 0;

    while (sent < bytes) {
        ssize_t put = send(fd, (const uint8_t *)data + sent, bytes - sent, MSG_NOSIGNAL);
        if (put >= 0) {
            sent += (size_t)put;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return net_fail_gone(peer, what, errno, err);
        enum rf_code code = net_wait(peer, fd, POLLOUT, deadline_ns);
        if (code != RF_OK)
            return net_fail_wait(peer, code, what, err);
    }
    return RF_OK;
}

enum rf_code net_receive_all(const struct net_peer *peer, int fd, void *data, size_t bytes,
                             const char *what, uint64_t deadline_ns, struct rf_error *err)
{
    size_t got = 0;

    while (got < bytes) {
        ssize_t n = recv(fd, (uint8_t *)data + got, bytes - got, 0);
        if (n > 0) {
            got += (size_t)n;
            continue;
        }
        if (n == 0)
            return rf_fail(err, RF_E_UNREACHABLE, "%s %s closed the connection while %s",
                           peer->kind, peer->text, what);
        if (errno != EAGAIN && errno != EINTR)
            return net_fail_gone(peer, what, errno, err);
        /* Bytes that keep coming one by one do not outlive the deadline either. */
        enum rf_code code = net_wait(peer, fd, POLLIN, deadline_ns);
        if (code != RF_OK)
            return net_fail_wait(peer, code, what, err);
    }
    return RF_OK;
}

/* ---- names ---- */

/* A look-up on a thread of its own: getaddrinfo() knows no deadline. Whoever comes last frees it. */
struct lookup {
    char host[NI_MAXHOST];
    int done_fd; /* readable when it is done */
    atomic_int users;
    atomic_bool done; /* released after what follows was written, before done_fd is */
    int error;        /* EAI_* */
    unsigned count;
    struct net_address found[NET_MAX_RESOLVED];
};

static void lookup_leave(struct lookup *lookup)
{
    /* Acquire and release: the last one sees all that the other did. */
    if (atomic_fetch_sub_explicit(&lookup->users, 1, memory_order_acq_rel) > 1)
        return;
    if (lookup->done_fd >= 0)
        close(lookup->done_fd);
    free(lookup);
}

static void lookup_host(struct lookup *lookup, int flags)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | flags};
    struct addrinfo *found = NULL;

    lookup->error = getaddrinfo(lookup->host, "1", &hints, &found);
    if (lookup->error != 0)
        return;
    for (const struct addrinfo *at = found; at != NULL; at = at->ai_next) {
        if (lookup->count == NET_MAX_RESOLVED || at->ai_addrlen > sizeof lookup->found[0].v6)
            continue;
        struct net_address *address = &lookup->found[lookup->count++];
        address->bytes = at->ai_addrlen;
        memcpy(&address->any, at->ai_addr, at->ai_addrlen);
    }
    freeaddrinfo(found);
}

static void *lookup_run(void *arg)
{
    struct lookup *lookup = arg;
    const uint64_t one = 1;

    lookup_host(lookup, 0);
    atomic_store_explicit(&lookup->done, true, memory_order_release);
    /* It cannot fail: the counter is 0. If it did, whoever waits would until the deadline. */
    ssize_t put = write(lookup->done_fd, &one, sizeof one);
    (void)put;
    lookup_leave(lookup);
    return NULL;
}

static enum rf_code lookup_start(struct lookup *lookup, struct rf_error *err)
{
    pthread_t thread;

    lookup->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (lookup->done_fd < 0)
        return rf_fail_sys(err, "eventfd to look up \"%s\"", lookup->host);
    atomic_fetch_add_explicit(&lookup->users, 1, memory_order_relaxed);
    enum rf_code code = thread_start(&thread, "resolve", lookup_run, lookup, err);
    if (code != RF_OK) {
        lookup_leave(lookup);
        return code;
    }
    pthread_detach(thread);
    return RF_OK;
}

static enum rf_code lookup_wait(const struct net_peer *peer, struct lookup *lookup,
                                uint64_t deadline_ns, struct rf_error *err)
{
    lookup_host(lookup, AI_NUMERICHOST); /* at once, for an address */
    if (lookup->error != EAI_NONAME)
        return RF_OK;
    enum rf_code code = lookup_start(lookup, err);
    if (code != RF_OK)
        return code;
    code = net_wait(peer, lookup->done_fd, POLLIN, deadline_ns);
    /* Acquire pairs with the thread's release. */
    if (code == RF_OK && !atomic_load_explicit(&lookup->done, memory_order_acquire))
        code = RF_E_TIMEOUT; /* it never is: done_fd became readable after that */
    return code == RF_OK ? RF_OK : net_fail_wait(peer, code, "looking its name up", err);
}

enum rf_code net_resolve(const struct net_peer *peer, const char *host, uint16_t port,
                         uint64_t deadline_ns, struct net_address found[NET_MAX_RESOLVED],
                         unsigned *ret_count, struct rf_error *err)
{
    struct lookup *lookup = calloc(1, sizeof *lookup);

    if (lookup == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to look up \"%s\"", host);
    lookup->done_fd = -1;
    atomic_init(&lookup->users, 1);
    int n = snprintf(lookup->host, sizeof lookup->host, "%s", host);
    enum rf_code code = RF_OK;
    if (n <= 0 || (size_t)n >= sizeof lookup->host)
        code =
            rf_fail(err, RF_E_INVAL, "%s %s: a host of %d characters", peer->kind, peer->text, n);
    if (code == RF_OK)
        code = lookup_wait(peer, lookup, deadline_ns, err);
    if (code == RF_OK && (lookup->error != 0 || lookup->count == 0))
        code = rf_fail(err, RF_E_UNREACHABLE, "%s %s: host \"%s\": %s", peer->kind, peer->text,
                       host, gai_strerror(lookup->error));
    if (code == RF_OK) {
        for (unsigned i = 0; i < lookup->count; i++) {
            found[i] = lookup->found[i];
            net_set_port(&found[i], port);
        }
        *ret_count = lookup->count;
    }
    lookup_leave(lookup);
    return code;
}

/* ---- addresses ---- */

void net_set_port(struct net_address *address, uint16_t port)
{
    if (address->any.sa_family == AF_INET6)
        address->v6.sin6_port = htons(port);
    else
        address->v4.sin_port = htons(port);
}

/* As IPv6, mapped if it is IPv4. */
static struct in6_addr as_v6(const struct net_address *address)
{
    struct in6_addr v6 = {.s6_addr = {[10] = 0xff, [11] = 0xff}};

    if (address->any.sa_family == AF_INET6)
        return address->v6.sin6_addr;
    memcpy(&v6.s6_addr[12], &address->v4.sin_addr, 4);
    return v6;
}

bool net_same_host(const struct net_address *a, const struct net_address *b)
{
    struct in6_addr one = as_v6(a);
    struct in6_addr other = as_v6(b);

    if (memcmp(&one, &other, sizeof one) != 0)
        return false;
    /* The same link-local address is another host on another link. */
    return a->any.sa_family != AF_INET6 || b->any.sa_family != AF_INET6 ||
           a->v6.sin6_scope_id == b->v6.sin6_scope_id;
}
