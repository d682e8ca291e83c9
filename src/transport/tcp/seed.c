/* The seed's half: a few threads, each waiting on its share of the connections. One that has
 * something to send gets a bounded turn, so a fast reader cannot starve a slow one, and a reader
 * that does not read costs its socket's buffer. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "transport/net/socket.h"
#include "transport/tcp/conn.h"
#include "transport/tcp/tcp.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>

enum {
    SEED_EVENTS = 64,
    SEED_ACCEPTS = 64, /* in a row, so that those already here get their turn */
    SEED_ACCEPT_PAUSE_MS = 100,
    SEED_SPARE_CONNECTIONS = 64, /* beyond the limit, to be told so */
    SEED_TURN_BYTES = 1 << 20,   /* of one connection, before the others are looked at */
    SEED_TURN_CALLS = 8,
    SEED_PIPE_BYTES = 256 << 10, /* in a worker's pipe at a time; larger ones were no faster */
    SEED_CROWDED_MS = 1000,      /* for a hello, while more than half of the places are taken */
    SEED_MAX_TICK_MS = 500,      /* between two looks at the connections' deadlines */
    SEED_MIN_TICK_MS = 10,
};

/* One connection; its worker's. */
struct peer {
    struct peer *prev;
    struct peer *next;
    struct tcp_conn *conn;
    int fd;
    uint32_t events;      /* as the epoll set has them */
    uint64_t deadline_ns; /* of the hello, of being idle, of the farewell */
    bool farewell;        /* all is said, the peer is given time to read it */
};

/* What the owner wants of the workers; only ever grows. */
enum seed_phase { PHASE_SERVING, PHASE_DRAINING, PHASE_CUTTING, PHASE_STOPPING };

struct worker {
    struct transport_seed *seed;
    pthread_t thread;
    int epoll_fd;
    int wake_fd;
    int pipe_fds[2]; /* through which pages go to sockets; empty between two turns */
    int null_fd;     /* where those go that a socket did not take */
    atomic_uint
        load; /* connections, those on their way here included; relaxed: only for choosing */

    /* The thread's own. */
    struct peer *peers;
    uint32_t open_reads;
    enum seed_phase phase; /* acted upon */
    uint64_t tick_ns;      /* the next look at deadlines */

    /* Under the seed's lock. */
    struct peer *incoming; /* by next */
    enum seed_phase seen;
    uint32_t reported_reads; /* as of seen */
    uint32_t cut;

    struct tcp_out out;
};

struct transport_seed {
    struct tcp_policy policy;
    char far[NET_CONGESTION_BYTES]; /* see net_tune_listener() */
    uint64_t handshake_ms;
    uint64_t idle_ms;
    uint64_t tick_ms;
    struct worker *workers;
    unsigned worker_count;
    unsigned threads; /* of workers that run */

    /* The first worker's own. */
    int listen_fd; /* -1 once draining */
    bool accepting;
    uint64_t accept_after_ns;

    struct mutex lock;
    struct cond changed;                       /* of what workers report */
    enum seed_phase phase RF_GUARDED_BY(lock); /* asked for */
};

/* ---- connections ---- */

static void peer_watch(struct worker *worker, struct peer *peer)
{
    size_t room = 0;
    uint32_t events = 0;

    (void)tcp_conn_space(peer->conn, &room);
    if (room > 0)
        events |= EPOLLIN;
    if (tcp_conn_has_output(peer->conn))
        events |= EPOLLOUT;
    if (events == peer->events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, peer->fd, &event) == 0)
        peer->events = events;
}

static void peer_close(struct worker *worker, struct peer *peer)
{
    if (peer->prev != NULL)
        peer->prev->next = peer->next;
    else
        worker->peers = peer->next;
    if (peer->next != NULL)
        peer->next->prev = peer->prev;
    worker->open_reads -= tcp_conn_reads(peer->conn);
    atomic_fetch_sub_explicit(&worker->load, 1, memory_order_relaxed);
    close(peer->fd);
    tcp_conn_destroy(peer->conn);
    free(peer);
}

