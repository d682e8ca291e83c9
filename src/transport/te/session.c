/* The reader's half, towards seeds of ours and engines that are not. Bytes go from sockets straight
 * to where the sinks want them.
 *
 * Requests are placed on lines, which are connections. One is all it takes where an engine answers
 * many requests over it. Engines up to 0.3.9 close after each: that shows when the second request on
 * a connection is met by its end. From then on each request gets a line of its own, a few at a time;
 * they are answered in parallel but received in order. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "transport/net/dial.h"
#include "transport/te/directory.h"
#include "transport/te/handshake.h"
#include "transport/te/intake.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

enum {
    TE_LINES = 4, /* towards an engine that closes after each request */
};

struct te_line {
    int fd;
    uint32_t asked;    /* requests on it whose answers have not come */
    uint64_t answered; /* requests on it whose answers have */
    struct net_unsent unsent;
};

/* What an engine does with a connection when it has answered. */
enum te_habit { TE_HABIT_UNKNOWN, TE_HABIT_KEEPS, TE_HABIT_CLOSES };

struct transport_session {
    struct net_peer peer;
    struct net_address data;
    struct te_places own; /* of a seed of ours; else the directory's are used */
    enum te_habit habit;
    enum rf_code dead; /* what every further call says; RF_OK: alive */
    struct rf_error why_dead;

    struct te_line lines[TE_LINES]; /* in the order of what is asked on them */
    uint32_t line_count;
    uint32_t placed;   /* requests that are on lines, the first of the intake's */
    uint64_t heard_ns; /* when the last byte came, or when the wait for it began */
    int low_water;     /* SO_RCVLOWAT of the first line, as set */

    struct te_intake intake;
    uint8_t scratch[TE_SCRATCH_BYTES];
};

/* ---- lines ---- */

static void line_close(struct te_line *line)
{
    close(line->fd);
    buf_free(&line->unsent.out);
}

static void drop_first_line(struct transport_session *session)
{
    line_close(&session->lines[0]);
    session->line_count--;
    memmove(&session->lines[0], &session->lines[1], session->line_count * sizeof session->lines[0]);
    session->low_water = 1;
}

static void drop_lines(struct transport_session *session)
{
    while (session->line_count > 0)
        drop_first_line(session);
    session->placed = 0;
}

static enum rf_code add_line(struct transport_session *session, struct rf_error *err)
{
    struct te_line line = {.fd = -1};
    enum rf_code code = net_connect_begin(&session->peer, &session->data, &line.fd, err);

    if (code == RF_OK)
        session->lines[session->line_count++] = line;
    return code;
}

/* Puts the next requests on a line. */
static enum rf_code place_on(struct transport_session *session, struct te_line *line,
                             uint32_t count, struct rf_error *err)
{
    te_intake_encode(&session->intake, session->placed, count, &line->unsent.out);
    if (line->unsent.out.failed)
        return rf_fail(err, RF_E_NOMEM, "%s %s: no memory for requests", session->peer.kind,
                       session->peer.text);
    line->asked += count;
    session->placed += count;
    net_flush(&line->unsent, line->fd);
    return RF_OK;
}

/* An idle connection of an engine says nothing, unless its end: then it is given up. */
static enum rf_code check_idle(struct transport_session *session, struct rf_error *err)
{
    const struct te_line *line = &session->lines[0];
    uint8_t byte;

    if (session->line_count == 0 || line->asked > 0 || session->intake.ours)
        return RF_OK;
    ssize_t got = recv(line->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got > 0)
        return rf_fail(err, RF_E_PROTO, "%s %s sends bytes that nobody asked for",
                       session->peer.kind, session->peer.text);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return RF_OK;
    if (session->habit == TE_HABIT_UNKNOWN && line->answered > 0)
        session->habit = TE_HABIT_CLOSES;
    drop_first_line(session);
    return RF_OK;
}

/* One line for all requests. The first goes alone: until it is answered nobody knows whether more
 * will be, and an engine that refuses the next one may throw away what it has not yet sent. */
static enum rf_code place_on_one(struct transport_session *session, uint32_t count,
                                 struct rf_error *err)
{
    struct te_line *line = &session->lines[0];
    enum rf_code code = check_idle(session, err);

    if (code == RF_OK && session->line_count == 0)
        code = add_line(session, err);
    if (code != RF_OK)
        return code;
    if (session->intake.ours || (session->habit == TE_HABIT_KEEPS && line->answered > 0))
        return place_on(session, line, count, err);
    return line->asked == 0 ? place_on(session, line, 1, err) : RF_OK;
}

