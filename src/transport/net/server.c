/* A connection that has something to send gets a bounded turn, so a fast reader cannot starve a slow
 * one, and a reader that does not read costs its socket's buffer. */
#include "transport/net/server.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "transport/net/send.h"
#include "transport/net/socket.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum {
    SERVER_EVENTS = 64,
    SERVER_ACCEPTS = 64, /* in a row, so that those already here get their turn */
    SERVER_ACCEPT_PAUSE_MS = 100,
    SERVER_TURN_BYTES = 1 << 20, /* of one connection, before the others are looked at */
    SERVER_TURN_CALLS = 8,
    SERVER_MAX_TICK_MS = 500, /* between two looks at the connections' deadlines */
    SERVER_MIN_TICK_MS = 10,
};

/* One connection; its worker's. */
struct peer {
    struct peer *prev;
    struct peer *next;
    struct door *door;
    struct net_link link;
    uint32_t events;      /* as the epoll set has them */
    uint64_t deadline_ns; /* of the hello, of being idle, of the farewell */
    uint64_t silent_ns;   /* since when it has said nothing at all; 0: it has */
    bool farewell;        /* all is said, the peer is given time to read it */
};

/* What the owner wants of the workers; only ever grows. */
enum server_phase { PHASE_SERVING, PHASE_DRAINING, PHASE_CUTTING, PHASE_STOPPING };

/* A listener, and who came through it. */
struct door {
    struct net_listener listener; /* its fd is -1 once draining */
    atomic_uint connections;      /* those on their way to their worker included */
    /* Set by the first worker when it stops accepting for want of places, and then it looks at
     * connections once more; cleared by whoever closes a connection, after counting it. Sequentially
     * consistent, so that one of the two sees the other. */
    atomic_bool full;

    /* The first worker's own. */
    bool accepting;
    uint64_t accept_after_ns;
};

struct worker {
    struct net_server *server;
    unsigned index;
    pthread_t thread;
    int epoll_fd;
    int wake_fd;
    atomic_uint
        load; /* connections, those on their way here included; relaxed: only for choosing */

    /* The thread's own. */
    struct peer *peers;
    uint32_t open_reads;
    enum server_phase phase; /* acted upon */
    uint64_t tick_ns;        /* the next look at deadlines */

    /* Under the server's lock. */
    struct peer *incoming; /* by next */
    enum server_phase seen;
    uint32_t reported_reads; /* as of seen */
    uint32_t cut;

    struct net_sender sender;
};

struct net_server {
    struct net_server_options options;
    struct door doors[NET_MAX_LISTENERS];
    unsigned door_count;
    uint64_t tick_ms;
    struct worker *workers;
    unsigned worker_count;
    unsigned threads; /* of workers that run */

    struct mutex lock;
    struct cond changed;                         /* of what workers report */
    enum server_phase phase RF_GUARDED_BY(lock); /* asked for */
};

/* ---- connections ---- */

static void wake(struct worker *worker)
{
    const uint64_t one = 1;

    /* It fails only when the counter is full, and then the worker is awake. */
    ssize_t n = write(worker->wake_fd, &one, sizeof one);
    (void)n;
}

static void peer_free(struct peer *peer)
{
    close(peer->link.fd);
    peer->link.protocol->destroy(peer->link.conn);
    free(peer);
}

static void peer_watch(struct worker *worker, struct peer *peer)
{
    size_t room = 1;
    uint32_t events = 0;

    if (!peer->farewell)
        (void)peer->link.protocol->space(peer->link.conn, &room);
    if (room > 0)
        events |= EPOLLIN;
    if (peer->link.protocol->has_output(peer->link.conn))
        events |= EPOLLOUT;
    if (events == peer->events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, peer->link.fd, &event) == 0)
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
    struct door *door = peer->door;
    worker->open_reads -= peer->link.protocol->reads(peer->link.conn);
    atomic_fetch_sub_explicit(&worker->load, 1, memory_order_relaxed);
    peer_free(peer);
    atomic_fetch_sub_explicit(&door->connections, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&door->full, memory_order_seq_cst)) {
        atomic_store_explicit(&door->full, false, memory_order_seq_cst);
        wake(&worker->server->workers[0]);
    }
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
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, peer->link.fd, &event) != 0)
        peer_close(worker, peer);
}

/* ---- one turn ---- */