/* Takes a new connection into the worker's set. */
static void peer_adopt(struct worker *worker, struct peer *peer)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};

    peer->events = EPOLLIN;
    peer->prev = NULL;
    peer->next = worker->peers;
    if (worker->peers != NULL)
        worker->peers->prev = peer;
    worker->peers = peer;
    if (worker->phase != PHASE_SERVING ||
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, peer->fd, &event) != 0)
        peer_close(worker, peer);
}

static const char *peer_name(const struct peer *peer, char out[NET_ADDRESS_TEXT_BYTES])
{
    struct net_address address = {.bytes = sizeof address.v6};

    if (getpeername(peer->fd, &address.any, &address.bytes) != 0)
        address = (struct net_address){.bytes = 0}; /* gone: "?" */
    return net_address_text(&address, out);
}

/* ---- one turn ---- */

/* How a step of sending went. */
enum step {
    STEP_ON,     /* go on */
    STEP_WAIT,   /* nothing to send, or the socket is full */
    STEP_BROKEN, /* close */
};

static enum step step_of_errno(const struct peer *peer, const char *call)
{
    char name[NET_ADDRESS_TEXT_BYTES];

    if (errno == EAGAIN || errno == EINTR)
        return STEP_WAIT;
    log_debug("reader gone", "peer=%s call=%s errno=%d", peer_name(peer, name), call, errno);
    return STEP_BROKEN;
}

static enum step send_memory(struct worker *worker, struct peer *peer, uint64_t *sent)
{
    struct tcp_out *out = &worker->out;
    const struct msghdr msg = {.msg_iov = out->iov, .msg_iovlen = (size_t)out->iov_count};
    int more = out->more || out->bulk_bytes > 0 ? MSG_MORE : 0;

    ssize_t n = sendmsg(peer->fd, &msg, MSG_NOSIGNAL | more);
    if (n < 0)
        return step_of_errno(peer, "sendmsg");
    *sent += (uint64_t)n;
    tcp_conn_sent(peer->conn, (uint64_t)n);
    return (uint64_t)n == out->iov_bytes ? STEP_ON : STEP_WAIT;
}

/* Sends from the page cache; *ret_sent is how much of it. */
static enum step send_file(const struct worker *worker, struct peer *peer, uint64_t *ret_sent)
{
    const struct tcp_out *out = &worker->out;
    off_t offset = (off_t)out->fd_offset;
    char name[NET_ADDRESS_TEXT_BYTES];

    ssize_t n = sendfile(peer->fd, out->fd, &offset, out->bulk_bytes);
    if (n < 0 && (errno == EINVAL || errno == ENOSYS)) {
        tcp_conn_no_bulk(peer->conn, TCP_BULK_FILE); /* a file system without it */
        return STEP_ON;
    }
    if (n < 0)
        return step_of_errno(peer, "sendfile");
    if (n == 0) {
        /* The frame's header is out: only closing tells the reader that what it has is no answer.
         * Asking again it gets the reason from lease_check(). */
        log_warn("file being served ended early",
                 "peer=%s offset=%" PRIu64 " missing_bytes=%" PRIu64, peer_name(peer, name),
                 out->fd_offset, out->bulk_bytes);
        return STEP_BROKEN;
    }
    *ret_sent = (uint64_t)n;
    return *ret_sent == out->bulk_bytes ? STEP_ON : STEP_WAIT;
}

/* Moves what is in the worker's pipe to the socket. What the socket does not take is let go: it is
 * not lost, only lent again later. */
static enum step send_pipe(const struct worker *worker, struct peer *peer, size_t bytes, bool more,
                           uint64_t *sent)
{
    enum step step = STEP_ON;

    while (bytes > 0 && step == STEP_ON) {
        ssize_t n = splice(worker->pipe_fds[0], NULL, peer->fd, NULL, bytes,
                           SPLICE_F_NONBLOCK | (more ? SPLICE_F_MORE : 0));
        if (n > 0) {
            bytes -= (size_t)n;
            *sent += (uint64_t)n;
        } else {
            step = n == 0 ? STEP_BROKEN : step_of_errno(peer, "splice");
        }
    }
    while (bytes > 0) {
        ssize_t n = splice(worker->pipe_fds[0], NULL, worker->null_fd, NULL, bytes, 0);
        if (n <= 0 && errno != EINTR)
            return STEP_BROKEN; /* cannot be: the pipe holds what it was given */
        bytes -= n > 0 ? (size_t)n : 0;
    }
    return step;
}

