/* Wraps another transport on the reader's side and misbehaves, from a seeded generator, as
 * spec.h says. What it does to a read it does to the wrapped transport's answer: a delay before,
 * smaller places to put bytes, other bytes in them, an end that comes too early. The wrapped
 * transport notices nothing. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rand.h"
#include "transport/fault/spec.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

enum {
    FAULT_TIMEOUT_MS =
        10 * 1000,        /* of silence, while it stalls, unless the options say otherwise */
    FAULT_DELAY_ODDS = 8, /* one progress() in so many waits */
    FAULT_TINY_BYTES = 16,
    FAULT_SHORT_BYTES = 64 << 10,
    FAULT_CANCEL_MS = 20,
    FAULT_IOV = 64,
    FAULT_LIE_BYTES = 64 << 10, /* how far off a lie is at most */
};

/* One read of the caller's, wrapped in one of ours. */
struct fault_read {
    struct sink sink; /* must be first: the wrapped transport hands it back */
    struct read inner;
    struct read *outer;
    struct transport_session *session;
    struct stream_range *lie; /* NULL: the truth */
    bool refused;             /* the wrapped transport never saw it */
    struct iovec offered[FAULT_IOV];
    int offered_count;
    struct fault_read *prev;
    struct fault_read *next;
};

struct transport_session {
    const struct transport *inner;
    struct transport_session *session; /* of inner, which has a struct of its own by that name */
    struct fault_spec spec;
    struct rand_seq rand;
    struct transport_open_options options;
    struct fault_read *first; /* all in flight, in the order of submission */
    struct fault_read *last;
    uint32_t refused; /* of them, those that the wrapped transport never saw */
    uint64_t arrived_bytes;
    uint64_t strikes;
    bool dying;                /* found out within a callback, to be done after it */
    uint64_t stalled_until_ns; /* 0: it does not */
    struct rf_error dead;      /* code RF_OK: alive */
};

struct transport_seed {
    const struct transport *inner;
    struct transport_seed *seed; /* of inner */
};

/* ---- chances ---- */

/* Whether this is a chance that a destructive kind takes. */
static bool fault_due(struct transport_session *session, enum fault_kind kind)
{
    const struct fault_spec *spec = &session->spec;

    if ((spec->kinds & kind) == 0 || session->arrived_bytes < spec->after_bytes)
        return false;
    if ((kind & (FAULT_REFUSE | FAULT_CORRUPT | FAULT_LIE)) != 0 && session->strikes >= spec->times)
        return false;
    if (spec->odds > 1 && rand_below(&session->rand, spec->odds) != 0)
        return false;
    session->strikes++;
    return true;
}

/* ---- the sink between ---- */

/* How much of the next offer the wrapped transport gets to see. */
static uint64_t offer_limit(struct transport_session *session)
{
    const struct fault_spec *spec = &session->spec;
    uint64_t limit = UINT64_MAX;

    if ((spec->kinds & FAULT_SHORT) != 0) {
        bool tiny = rand_below(&session->rand, 4) == 0;
        limit = 1 + rand_below(&session->rand, tiny ? FAULT_TINY_BYTES : FAULT_SHORT_BYTES);
    }
    /* So that it dies after exactly as many bytes as were asked for. */
    if ((spec->kinds & FAULT_DEATH) != 0 && session->arrived_bytes < spec->after_bytes &&
        spec->after_bytes - session->arrived_bytes < limit)
        limit = spec->after_bytes - session->arrived_bytes;
    return limit;
}

static int fault_where(struct sink *sink, struct iovec *iov, int max, uint64_t *ret_bytes)
{
    struct fault_read *read = (struct fault_read *)sink;
    struct sink *outer = read->outer->sink;
    uint64_t limit = offer_limit(read->session);
    uint64_t offered = 0;
    uint64_t bytes = 0;
    int count = outer->where(outer, iov, max < FAULT_IOV ? max : FAULT_IOV, &offered);
    int kept = 0;

    while (kept < count && bytes < limit) {
        if (iov[kept].iov_len > limit - bytes)
            iov[kept].iov_len = limit - bytes;
        bytes += iov[kept].iov_len;
        read->offered[kept] = iov[kept];
        kept++;
    }
    read->offered_count = kept;
    *ret_bytes = bytes;
    return kept;
}

/* Flips one bit among the bytes that have just arrived. */
static void flip_bit(struct fault_read *read, uint64_t bytes)
{
    struct rand_seq *rand = &read->session->rand;
    uint64_t at = rand_below(rand, bytes);

    for (int i = 0; i < read->offered_count; i++) {
        if (at < read->offered[i].iov_len) {
            ((uint8_t *)read->offered[i].iov_base)[at] ^= (uint8_t)(1u << rand_below(rand, 8));
            return;
        }
        at -= read->offered[i].iov_len;
    }
}

