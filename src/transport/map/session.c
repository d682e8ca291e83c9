/* The reader's half. A session has one connection; for each rank that is asked for it makes one
 * exchange (intake.h) and keeps the mapped layout, out of which it then copies. Everything waits
 * in session_wait(), nowhere else. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/map/address.h"
#include "transport/map/intake.h"
#include "transport/map/map.h"
#include "transport/read_digest.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

enum {
    SESSION_TIMEOUT_MS = 10 * 1000,
    SESSION_CANCEL_MS = 50,       /* how often `cancel` is looked at when there is no cancel_fd */
    SESSION_COPY_BYTES = 1 << 20, /* copied between two looks at deadline and cancel */
    SESSION_IOV = 64,
};

struct session_rank {
    uint32_t rank;
    struct layout layout;
};

struct transport_session {
    struct map_address address;
    struct transport_open_options options;
    char name[TRANSPORT_ADDRESS_BYTES]; /* for messages */
    int fd;

    /* The exchange under way, if intake is there. */
    struct map_intake *intake;
    uint32_t asked; /* its rank */
    uint8_t hello[MAP_HELLO_BYTES];
    size_t hello_sent;
    bool retried;
    uint64_t exchange_deadline_ns;

    struct session_rank *ranks;
    uint32_t rank_count;

    struct read *first;
    struct read *last;
    uint32_t in_flight;
    bool copying; /* the first read is checked, and cursor is somewhere in it */
    struct layout_cursor cursor;
    struct read_digest digest; /* of the first read */
    uint64_t left_bytes;

    struct rf_error dead; /* code RF_OK: alive */
};

/* ---- waiting ---- */

static bool cancelled(const struct transport_session *session)
{
    return session->options.cancel != NULL &&
           atomic_load_explicit(session->options.cancel, memory_order_acquire);
}

/* Waits for the connection: RF_OK when there may be something to do, RF_E_TIMEOUT,
 * RF_E_CANCELLED. */
static enum rf_code session_wait(const struct transport_session *session, short events,
                                 uint64_t deadline_ns)
{
    struct pollfd fds[2] = {{.fd = session->fd, .events = events},
                            {.fd = session->options.cancel_fd, .events = POLLIN}};

    for (;;) {
        int left_ms = clock_left_ms(deadline_ns);
        bool look = session->options.cancel != NULL && session->options.cancel_fd < 0;
        if (cancelled(session))
            return RF_E_CANCELLED;
        int rc = poll(fds, 2, look && left_ms > SESSION_CANCEL_MS ? SESSION_CANCEL_MS : left_ms);
        if (rc > 0)
            return fds[1].revents != 0 ? RF_E_CANCELLED : RF_OK;
        if (rc < 0 && errno != EINTR)
            return RF_OK; /* out of kernel memory: the call that follows will say */
        if (clock_left_ms(deadline_ns) == 0)
            return RF_E_TIMEOUT;
    }
}

static enum rf_code session_die(struct transport_session *session, const struct rf_error *why,
                                struct rf_error *err)
{
    session->dead = *why;
    map_intake_destroy(rf_take(session->intake, NULL));
    if (session->fd >= 0)
        close(rf_take(session->fd, -1));
    if (err != NULL)
        *err = *why;
    return why->code;
}

/* ---- connecting ---- */

static enum rf_code connect_failed(const char *name, int why, struct rf_error *err)
{
    if (why == ECONNREFUSED || why == ENOENT)
        return rf_fail(err, RF_E_UNREACHABLE, "map: no seed listens on %s (%s)", name,
                       strerror(why));
    errno = why;
    if (why == EACCES || why == EPERM)
        return rf_fail_sys(err, "map: connect to %s", name);
    return rf_fail(err, RF_E_UNREACHABLE, "map: connect to %s: %s", name, strerror(why));
}

/* A Unix socket whose owner is slow in accepting has no event that poll() could wait for; a
 * blocking connect() has, and takes its limit from SO_SNDTIMEO. */
static enum rf_code connect_until(struct transport_session *session, int fd, uint64_t deadline_ns,
                                  struct rf_error *err)
{
    for (;;) {
        int left_ms = clock_left_ms(deadline_ns);
        int slice_ms = left_ms < SESSION_CANCEL_MS ? left_ms + 1 : SESSION_CANCEL_MS;
        struct timeval slice = {.tv_usec = INT64_C(1000) * slice_ms};
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof slice);
        if (connect(fd, (const struct sockaddr *)&session->address.un, session->address.bytes) == 0)
            return RF_OK;
        if (errno != EAGAIN && errno != EINTR)
            return connect_failed(session->name, errno, err);
        if (cancelled(session))
            return rf_fail(err, RF_E_CANCELLED, "map: cancelled while connecting to %s",
                           session->name);
        if (left_ms == 0)
            return rf_fail(err, RF_E_TIMEOUT,
                           "map: %s: too many connections wait there, none was taken in %" PRIu64
                           " ms",
                           session->name, session->options.timeout_ms);
    }
}