/* Lends pages to the socket, by way of the worker's pipe: on 2 cores 0.037 s/GB instead of the
 * 0.088 that a copy takes, and from pages of 4 KiB 0.053 instead of 0.100. */
static enum step send_pages(const struct worker *worker, struct peer *peer, uint64_t *ret_sent)
{
    const struct tcp_out *out = &worker->out;
    enum step step = STEP_ON;

    while (*ret_sent < out->bulk_bytes && step == STEP_ON) {
        uint64_t left = out->bulk_bytes - *ret_sent;
        const uint8_t *at = out->pages + *ret_sent;
        struct iovec pages = {.iov_len = left < SEED_PIPE_BYTES ? left : SEED_PIPE_BYTES};
        memcpy(&pages.iov_base, &at, sizeof at); /* one type for both directions */
        ssize_t n = vmsplice(worker->pipe_fds[1], &pages, 1, SPLICE_F_NONBLOCK);
        if (n <= 0) {
            tcp_conn_no_bulk(peer->conn, TCP_BULK_PAGES); /* a sandbox without it */
            return STEP_ON;
        }
        step = send_pipe(worker, peer, (size_t)n, out->more || (uint64_t)n < left, ret_sent);
    }
    return step;
}

static enum step send_bulk(const struct worker *worker, struct peer *peer, uint64_t *sent)
{
    uint64_t bytes = 0;

    enum step step = worker->out.bulk == TCP_BULK_FILE ? send_file(worker, peer, &bytes)
                                                       : send_pages(worker, peer, &bytes);
    if (bytes > 0)
        tcp_conn_sent(peer->conn, bytes);
    *sent += bytes;
    return step;
}

static enum step send_next(struct worker *worker, struct peer *peer, uint64_t *sent)
{
    struct rf_error error = {0};
    enum rf_code code = RF_OK;
    enum step step = STEP_ON;
    char name[NET_ADDRESS_TEXT_BYTES];

    if (!tcp_conn_out(peer->conn, &worker->out, &code, &error)) {
        if (code == RF_OK)
            return STEP_WAIT;
        log_warn("cannot read what is being served", "peer=%s why=\"%s\"", peer_name(peer, name),
                 error.text);
        return STEP_BROKEN;
    }
    if (worker->out.iov_count > 0)
        step = send_memory(worker, peer, sent);
    if (step == STEP_ON && worker->out.bulk_bytes > 0)
        step = send_bulk(worker, peer, sent);
    return step;
}

/* Receives what fits. */
static enum step receive_once(struct peer *peer)
{
    size_t room = 0;
    uint8_t *at = tcp_conn_space(peer->conn, &room);

    if (room == 0)
        return STEP_WAIT;
    ssize_t n = recv(peer->fd, at, room, 0);
    if (n < 0)
        return step_of_errno(peer, "recv");
    if (n == 0)
        return STEP_BROKEN; /* a reader that has ended, or at least asks for nothing more */
    tcp_conn_arrived(peer->conn, (size_t)n);
    return STEP_ON;
}

/* All is said: no more bytes from us, and time for the peer to read them. Closing at once, with
 * bytes of the peer unread, would make the kernel take back what is still on its way. */
static void say_farewell(struct peer *peer)
{
    peer->farewell = true;
    peer->deadline_ns = clock_deadline_ns(TCP_LINGER_MS);
    (void)shutdown(peer->fd, SHUT_WR);
}