static enum rf_code fault_took(struct sink *sink, uint64_t bytes, struct rf_error *err)
{
    struct fault_read *read = (struct fault_read *)sink;
    struct transport_session *session = read->session;
    struct sink *outer = read->outer->sink;

    if (fault_due(session, FAULT_CORRUPT))
        flip_bit(read, bytes);
    session->arrived_bytes += bytes;
    enum rf_code code = outer->took(outer, bytes, err);
    if (code != RF_OK)
        return code;
    if (session->dying || fault_due(session, FAULT_DEATH)) {
        session->dying = true;
        return rf_fail(err, RF_E_UNREACHABLE, "fault: died after %" PRIu64 " bytes, as asked",
                       session->arrived_bytes);
    }
    return RF_OK;
}

/* ---- reads in flight ---- */

static void read_add(struct transport_session *session, struct fault_read *read)
{
    read->prev = session->last;
    if (session->last != NULL)
        session->last->next = read;
    else
        session->first = read;
    session->last = read;
}

/* Takes it out and frees it; returns the caller's read with how it went. */
static struct read *read_end(struct fault_read *read, enum rf_code code, const struct rf_error *why)
{
    struct transport_session *session = read->session;
    struct read *outer = read->outer;

    if (read->prev != NULL)
        read->prev->next = read->next;
    else
        session->first = read->next;
    if (read->next != NULL)
        read->next->prev = read->prev;
    else
        session->last = read->prev;
    outer->code = code;
    memcpy(outer->said, read->inner.said, sizeof outer->said);
    if (code != RF_OK)
        outer->error = *why;
    free(read->lie);
    free(read);
    return outer;
}

/* Replaces the ranges of a read by as many bytes of another place. Knowing nothing of the
 * stream's end, it goes towards its beginning, or turns the bytes of a range at 0 by one. */
static enum rf_code read_lie(struct fault_read *read, struct rf_error *err)
{
    struct read *inner = &read->inner;
    struct stream_range *lie = calloc((size_t)inner->range_count + 1, sizeof *lie);
    uint32_t count = 0;
    bool lied = false;

    if (lie == NULL)
        return rf_fail(err, RF_E_NOMEM, "fault: %" PRIu32 " ranges", inner->range_count);
    for (uint32_t i = 0; i < inner->range_count; i++) {
        struct stream_range range = inner->ranges[i];
        if (!lied && range.offset > 0) {
            uint64_t far = range.offset < FAULT_LIE_BYTES ? range.offset : FAULT_LIE_BYTES;
            range.offset -= 1 + rand_below(&read->session->rand, far);
            lied = true;
        } else if (!lied && range.count == 1 && range.bytes > 1 &&
                   inner->range_count < CHUNK_MAX_RANGES) {
            range.bytes--;
            lie[count] = range;
            lie[count].offset = 1;
            count++;
            range.bytes = 1;
            lied = true;
        }
        lie[count++] = range;
    }
    read->lie = lie;
    inner->ranges = lie;
    inner->range_count = count;
    return RF_OK;
}

static enum rf_code session_die(struct transport_session *session, enum rf_code code,
                                const char *why)
{
    rf_fail(&session->dead, code, "fault: %s", why);
    session->inner->close(session->session);
    session->session = NULL;
    return code;
}

/* ---- waiting ---- */

static bool cancelled(const struct transport_session *session)
{
    return session->options.cancel != NULL &&
           atomic_load_explicit(session->options.cancel, memory_order_acquire);
}

/* Lets time pass until the deadline: false if it was cancelled before. */
static bool session_idle(const struct transport_session *session, uint64_t deadline_ns)
{
    struct pollfd fd = {.fd = session->options.cancel_fd, .events = POLLIN};
    bool look = session->options.cancel != NULL && session->options.cancel_fd < 0;

    for (;;) {
        int left_ms = clock_left_ms(deadline_ns);
        if (cancelled(session))
            return false;
        if (left_ms == 0)
            return true;
        int rc = poll(&fd, 1, look && left_ms > FAULT_CANCEL_MS ? FAULT_CANCEL_MS : left_ms);
        if (rc > 0)
            return false;
    }
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns < b_ns ? a_ns : b_ns;
}