/* Receives what fits; after the farewell to be thrown away. */
static enum net_step receive_once(struct worker *worker, struct peer *peer)
{
    size_t room = NET_STAGING_BYTES;
    uint8_t *at = peer->farewell ? worker->sender.out.staging
                                 : peer->link.protocol->space(peer->link.conn, &room);

    if (room == 0)
        return NET_STEP_WAIT;
    ssize_t n = recv(peer->link.fd, at, room, 0);
    if (n < 0)
        return net_step_of_errno(&peer->link, "recv");
    if (n == 0)
        return NET_STEP_BROKEN; /* a reader that has ended, or at least asks for nothing more */
    if (!peer->farewell)
        peer->link.protocol->arrived(peer->link.conn, (size_t)n);
    return NET_STEP_ON;
}

/* All is said: no more bytes from us, and time for the peer to read them. Closing at once, with
 * bytes of the peer unread, would make the kernel take back what is still on its way. */
static void say_farewell(struct peer *peer)
{
    peer->farewell = true;
    peer->deadline_ns = clock_deadline_ns(peer->door->listener.linger_ms);
    (void)shutdown(peer->link.fd, SHUT_WR);
}

static void peer_turn(struct worker *worker, struct peer *peer, uint32_t events)
{
    uint32_t reads_before = peer->link.protocol->reads(peer->link.conn);
    enum net_step step = NET_STEP_ON;
    uint64_t sent = 0;

    if ((events & EPOLLERR) != 0)
        step = NET_STEP_BROKEN;
    else if ((events & (EPOLLIN | EPOLLHUP)) != 0)
        step = receive_once(worker, peer);
    uint32_t reads_asked = peer->link.protocol->reads(peer->link.conn);
    if (step != NET_STEP_BROKEN) {
        step = NET_STEP_ON;
        for (int i = 0; i < SERVER_TURN_CALLS && sent < SERVER_TURN_BYTES && step == NET_STEP_ON;
             i++)
            step = net_send_next(&worker->sender, &peer->link, &sent);
    }
    worker->open_reads += peer->link.protocol->reads(peer->link.conn) - reads_before;
    if (step == NET_STEP_BROKEN) {
        peer_close(worker, peer);
        return;
    }
    if (sent > 0 || reads_asked != reads_before)
        peer->silent_ns = 0;
    if (peer->link.protocol->is_finished(peer->link.conn) && !peer->farewell)
        say_farewell(peer);
    else if (sent > 0 || reads_asked != reads_before)
        peer->deadline_ns = clock_deadline_ns(peer->door->listener.idle_ms);
    peer_watch(worker, peer);
}

/* ---- accepting ---- */

static void door_pause(struct net_server *server, struct door *door)
{
    (void)epoll_ctl(server->workers[0].epoll_fd, EPOLL_CTL_DEL, door->listener.fd, NULL);
    door->accepting = false;
    door->accept_after_ns = clock_deadline_ns(SERVER_ACCEPT_PAUSE_MS);
}

static void door_open(struct net_server *server, struct door *door)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = door};

    if (epoll_ctl(server->workers[0].epoll_fd, EPOLL_CTL_ADD, door->listener.fd, &event) == 0)
        door->accepting = true;
}

/* Opens those again whose pause is over. Returns whether one is still in its pause. */
static bool doors_reopen(struct net_server *server)
{
    bool paused = false;

    for (unsigned i = 0; i < server->door_count; i++) {
        struct door *door = &server->doors[i];
        if (door->accepting || door->listener.fd < 0)
            continue;
        bool places = atomic_load_explicit(&door->connections, memory_order_seq_cst) <
                      door->listener.max_connections;
        if (clock_now_ns() >= door->accept_after_ns && places)
            door_open(server, door);
        paused = paused || !door->accepting;
    }
    return paused;
}

/* Gives a connection to the worker that has fewest. */
static void accept_assign(struct net_server *server, struct peer *peer)
{
    struct worker *least = &server->workers[0];

    for (unsigned i = 1; i < server->worker_count; i++) {
        if (atomic_load_explicit(&server->workers[i].load, memory_order_relaxed) <
            atomic_load_explicit(&least->load, memory_order_relaxed))
            least = &server->workers[i];
    }
    const struct net_listener *listener = &peer->door->listener;
    peer->link.conn = listener->protocol->create(listener->ctx, least->index, peer->link.fd);
    if (peer->link.conn == NULL) {
        log_warn("no memory for a connection", "of=%s", server->options.name);
        close(peer->link.fd);
        free(peer);
        return;
    }
    atomic_fetch_add_explicit(&peer->door->connections, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&least->load, 1, memory_order_relaxed);
    if (least == &server->workers[0]) {
        peer_adopt(least, peer);
        return;
    }
    mutex_lock(&server->lock);
    bool first = least->incoming == NULL; /* others behind it: it is being woken already */
    peer->next = least->incoming;
    least->incoming = peer;
    mutex_unlock(&server->lock);
    if (first)
        wake(least);
}