static void peer_turn(struct worker *worker, struct peer *peer, uint32_t events)
{
    uint32_t reads_before = tcp_conn_reads(peer->conn);
    enum step step = STEP_ON;
    uint64_t sent = 0;

    if ((events & EPOLLERR) != 0)
        step = STEP_BROKEN;
    else if ((events & (EPOLLIN | EPOLLHUP)) != 0)
        step = receive_once(peer);
    uint32_t reads_asked = tcp_conn_reads(peer->conn);
    if (step != STEP_BROKEN) {
        step = STEP_ON;
        for (int i = 0; i < SEED_TURN_CALLS && sent < SEED_TURN_BYTES && step == STEP_ON; i++)
            step = send_next(worker, peer, &sent);
    }
    worker->open_reads += tcp_conn_reads(peer->conn) - reads_before;
    if (step == STEP_BROKEN) {
        peer_close(worker, peer);
        return;
    }
    if (tcp_conn_is_finished(peer->conn) && !peer->farewell)
        say_farewell(peer);
    else if (sent > 0 || reads_asked != reads_before)
        peer->deadline_ns = clock_deadline_ns(worker->seed->idle_ms);
    peer_watch(worker, peer);
}

/* ---- accepting ---- */

static void accept_pause(struct transport_seed *seed)
{
    (void)epoll_ctl(seed->workers[0].epoll_fd, EPOLL_CTL_DEL, seed->listen_fd, NULL);
    seed->accepting = false;
    seed->accept_after_ns = clock_deadline_ns(SEED_ACCEPT_PAUSE_MS);
}

static void accept_resume(struct transport_seed *seed)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = seed};

    if (epoll_ctl(seed->workers[0].epoll_fd, EPOLL_CTL_ADD, seed->listen_fd, &event) == 0)
        seed->accepting = true;
}

static void wake(struct worker *worker)
{
    const uint64_t one = 1;

    /* It fails only when the counter is full, and then the worker is awake. */
    ssize_t n = write(worker->wake_fd, &one, sizeof one);
    (void)n;
}

/* Gives a connection to the worker that has fewest. */
static void accept_assign(struct transport_seed *seed, struct peer *peer)
{
    struct worker *least = &seed->workers[0];

    for (unsigned i = 1; i < seed->worker_count; i++) {
        if (atomic_load_explicit(&seed->workers[i].load, memory_order_relaxed) <
            atomic_load_explicit(&least->load, memory_order_relaxed))
            least = &seed->workers[i];
    }
    atomic_fetch_add_explicit(&least->load, 1, memory_order_relaxed);
    if (least == &seed->workers[0]) {
        peer_adopt(least, peer);
        return;
    }
    mutex_lock(&seed->lock);
    peer->next = least->incoming;
    least->incoming = peer;
    mutex_unlock(&seed->lock);
    wake(least);
}

static uint32_t total_load(const struct transport_seed *seed)
{
    uint32_t load = 0;

    for (unsigned i = 0; i < seed->worker_count; i++)
        load += atomic_load_explicit(&seed->workers[i].load, memory_order_relaxed);
    return load;
}

/* Takes over fd. */
static void accept_one(struct transport_seed *seed, int fd)
{
    struct peer *peer = calloc(1, sizeof *peer);

    if (peer != NULL)
        peer->conn = tcp_conn_create(&seed->policy);
    if (peer == NULL || peer->conn == NULL) {
        log_warn("no memory for a connection", "connections=%" PRIu32, total_load(seed));
        free(peer);
        close(fd);
        return;
    }
    peer->fd = fd;
    /* A reader says its hello at once. Whoever fills the seed with silent connections holds places
     * that readers need. */
    bool crowded = total_load(seed) > seed->policy.max_readers / 2;
    peer->deadline_ns = clock_deadline_ns(
        crowded && seed->handshake_ms > SEED_CROWDED_MS ? SEED_CROWDED_MS : seed->handshake_ms);
    net_tune(fd, seed->idle_ms);
    net_tune_accepted(fd, seed->far);
    accept_assign(seed, peer);
}