static void session_delay(struct transport_session *session, uint64_t deadline_ns)
{
    if ((session->spec.kinds & FAULT_DELAY) == 0 ||
        rand_below(&session->rand, FAULT_DELAY_ODDS) != 0)
        return;
    uint64_t delay_ms = 1 + rand_below(&session->rand, FAULT_MAX_DELAY_MS);
    (void)session_idle(session, earlier(deadline_ns, clock_deadline_ns(delay_ms)));
}

/* What a peer does that stopped in the middle: nothing, until the session has had enough of it.
 * RF_OK: it does not stall, or died of it. */
static enum rf_code session_stall(struct transport_session *session, uint64_t deadline_ns,
                                  struct rf_error *err)
{
    uint64_t until_ns = session->stalled_until_ns;

    if (until_ns == 0 && !fault_due(session, FAULT_STALL))
        return RF_OK;
    if (until_ns == 0)
        until_ns = session->stalled_until_ns = clock_deadline_ns(session->options.timeout_ms);
    if (!session_idle(session, earlier(deadline_ns, until_ns)))
        session_die(session, RF_E_CANCELLED, "cancelled while it stalled, as asked");
    else if (clock_left_ms(until_ns) == 0)
        session_die(session, RF_E_TIMEOUT, "stalled, as asked");
    else
        return rf_fail(err, RF_E_TIMEOUT, "fault: stalls, as asked");
    return RF_OK;
}

/* ---- the reader's side ---- */

static enum rf_code fault_open(const struct endpoint *endpoint,
                               const struct transport_open_options *options,
                               struct transport_session **ret_session, struct rf_error *err)
{
    rf_autofree struct transport_session *session = calloc(1, sizeof *session);
    struct endpoint inner = *endpoint;

    if (session == NULL)
        return rf_fail(err, RF_E_NOMEM, "fault: %zu bytes for a session", sizeof *session);
    enum rf_code code = fault_spec_parse(endpoint->transport, &session->spec, err);
    if (code == RF_OK)
        code = transport_find(session->spec.inner, &session->inner, err);
    if (code != RF_OK)
        return code;
    session->options = *options;
    if (session->options.timeout_ms == 0)
        session->options.timeout_ms = FAULT_TIMEOUT_MS;
    session->rand.state = session->spec.seed;
    memcpy(inner.transport, session->spec.inner, sizeof inner.transport);
    code = session->inner->open(&inner, options, &session->session, err);
    if (code == RF_OK)
        *ret_session = rf_take(session, NULL);
    return code;
}

static enum rf_code fault_submit(struct transport_session *session, struct read *outer,
                                 struct rf_error *err)
{
    if (session->dead.code != RF_OK)
        return rf_fail(err, session->dead.code, "%s", session->dead.text);
    if (session->refused == CHUNK_MAX_IN_FLIGHT)
        return RF_AGAIN;
    enum rf_code code = transport_read_check(outer, err);
    if (code != RF_OK)
        return code;
    struct fault_read *read = calloc(1, sizeof *read);
    if (read == NULL)
        return rf_fail(err, RF_E_NOMEM, "fault: %zu bytes for a read", sizeof *read);
    read->sink = (struct sink){.where = fault_where, .took = fault_took};
    read->outer = outer;
    read->session = session;
    read->inner = (struct read){.rank = outer->rank,
                                .ranges = outer->ranges,
                                .range_count = outer->range_count,
                                .bytes = outer->bytes,
                                .digest = outer->digest,
                                .sink = &read->sink,
                                .user = read};
    if (fault_due(session, FAULT_REFUSE)) {
        read->refused = true;
        session->refused++;
    } else {
        if (fault_due(session, FAULT_LIE))
            code = read_lie(read, err);
        if (code == RF_OK)
            code = session->inner->submit(session->session, &read->inner, err);
    }
    if (code != RF_OK) {
        free(read->lie);
        free(read);
        return code;
    }
    read_add(session, read);
    return RF_OK;
}

/* The first one that was refused here; NULL if there is none. */
static struct read *refused_end(struct transport_session *session)
{
    struct fault_read *read = session->first;
    struct rf_error why = {0};

    while (read != NULL && !read->refused)
        read = read->next;
    if (read == NULL)
        return NULL;
    session->refused--;
    rf_fail(&why, RF_E_FAILED, "fault: refused, as asked");
    return read_end(read, RF_E_FAILED, &why);
}

static enum rf_code fault_progress(struct transport_session *session, uint64_t deadline_ns,
                                   struct read **ret_done, struct rf_error *err)
{
    struct read *done = NULL;
    enum rf_code code = RF_OK;

