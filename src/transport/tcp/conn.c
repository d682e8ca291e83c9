#include "transport/tcp/conn.h"

#include "base/log.h"
#include "transport/read_digest.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    CONN_BULK_MIN_BYTES = 16 << 10, /* below it, a copy costs less than the calls */
    CONN_IN_BYTES = CHUNK_HDR_BYTES + CHUNK_MAX_READ_BODY,
    CONN_RANGES = 2 * CHUNK_MAX_RANGES, /* of all requests in flight */
    CONN_WORDS_BYTES = CHUNK_HDR_BYTES + CHUNK_MAX_ERROR_BODY,
};

struct request {
    uint64_t id;
    uint32_t rank;
    uint32_t first; /* of its ranges, in conn->ranges */
    uint32_t range_count;
    enum hash_algorithm digest; /* 0: not asked for */
};

enum conn_state {
    CONN_HELLO,  /* waiting for it */
    CONN_OPEN,   /* requests come and are answered */
    CONN_ENDING, /* nothing the reader says counts any more; what it is owed still goes out */
};

struct tcp_conn {
    struct tcp_policy *policy;
    void *lease; /* NULL before a good hello */
    enum conn_state state;
    struct net_out_limits limits;
    bool drain; /* GOODBYE is to be said */

    /* Requests in their order, a ring. */
    struct request queue[CHUNK_MAX_IN_FLIGHT];
    uint32_t queue_head;
    uint32_t queue_count;
    uint32_t ranges_end; /* behind the newest request's */

    /* What goes out: words, then the body of a DATA frame. */
    uint8_t words[CONN_WORDS_BYTES];
    uint32_t words_bytes;
    uint32_t words_sent;
    uint32_t frame_left;
    bool begun;         /* the first request: cursor and read_left are its */
    uint64_t read_left; /* of it, this frame's included */
    bool digest_said;   /* its DIGEST is on its way; it ends with that */
    struct read_digest digest;
    enum rf_code digest_failed; /* why no digest can be made of it */
    struct rf_error why_no_digest;
    struct layout_cursor cursor;
    enum rf_code broken; /* why the connection ends, not said yet; RF_OK: it does not */
    struct rf_error why_broken;

    uint32_t in_bytes;
    uint8_t in[CONN_IN_BYTES];
    struct stream_range ranges[CONN_RANGES]; /* a ring; each request's lie together */
};

struct tcp_conn *tcp_conn_create(struct tcp_policy *policy)
{
    struct tcp_conn *conn = malloc(sizeof *conn);

    if (conn == NULL)
        return NULL;
    memset(conn, 0, offsetof(struct tcp_conn, in)); /* the rest only when it is used */
    conn->policy = policy;
    conn->limits.bulk_min_bytes = CONN_BULK_MIN_BYTES;
    return conn;
}

void tcp_conn_destroy(struct tcp_conn *conn)
{
    if (conn == NULL)
        return;
    if (conn->lease != NULL) {
        atomic_fetch_sub_explicit(&conn->policy->readers, 1, memory_order_relaxed);
        conn->policy->exporter.lease_release(conn->policy->exporter.ctx, conn->lease);
    }
    read_digest_free(&conn->digest);
    free(conn);
}

bool tcp_conn_is_open(const struct tcp_conn *conn)
{
    return conn->state == CONN_OPEN;
}

uint32_t tcp_conn_reads(const struct tcp_conn *conn)
{
    return conn->queue_count;
}

bool tcp_conn_has_output(const struct tcp_conn *conn)
{
    return conn->words_sent < conn->words_bytes || conn->queue_count > 0 || conn->broken != RF_OK ||
           conn->drain;
}

bool tcp_conn_is_finished(const struct tcp_conn *conn)
{
    return conn->state == CONN_ENDING && !tcp_conn_has_output(conn);
}

/* ---- words: everything but DATA's bodies ---- */