static void accept_some(struct transport_seed *seed)
{
    for (int i = 0; i < SEED_ACCEPTS; i++) {
        if (total_load(seed) >= seed->policy.max_readers + SEED_SPARE_CONNECTIONS) {
            accept_pause(seed);
            return;
        }
        /* cppcheck-suppress nullPointer ; who it is, is asked of the socket */
        int fd = accept4(seed->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            accept_one(seed, fd);
            continue;
        }
        if (errno == EAGAIN)
            return;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            log_warn("cannot accept connections", "errno=%d connections=%" PRIu32 " retry_ms=%d",
                     errno, total_load(seed), SEED_ACCEPT_PAUSE_MS);
            accept_pause(seed);
            return;
        }
        /* Anything else is about the one connection that was to be accepted. */
    }
}

/* ---- workers ---- */

/* Closes the connections whose time is over. */
static void look_at_deadlines(struct worker *worker)
{
    uint64_t now_ns = clock_now_ns();
    char name[NET_ADDRESS_TEXT_BYTES];

    if (now_ns < worker->tick_ns)
        return;
    worker->tick_ns = now_ns + worker->seed->tick_ms * CLOCK_NS_PER_MS;
    for (struct peer *peer = worker->peers, *next = NULL; peer != NULL; peer = next) {
        next = peer->next;
        if (now_ns < peer->deadline_ns)
            continue;
        if (!peer->farewell)
            log_debug("reader silent", "peer=%s reads=%" PRIu32, peer_name(peer, name),
                      tcp_conn_reads(peer->conn));
        peer_close(worker, peer);
    }
    struct transport_seed *seed = worker->seed;
    if (worker == &seed->workers[0] && seed->listen_fd >= 0 && !seed->accepting &&
        now_ns >= seed->accept_after_ns)
        accept_resume(seed);
}

static void start_draining(struct worker *worker)
{
    struct transport_seed *seed = worker->seed;

    if (worker == &seed->workers[0] && seed->listen_fd >= 0) {
        close(seed->listen_fd);
        seed->listen_fd = -1;
    }
    for (struct peer *peer = worker->peers, *next = NULL; peer != NULL; peer = next) {
        next = peer->next;
        tcp_conn_drain(peer->conn);
        peer_turn(worker, peer, 0);
    }
}

static void cut_off(struct worker *worker)
{
    for (struct peer *peer = worker->peers, *next = NULL; peer != NULL; peer = next) {
        next = peer->next;
        if (!peer->farewell)
            peer_close(worker, peer);
    }
}

/* Does what the owner wants, takes new connections, and reports. Returns false when it is time to
 * end. */
static bool worker_sync(struct worker *worker)
{
    struct transport_seed *seed = worker->seed;

    mutex_lock(&seed->lock);
    enum seed_phase wanted = seed->phase;
    struct peer *incoming = rf_take(worker->incoming, NULL);
    mutex_unlock(&seed->lock);

    while (incoming != NULL) {
        struct peer *next = incoming->next;
        peer_adopt(worker, incoming);
        incoming = next;
    }
    if (worker->phase < PHASE_DRAINING && wanted >= PHASE_DRAINING)
        start_draining(worker);
    uint32_t cut = 0;
    if (worker->phase < PHASE_CUTTING && wanted >= PHASE_CUTTING) {
        cut = worker->open_reads;
        cut_off(worker);
    }
    worker->phase = wanted;
    if (wanted >= PHASE_DRAINING) {
        mutex_lock(&seed->lock);
        worker->seen = wanted;
        worker->reported_reads = worker->open_reads;
        worker->cut += cut;
        cond_broadcast(&seed->changed);
        mutex_unlock(&seed->lock);
    }
    return wanted != PHASE_STOPPING;
}

static void worker_wait(struct worker *worker, bool *ret_woken)
{
    struct transport_seed *seed = worker->seed;
    struct epoll_event events[SEED_EVENTS];
    bool quiet = worker->peers == NULL &&
                 (worker != &seed->workers[0] || seed->accepting || seed->listen_fd < 0);

    int count = epoll_wait(worker->epoll_fd, events, SEED_EVENTS, quiet ? -1 : (int)seed->tick_ms);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == worker) {
            uint64_t times;
            ssize_t n = read(worker->wake_fd, &times, sizeof times);
            (void)n; /* non-blocking: whatever it was, it is 0 now */
            *ret_woken = true;
        } else if (events[i].data.ptr == seed) {
            accept_some(seed);
        } else {
            peer_turn(worker, events[i].data.ptr, events[i].events);
        }
    }
}