static enum rf_code session_connect(struct transport_session *session, uint64_t deadline_ns,
                                    struct rf_error *err)
{
    rf_autoclose int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return rf_fail_sys(err, "map: Unix socket");
    enum rf_code code = connect_until(session, fd, deadline_ns, err);
    if (code != RF_OK)
        return code;
    /* Abstract names belong to whoever binds them first: the token is not for strangers. */
    code = map_peer_check(fd, true, err);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "map: %s", session->name);
    if (session->fd >= 0)
        close(session->fd);
    session->fd = rf_take(fd, -1);
    return RF_OK;
}

/* ---- one exchange ---- */

static enum rf_code exchange_begin(struct transport_session *session, uint32_t rank,
                                   struct rf_error *err)
{
    struct map_hello hello = {.hello = {.version_min = 1, .version_max = CHUNK_VERSION},
                              .rank = rank};

    session->intake = map_intake_create();
    if (session->intake == NULL)
        return rf_fail(err, RF_E_NOMEM, "map: %zu bytes for an exchange", sizeof *session->intake);
    memcpy(hello.hello.token, session->options.token, CHUNK_TOKEN_BYTES);
    map_hello_encode(&hello, session->hello);
    session->asked = rank;
    session->hello_sent = 0;
    session->retried = false;
    session->exchange_deadline_ns = clock_deadline_ns(session->options.timeout_ms);
    return RF_OK;
}

/* The connection ended before the answer did. If not a byte of it came, the seed may just have
 * closed a connection that had been silent for longer than it waits, so that it is worth one
 * more. */
static enum rf_code exchange_lost(struct transport_session *session, int why, struct rf_error *err)
{
    if (session->intake->begun || session->retried)
        return rf_fail(err, RF_E_UNREACHABLE,
                       "map: %s: the seed closed in the middle of a grant%s%s", session->name,
                       why != 0 ? ": " : "", why != 0 ? strerror(why) : "");
    session->retried = true;
    session->hello_sent = 0;
    return session_connect(session, session->exchange_deadline_ns, err);
}

static enum rf_code exchange_send(struct transport_session *session, struct rf_error *err)
{
    ssize_t sent = send(session->fd, session->hello + session->hello_sent,
                        MAP_HELLO_BYTES - session->hello_sent, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (sent >= 0) {
        session->hello_sent += (size_t)sent;
        return RF_OK;
    }
    if (errno == EAGAIN || errno == EINTR)
        return RF_OK;
    if (errno != EPIPE && errno != ECONNRESET)
        return rf_fail_sys(err, "map: send to %s", session->name);
    session->hello_sent = MAP_HELLO_BYTES; /* the seed may have said why before it closed */
    return RF_OK;
}

/* Takes the descriptors out of a message: room for exactly as many as are allowed, the kernel
 * drops the others. */
static uint32_t message_fds(struct msghdr *msg, int fds[MAP_MAX_FDS])
{
    uint32_t count = 0;

    for (struct cmsghdr *header = CMSG_FIRSTHDR(msg); header != NULL;
         header = CMSG_NXTHDR(msg, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t bytes = header->cmsg_len - CMSG_LEN(0);
        for (size_t at = 0; at + sizeof(int) <= bytes && count < MAP_MAX_FDS; at += sizeof(int))
            memcpy(&fds[count++], CMSG_DATA(header) + at, sizeof(int));
    }
    return count;
}

static enum rf_code exchange_receive(struct transport_session *session, struct rf_error *err)
{
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(MAP_MAX_FDS * sizeof(int))];
    } control;
    int fds[MAP_MAX_FDS];
    struct iovec iov = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room};

    iov.iov_base = map_intake_where(session->intake, &iov.iov_len);
    msg.msg_controllen = sizeof control.room;
    ssize_t got = recvmsg(session->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return RF_OK;
    if (got <= 0)
        return exchange_lost(session, got < 0 ? errno : 0, err);
    uint32_t count = message_fds(&msg, fds);
    enum rf_code code = map_intake_took(session->intake, (size_t)got, fds, count, err);
    if ((msg.msg_flags & MSG_CTRUNC) == 0)
        return code;
    /* The rest is gone for good: either there were more than can be, or we could open no more. */
    if (count == MAP_MAX_FDS)
        return rf_fail(err, RF_E_PROTO, "map grant: more than %d descriptors", MAP_MAX_FDS);
    return rf_fail(err, RF_E_NOMEM,
                   "map grant: descriptors were lost, %" PRIu32
                   " arrived: this process has as many open as it may (`ulimit -n`)",
                   count);
}