    if (session->dead.code == RF_OK && session->first != NULL) {
        done = refused_end(session);
        if (done != NULL) {
            *ret_done = done;
            return RF_OK;
        }
        if (fault_due(session, FAULT_DEATH))
            session_die(session, RF_E_UNREACHABLE, "died, as asked");
        else
            code = session_stall(session, deadline_ns, err);
        if (code != RF_OK)
            return code;
    }
    if (session->dead.code != RF_OK) {
        if (session->first == NULL)
            return rf_fail(err, session->dead.code, "%s", session->dead.text);
        *ret_done = read_end(session->first, session->dead.code, &session->dead);
        return RF_OK;
    }
    session_delay(session, deadline_ns);
    code = session->inner->progress(session->session, deadline_ns, &done, err);
    if (code != RF_OK)
        return code;
    *ret_done = read_end(done->user, done->code, &done->error);
    if (session->dying)
        session_die(session, RF_E_UNREACHABLE, "died, as asked");
    return RF_OK;
}

static void fault_close(struct transport_session *session)
{
    if (session == NULL)
        return;
    session->inner->close(session->session); /* first: it may hold our reads until then */
    struct fault_read *next = NULL;
    for (struct fault_read *read = session->first; read != NULL; read = next) {
        next = read->next;
        free(read->lie);
        free(read);
    }
    free(session);
}

static void fault_judge(const struct endpoint *endpoint, struct transport_verdict *ret_verdict)
{
    struct transport_verdict verdict = {0};
    const struct transport *transport = NULL;
    struct endpoint inner = *endpoint;
    struct fault_spec spec;
    struct rf_error err = {0};
    enum rf_code code = fault_spec_parse(endpoint->transport, &spec, &err);

    if (code == RF_OK)
        code = transport_find(spec.inner, &transport, &err);
    *ret_verdict = (struct transport_verdict){0};
    if (code != RF_OK) {
        snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "%.255s", err.text);
        return;
    }
    memcpy(inner.transport, spec.inner, sizeof inner.transport);
    transport->judge(&inner, &verdict);
    ret_verdict->usable = verdict.usable;
    ret_verdict->rank = verdict.rank;
    snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "misbehaves as asked; %.200s",
             verdict.reason);
}

static void fault_available(struct transport_verdict *ret_verdict)
{
    *ret_verdict = (struct transport_verdict){
        .usable = true, .reason = "for tests: makes another transport misbehave"};
}

/* ---- the seed's side: the wrapped transport under a longer name ---- */

static enum rf_code fault_seed_start(const struct exporter *exporter,
                                     const struct transport_seed_options *options,
                                     struct transport_seed **ret_seed,
                                     struct endpoint *ret_endpoint, struct rf_error *err)
{
    struct transport_seed_options inner = *options;
    struct fault_spec spec;
    struct endpoint endpoint = {0};

    if (options->spec == NULL)
        return rf_fail(err, RF_E_INVAL,
                       "fault: what it wraps is missing: \"fault:7:tcp\" is a name");
    enum rf_code code = fault_spec_parse(options->spec, &spec, err);
    if (code != RF_OK)
        return code;
    rf_autofree struct transport_seed *seed = calloc(1, sizeof *seed);
    if (seed == NULL)
        return rf_fail(err, RF_E_NOMEM, "fault: %zu bytes for a seed", sizeof *seed);
    code = transport_find(spec.inner, &seed->inner, err);
    inner.spec = spec.inner;
    if (code == RF_OK)
        code = seed->inner->seed_start(exporter, &inner, &seed->seed, &endpoint, err);
    if (code != RF_OK)
        return code;
    snprintf(endpoint.transport, sizeof endpoint.transport, "%s", options->spec);
    *ret_endpoint = endpoint;
    *ret_seed = rf_take(seed, NULL);
    return RF_OK;
}

static uint32_t fault_seed_drain(struct transport_seed *seed, uint64_t deadline_ns)
{
    return seed->inner->seed_drain(seed->seed, deadline_ns);
}

static void fault_seed_stop(struct transport_seed *seed)
{
    if (seed == NULL)
        return;
    seed->inner->seed_stop(seed->seed);
    free(seed);
}

extern const struct transport transport_fault;

/* It maps nothing even if the wrapped transport could: what is mapped cannot be made to
 * misbehave, so that such a fork is made by reads. */
const struct transport transport_fault = {
    .name = "fault",
    .summary = "wraps another transport and misbehaves, for tests: fault:SEED[,kind=...]:NAME",
    .default_connections = 2,
    .available = fault_available,
    .seed_start = fault_seed_start,
    .seed_drain = fault_seed_drain,
    .seed_stop = fault_seed_stop,
    .judge = fault_judge,
    .open = fault_open,
    .submit = fault_submit,
    .progress = fault_progress,
    .close = fault_close,
};
