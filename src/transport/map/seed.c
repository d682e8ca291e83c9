/* The seed's half: one thread waits on all readers. A grant is made once per rank, so answering
 * is a send. A reader stays connected for as long as it holds the pages, which is how the seed
 * knows its readers; nothing of theirs can make the thread wait. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rand.h"
#include "base/thread.h"
#include "transport/map/listen.h"
#include "transport/map/map.h"
#include "transport/map/share.h"

#include <assert.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum {
    SEED_EVENTS = 64,
    SEED_ACCEPTS = 64,          /* in a row, so that those already here get their turn */
    SEED_ACCEPT_PAUSE_MS = 100, /* when the process has run out of descriptors */
};

/* One connection. */
struct reader {
    struct reader *prev; /* in the list it is in */
    struct reader *next;
    int fd;
    uint64_t deadline_ns; /* while waiting */
    bool waiting; /* for a hello to be complete or a grant to have gone out; else it rests */
    void *lease;  /* NULL before the first hello */
    uint8_t token[CHUNK_TOKEN_BYTES];
    uint8_t hello[MAP_HELLO_BYTES];
    size_t hello_bytes;
    const struct map_share *share; /* being sent, or NULL */
    size_t sent;
};

struct reader_list {
    struct reader *first;
    struct reader *last;
};

/* What the owner wants of the thread; only ever grows. */
enum seed_phase { PHASE_SERVING, PHASE_DRAINING, PHASE_CUTTING, PHASE_STOPPING };

struct transport_seed {
    struct exporter exporter;
    struct map_shares shares;
    struct map_listener listener;
    int epoll_fd;
    int wake_fd;
    uint64_t handshake_ms;
    uint32_t max_connections;
    pthread_t thread;

    /* The thread's own. */
    struct reader_list
        waiting; /* by deadline: all have the same time, so the last to come is the last to go */
    struct reader_list resting;
    uint32_t connections;
    uint32_t sending_now;
    uint64_t accept_after_ns; /* 0: accepting */
    enum seed_phase current;

    /* Shared, under lock. */
    struct mutex lock;
    struct cond changed;
    enum seed_phase phase RF_GUARDED_BY(lock); /* asked for */
    enum seed_phase seen RF_GUARDED_BY(lock);  /* taken up by the thread */
    uint32_t sending RF_GUARDED_BY(lock);      /* grants on their way, as of `seen` */
};

static void list_add(struct reader_list *list, struct reader *reader)
{
    reader->prev = list->last;
    reader->next = NULL;
    if (list->last != NULL)
        list->last->next = reader;
    else
        list->first = reader;
    list->last = reader;
}

static void list_remove(struct reader_list *list, struct reader *reader)
{
    if (reader->prev != NULL)
        reader->prev->next = reader->next;
    else
        list->first = reader->next;
    if (reader->next != NULL)
        reader->next->prev = reader->prev;
    else
        list->last = reader->prev;
}

/* Lets a reader rest, or gives it from now on the time that a hello and its grant may take. */
static void reader_move(struct transport_seed *seed, struct reader *reader, bool waiting)
{
    list_remove(reader->waiting ? &seed->waiting : &seed->resting, reader);
    reader->waiting = waiting;
    reader->deadline_ns = clock_deadline_ns(seed->handshake_ms);
    list_add(waiting ? &seed->waiting : &seed->resting, reader);
}

static void reader_close(struct transport_seed *seed, struct reader *reader)
{
    list_remove(reader->waiting ? &seed->waiting : &seed->resting, reader);
    seed->connections--;
    if (reader->share != NULL)
        seed->sending_now--;
    close(reader->fd); /* which takes it out of the epoll set: nobody else has this descriptor */
    if (reader->lease != NULL)
        seed->exporter.lease_release(seed->exporter.ctx, reader->lease);
    free(reader);
}

/* Sends why not. It fits a socket buffer that is not full of grants nobody reads; whoever lets
 * it fill gets none. */