/* One send or receive, after waiting for it. RF_E_TIMEOUT with the session alive: the caller's
 * time is over. */
static enum rf_code exchange_step(struct transport_session *session, uint64_t deadline_ns,
                                  struct rf_error *err)
{
    bool sending = session->hello_sent < MAP_HELLO_BYTES;
    bool ours = session->exchange_deadline_ns <= deadline_ns;
    enum rf_code code = session_wait(session, sending ? POLLOUT : POLLIN,
                                     ours ? session->exchange_deadline_ns : deadline_ns);
    struct rf_error why = {0};

    if (code == RF_E_TIMEOUT && !ours)
        return rf_fail(err, RF_E_TIMEOUT, "map: %s: no grant of rank %" PRIu32 " yet",
                       session->name, session->asked);
    if (code == RF_E_TIMEOUT)
        rf_fail(&why, code,
                "map: %s: the seed did not grant rank %" PRIu32 " within %" PRIu64 " ms",
                session->name, session->asked, session->options.timeout_ms);
    else if (code == RF_E_CANCELLED)
        rf_fail(&why, code, "map: cancelled while waiting for %s", session->name);
    else
        code = sending ? exchange_send(session, &why) : exchange_receive(session, &why);
    return code == RF_OK ? RF_OK : session_die(session, &why, err);
}

static const struct layout *session_layout(const struct transport_session *session, uint32_t rank)
{
    for (uint32_t i = 0; i < session->rank_count; i++) {
        if (session->ranks[i].rank == rank)
            return &session->ranks[i].layout;
    }
    return NULL;
}

/* Puts the outcome of a finished exchange where it belongs: among the ranks, or into err. */
static enum rf_code exchange_end(struct transport_session *session, struct rf_error *err)
{
    struct map_intake *intake = rf_take(session->intake, NULL);
    enum rf_code code = intake->refused;
    struct session_rank *grown = NULL;

    if (code != RF_OK) {
        if (err != NULL)
            *err = intake->refusal;
    } else {
        grown = reallocarray(session->ranks, (size_t)session->rank_count + 1, sizeof *grown);
        if (grown == NULL)
            code = rf_fail(err, RF_E_NOMEM, "map: %" PRIu32 " ranks", session->rank_count + 1);
    }
    if (grown != NULL) {
        session->ranks = grown;
        grown[session->rank_count++] =
            (struct session_rank){.rank = session->asked, .layout = intake->layout};
        intake->layout = (struct layout){0};
    }
    map_intake_destroy(intake);
    return code;
}

/* The layout of a rank, asked for if need be. RF_E_TIMEOUT with the session alive: goes on with
 * the next call. Other codes with the session alive: the seed refused this rank. */
static enum rf_code session_grant(struct transport_session *session, uint32_t rank,
                                  uint64_t deadline_ns, const struct layout **ret_layout,
                                  struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (;;) {
        const struct layout *layout = session_layout(session, rank);
        if (layout != NULL) {
            *ret_layout = layout;
            return RF_OK;
        }
        if (session->intake == NULL)
            code = exchange_begin(session, rank, err);
        uint32_t asked = session->asked;
        while (code == RF_OK && !map_intake_done(session->intake))
            code = exchange_step(session, deadline_ns, err);
        if (code != RF_OK)
            return code;
        code = exchange_end(session, err);
        /* One for another rank, under way since a read's deadline passed, is of no concern to
         * this caller. */
        if (code != RF_OK && asked == rank)
            return code;
        code = RF_OK;
    }
}

/* ---- reads ---- */

static struct read *read_pop(struct transport_session *session)
{
    struct read *read = session->first;

    session->first = read->next;
    if (session->first == NULL)
        session->last = NULL;
    session->in_flight--;
    session->copying = false;
    read->next = NULL;
    return read;
}

static struct read *read_end(struct transport_session *session, enum rf_code code,
                             const struct rf_error *why)
{
    struct read *read = read_pop(session);

    read->code = code;
    if (code != RF_OK)
        read->error = *why;
    return read;
}