/* Takes over fd. */
static void accept_one(struct net_server *server, struct door *door, int fd)
{
    const struct net_listener *listener = &door->listener;
    struct peer *peer = calloc(1, sizeof *peer);

    if (peer == NULL) {
        log_warn("no memory for a connection", "of=%s", server->options.name);
        close(fd);
        return;
    }
    peer->door = door;
    peer->link = (struct net_link){.protocol = listener->protocol, .fd = fd};
    /* A reader says what it wants at once. Whoever fills the seed with silent connections holds
     * places that readers need. */
    bool crowded = atomic_load_explicit(&door->connections, memory_order_relaxed) > listener->crowd;
    peer->deadline_ns = clock_deadline_ns(crowded ? listener->crowded_ms : listener->hello_ms);
    peer->silent_ns = clock_now_ns();
    if (listener->tune != NULL)
        listener->tune(listener->ctx, fd);
    accept_assign(server, peer);
}

/* No more than may be. Its connections' workers tell the first one when there are fewer. */
static bool door_is_full(struct net_server *server, struct door *door)
{
    uint32_t most = door->listener.max_connections;

    if (atomic_load_explicit(&door->connections, memory_order_relaxed) < most)
        return false;
    atomic_store_explicit(&door->full, true, memory_order_seq_cst);
    if (atomic_load_explicit(&door->connections, memory_order_seq_cst) < most)
        return false;
    door_pause(server, door);
    door->accept_after_ns = 0; /* only for places */
    return true;
}

static void accept_some(struct net_server *server, struct door *door)
{
    for (int i = 0; i < SERVER_ACCEPTS && !door_is_full(server, door); i++) {
        /* cppcheck-suppress nullPointer ; who it is, is asked of the socket */
        int fd = accept4(door->listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            accept_one(server, door, fd);
            continue;
        }
        if (errno == EAGAIN)
            return;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            log_warn("cannot accept connections", "of=%s errno=%d connections=%u retry_ms=%d",
                     server->options.name, errno,
                     atomic_load_explicit(&door->connections, memory_order_relaxed),
                     SERVER_ACCEPT_PAUSE_MS);
            door_pause(server, door);
            return;
        }
        /* Anything else is about the one connection that was to be accepted. */
    }
}

/* ---- workers ---- */

/* Whether somebody who may have something to say waits for the place of one that has not said
 * anything for long. A door counts as full until a place is free: asked before any is closed. */
static bool is_in_the_way(const struct peer *peer, bool full, uint64_t now_ns)
{
    uint64_t full_ms = peer->door->listener.full_ms;

    return full && full_ms > 0 && peer->silent_ns != 0 && !peer->farewell &&
           now_ns - peer->silent_ns >= full_ms * CLOCK_NS_PER_MS;
}

/* Closes the connections whose time is over. */
static void look_at_deadlines(struct worker *worker)
{
    struct net_server *server = worker->server;
    uint64_t now_ns = clock_now_ns();
    bool full[NET_MAX_LISTENERS] = {false};
    char name[NET_ADDRESS_TEXT_BYTES];

    if (now_ns < worker->tick_ns)
        return;
    worker->tick_ns = now_ns + server->tick_ms * CLOCK_NS_PER_MS;
    for (unsigned i = 0; i < server->door_count; i++)
        full[i] = atomic_load_explicit(&server->doors[i].connections, memory_order_relaxed) >=
                  server->doors[i].listener.max_connections;
    for (struct peer *peer = worker->peers, *next = NULL; peer != NULL; peer = next) {
        next = peer->next;
        if (now_ns < peer->deadline_ns &&
            !is_in_the_way(peer, full[peer->door - server->doors], now_ns))
            continue;
        if (!peer->farewell)
            log_debug("reader silent", "peer=%s reads=%" PRIu32, net_link_name(&peer->link, name),
                      peer->link.protocol->reads(peer->link.conn));
        peer_close(worker, peer);
    }
}