static enum rf_code place_on_many(struct transport_session *session, uint32_t count,
                                  struct rf_error *err)
{
    enum rf_code code = RF_OK;

    /* The one that was there before this was known. */
    if (session->line_count > 0 && session->lines[0].asked == 0)
        drop_first_line(session);
    for (; count > 0 && session->line_count < TE_LINES && code == RF_OK; count--) {
        code = add_line(session, err);
        if (code == RF_OK)
            code = place_on(session, &session->lines[session->line_count - 1], 1, err);
    }
    return code;
}

/* Makes requests of reads and puts them on lines, as far as windows allow. */
static enum rf_code ask(struct transport_session *session, struct rf_error *err)
{
    struct te_intake *intake = &session->intake;
    enum rf_code code = RF_OK;

    /* Many at a time: by one call. */
    if (intake->count <= TE_WINDOW / 2)
        te_intake_ask(intake);
    uint32_t count = intake->count - session->placed;
    if (count > 0 && session->placed == 0)
        session->heard_ns = clock_now_ns();
    if (count > 0)
        code = session->habit == TE_HABIT_CLOSES ? place_on_many(session, count, err)
                                                 : place_on_one(session, count, err);
    for (uint32_t i = 0; i < session->line_count; i++)
        net_flush(&session->lines[i].unsent, session->lines[i].fd);
    intake->expected = session->line_count > 0 ? session->lines[0].asked : 0;
    return code;
}

/* ---- opening ---- */

/* What a refusal of the token means. */
static enum rf_code explain_refusal(const struct transport_session *session, uint32_t status,
                                    struct rf_error *err)
{
    uint32_t code = status - TE_STATUS_CODE;

    if (status <= TE_STATUS_CODE || !chunk_code_ok(code))
        return rf_fail(err, RF_E_PROTO, "seed %s: status %" PRIu32 " in answer to the token",
                       session->peer.text, status);
    if (code == RF_E_DENIED)
        return rf_fail(err, RF_E_DENIED, "seed %s refuses the token: the lease is unknown or over",
                       session->peer.text);
    return rf_fail(err, (enum rf_code)code, "seed %s refuses the connection: %s",
                   session->peer.text, rf_code_name((enum rf_code)code));
}

static enum rf_code show_token(struct transport_session *session, const uint8_t *token,
                               uint64_t deadline_ns, struct rf_error *err)
{
    const struct te_hdr hdr = {.bytes = CHUNK_TOKEN_BYTES, .op = TE_OP_TOKEN};
    uint8_t raw[TE_HDR_BYTES + CHUNK_TOKEN_BYTES];
    uint8_t answer[TE_STATUS_BYTES];
    uint32_t status = 0;
    int fd = session->lines[0].fd;

    te_hdr_encode(&hdr, raw);
    memcpy(raw + TE_HDR_BYTES, token, CHUNK_TOKEN_BYTES);
    enum rf_code code =
        net_send_all(&session->peer, fd, raw, sizeof raw, "sending the token", deadline_ns, err);
    if (code == RF_OK)
        code = net_receive_all(&session->peer, fd, answer, sizeof answer,
                               "waiting for the answer to the token", deadline_ns, err);
    if (code != RF_OK)
        return code;
    code = te_status_decode(answer, &status, err);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "seed %s", session->peer.text);
    return status == TE_STATUS_OK ? RF_OK : explain_refusal(session, status, err);
}

static enum rf_code connect_first(struct transport_session *session, uint64_t deadline_ns,
                                  struct rf_error *err)
{
    struct te_line line = {.fd = -1};
    enum rf_code code = net_connect(&session->peer, &session->data, deadline_ns, &line.fd, err);

    if (code == RF_OK)
        session->lines[session->line_count++] = line;
    return code;
}

/* A seed of ours says where the data plane is at the very address that was dialled: it is never
 * followed elsewhere. */
static enum rf_code open_ours(struct transport_session *session, const uint8_t *token,
                              uint64_t deadline_ns, struct rf_error *err)
{
    struct te_descriptor descriptor;
    enum rf_code code = te_handshake(&session->peer, &session->data, deadline_ns, &descriptor, err);

    if (code != RF_OK)
        return code;
    if (descriptor.rfork == 0 || descriptor.data_port == 0)
        code = rf_fail(err, RF_E_UNSUPPORTED,
                       "seed %s is another engine, %s over %s: it can be read only with a "
                       "directory of what lies where",
                       session->peer.text, descriptor.name, descriptor.protocol);
    if (code == RF_OK)
        code = te_places_of_seed(&session->own, &descriptor, err);
    net_set_port(&session->data, descriptor.data_port);
    te_descriptor_free(&descriptor);
    if (code != RF_OK)
        return code;
    te_intake_init(&session->intake, &session->own, session->scratch);
    session->intake.statuses = true;
    session->intake.ours = true;
    session->habit = TE_HABIT_KEEPS;
    code = connect_first(session, deadline_ns, err);
    return code == RF_OK ? show_token(session, token, deadline_ns, err) : code;
}

