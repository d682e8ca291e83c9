/* The reader's half: one connection, driven by whoever calls. Bytes go from the socket straight to
 * where the sinks want them. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/net/dial.h"
#include "transport/tcp/intake.h"
#include "transport/tcp/tcp.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

struct transport_session {
    int fd;
    uint8_t token[CHUNK_TOKEN_BYTES];
    struct net_peer peer;
    uint32_t window;
    uint64_t max_read_bytes;
    enum rf_code dead; /* what every further call says; RF_OK: alive */
    struct rf_error why_dead;

    struct tcp_intake intake;
    uint64_t next_id;
    uint64_t heard_ns; /* when the last byte came, or when the wait for it began */
    int low_water;     /* SO_RCVLOWAT as set */

    struct net_unsent unsent;

    uint8_t scratch[TCP_SCRATCH_BYTES];
};

/* ---- opening ---- */

/* What a seed's refusal means to whoever wanted to connect. */
static enum rf_code explain_refusal(const struct transport_session *session,
                                    const struct chunk_welcome *welcome, struct rf_error *err)
{
    enum rf_code status = (enum rf_code)welcome->status;

    switch (status) {
    case RF_E_DENIED:
        return rf_fail(err, status, "seed %s refuses the token: the lease is unknown or over",
                       session->peer.text);
    case RF_E_NOMEM:
        return rf_fail(err, status,
                       "seed %s has no room for another connection: use fewer, or try later",
                       session->peer.text);
    case RF_E_UNSUPPORTED:
        return rf_fail(err, status, "seed %s does not speak version %d of the protocol",
                       session->peer.text, CHUNK_VERSION);
    default:
        return rf_fail(err, status, "seed %s refuses the connection: %s", session->peer.text,
                       rf_code_name(status));
    }
}

static enum rf_code receive_welcome(struct transport_session *session, uint64_t deadline_ns,
                                    struct chunk_welcome *ret_welcome, struct rf_error *err)
{
    uint8_t raw[CHUNK_WELCOME_BYTES];
    enum rf_code code = net_receive_all(&session->peer, session->fd, raw, sizeof raw,
                                        "waiting for its welcome", deadline_ns, err);

    if (code != RF_OK)
        return code;
    code = chunk_welcome_decode(raw, sizeof raw, ret_welcome, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "seed %s", session->peer.text);
}

static enum rf_code shake_hands(struct transport_session *session, uint64_t deadline_ns,
                                struct rf_error *err)
{
    struct chunk_hello hello = {.version_min = 1, .version_max = CHUNK_VERSION};
    struct chunk_welcome welcome = {0};
    uint8_t raw[CHUNK_HELLO_BYTES];

    memcpy(hello.token, session->token, sizeof hello.token);
    chunk_hello_encode(&hello, raw);
    /* An empty socket buffer takes it whole. */
    ssize_t put = send(session->fd, raw, sizeof raw, MSG_NOSIGNAL);
    if (put != (ssize_t)sizeof raw)
        return net_fail_gone(&session->peer, "sending the hello", put < 0 ? errno : EMSGSIZE, err);
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
    session->peer = (struct net_peer){
        .kind = "seed",
        .timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : TCP_TIMEOUT_MS,
        .cancel = options->cancel,
        .cancel_fd = options->cancel_fd,
    };
    memcpy(session->token, options->token, sizeof session->token);
    session->next_id = 1;
    session->low_water = 1;
    net_address_text(&address, session->peer.text);
    tcp_intake_init(&session->intake, session->scratch);

    uint64_t deadline_ns = clock_deadline_ns(session->peer.timeout_ms);
    code = net_connect(&session->peer, &address, deadline_ns, &session->fd, err);
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
    buf_free(&session->unsent.out);
    free(session);
}

/* ---- asking ---- */