static bool refuse(int fd, enum rf_code code, const struct rf_error *why)
{
    uint8_t raw[MAP_GRANT_BYTES + CHUNK_MAX_ERROR_BYTES];
    size_t text_bytes = strnlen(why->text, CHUNK_MAX_ERROR_BYTES);
    struct map_grant grant = {
        .version = CHUNK_VERSION, .status = (uint16_t)code, .text_bytes = (uint32_t)text_bytes};

    map_grant_encode(&grant, raw);
    memcpy(raw + MAP_GRANT_BYTES, why->text, text_bytes);
    ssize_t bytes = (ssize_t)(MAP_GRANT_BYTES + text_bytes);
    log_debug("map refused", "code=%s reason=\"%s\"", rf_code_name(code), why->text);
    return send(fd, raw, (size_t)bytes, MSG_NOSIGNAL | MSG_DONTWAIT) == bytes;
}

/* ---- hello ---- */

static enum rf_code hello_admit(struct transport_seed *seed, struct reader *reader,
                                const struct map_hello *hello, struct rf_error *err)
{
    const struct exporter *exporter = &seed->exporter;

    if (chunk_version_choose(&hello->hello) == 0)
        return rf_fail(err, RF_E_PROTO, "map: reader speaks versions %u to %u, this seed %d",
                       hello->hello.version_min, hello->hello.version_max, CHUNK_VERSION);
    if (reader->lease == NULL) {
        memcpy(reader->token, hello->hello.token, CHUNK_TOKEN_BYTES);
        enum rf_code code =
            exporter->lease_acquire(exporter->ctx, reader->token, "map", &reader->lease, err);
        if (code != RF_OK)
            return code;
    } else if (!rand_token_equal(reader->token, hello->hello.token, CHUNK_TOKEN_BYTES)) {
        return rf_fail(err, RF_E_DENIED,
                       "map: another token than this connection began with: open another one");
    }
    return RF_OK;
}

static enum rf_code hello_share(struct transport_seed *seed, struct reader *reader, uint32_t rank,
                                struct rf_error *err)
{
    if (seed->current != PHASE_SERVING)
        return rf_fail(err, RF_E_UNREACHABLE, "map: the seed is stopping");
    enum rf_code code = seed->exporter.lease_check(seed->exporter.ctx, reader->lease, err);
    if (code != RF_OK)
        return code;
    if (rank >= seed->shares.count)
        return rf_fail(err, RF_E_INVAL, "map: rank %" PRIu32 ", the seed has %" PRIu32, rank,
                       seed->shares.count);
    reader->share = &seed->shares.ranks[rank];
    reader->sent = 0;
    seed->sending_now++;
    return RF_OK;
}

static bool reader_listen_for(struct transport_seed *seed, struct reader *reader, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = reader};

    return epoll_ctl(seed->epoll_fd, EPOLL_CTL_MOD, reader->fd, &event) == 0;
}

/* Answers a complete hello: false when the connection is of no further use. A reader that was
 * let in keeps it when it is refused a rank. */
static bool reader_answer(struct transport_seed *seed, struct reader *reader)
{
    struct map_hello hello;
    struct rf_error err = {0};
    enum rf_code code = map_hello_decode(reader->hello, MAP_HELLO_BYTES, &hello, &err);

    reader->hello_bytes = 0;
    if (code == RF_OK)
        code = hello_admit(seed, reader, &hello, &err);
    if (code != RF_OK) {
        refuse(reader->fd, code, &err);
        return false;
    }
    code = hello_share(seed, reader, hello.rank, &err);
    if (code == RF_OK)
        return reader_listen_for(seed, reader, EPOLLOUT);
    if (!refuse(reader->fd, code, &err))
        return false;
    reader_move(seed, reader, false);
    return true;
}

static bool reader_receive(struct transport_seed *seed, struct reader *reader)
{
    ssize_t got = recv(reader->fd, reader->hello + reader->hello_bytes,
                       MAP_HELLO_BYTES - reader->hello_bytes, MSG_DONTWAIT);

    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    if (got == 0)
        return false;
    if (reader->hello_bytes == 0) /* and not again, or one byte every nine seconds would do */
        reader_move(seed, reader, true);
    reader->hello_bytes += (size_t)got;
    return reader->hello_bytes < MAP_HELLO_BYTES || reader_answer(seed, reader);
}

/* ---- grant ---- */