static void say_frame(struct tcp_conn *conn, const struct chunk_hdr *hdr)
{
    chunk_hdr_encode(hdr, conn->words);
    conn->words_bytes = CHUNK_HDR_BYTES;
    conn->words_sent = 0;
}

/* ERROR for a request; id 0: about the connection, which then ends. */
static void say_error(struct tcp_conn *conn, uint64_t id, enum rf_code code, const char *text)
{
    struct buf body BUF_AUTO = {0};

    chunk_error_encode(code, text, &body);
    if (body.failed) {
        body.bytes = 0;
        conn->state = CONN_ENDING; /* out of memory: the reader learns that it is over, not why */
        return;
    }
    say_frame(conn, &(struct chunk_hdr){
                        .type = CHUNK_ERROR, .body_bytes = (uint32_t)body.bytes, .request_id = id});
    memcpy(conn->words + CHUNK_HDR_BYTES, body.data, body.bytes);
    conn->words_bytes += (uint32_t)body.bytes;
}

static void say_welcome(struct tcp_conn *conn, uint16_t version, enum rf_code status)
{
    const struct chunk_welcome welcome = {
        .version = version,
        .status = (uint16_t)status,
        .max_in_flight = CHUNK_MAX_IN_FLIGHT,
        .max_read_bytes = CHUNK_MAX_READ_BYTES,
    };

    chunk_welcome_encode(&welcome, conn->words);
    conn->words_bytes = CHUNK_WELCOME_BYTES;
    conn->words_sent = 0;
    conn->state = status == RF_OK ? CONN_OPEN : CONN_ENDING;
}

/* The reader broke the protocol: it is told after the frame that is on its way, and nothing
 * else. */
static void break_off(struct tcp_conn *conn, enum rf_code code, const struct rf_error *why)
{
    log_debug("reader broke the protocol", "why=\"%s\"", why->text);
    conn->broken = code;
    conn->why_broken = *why;
    conn->state = CONN_ENDING;
    conn->drain = false;
    /* The frame that is on its way still needs its request. */
    conn->queue_count = conn->frame_left > 0 || conn->digest_said ? 1 : 0;
}

/* ---- hello ---- */

/* Asks the seed about the reader. */
static enum rf_code let_in(struct tcp_conn *conn, const struct chunk_hello *hello,
                           struct rf_error *err)
{
    struct tcp_policy *policy = conn->policy;
    void *lease = NULL;

    enum rf_code code =
        policy->exporter.lease_acquire(policy->exporter.ctx, hello->token, "tcp", &lease, err);
    if (code != RF_OK)
        return code;
    if (atomic_fetch_add_explicit(&policy->readers, 1, memory_order_relaxed) >=
        policy->max_readers) {
        atomic_fetch_sub_explicit(&policy->readers, 1, memory_order_relaxed);
        policy->exporter.lease_release(policy->exporter.ctx, lease);
        return rf_fail(err, RF_E_NOMEM, "%" PRIu32 " connections are all that there may be",
                       policy->max_readers);
    }
    conn->lease = lease;
    return RF_OK;
}

static void take_hello(struct tcp_conn *conn)
{
    struct chunk_hello hello;
    struct rf_error error = {0};
    uint16_t version = CHUNK_VERSION;

    enum rf_code code = chunk_hello_decode(conn->in, CHUNK_HELLO_BYTES, &hello, &error);
    if (code == RF_OK) {
        version = chunk_version_choose(&hello);
        code = version != 0 ? let_in(conn, &hello, &error)
                            : rf_fail(&error, RF_E_UNSUPPORTED, "versions %u to %u are not spoken",
                                      hello.version_min, hello.version_max);
    }
    if (code != RF_OK)
        log_debug("reader refused", "code=%s why=\"%s\"", rf_code_name(code), error.text);
    say_welcome(conn, version, code);
}

/* ---- requests ---- */