static enum rf_code say_dead(const struct transport_session *session, struct rf_error *err)
{
    if (err != NULL)
        *err = session->why_dead;
    return session->dead;
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
                       session->peer.text);
    if (read->bytes > session->max_read_bytes)
        return rf_fail(err, RF_E_INVAL,
                       "a read of %" PRIu64 " bytes, seed %s takes at most %" PRIu64, read->bytes,
                       session->peer.text, session->max_read_bytes);
    if (session->intake.in_flight >= session->window)
        return RF_AGAIN;

    size_t before = session->unsent.out.bytes;
    const struct chunk_hdr hdr = {
        .type = CHUNK_READ,
        .flags = chunk_digest_flag(read->digest),
        .body_bytes = CHUNK_READ_BYTES + read->range_count * CHUNK_RANGE_BYTES,
        .request_id = session->next_id,
    };
    head = buf_reserve(&session->unsent.out, CHUNK_HDR_BYTES + hdr.body_bytes);
    if (head == NULL) {
        session->unsent.out.failed = false; /* what is in it is whole */
        return rf_fail(err, RF_E_NOMEM, "seed %s: no memory for a request", session->peer.text);
    }
    chunk_hdr_encode(&hdr, head);
    session->unsent.out.bytes += CHUNK_HDR_BYTES;
    chunk_read_encode(read->rank, read->ranges, read->range_count, &session->unsent.out);
    assert(session->unsent.out.bytes == before + CHUNK_HDR_BYTES + hdr.body_bytes);

    if (session->intake.in_flight == 0)
        session->heard_ns = clock_now_ns();
    read->id = session->next_id++;
    tcp_intake_add(&session->intake, read);
    net_flush(&session->unsent, session->fd);
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
        return die(session, net_fail_gone(&session->peer, "receiving", errno, &session->why_dead));
    if (got == 0)
        return die(session,
                   rf_fail(&session->why_dead, RF_E_UNREACHABLE,
                           "seed %s closed the connection%s, %" PRIu32 " reads were open",
                           session->peer.text, session->intake.goodbye ? " as it is stopping" : "",
                           session->intake.in_flight));
    session->heard_ns = clock_now_ns();
    enum rf_code code =
        tcp_intake_arrived(&session->intake, (uint64_t)got, ret_done, &session->why_dead);
    if (code != RF_OK)
        return die(session, rf_error_wrap(&session->why_dead, code, "seed %s", session->peer.text));
    return RF_OK;
}

/* Waits for bytes, a piece worth a call as far as it is sure to come. RF_E_TIMEOUT: the caller's
 * deadline. Anything else that is not RF_OK: the session is dead. */
static enum rf_code wait_more(struct transport_session *session, uint64_t deadline_ns)
{
    uint32_t need = tcp_intake_need(&session->intake);
    bool unsent = net_has_unsent(&session->unsent);
    bool over = false;

    net_set_low_water(session->fd, need < TCP_PIECE_BYTES ? (int)need : TCP_PIECE_BYTES,
                      &session->low_water);
    enum rf_code code =
        net_wait_answer(&session->peer, session->fd, unsent, session->heard_ns,
                        session->intake.in_flight, deadline_ns, &over, &session->why_dead);
    if (over)
        return die(session, code);
    if (code == RF_OK && unsent)
        net_flush(&session->unsent, session->fd);
    return code;
}

/* Moves bytes until a read has ended, the session is dead or the deadline has passed. */
static enum rf_code pump(struct transport_session *session, uint64_t deadline_ns,
                         struct read **ret_done)
{
    enum rf_code code = RF_OK;

    while (code == RF_OK && *ret_done == NULL) {
        if (net_is_cancelled(&session->peer))
            return die(session, net_fail_wait(&session->peer, RF_E_CANCELLED, "reading",
                                              &session->why_dead));
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
        return rf_fail(err, RF_E_INVAL, "seed %s: no read in flight", session->peer.text);
    if (session->dead == RF_OK && pump(session, deadline_ns, &done) == RF_E_TIMEOUT &&
        session->dead == RF_OK)
        return rf_fail(err, RF_E_TIMEOUT,
                       "seed %s: %" PRIu32 " reads are still in flight at the deadline",
                       session->peer.text, session->intake.in_flight);
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