/* Copies one piece into what the sink offers. */
static enum rf_code copy_piece(struct transport_session *session, struct sink *sink,
                               struct rf_error *err)
{
    struct iovec iov[SESSION_IOV];
    uint64_t offered = 0;
    int count = sink->where(sink, iov, SESSION_IOV, &offered);
    uint64_t bytes = 0;

    for (int i = 0; i < count && bytes < SESSION_COPY_BYTES; i++) {
        uint8_t *to = iov[i].iov_base;
        uint64_t left = iov[i].iov_len;
        if (left > SESSION_COPY_BYTES - bytes)
            left = SESSION_COPY_BYTES - bytes;
        while (left > 0) {
            struct segment piece;
            if (!layout_cursor_peek(&session->cursor, left, &piece))
                return rf_fail(err, RF_E_FAILED, "map: the sink offers more than was to be read");
            const uint8_t *from = region_data(piece.region) + piece.region_offset;
            if (sink->cold)
                memory_stream(to, from, piece.bytes);
            else
                memcpy(to, from, piece.bytes);
            read_digest_update(&session->digest, from, piece.bytes);
            layout_cursor_skip(&session->cursor, piece.bytes);
            to += piece.bytes;
            left -= piece.bytes;
            bytes += piece.bytes;
        }
    }
    if (bytes == 0)
        return rf_fail(err, RF_E_FAILED, "map: the sink offers no place for %" PRIu64 " bytes",
                       session->left_bytes);
    if (sink->cold)
        memory_stream_end();
    session->left_bytes -= bytes;
    return sink->took(sink, bytes, err);
}

/* Whether the seed still holds its end. The pages would stay even if it did not; but a seed that
 * stops, or lets a reader go, means it, and a session must not go on as if nothing had happened. */
static enum rf_code session_check_peer(struct transport_session *session, struct rf_error *err)
{
    uint8_t byte = 0;
    ssize_t got = recv(session->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    struct rf_error why = {0};

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return RF_OK;
    if (got > 0)
        rf_fail(&why, RF_E_PROTO, "map: %s: the seed speaks without being asked", session->name);
    else
        rf_fail(&why, RF_E_UNREACHABLE, "map: %s: the seed is gone, or let this reader go",
                session->name);
    return session_die(session, &why, err);
}

/* Checks the first read against the layout it is to be copied from. */
static enum rf_code copy_begin(struct transport_session *session, const struct layout *layout,
                               struct rf_error *err)
{
    const struct read *read = session->first;
    uint64_t bytes = 0;
    enum rf_code code = session_check_peer(session, err);

    if (code != RF_OK)
        return code;
    code = stream_ranges_check(read->ranges, read->range_count, layout->stream_bytes, &bytes, err);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "rank %" PRIu32, read->rank);
    code = read_digest_begin(&session->digest, read->digest, err);
    if (code != RF_OK)
        return code;
    layout_cursor_init(&session->cursor, layout, read->ranges, read->range_count);
    session->left_bytes = read->bytes;
    session->copying = true;
    return RF_OK;
}

/* Works on the first read. RF_AGAIN: there is more to do; RF_E_TIMEOUT with the session alive:
 * time is over; otherwise how the read ended. */
static enum rf_code read_step(struct transport_session *session, uint64_t deadline_ns,
                              struct rf_error *err)
{
    struct read *read = session->first;
    const struct layout *layout = NULL;

    if (!session->copying) {
        enum rf_code code = session_grant(session, read->rank, deadline_ns, &layout, err);
        return code == RF_OK && (code = copy_begin(session, layout, err)) == RF_OK ? RF_AGAIN
                                                                                   : code;
    }
    enum rf_code code = copy_piece(session, read->sink, err);
    if (code == RF_OK && session->left_bytes > 0)
        return RF_AGAIN;
    if (code == RF_OK)
        read_digest_final(&session->digest, read->rank, read->ranges, read->range_count,
                          read->said);
    return code;
}

/* ---- what the owner calls ---- */

enum rf_code map_session_open(const struct endpoint *endpoint,
                              const struct transport_open_options *options,
                              struct transport_session **ret_session, struct rf_error *err)
{
    struct transport_session *session = calloc(1, sizeof *session);