/* One sendmsg() of the grant; its first byte carries the descriptors. */
static ssize_t share_send(const struct reader *reader)
{
    const struct map_share *share = reader->share;
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(MAP_MAX_FDS * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = share->table.data + reader->sent,
                        .iov_len = share->table.bytes - reader->sent};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (reader->sent == 0 && share->fd_count > 0) {
        msg.msg_control = control.room;
        msg.msg_controllen = CMSG_SPACE(share->fd_count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(share->fd_count * sizeof(int));
        memcpy(CMSG_DATA(header), share->fds, share->fd_count * sizeof(int));
    }
    return sendmsg(reader->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Readers that take no grants off their sockets hold descriptors in flight, of which the kernel
 * allows each user as many as it may have open (ETOOMANYREFS). */
static bool share_failed(struct transport_seed *seed, struct reader *reader, int why)
{
    struct rf_error err = {0};

    if (why == EAGAIN || why == EINTR)
        return true;
    if (why == ETOOMANYREFS && reader->sent == 0) {
        rf_fail(&err, RF_E_NOMEM,
                "map: too many descriptors are on their way to readers that do not take them; try "
                "again, or raise the seed's `ulimit -n`");
        refuse(reader->fd, RF_E_NOMEM, &err);
    }
    log_debug("reader gone", "transport=map sent_bytes=%zu of=%zu errno=%d readers=%" PRIu32,
              reader->sent, reader->share->table.bytes, why, seed->connections);
    return false;
}

static bool reader_send(struct transport_seed *seed, struct reader *reader)
{
    ssize_t sent = share_send(reader);

    if (sent < 0)
        return share_failed(seed, reader, errno);
    reader->sent += (size_t)sent;
    if (reader->sent < reader->share->table.bytes)
        return true;
    uint64_t bytes = reader->share->bytes;
    reader->share = NULL;
    seed->sending_now--;
    seed->exporter.lease_account(seed->exporter.ctx, reader->lease, bytes);
    log_debug("rank mapped by a reader", "bytes=%" PRIu64 " readers=%" PRIu32, bytes,
              seed->connections);
    reader_move(seed, reader, false);
    return reader_listen_for(seed, reader, EPOLLIN);
}

/* ---- accept ---- */

static bool reader_add(struct transport_seed *seed, int fd)
{
    struct reader *reader = calloc(1, sizeof *reader);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = reader};

    if (reader == NULL)
        return false;
    reader->fd = fd;
    if (epoll_ctl(seed->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        free(reader);
        return false;
    }
    reader->waiting = true;
    reader->deadline_ns = clock_deadline_ns(seed->handshake_ms);
    list_add(&seed->waiting, reader);
    seed->connections++;
    return true;
}

/* Takes fd over. Strangers are told so at once and never count, so that they cannot keep readers
 * out. */
static void reader_accept(struct transport_seed *seed, int fd)
{
    struct rf_error err = {0};
    enum rf_code code = map_peer_check(fd, false, &err);

    if (code == RF_OK && seed->connections >= seed->max_connections)
        code = rf_fail(&err, RF_E_NOMEM,
                       "map: %" PRIu32 " readers are connected, which is as many as the seed takes",
                       seed->connections);
    if (code == RF_OK && reader_add(seed, fd))
        return;
    if (code != RF_OK)
        refuse(fd, code, &err);
    close(fd);
}

static void accept_pause(struct transport_seed *seed, bool pause)
{
    struct epoll_event event = {.events = pause ? 0 : EPOLLIN, .data.ptr = &seed->listener};

    seed->accept_after_ns = pause ? clock_deadline_ns(SEED_ACCEPT_PAUSE_MS) : 0;
    (void)epoll_ctl(seed->epoll_fd, EPOLL_CTL_MOD, seed->listener.fd, &event);
}

static void seed_accept(struct transport_seed *seed)
{
    for (int i = 0; i < SEED_ACCEPTS; i++) {
        /* cppcheck-suppress nullPointer ; who it is, is asked of the socket */
        int fd = accept4(seed->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            reader_accept(seed, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED)
            continue;
        if (errno != EAGAIN) {
            log_warn("map cannot accept", "errno=%d readers=%" PRIu32, errno, seed->connections);
            accept_pause(seed, true); /* the connection stays, and would wake us again at once */
        }
        return;
    }
}

/* ---- the thread ---- */

/* Publishes where we are and takes up what the owner wants. */
static enum seed_phase seed_sync(struct transport_seed *seed)
{
    mutex_lock(&seed->lock);
    enum seed_phase phase = seed->phase;
    if (seed->seen != phase || seed->sending != seed->sending_now) {
        seed->seen = phase;
        seed->sending = seed->sending_now;
        cond_broadcast(&seed->changed);
    }
    mutex_unlock(&seed->lock);
    return phase;
}

static int seed_timeout_ms(const struct transport_seed *seed)
{
    uint64_t until_ns = UINT64_MAX;

    if (seed->waiting.first != NULL)
        until_ns = seed->waiting.first->deadline_ns;
    if (seed->accept_after_ns != 0 && seed->accept_after_ns < until_ns)
        until_ns = seed->accept_after_ns;
    return until_ns == UINT64_MAX ? -1 : clock_left_ms(until_ns);
}

/* Closes waiting readers: those whose deadline is not after `until_ns`; if asked so, only those
 * a grant is on its way to. */
static void waiting_close(struct transport_seed *seed, uint64_t until_ns, bool sending_only)
{
    struct reader *next = NULL;

    for (struct reader *reader = seed->waiting.first; reader != NULL; reader = next) {
        next = reader->next;
        assert(reader->waiting);
        if (reader->deadline_ns <= until_ns && (reader->share != NULL || !sending_only))
            reader_close(seed, reader);
    }
}

static void resting_close(struct transport_seed *seed)
{
    struct reader *next = NULL;

    for (struct reader *reader = seed->resting.first; reader != NULL; reader = next) {
        next = reader->next;
        assert(!reader->waiting);
        reader_close(seed, reader);
    }
}

static void seed_expire(struct transport_seed *seed)
{
    uint64_t now_ns = clock_now_ns();

    if (seed->waiting.first != NULL && seed->waiting.first->deadline_ns <= now_ns) {
        log_debug("readers too slow", "transport=map readers=%" PRIu32, seed->connections);
        waiting_close(seed, now_ns, false);
    }
    if (seed->accept_after_ns != 0 && seed->accept_after_ns <= now_ns)
        accept_pause(seed, false); /* does nothing once the listener is closed */
}

static void seed_event(struct transport_seed *seed, const struct epoll_event *event)
{
    uint64_t count = 0;

    if (event->data.ptr == &seed->wake_fd) {
        (void)!read(seed->wake_fd, &count, sizeof count);
    } else if (event->data.ptr == &seed->listener) {
        seed_accept(seed);
    } else {
        struct reader *reader = event->data.ptr;
        bool good =
            reader->share != NULL ? reader_send(seed, reader) : reader_receive(seed, reader);
        if (!good)
            reader_close(seed, reader);
    }
}

static void *seed_run(void *arg)
{
    struct transport_seed *seed = arg;
    struct epoll_event events[SEED_EVENTS];

    for (;;) {
        seed->current = seed_sync(seed);
        if (seed->current == PHASE_STOPPING)
            break;
        if (seed->current != PHASE_SERVING)
            map_listener_close(&seed->listener); /* who comes now finds nobody */
        if (seed->current == PHASE_CUTTING)
            waiting_close(seed, UINT64_MAX, true);
        int count = epoll_wait(seed->epoll_fd, events, SEED_EVENTS, seed_timeout_ms(seed));
        for (int i = 0; i < count; i++)
            seed_event(seed, &events[i]);
        seed_expire(seed);
    }
    waiting_close(seed, UINT64_MAX, false);
    resting_close(seed);
    return NULL;
}

static void seed_ask(struct transport_seed *seed, enum seed_phase phase)
{
    uint64_t one = 1;

    mutex_lock(&seed->lock);
    if (seed->phase < phase)
        seed->phase = phase;
    mutex_unlock(&seed->lock);
    (void)!write(seed->wake_fd, &one, sizeof one);
}

/* ---- what the owner calls ---- */

static enum rf_code seed_watch(struct transport_seed *seed, int fd, void *what,
                               struct rf_error *err)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};

    if (epoll_ctl(seed->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return rf_fail_sys(err, "epoll");
    return RF_OK;
}

static void seed_free(struct transport_seed *seed)
{
    map_listener_close(&seed->listener);
    if (seed->epoll_fd >= 0)
        close(seed->epoll_fd);
    if (seed->wake_fd >= 0)
        close(seed->wake_fd);
    map_shares_free(&seed->shares);
    cond_destroy(&seed->changed);
    mutex_destroy(&seed->lock);
    free(seed);
}

static enum rf_code seed_prepare(struct transport_seed *seed, const char *socket_path,
                                 struct rf_error *err)
{
    enum rf_code code = map_shares_make(&seed->exporter, &seed->shares, err);

    if (code == RF_OK)
        code = map_listen(socket_path, &seed->listener, err);
    if (code != RF_OK)
        return code;
    seed->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    seed->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (seed->epoll_fd < 0 || seed->wake_fd < 0)
        return rf_fail_sys(err, "epoll or eventfd");
    code = seed_watch(seed, seed->wake_fd, &seed->wake_fd, err);
    if (code == RF_OK)
        code = seed_watch(seed, seed->listener.fd, &seed->listener, err);
    return code;
}

enum rf_code map_seed_start(const struct exporter *exporter,
                            const struct transport_seed_options *options,
                            struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                            struct rf_error *err)
{
    struct transport_seed *seed = calloc(1, sizeof *seed);
    struct endpoint endpoint = {.transport = "map"};

    if (seed == NULL)
        return rf_fail(err, RF_E_NOMEM, "map: %zu bytes for the seed's half", sizeof *seed);
    seed->exporter = *exporter;
    seed->listener.fd = seed->listener.lock_fd = seed->epoll_fd = seed->wake_fd = -1;
    seed->max_connections =
        options->max_connections != 0 ? options->max_connections : MAP_MAX_CONNECTIONS;
    seed->handshake_ms =
        options->idle_timeout_ms != 0 && options->idle_timeout_ms < MAP_HANDSHAKE_MS
            ? options->idle_timeout_ms
            : MAP_HANDSHAKE_MS;
    mutex_init(&seed->lock);
    cond_init(&seed->changed);
    enum rf_code code = seed_prepare(seed, options->socket, err);
    if (code == RF_OK) {
        /* Before the thread, so that a failure to start it finds nothing to stop. */
        snprintf(endpoint.address, sizeof endpoint.address, "%s", seed->listener.name);
        transport_host_id(endpoint.host_id);
        code = thread_start(&seed->thread, "rfork-map", seed_run, seed, err);
    }
    if (code != RF_OK) {
        seed_free(seed);
        return code;
    }
    *ret_seed = seed;
    *ret_endpoint = endpoint;
    return RF_OK;
}

/* Waits until the thread has taken up the phase and, if asked, no grant is on its way. */
static uint32_t seed_await(struct transport_seed *seed, enum seed_phase phase, bool quiet,
                           uint64_t deadline_ns)
{
    mutex_lock(&seed->lock);
    while (seed->seen < phase || (quiet && seed->sending > 0)) {
        if (!cond_wait_until(&seed->changed, &seed->lock, deadline_ns))
            break;
    }
    uint32_t sending = seed->sending;
    mutex_unlock(&seed->lock);
    return sending;
}

uint32_t map_seed_drain(struct transport_seed *seed, uint64_t deadline_ns)
{
    seed_ask(seed, PHASE_DRAINING);
    uint32_t cut = seed_await(seed, PHASE_DRAINING, true, deadline_ns);
    if (cut > 0) {
        seed_ask(seed, PHASE_CUTTING);
        (void)seed_await(seed, PHASE_CUTTING, false, clock_deadline_ns(MAP_HANDSHAKE_MS));
    }
    return cut;
}

void map_seed_stop(struct transport_seed *seed)
{
    if (seed == NULL)
        return;
    seed_ask(seed, PHASE_STOPPING);
    int rc = pthread_join(seed->thread, NULL);
    assert(rc == 0);
    (void)rc;
    seed_free(seed);
}