static enum rf_code open_engine(struct transport_session *session,
                                const struct transport_directory *directory, uint64_t deadline_ns,
                                struct rf_error *err)
{
    char text[NET_ADDRESS_TEXT_BYTES];

    session->peer.kind = "engine";
    session->data = directory->data;
    memcpy(session->peer.text, net_address_text(&session->data, text), sizeof text);
    te_intake_init(&session->intake, &directory->places, session->scratch);
    session->intake.statuses = directory->descriptor.version >= 2;
    session->habit = session->intake.statuses ? TE_HABIT_KEEPS : TE_HABIT_UNKNOWN;
    return connect_first(session, deadline_ns, err);
}

enum rf_code te_session_open(const struct endpoint *endpoint,
                             const struct transport_open_options *options,
                             struct transport_session **ret_session, struct rf_error *err)
{
    struct net_address address = {.bytes = 0};
    enum rf_code code = RF_OK;

    if (options->directory == NULL)
        code = net_address_parse(endpoint->address, &address, err);
    if (code != RF_OK)
        return code;
    struct transport_session *session = calloc(1, sizeof *session);
    if (session == NULL)
        return rf_fail(err, RF_E_NOMEM, "seed %s: no memory for a session", endpoint->address);
    session->peer = (struct net_peer){
        .kind = "seed",
        .timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : TE_TIMEOUT_MS,
        .cancel = options->cancel,
        .cancel_fd = options->cancel_fd,
    };
    session->low_water = 1;
    session->data = address;
    uint64_t deadline_ns = clock_deadline_ns(session->peer.timeout_ms);
    if (options->directory == NULL) {
        net_address_text(&address, session->peer.text);
        code = open_ours(session, options->token, deadline_ns, err);
    } else {
        code = open_engine(session, options->directory, deadline_ns, err);
    }
    if (code != RF_OK) {
        te_session_close(session);
        return code;
    }
    *ret_session = session;
    return RF_OK;
}

void te_session_close(struct transport_session *session)
{
    if (session == NULL)
        return;
    drop_lines(session);
    te_intake_free(&session->intake);
    te_places_free(&session->own);
    free(session);
}

/* ---- receiving ---- */

static enum rf_code die(struct transport_session *session, enum rf_code code)
{
    session->dead = code;
    session->why_dead.code = code;
    return code;
}

static enum rf_code say_dead(const struct transport_session *session, struct rf_error *err)
{
    if (err != NULL)
        *err = session->why_dead;
    return session->dead;
}

/* The first line is at its end, or broken. Where that is an engine's way once it has answered, what
 * has not come is asked for again, over new lines. */
static enum rf_code line_ended(struct transport_session *session, int sys_errno)
{
    struct te_intake *intake = &session->intake;
    bool begun = te_intake_begun(intake);

    if (!intake->ours && session->lines[0].answered > 0) {
        if (session->habit == TE_HABIT_UNKNOWN && !begun)
            session->habit = TE_HABIT_CLOSES;
        drop_lines(session);
        te_intake_lost(intake);
        return RF_OK;
    }
    if (sys_errno != 0)
        return die(session,
                   net_fail_gone(&session->peer, "receiving", sys_errno, &session->why_dead));
    return die(session, rf_fail(&session->why_dead, RF_E_UNREACHABLE,
                                "%s %s closed the connection%s, %" PRIu32 " reads were open",
                                session->peer.kind, session->peer.text,
                                begun ? " in the middle of an answer" : "", intake->in_flight));
}

/* Takes answers off the first line's account. */
static void count_answers(struct transport_session *session, uint32_t before)
{
    struct te_line *line = &session->lines[0];
    uint32_t answers = before - session->intake.expected;

    line->asked -= answers;
    line->answered += answers;
    session->placed -= answers;
    if (session->intake.line_over) {
        drop_lines(session);
        te_intake_lost(&session->intake);
        return;
    }
    if (answers > 0 && session->habit == TE_HABIT_UNKNOWN && line->answered > 1)
        session->habit = TE_HABIT_KEEPS;
    if (answers > 0 && session->habit == TE_HABIT_CLOSES)
        drop_first_line(session);
}

