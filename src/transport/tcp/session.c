/* The reader's half: one connection, driven by whoever calls. Bytes go from the socket straight to
 * where the sinks want them. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/net/socket.h"
#include "transport/tcp/intake.h"
#include "transport/tcp/tcp.h"

#include <assert.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

enum {
    SESSION_CANCEL_POLL_MS = 100, /* how often a cancel flag without a descriptor is looked at */
};

struct transport_session {
    int fd;
    struct transport_open_options options;
    char peer[NET_ADDRESS_TEXT_BYTES];
    uint32_t window;
    uint64_t max_read_bytes;
    enum rf_code dead; /* what every further call says; RF_OK: alive */
    struct rf_error why_dead;

    struct tcp_intake intake;
    uint64_t next_id;
    uint64_t heard_ns; /* when the last byte came, or when the wait for it began */
    int low_water;     /* SO_RCVLOWAT as set */

    struct buf out; /* requests that the socket has not taken */
    size_t out_sent;
    bool out_broken; /* the seed hears nothing any more; what it said before comes first */

    uint8_t scratch[TCP_SCRATCH_BYTES];
};

/* ---- waiting ---- */

static bool is_cancelled(const struct transport_open_options *options)
{
    /* Relaxed: no data comes with the flag. */
    return options->cancel != NULL && atomic_load_explicit(options->cancel, memory_order_relaxed);
}

/* Waits until events happen on fd. RF_E_TIMEOUT at the deadline; RF_E_CANCELLED. err is not
 * filled. */
static enum rf_code wait_for(int fd, short events, const struct transport_open_options *options,
                             uint64_t deadline_ns)
{
    struct pollfd fds[2] = {
        {.fd = fd, .events = events},
        {.fd = options->cancel_fd, .events = POLLIN},
    };

    for (;;) {
        if (is_cancelled(options))
            return RF_E_CANCELLED;
        int left_ms = clock_left_ms(deadline_ns);
        int slice_ms = left_ms;
        if (options->cancel != NULL && options->cancel_fd < 0 && slice_ms > SESSION_CANCEL_POLL_MS)
            slice_ms = SESSION_CANCEL_POLL_MS;
        int ready = poll(fds, 2, slice_ms);
        if (ready > 0 && fds[1].revents != 0)
            return RF_E_CANCELLED;
        if (ready > 0)
            return RF_OK;
        if (ready == 0 && left_ms == 0)
            return RF_E_TIMEOUT;
    }
}

static uint64_t timeout_ms(const struct transport_session *session)
{
    return session->options.timeout_ms != 0 ? session->options.timeout_ms : TCP_TIMEOUT_MS;
}

/* ---- opening ---- */

static enum rf_code fail_wait(const struct transport_session *session, enum rf_code code,
                              const char *what, struct rf_error *err)
{
    if (code == RF_E_CANCELLED)
        return rf_fail(err, code, "seed %s: cancelled while %s", session->peer, what);
    return rf_fail(err, code, "seed %s: %s took longer than %" PRIu64 " ms", session->peer, what,
                   timeout_ms(session));
}

static enum rf_code fail_gone(const struct transport_session *session, const char *what,
                              int sys_errno, struct rf_error *err)
{
    char reason[128];

    /* net_tune() gives the kernel our own deadline: which of the two is noticed first is chance. */
    if (sys_errno == ETIMEDOUT)
        return rf_fail(err, RF_E_TIMEOUT, "seed %s: %s took longer than %" PRIu64 " ms",
                       session->peer, what, timeout_ms(session));
    return rf_fail(err, RF_E_UNREACHABLE, "seed %s: %s: %s", session->peer, what,
                   strerror_r(sys_errno, reason, sizeof reason));
}