static void *worker_run(void *arg)
{
    struct worker *worker = arg;
    bool running = true;

    while (running) {
        bool woken = false;
        worker_wait(worker, &woken);
        look_at_deadlines(worker);
        /* While draining every turn may be the one that ends the last read. */
        if (woken || worker->phase != PHASE_SERVING)
            running = worker_sync(worker);
    }
    while (worker->peers != NULL)
        peer_close(worker, worker->peers);
    return NULL;
}

/* ---- starting and stopping ---- */

static enum rf_code worker_prepare(struct transport_seed *seed, struct worker *worker,
                                   struct rf_error *err)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = worker};

    worker->seed = seed;
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->epoll_fd < 0 || worker->wake_fd < 0 ||
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->wake_fd, &event) != 0)
        return rf_fail_sys(err, "epoll of a tcp seed");
    worker->null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (worker->null_fd < 0)
        return rf_fail_sys(err, "open /dev/null");
    if (pipe2(worker->pipe_fds, O_NONBLOCK | O_CLOEXEC) != 0)
        return rf_fail_sys(err, "pipe of a tcp seed");
    /* A user with many pipes gets no larger ones: more calls then, nothing worse. */
    (void)fcntl(worker->pipe_fds[1], F_SETPIPE_SZ, SEED_PIPE_BYTES);
    return RF_OK;
}

static void seed_set_phase(struct transport_seed *seed, enum seed_phase phase)
{
    mutex_lock(&seed->lock);
    if (seed->phase < phase)
        seed->phase = phase;
    mutex_unlock(&seed->lock);
    for (unsigned i = 0; i < seed->worker_count; i++)
        wake(&seed->workers[i]);
}