/* Where `count` ranges can lie together; false while there is no room. */
static bool ranges_room(const struct tcp_conn *conn, uint32_t count, uint32_t *ret_at)
{
    uint32_t oldest = conn->queue[conn->queue_head].first;
    uint32_t end = conn->ranges_end;

    if (conn->queue_count == 0) {
        *ret_at = 0;
        return true;
    }
    if (end > oldest && CONN_RANGES - end >= count) {
        *ret_at = end;
        return true;
    }
    if (end > oldest)
        end = 0;
    *ret_at = end;
    return oldest - end > count; /* never equal: end == oldest would look empty */
}

/* Queues the READ whose body this is. RF_AGAIN: not now, there is no room for its ranges. */
static enum rf_code take_read(struct tcp_conn *conn, const struct chunk_hdr *hdr,
                              const uint8_t *body, struct rf_error *err)
{
    struct request request = {.id = hdr->request_id, .digest = chunk_digest_wanted(hdr->flags)};
    uint32_t count = (hdr->body_bytes - CHUNK_READ_BYTES) / CHUNK_RANGE_BYTES;

    if (conn->drain || conn->state == CONN_ENDING)
        return RF_OK; /* it crossed our GOODBYE */
    if (hdr->request_id == 0)
        return rf_fail(err, RF_E_PROTO, "READ with id 0, which means the connection itself");
    if (conn->queue_count == CHUNK_MAX_IN_FLIGHT)
        return rf_fail(err, RF_E_PROTO, "more than %d READs in flight", CHUNK_MAX_IN_FLIGHT);
    if (!ranges_room(conn, count, &request.first))
        return RF_AGAIN;
    enum rf_code code =
        chunk_read_decode(body, hdr->body_bytes, &request.rank, conn->ranges + request.first, count,
                          &request.range_count, err);
    if (code != RF_OK)
        return code;
    conn->ranges_end = request.first + request.range_count;
    conn->queue[(conn->queue_head + conn->queue_count) % CHUNK_MAX_IN_FLIGHT] = request;
    conn->queue_count++;
    return RF_OK;
}

/* Takes one frame off `in`; *ret_bytes is its size. RF_AGAIN: it is not there completely, or has to
 * wait. */
static enum rf_code take_frame(struct tcp_conn *conn, const uint8_t *in, uint32_t in_bytes,
                               uint32_t *ret_bytes, struct rf_error *err)
{
    struct chunk_hdr hdr;

    if (in_bytes < CHUNK_HDR_BYTES)
        return RF_AGAIN;
    enum rf_code code = chunk_hdr_decode(in, CHUNK_HDR_BYTES, &hdr, err);
    if (code != RF_OK)
        return code;
    if (hdr.type != CHUNK_READ)
        return rf_fail(err, RF_E_PROTO, "frame of type %d: a reader sends READs only", hdr.type);
    if (in_bytes - CHUNK_HDR_BYTES < hdr.body_bytes)
        return RF_AGAIN;
    *ret_bytes = CHUNK_HDR_BYTES + hdr.body_bytes;
    return take_read(conn, &hdr, in + CHUNK_HDR_BYTES, err);
}

/* Works off what has arrived, as far as it can. */
static void digest_input(struct tcp_conn *conn)
{
    struct rf_error error = {0};
    enum rf_code code = RF_OK;
    uint32_t at = 0;

    if (conn->state == CONN_HELLO && conn->in_bytes >= CHUNK_HELLO_BYTES) {
        take_hello(conn);
        at = CHUNK_HELLO_BYTES;
    }
    while (conn->state == CONN_OPEN && code == RF_OK) {
        uint32_t bytes = 0;
        code = take_frame(conn, conn->in + at, conn->in_bytes - at, &bytes, &error);
        if (code == RF_OK)
            at += bytes;
    }
    if (code != RF_OK && code != RF_AGAIN)
        break_off(conn, code, &error);
    if (conn->state == CONN_ENDING)
        at = conn->in_bytes;
    conn->in_bytes -= at;
    if (at > 0)
        memmove(conn->in, conn->in + at, conn->in_bytes);
}