static void start_draining(struct worker *worker)
{
    struct net_server *server = worker->server;

    for (unsigned i = 0; worker == &server->workers[0] && i < server->door_count; i++) {
        close(server->doors[i].listener.fd);
        server->doors[i].listener.fd = -1;
    }
    for (struct peer *peer = worker->peers, *next = NULL; peer != NULL; peer = next) {
        next = peer->next;
        peer->link.protocol->drain(peer->link.conn);
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
    struct net_server *server = worker->server;

    mutex_lock(&server->lock);
    enum server_phase wanted = server->phase;
    struct peer *incoming = rf_take(worker->incoming, NULL);
    mutex_unlock(&server->lock);

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
        mutex_lock(&server->lock);
        worker->seen = wanted;
        worker->reported_reads = worker->open_reads;
        worker->cut += cut;
        cond_broadcast(&server->changed);
        mutex_unlock(&server->lock);
    }
    return wanted != PHASE_STOPPING;
}

static bool is_door(const struct net_server *server, const void *of)
{
    for (unsigned i = 0; i < server->door_count; i++) {
        if (of == &server->doors[i])
            return true;
    }
    return false;
}

static void worker_wait(struct worker *worker, bool quiet, bool *ret_woken)
{
    struct net_server *server = worker->server;
    struct epoll_event events[SERVER_EVENTS];

    int count =
        epoll_wait(worker->epoll_fd, events, SERVER_EVENTS, quiet ? -1 : (int)server->tick_ms);
    for (int i = 0; i < count; i++) {
        void *of = events[i].data.ptr;
        if (of == worker) {
            uint64_t times;
            ssize_t n = read(worker->wake_fd, &times, sizeof times);
            (void)n; /* non-blocking: whatever it was, it is 0 now */
            *ret_woken = true;
        } else if (is_door(server, of)) {
            accept_some(server, of);
        } else {
            peer_turn(worker, of, events[i].events);
        }
    }
}

static bool tick(struct worker *worker, bool over)
{
    const struct net_server_options *options = &worker->server->options;

    return options->tick != NULL &&
           options->tick(options->tick_ctx, worker->index, clock_now_ns(), over);
}

static void *worker_run(void *arg)
{
    struct worker *worker = arg;
    struct net_server *server = worker->server;
    bool running = true;
    bool busy = false;

    while (running) {
        bool woken = false;
        bool paused = worker == &server->workers[0] && doors_reopen(server);
        worker_wait(worker, worker->peers == NULL && !paused && !busy, &woken);
        look_at_deadlines(worker);
        busy = tick(worker, false);
        /* While draining every turn may be the one that ends the last read. */
        if (woken || worker->phase != PHASE_SERVING)
            running = worker_sync(worker);
    }
    while (worker->peers != NULL)
        peer_close(worker, worker->peers);
    (void)tick(worker, true);
    return NULL;
}

/* ---- starting and stopping ---- */

static enum rf_code worker_prepare(struct worker *worker, const char *name, struct rf_error *err)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = worker};

    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->epoll_fd < 0 || worker->wake_fd < 0 ||
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->wake_fd, &event) != 0)
        return rf_fail_sys(err, "epoll of %s", name);
    return net_sender_open(&worker->sender, name, err);
}

static void set_phase(struct net_server *server, enum server_phase phase)
{
    mutex_lock(&server->lock);
    if (server->phase < phase)
        server->phase = phase;
    mutex_unlock(&server->lock);
    for (unsigned i = 0; i < server->worker_count; i++)
        wake(&server->workers[i]);
}

static void worker_free(struct worker *worker)
{
    while (worker->incoming != NULL) {
        struct peer *peer = worker->incoming;
        worker->incoming = peer->next;
        peer_free(peer);
    }
    if (worker->epoll_fd >= 0)
        close(worker->epoll_fd);
    if (worker->wake_fd >= 0)
        close(worker->wake_fd);
    net_sender_close(&worker->sender);
}

void net_server_stop(struct net_server *server)
{
    if (server == NULL)
        return;
    set_phase(server, PHASE_STOPPING);
    for (unsigned i = 0; i < server->threads; i++)
        pthread_join(server->workers[i].thread, NULL);
    for (unsigned i = 0; i < server->worker_count; i++)
        worker_free(&server->workers[i]);
    for (unsigned i = 0; i < server->door_count; i++) {
        if (server->doors[i].listener.fd >= 0)
            close(server->doors[i].listener.fd);
    }
    cond_destroy(&server->changed);
    mutex_destroy(&server->lock);
    free(server->workers);
    free(server);
}