static void worker_free(struct worker *worker)
{
    while (worker->incoming != NULL) {
        struct peer *peer = worker->incoming;
        worker->incoming = peer->next;
        close(peer->fd);
        tcp_conn_destroy(peer->conn);
        free(peer);
    }
    int fds[] = {worker->epoll_fd, worker->wake_fd, worker->null_fd, worker->pipe_fds[0],
                 worker->pipe_fds[1]};
    for (unsigned i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
}

/* Ends the threads that run, and frees. */
static void seed_destroy(struct transport_seed *seed)
{
    seed_set_phase(seed, PHASE_STOPPING);
    for (unsigned i = 0; i < seed->threads; i++)
        pthread_join(seed->workers[i].thread, NULL);
    for (unsigned i = 0; i < seed->worker_count; i++)
        worker_free(&seed->workers[i]);
    if (seed->listen_fd >= 0)
        close(seed->listen_fd);
    cond_destroy(&seed->changed);
    mutex_destroy(&seed->lock);
    free(seed->workers);
    free(seed);
}

static struct transport_seed *seed_create(const struct exporter *exporter,
                                          const struct transport_seed_options *options,
                                          unsigned threads)
{
    struct transport_seed *seed = calloc(1, sizeof *seed);
    struct worker *workers = calloc(threads, sizeof *workers);

    if (seed == NULL || workers == NULL) {
        free(seed);
        free(workers);
        return NULL;
    }
    seed->policy.exporter = *exporter;
    seed->policy.max_readers =
        options->max_connections != 0 ? options->max_connections : TCP_MAX_CONNECTIONS;
    seed->idle_ms = options->idle_timeout_ms != 0 ? options->idle_timeout_ms : TCP_IDLE_MS;
    seed->handshake_ms = seed->idle_ms < TCP_HANDSHAKE_MS ? seed->idle_ms : TCP_HANDSHAKE_MS;
    seed->tick_ms = seed->idle_ms / 4 < SEED_MAX_TICK_MS ? seed->idle_ms / 4 : SEED_MAX_TICK_MS;
    if (seed->tick_ms < SEED_MIN_TICK_MS)
        seed->tick_ms = SEED_MIN_TICK_MS;
    seed->workers = workers;
    seed->worker_count = threads;
    for (unsigned i = 0; i < threads; i++) {
        workers[i].epoll_fd = workers[i].wake_fd = workers[i].null_fd = -1;
        workers[i].pipe_fds[0] = workers[i].pipe_fds[1] = -1;
    }
    seed->listen_fd = -1;
    mutex_init(&seed->lock);
    cond_init(&seed->changed);
    return seed;
}

/* Everything the threads share is there before the first of them runs. */
static enum rf_code seed_run(struct transport_seed *seed, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (unsigned i = 0; i < seed->worker_count && code == RF_OK; i++)
        code = worker_prepare(seed, &seed->workers[i], err);
    if (code == RF_OK)
        accept_resume(seed);
    if (code == RF_OK && !seed->accepting)
        return rf_fail_sys(err, "epoll of a tcp seed's listener");
    while (code == RF_OK && seed->threads < seed->worker_count) {
        struct worker *worker = &seed->workers[seed->threads];
        code = thread_start(&worker->thread, "rf-tcp-seed", worker_run, worker, err);
        if (code == RF_OK)
            seed->threads++;
    }
    return code;
}

enum rf_code tcp_seed_start(const struct exporter *exporter,
                            const struct transport_seed_options *options,
                            struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                            struct rf_error *err)
{
    unsigned cpus = thread_cpus();
    unsigned few = cpus < TCP_MAX_THREADS ? cpus : TCP_MAX_THREADS;
    struct transport_seed *seed =
        seed_create(exporter, options, options->threads != 0 ? options->threads : few);
    struct net_address address = {.bytes = 0};
    struct endpoint endpoint = {.transport = "tcp"};

    if (seed == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a tcp seed");
    enum rf_code code =
        net_listen(options->host, options->port, TCP_BACKLOG, &seed->listen_fd, &address, err);
    if (code == RF_OK) {
        net_tune_listener(seed->listen_fd, seed->far);
        code = seed_run(seed, err);
    }
    if (code != RF_OK) {
        seed_destroy(seed);
        return code;
    }
    net_address_text(&address, endpoint.address);
    transport_host_id(endpoint.host_id);
    log_debug("tcp seed started", "address=%s threads=%u", endpoint.address, seed->worker_count);
    *ret_seed = seed;
    *ret_endpoint = endpoint;
    return RF_OK;
}

/* Whether all workers have seen a phase; *ret_reads is what was open then. */
static bool all_seen_locked(const struct transport_seed *seed, enum seed_phase phase,
                            uint32_t *ret_reads) RF_REQUIRES(seed->lock)
{
    *ret_reads = 0;
    for (unsigned i = 0; i < seed->worker_count; i++) {
        if (seed->workers[i].seen < phase)
            return false;
        *ret_reads += seed->workers[i].reported_reads;
    }
    return true;
}

uint32_t tcp_seed_drain(struct transport_seed *seed, uint64_t deadline_ns)
{
    uint32_t reads = 0;
    uint32_t cut = 0;

    seed_set_phase(seed, PHASE_DRAINING);
    mutex_lock(&seed->lock);
    while ((!all_seen_locked(seed, PHASE_DRAINING, &reads) || reads > 0) &&
           cond_wait_until(&seed->changed, &seed->lock, deadline_ns))
        ;
    mutex_unlock(&seed->lock);
    seed_set_phase(seed, PHASE_CUTTING);
    mutex_lock(&seed->lock);
    while (
        !all_seen_locked(seed, PHASE_CUTTING, &reads)) /* a turn each: at most some milliseconds */
        cond_wait_until(&seed->changed, &seed->lock, UINT64_MAX);
    for (unsigned i = 0; i < seed->worker_count; i++)
        cut += seed->workers[i].cut;
    mutex_unlock(&seed->lock);
    return cut;
}

void tcp_seed_stop(struct transport_seed *seed)
{
    if (seed != NULL)
        seed_destroy(seed);
}