uint8_t *tcp_conn_space(struct tcp_conn *conn, size_t *ret_bytes)
{
    *ret_bytes = CONN_IN_BYTES - conn->in_bytes;
    return conn->in + conn->in_bytes;
}

void tcp_conn_arrived(struct tcp_conn *conn, size_t bytes)
{
    assert(bytes <= CONN_IN_BYTES - conn->in_bytes);
    conn->in_bytes += (uint32_t)bytes;
    digest_input(conn);
}

/* ---- answers ---- */

/* Whether and how the first request can be answered. */
static enum rf_code begin_read(struct tcp_conn *conn, const struct request *request,
                               struct rf_error *err)
{
    const struct exporter *exporter = &conn->policy->exporter;
    const struct stream_range *ranges = conn->ranges + request->first;
    uint64_t bytes = 0;

    enum rf_code code = exporter->lease_check(exporter->ctx, conn->lease, err);
    if (code != RF_OK)
        return code;
    const struct layout *layout = exporter->rank_layout(exporter->ctx, request->rank);
    if (layout == NULL)
        return rf_fail(err, RF_E_INVAL, "the seed has no rank %" PRIu32, request->rank);
    code = stream_ranges_check(ranges, request->range_count, layout->stream_bytes, &bytes, err);
    if (code != RF_OK)
        return code;
    if (bytes > CHUNK_MAX_READ_BYTES)
        return rf_fail(err, RF_E_INVAL, "a READ of %" PRIu64 " bytes, %d are allowed", bytes,
                       CHUNK_MAX_READ_BYTES);
    code = read_digest_begin(&conn->digest, request->digest, err);
    if (code != RF_OK)
        return code;
    layout_cursor_init(&conn->cursor, layout, ranges, request->range_count);
    conn->read_left = bytes;
    conn->begun = true;
    conn->digest_failed = RF_OK;
    return RF_OK;
}

static void end_read(struct tcp_conn *conn)
{
    conn->begun = false;
    conn->digest_said = false;
    conn->queue_head = (conn->queue_head + 1) % CHUNK_MAX_IN_FLIGHT;
    conn->queue_count--;
    digest_input(conn); /* a request may have waited for this one's ranges */
}

/* All bytes of the first request are gone: what they were. */
static void say_digest(struct tcp_conn *conn, const struct request *request)
{
    const uint32_t bytes = hash_bytes(request->digest);

    if (conn->digest_failed != RF_OK) {
        say_error(conn, request->id, conn->digest_failed, conn->why_no_digest.text);
        end_read(conn);
        return;
    }
    say_frame(conn, &(struct chunk_hdr){
                        .type = CHUNK_DIGEST, .body_bytes = bytes, .request_id = request->id});
    read_digest_final(&conn->digest, request->rank, conn->ranges + request->first,
                      request->range_count, conn->words + CHUNK_HDR_BYTES);
    conn->words_bytes += bytes;
    conn->digest_said = true;
}