/* Receives once. RF_AGAIN: nothing is there. */
static enum rf_code receive(struct transport_session *session)
{
    struct te_intake *intake = &session->intake;
    uint32_t before = intake->expected;
    struct msghdr msg = {.msg_iov = NULL};

    int count = te_intake_where(intake, &msg.msg_iov);
    if (count == 0)
        return RF_OK; /* the sink failed; the next call finds another place */
    msg.msg_iovlen = (size_t)count;
    ssize_t got = recvmsg(session->lines[0].fd, &msg, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return RF_AGAIN;
    if (got <= 0)
        return line_ended(session, got < 0 ? errno : 0);
    session->heard_ns = clock_now_ns();
    enum rf_code code = te_intake_arrived(intake, (uint64_t)got, &session->why_dead);
    if (code != RF_OK)
        return die(session, rf_error_wrap(&session->why_dead, code, "%s %s", session->peer.kind,
                                          session->peer.text));
    count_answers(session, before);
    return RF_OK;
}

/* Waits for bytes, a piece worth a call as far as it is sure to come. RF_E_TIMEOUT: the caller's
 * deadline. Anything else that is not RF_OK: the session is dead. */
static enum rf_code wait_more(struct transport_session *session, uint64_t deadline_ns)
{
    struct te_line *line = &session->lines[0];
    uint64_t need = te_intake_need(&session->intake);
    bool over = false;

    net_set_low_water(line->fd, need < TE_PIECE_BYTES ? (int)need : TE_PIECE_BYTES,
                      &session->low_water);
    enum rf_code code =
        net_wait_answer(&session->peer, line->fd, net_has_unsent(&line->unsent), session->heard_ns,
                        session->intake.in_flight, deadline_ns, &over, &session->why_dead);
    return over ? die(session, code) : code;
}

/* Moves bytes until a read has ended, the session is dead or the deadline has passed. */
static enum rf_code pump(struct transport_session *session, uint64_t deadline_ns,
                         struct read **ret_done)
{
    enum rf_code code = RF_OK;

    while ((*ret_done = te_intake_ended(&session->intake)) == NULL) {
        if (net_is_cancelled(&session->peer))
            return die(session, net_fail_wait(&session->peer, RF_E_CANCELLED, "reading",
                                              &session->why_dead));
        code = ask(session, &session->why_dead);
        if (code != RF_OK)
            return die(session, code);
        if (session->intake.expected == 0)
            continue; /* the first read failed, and nothing of it is left to come */
        code = receive(session);
        if (code == RF_AGAIN)
            code = wait_more(session, deadline_ns);
        else if (code == RF_OK && clock_now_ns() >= deadline_ns)
            code = RF_E_TIMEOUT; /* unless what has just come was the end of a read */
        if (code != RF_OK) {
            *ret_done = te_intake_ended(&session->intake);
            return *ret_done != NULL ? RF_OK : code;
        }
    }
    return RF_OK;
}

/* ---- the table's functions ---- */

enum rf_code te_session_submit(struct transport_session *session, struct read *read,
                               struct rf_error *err)
{
    enum rf_code code = transport_read_check(read, err);

    if (code != RF_OK)
        return code;
    if (session->dead != RF_OK)
        return say_dead(session, err);
    if (session->intake.in_flight >= CHUNK_MAX_IN_FLIGHT)
        return RF_AGAIN;
    te_intake_add(&session->intake, read);
    code = ask(session, &session->why_dead);
    if (code != RF_OK)
        (void)die(session, code); /* the next progress() says so, with this read */
    return RF_OK;
}

enum rf_code te_session_progress(struct transport_session *session, uint64_t deadline_ns,
                                 struct read **ret_done, struct rf_error *err)
{
    struct read *done = NULL;

    if (session->dead == RF_OK && session->intake.in_flight == 0)
        return rf_fail(err, RF_E_INVAL, "%s %s: no read in flight", session->peer.kind,
                       session->peer.text);
    if (session->dead == RF_OK && pump(session, deadline_ns, &done) == RF_E_TIMEOUT &&
        session->dead == RF_OK)
        return rf_fail(err, RF_E_TIMEOUT,
                       "%s %s: %" PRIu32 " reads are still in flight at the deadline",
                       session->peer.kind, session->peer.text, session->intake.in_flight);
    if (done == NULL)
        done = te_intake_ended(&session->intake);
    if (done == NULL) {
        done = te_intake_take(&session->intake);
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