static uint64_t tick_ms(const struct net_server_options *options)
{
    uint64_t ms = SERVER_MAX_TICK_MS;

    for (unsigned i = 0; i < options->listener_count; i++) {
        if (options->listeners[i].idle_ms / 4 < ms)
            ms = options->listeners[i].idle_ms / 4;
    }
    return ms > SERVER_MIN_TICK_MS ? ms : SERVER_MIN_TICK_MS;
}

static struct net_server *server_create(const struct net_server_options *options)
{
    struct net_server *server = calloc(1, sizeof *server);
    struct worker *workers = calloc(options->threads, sizeof *workers);

    if (server == NULL || workers == NULL) {
        free(server);
        free(workers);
        for (unsigned i = 0; i < options->listener_count; i++)
            close(options->listeners[i].fd);
        return NULL;
    }
    server->options = *options;
    server->tick_ms = tick_ms(options);
    server->door_count = options->listener_count;
    for (unsigned i = 0; i < options->listener_count; i++)
        server->doors[i].listener = options->listeners[i];
    server->workers = workers;
    server->worker_count = options->threads;
    for (unsigned i = 0; i < options->threads; i++) {
        workers[i].server = server;
        workers[i].index = i;
        workers[i].epoll_fd = workers[i].wake_fd = -1;
        net_sender_init(&workers[i].sender);
    }
    mutex_init(&server->lock);
    cond_init(&server->changed);
    return server;
}

/* Everything the threads share is there before the first of them runs. */
static enum rf_code server_run(struct net_server *server, struct rf_error *err)
{
    const char *name = server->options.name;
    enum rf_code code = RF_OK;

    for (unsigned i = 0; i < server->worker_count && code == RF_OK; i++)
        code = worker_prepare(&server->workers[i], name, err);
    for (unsigned i = 0; i < server->door_count && code == RF_OK; i++) {
        door_open(server, &server->doors[i]);
        if (!server->doors[i].accepting)
            return rf_fail_sys(err, "epoll of a listener of %s", name);
    }
    while (code == RF_OK && server->threads < server->worker_count) {
        struct worker *worker = &server->workers[server->threads];
        code = thread_start(&worker->thread, name, worker_run, worker, err);
        if (code == RF_OK)
            server->threads++;
    }
    return code;
}

enum rf_code net_server_start(const struct net_server_options *options,
                              struct net_server **ret_server, struct rf_error *err)
{
    assert(options->threads > 0 && options->listener_count <= NET_MAX_LISTENERS);
    struct net_server *server = server_create(options);

    if (server == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %s", options->name);
    enum rf_code code = server_run(server, err);
    if (code != RF_OK) {
        net_server_stop(server);
        return code;
    }
    *ret_server = server;
    return RF_OK;
}

/* Whether all workers have seen a phase; *ret_reads is what was open then. */
static bool all_seen_locked(const struct net_server *server, enum server_phase phase,
                            uint32_t *ret_reads) RF_REQUIRES(server->lock)
{
    *ret_reads = 0;
    for (unsigned i = 0; i < server->worker_count; i++) {
        if (server->workers[i].seen < phase)
            return false;
        *ret_reads += server->workers[i].reported_reads;
    }
    return true;
}

uint32_t net_server_drain(struct net_server *server, uint64_t deadline_ns)
{
    uint32_t reads = 0;
    uint32_t cut = 0;

    set_phase(server, PHASE_DRAINING);
    mutex_lock(&server->lock);
    while ((!all_seen_locked(server, PHASE_DRAINING, &reads) || reads > 0) &&
           cond_wait_until(&server->changed, &server->lock, deadline_ns))
        ;
    mutex_unlock(&server->lock);
    set_phase(server, PHASE_CUTTING);
    mutex_lock(&server->lock);
    while (!all_seen_locked(server, PHASE_CUTTING,
                            &reads)) /* a turn each: at most some milliseconds */
        cond_wait_until(&server->changed, &server->lock, UINT64_MAX);
    for (unsigned i = 0; i < server->worker_count; i++)
        cut += server->workers[i].cut;
    mutex_unlock(&server->lock);
    return cut;
}