/* Between two frames: decides what comes next and puts its words down. */
static void next_frame(struct tcp_conn *conn)
{
    const struct request *request = &conn->queue[conn->queue_head];
    struct rf_error error = {0};

    conn->words_bytes = 0;
    conn->words_sent = 0;
    if (conn->broken != RF_OK) {
        say_error(conn, 0, conn->broken, conn->why_broken.text);
        conn->broken = RF_OK;
        conn->queue_count = 0;
        return;
    }
    if (conn->drain) {
        say_frame(conn, &(struct chunk_hdr){.type = CHUNK_GOODBYE});
        conn->drain = false;
        conn->state = CONN_ENDING;
        return;
    }
    if (conn->queue_count == 0)
        return;
    if (conn->begun && conn->read_left == 0) {
        say_digest(conn, request);
        return;
    }
    enum rf_code code = conn->begun ? RF_OK : begin_read(conn, request, &error);
    if (code != RF_OK) {
        say_error(conn, request->id, code, error.text);
        end_read(conn);
        return;
    }
    conn->frame_left =
        conn->read_left < CHUNK_MAX_DATA_BYTES ? (uint32_t)conn->read_left : CHUNK_MAX_DATA_BYTES;
    say_frame(conn, &(struct chunk_hdr){
                        .type = CHUNK_DATA,
                        .flags = conn->frame_left == conn->read_left ? CHUNK_FLAG_LAST : 0,
                        .body_bytes = conn->frame_left,
                        .request_id = request->id,
                    });
}

/* Adds as much of the frame's body as one call can send. */
static enum rf_code out_add_body(const struct tcp_conn *conn, struct net_out *out,
                                 struct rf_error *err)
{
    uint64_t left = 0;

    enum rf_code code =
        net_out_add_stream(out, &conn->cursor, conn->frame_left, &conn->limits, &left, err);
    out->more =
        left > 0 || conn->queue_count > 1 || conn->frame_left < conn->read_left || conn->digest.on;
    return code;
}

bool tcp_conn_out(struct tcp_conn *conn, struct net_out *ret_out, enum rf_code *ret_code,
                  struct rf_error *err)
{
    *ret_code = RF_OK;
    if (conn->words_sent == conn->words_bytes && conn->frame_left == 0)
        next_frame(conn);
    net_out_reset(ret_out);
    ret_out->more = conn->queue_count > (conn->digest_said ? 1 : 0);
    if (conn->words_sent < conn->words_bytes)
        net_out_add(ret_out, conn->words + conn->words_sent, conn->words_bytes - conn->words_sent);
    if (conn->frame_left > 0)
        *ret_code = out_add_body(conn, ret_out, err);
    return *ret_code == RF_OK && (ret_out->iov_count > 0 || ret_out->bulk_bytes > 0);
}

/* After it was sent, as it is in the core's cache then. */
static void hash_sent(struct tcp_conn *conn, const struct segment *piece)
{
    if (conn->digest.on && conn->digest_failed == RF_OK)
        conn->digest_failed = read_digest_update_piece(&conn->digest, piece, &conn->why_no_digest);
}

uint64_t tcp_conn_sent(struct tcp_conn *conn, uint64_t bytes)
{
    uint64_t words = conn->words_bytes - conn->words_sent;
    struct segment piece;

    if (words > bytes)
        words = bytes;
    conn->words_sent += (uint32_t)words;
    if (conn->digest_said && conn->words_sent == conn->words_bytes)
        end_read(conn);

    uint64_t body = bytes - words;
    assert(body <= conn->frame_left);
    for (uint64_t left = body; left > 0; left -= piece.bytes) {
        bool some = layout_cursor_peek(&conn->cursor, left, &piece);
        assert(some);
        (void)some;
        hash_sent(conn, &piece);
        layout_cursor_skip(&conn->cursor, piece.bytes);
    }
    if (body > 0) {
        conn->frame_left -= (uint32_t)body;
        conn->read_left -= body;
        conn->policy->exporter.lease_account(conn->policy->exporter.ctx, conn->lease, body);
        if (conn->read_left == 0 && conn->queue[conn->queue_head].digest == 0)
            end_read(conn);
    }
    return body;
}

void tcp_conn_no_bulk(struct tcp_conn *conn, enum net_bulk bulk)
{
    conn->limits.no_bulk[bulk] = true;
}

void tcp_conn_drain(struct tcp_conn *conn)
{
    if (conn->state == CONN_HELLO)
        conn->state = CONN_ENDING; /* nobody is there yet */
    else if (conn->state == CONN_OPEN)
        conn->drain = true;
}