static enum rf_code connect_to(struct transport_session *session, const struct net_address *address,
                               uint64_t deadline_ns, struct rf_error *err)
{
    int error = 0;
    socklen_t bytes = sizeof error;

    session->fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (session->fd < 0)
        return rf_fail_sys(err, "socket for %s", session->peer);
    net_tune(session->fd, timeout_ms(session));
    if (connect(session->fd, &address->any, address->bytes) == 0)
        return RF_OK;
    if (errno != EINPROGRESS && errno != EINTR)
        return fail_gone(session, "connecting", errno, err);
    enum rf_code code = wait_for(session->fd, POLLOUT, &session->options, deadline_ns);
    if (code != RF_OK)
        return fail_wait(session, code, "connecting", err);
    if (getsockopt(session->fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0)
        return rf_fail_sys(err, "SO_ERROR of %s", session->peer);
    return error == 0 ? RF_OK : fail_gone(session, "connecting", error, err);
}

/* What a seed's refusal means to whoever wanted to connect. */
static enum rf_code explain_refusal(const struct transport_session *session,
                                    const struct chunk_welcome *welcome, struct rf_error *err)
{
    enum rf_code status = (enum rf_code)welcome->status;

    switch (status) {
    case RF_E_DENIED:
        return rf_fail(err, status, "seed %s refuses the token: the lease is unknown or over",
                       session->peer);
    case RF_E_NOMEM:
        return rf_fail(err, status,
                       "seed %s has no room for another connection: use fewer, or try later",
                       session->peer);
    case RF_E_UNSUPPORTED:
        return rf_fail(err, status, "seed %s does not speak version %d of the protocol",
                       session->peer, CHUNK_VERSION);
    default:
        return rf_fail(err, status, "seed %s refuses the connection: %s", session->peer,
                       rf_code_name(status));
    }
}

static enum rf_code receive_welcome(struct transport_session *session, uint64_t deadline_ns,
                                    struct chunk_welcome *ret_welcome, struct rf_error *err)
{
    uint8_t raw[CHUNK_WELCOME_BYTES];
    size_t got = 0;

    while (got < sizeof raw) {
        ssize_t n = recv(session->fd, raw + got, sizeof raw - got, 0);
        if (n > 0) {
            got += (size_t)n;
            continue;
        }
        if (n == 0)
            return rf_fail(err, RF_E_UNREACHABLE,
                           "seed %s: closed the connection in place of a welcome", session->peer);
        if (errno != EAGAIN && errno != EINTR)
            return fail_gone(session, "waiting for its welcome", errno, err);
        enum rf_code code = wait_for(session->fd, POLLIN, &session->options, deadline_ns);
        if (code != RF_OK)
            return fail_wait(session, code, "waiting for its welcome", err);
    }
    enum rf_code code = chunk_welcome_decode(raw, sizeof raw, ret_welcome, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "seed %s", session->peer);
}

static enum rf_code shake_hands(struct transport_session *session, uint64_t deadline_ns,
                                struct rf_error *err)
{
    struct chunk_hello hello = {.version_min = 1, .version_max = CHUNK_VERSION};
    struct chunk_welcome welcome = {0};
    uint8_t raw[CHUNK_HELLO_BYTES];

    memcpy(hello.token, session->options.token, sizeof hello.token);
    chunk_hello_encode(&hello, raw);
    /* An empty socket buffer takes it whole. */
    ssize_t put = send(session->fd, raw, sizeof raw, MSG_NOSIGNAL);
    if (put != (ssize_t)sizeof raw)
        return fail_gone(session, "sending the hello", put < 0 ? errno : EMSGSIZE, err);
    enum rf_code code = receive_welcome(session, deadline_ns, &welcome, err);
    if (code != RF_OK)
        return code;
    if (welcome.status != RF_OK)
        return explain_refusal(session, &welcome, err);
    session->window = welcome.max_in_flight;
    session->max_read_bytes = welcome.max_read_bytes;
    return RF_OK;
}

enum rf_code tcp_session_open(const struct endpoint *endpoint,
                              const struct transport_open_options *options,
                              struct transport_session **ret_session, struct rf_error *err)
{
    struct net_address address = {.bytes = 0};

    enum rf_code code = net_address_parse(endpoint->address, &address, err);
    if (code != RF_OK)
        return code;
    struct transport_session *session = calloc(1, sizeof *session);
    if (session == NULL)
        return rf_fail(err, RF_E_NOMEM, "seed %s: no memory for a session", endpoint->address);
    session->fd = -1;
    session->options = *options;
    session->next_id = 1;
    session->low_water = 1;
    net_address_text(&address, session->peer);
    tcp_intake_init(&session->intake, session->scratch);

    uint64_t deadline_ns = clock_deadline_ns(timeout_ms(session));
    code = connect_to(session, &address, deadline_ns, err);
    if (code == RF_OK)
        code = shake_hands(session, deadline_ns, err);
    if (code != RF_OK) {
        tcp_session_close(session);
        return code;
    }
    *ret_session = session;
    return RF_OK;
}

void tcp_session_close(struct transport_session *session)
{
    if (session == NULL)
        return;
    if (session->fd >= 0)
        close(session->fd);
    buf_free(&session->out);
    free(session);
}

/* ---- asking ---- */

static enum rf_code say_dead(const struct transport_session *session, struct rf_error *err)
{
    if (err != NULL)
        *err = session->why_dead;
    return session->dead;
}

/* Hands requests to the socket, as many as it takes. A seed that is gone shows when we read. */
static void flush_out(struct transport_session *session)
{
    while (session->out_sent < session->out.bytes && !session->out_broken) {
        ssize_t put = send(session->fd, session->out.data + session->out_sent,
                           session->out.bytes - session->out_sent, MSG_NOSIGNAL);
        if (put >= 0)
            session->out_sent += (size_t)put;
        else if (errno == EAGAIN)
            return;
        else if (errno != EINTR)
            session->out_broken = true;
    }
    session->out.bytes = 0;
    session->out_sent = 0;
}

enum rf_code tcp_session_submit(struct transport_session *session, struct read *read,
                                struct rf_error *err)
{
    enum rf_code code = transport_read_check(read, err);
    uint8_t *head;

    if (code != RF_OK)
        return code;
    if (session->dead != RF_OK)
        return say_dead(session, err);
    if (session->intake.goodbye)
        return rf_fail(err, RF_E_UNREACHABLE, "seed %s takes no more reads: it is stopping",
                       session->peer);
    if (read->bytes > session->max_read_bytes)
        return rf_fail(err, RF_E_INVAL,
                       "a read of %" PRIu64 " bytes, seed %s takes at most %" PRIu64, read->bytes,
                       session->peer, session->max_read_bytes);
    if (session->intake.in_flight >= session->window)
        return RF_AGAIN;

    size_t before = session->out.bytes;
    const struct chunk_hdr hdr = {
        .type = CHUNK_READ,
        .flags = chunk_digest_flag(read->digest),
        .body_bytes = CHUNK_READ_BYTES + read->range_count * CHUNK_RANGE_BYTES,
        .request_id = session->next_id,
    };
    head = buf_reserve(&session->out, CHUNK_HDR_BYTES + hdr.body_bytes);
    if (head == NULL) {
        session->out.failed = false; /* what is in it is whole */
        return rf_fail(err, RF_E_NOMEM, "seed %s: no memory for a request", session->peer);
    }
    chunk_hdr_encode(&hdr, head);
    session->out.bytes += CHUNK_HDR_BYTES;
    chunk_read_encode(read->rank, read->ranges, read->range_count, &session->out);
    assert(session->out.bytes == before + CHUNK_HDR_BYTES + hdr.body_bytes);

    if (session->intake.in_flight == 0)
        session->heard_ns = clock_now_ns();
    read->id = session->next_id++;
    tcp_intake_add(&session->intake, read);
    flush_out(session);
    return RF_OK;
}

/* ---- receiving ---- */

static enum rf_code die(struct transport_session *session, enum rf_code code)
{
    session->dead = code;
    session->why_dead.code = code;
    return code;
}

/* Receives once. RF_AGAIN: nothing is there. */
static enum rf_code receive(struct transport_session *session, struct read **ret_done)
{
    struct iovec iov[TCP_IN_IOV];
    struct msghdr msg = {.msg_iov = iov};

    int count = tcp_intake_where(&session->intake, iov);
    if (count == 0)
        return RF_OK; /* the sink failed; the next call finds another place */
    msg.msg_iovlen = (size_t)count;
    ssize_t got = recvmsg(session->fd, &msg, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return RF_AGAIN;
    if (got < 0)
        return die(session, fail_gone(session, "receiving", errno, &session->why_dead));
    if (got == 0)
        return die(session,
                   rf_fail(&session->why_dead, RF_E_UNREACHABLE,
                           "seed %s closed the connection%s, %" PRIu32 " reads were open",
                           session->peer, session->intake.goodbye ? " as it is stopping" : "",
                           session->intake.in_flight));
    session->heard_ns = clock_now_ns();
    enum rf_code code =
        tcp_intake_arrived(&session->intake, (uint64_t)got, ret_done, &session->why_dead);
    if (code != RF_OK)
        return die(session, rf_error_wrap(&session->why_dead, code, "seed %s", session->peer));
    return RF_OK;
}

/* Lets poll() sleep until a piece worth a call is there, as far as it is sure to come. */
static void set_low_water(struct transport_session *session)
{
    uint32_t need = tcp_intake_need(&session->intake);
    int low_water = need < TCP_PIECE_BYTES ? (int)need : TCP_PIECE_BYTES;

    if (low_water == session->low_water)
        return;
    if (setsockopt(session->fd, SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water) == 0)
        session->low_water = low_water;
}

/* Waits for bytes. RF_E_TIMEOUT: the caller's deadline. Anything else that is not RF_OK: the
 * session is dead. */
static enum rf_code wait_more(struct transport_session *session, uint64_t deadline_ns)
{
    bool unsent = session->out_sent < session->out.bytes;
    uint64_t silent_ns = session->heard_ns + timeout_ms(session) * CLOCK_NS_PER_MS;
    bool silence_first = silent_ns < deadline_ns;

    set_low_water(session);
    enum rf_code code = wait_for(session->fd, (short)(POLLIN | (unsent ? POLLOUT : 0)),
                                 &session->options, silence_first ? silent_ns : deadline_ns);
    if (code == RF_E_CANCELLED)
        return die(session, rf_fail(&session->why_dead, code, "seed %s: cancelled", session->peer));
    if (code == RF_E_TIMEOUT && silence_first)
        return die(session,
                   rf_fail(&session->why_dead, code,
                           "seed %s: silent for %" PRIu64 " ms, %" PRIu32 " reads were open",
                           session->peer, timeout_ms(session), session->intake.in_flight));
    if (code == RF_OK && unsent)
        flush_out(session);
    return code;
}

/* Moves bytes until a read has ended, the session is dead or the deadline has passed. */
static enum rf_code pump(struct transport_session *session, uint64_t deadline_ns,
                         struct read **ret_done)
{
    enum rf_code code = RF_OK;

    while (code == RF_OK && *ret_done == NULL) {
        if (is_cancelled(&session->options))
            return die(session, rf_fail(&session->why_dead, RF_E_CANCELLED, "seed %s: cancelled",
                                        session->peer));
        code = receive(session, ret_done);
        if (code == RF_AGAIN)
            code = wait_more(session, deadline_ns);
        else if (code == RF_OK && *ret_done == NULL && clock_now_ns() >= deadline_ns)
            code = RF_E_TIMEOUT;
    }
    return code;
}

enum rf_code tcp_session_progress(struct transport_session *session, uint64_t deadline_ns,
                                  struct read **ret_done, struct rf_error *err)
{
    struct read *done = NULL;

    if (session->dead == RF_OK && session->intake.in_flight == 0)
        return rf_fail(err, RF_E_INVAL, "seed %s: no read in flight", session->peer);
    if (session->dead == RF_OK && pump(session, deadline_ns, &done) == RF_E_TIMEOUT &&
        session->dead == RF_OK)
        return rf_fail(err, RF_E_TIMEOUT,
                       "seed %s: %" PRIu32 " reads are still in flight at the deadline",
                       session->peer, session->intake.in_flight);
    if (done == NULL) {
        done = tcp_intake_take(&session->intake);
        if (done == NULL)
            return say_dead(session, err);
        if (done->code == RF_OK) {
            done->code = session->dead;
            done->error = session->why_dead;
        }
    }
    *ret_done = done;
    return RF_OK;
}