    if (session == NULL)
        return rf_fail(err, RF_E_NOMEM, "map: %zu bytes for a session", sizeof *session);
    session->options = *options;
    session->fd = -1;
    if (session->options.timeout_ms == 0)
        session->options.timeout_ms = SESSION_TIMEOUT_MS;
    snprintf(session->name, sizeof session->name, "%s", endpoint->address);
    enum rf_code code = map_address_parse(endpoint->address, &session->address, err);
    if (code == RF_OK)
        code = session_connect(session, clock_deadline_ns(session->options.timeout_ms), err);
    if (code != RF_OK) {
        map_session_close(session);
        return code;
    }
    *ret_session = session;
    return RF_OK;
}

enum rf_code map_session_submit(struct transport_session *session, struct read *read,
                                struct rf_error *err)
{
    if (session->dead.code != RF_OK)
        return session_die(session, &session->dead, err);
    if (session->in_flight == MAP_WINDOW)
        return RF_AGAIN;
    enum rf_code code = transport_read_check(read, err);
    if (code != RF_OK)
        return code;
    read->code = RF_OK;
    read->next = NULL;
    if (session->last != NULL)
        session->last->next = read;
    else
        session->first = read;
    session->last = read;
    session->in_flight++;
    return RF_OK;
}

enum rf_code map_session_progress(struct transport_session *session, uint64_t deadline_ns,
                                  struct read **ret_done, struct rf_error *err)
{
    struct rf_error why = {0};

    for (;;) {
        if (session->dead.code != RF_OK && session->first != NULL) {
            *ret_done = read_end(session, session->dead.code, &session->dead);
            return RF_OK;
        }
        if (session->dead.code != RF_OK)
            return session_die(session, &session->dead, err);
        if (session->first == NULL)
            return rf_fail(err, RF_E_INVAL, "map: no read is in flight");
        if (cancelled(session)) {
            rf_fail(&why, RF_E_CANCELLED, "map: cancelled");
            session_die(session, &why, NULL);
            continue;
        }
        enum rf_code code = read_step(session, deadline_ns, &why);
        if (session->dead.code != RF_OK)
            continue;
        if (code == RF_E_TIMEOUT && !session->copying && session->intake != NULL) {
            if (err != NULL)
                *err = why;
            return code;
        }
        if (code != RF_AGAIN) {
            *ret_done = read_end(session, code, &why);
            return RF_OK;
        }
        if (session->copying && clock_now_ns() >= deadline_ns)
            return rf_fail(err, RF_E_TIMEOUT, "map: %" PRIu64 " bytes of a read are left",
                           session->left_bytes);
    }
}

void map_session_close(struct transport_session *session)
{
    if (session == NULL)
        return;
    map_intake_destroy(session->intake);
    for (uint32_t i = 0; i < session->rank_count; i++)
        layout_free(&session->ranks[i].layout);
    free(session->ranks);
    read_digest_free(&session->digest);
    if (session->fd >= 0)
        close(session->fd);
    free(session);
}

/* A layout of the caller's own over the same regions, which live as long as either. */
static enum rf_code layout_copy(const struct layout *from, struct layout *ret_layout,
                                struct rf_error *err)
{
    struct layout layout = {0};
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < from->count && code == RF_OK; i++) {
        const struct segment *segment = &from->segments[i];
        code = layout_add(&layout, segment->stream_offset, segment->bytes, segment->region,
                          segment->region_offset, err);
    }
    if (code == RF_OK)
        code = layout_finish(&layout, from->stream_bytes, err);
    if (code != RF_OK) {
        layout_free(&layout);
        return code;
    }
    *ret_layout = layout;
    return RF_OK;
}

enum rf_code map_session_map(struct transport_session *session, uint32_t rank,
                             uint64_t stream_bytes, struct transport_mapping *ret_mapping,
                             struct rf_error *err)
{
    struct transport_mapping mapping = {0};
    const struct layout *layout = NULL;

    if (session->dead.code != RF_OK)
        return session_die(session, &session->dead, err);
    /* The exchange has its own time, from when it begins. */
    enum rf_code code = session_grant(session, rank, UINT64_MAX, &layout, err);
    if (code != RF_OK)
        return code;
    if (layout->stream_bytes != stream_bytes)
        return rf_fail(err, RF_E_PROTO,
                       "map: rank %" PRIu32 ": the seed grants %" PRIu64
                       " bytes, its manifest says %" PRIu64,
                       rank, layout->stream_bytes, stream_bytes);
    code = layout_copy(layout, &mapping.layout, err);
    if (code != RF_OK)
        return code;
    mapping.bytes = layout->stream_bytes;
    *ret_mapping = mapping;
    return RF_OK;
}
