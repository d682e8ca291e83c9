#include "transport/te/data.h"

#include "base/log.h"
#include "transport/read_digest.h"
#include "transport/te/pieces.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    DATA_HEADERS = 8, /* that may wait for their turn here; more wait in the socket */
    /* below it, a copy costs less than the calls: one sendmsg() has status and bytes */
    DATA_BULK_MIN_BYTES = 96 << 10,
};

enum data_state {
    DATA_IDLE,   /* waiting for a header */
    DATA_BODY,   /* waiting for what belongs to one */
    DATA_ANSWER, /* words and bytes go out */
    DATA_ENDING, /* nothing the reader says counts any more; words may still go out */
};

/* What only readers of our own kind need: those that said a token. */
struct data_extra {
    void *lease; /* NULL: the token has not come yet, or was none */
    uint8_t *body;
    uint32_t body_bytes; /* that there will be */
    uint32_t body_got;
    /* Of the HASHED reads since the last DIGEST. */
    enum hash_algorithm algorithm; /* 0: there were none */
    uint32_t rank;
    struct te_pieces pieces;
    struct read_digest digest;
    enum rf_code failed; /* why there will be none */
    struct rf_error why_failed;
};

struct te_data {
    const struct te_policy *policy;
    struct te_share *share;
    struct data_extra *extra; /* NULL: said nothing of ours */
    enum data_state state;
    bool drain;
    bool shared; /* the read being answered is under the shared lease */
    bool hashed; /* and its bytes count for the digest */
    uint8_t in_bytes;
    uint8_t words_bytes;
    uint8_t words_sent;
    struct te_hdr hdr; /* being served */
    uint64_t left;     /* of the answer's bytes */
    struct stream_range range;
    struct layout_cursor cursor;
    struct net_out_limits limits;
    uint8_t words[TE_STATUS_BYTES + HASH_MAX_BYTES];
    uint8_t in[DATA_HEADERS * TE_HDR_BYTES];
};

struct te_data *te_data_create(const struct te_policy *policy, struct te_share *share)
{
    struct te_data *data = calloc(1, sizeof *data);

    if (data == NULL)
        return NULL;
    data->policy = policy;
    data->share = share;
    data->limits.bulk_min_bytes = DATA_BULK_MIN_BYTES;
    return data;
}

void te_data_destroy(struct te_data *data)
{
    if (data == NULL)
        return;
    if (data->shared)
        te_share_end(data->share);
    struct data_extra *extra = data->extra;
    if (extra != NULL) {
        if (extra->lease != NULL)
            data->policy->exporter.lease_release(data->policy->exporter.ctx, extra->lease);
        read_digest_free(&extra->digest);
        free(extra->body);
        free(extra);
    }
    free(data);
}

static bool has_token(const struct te_data *data)
{
    return data->extra != NULL && data->extra->lease != NULL;
}

/* ---- answers ---- */

static void say_status(struct te_data *data, uint32_t status)
{
    te_status_encode(status, data->words);
    data->words_bytes = TE_STATUS_BYTES;
    data->words_sent = 0;
    data->state = DATA_ANSWER;
}

/* The connection ends, after the words that are on their way. */
static void end(struct te_data *data)
{
    data->state = DATA_ENDING;
}

static bool is_v2(uint8_t op)
{
    return (op & TE_OP_V2) != 0;
}

/* Says why not. Only readers of our own kind know more than one reason, and that there may be more
 * to read afterwards. */
static void refuse(struct te_data *data, enum rf_code code, const struct rf_error *why)
{
    bool ours = has_token(data) && is_v2(data->hdr.op);

    log_debug("read refused", "op=%u address=0x%" PRIx64 " bytes=%" PRIu64 " why=\"%s\"",
              data->hdr.op, data->hdr.address, data->hdr.bytes, why->text);
    if (is_v2(data->hdr.op))
        say_status(data, ours ? (uint32_t)TE_STATUS_CODE + (uint32_t)code : TE_STATUS_REJECTED);
    if (!ours)
        end(data);
}

/* The same, and what follows cannot be told from requests. */
static void refuse_and_end(struct te_data *data, enum rf_code code, const struct rf_error *why)
{
    refuse(data, code, why);
    end(data);
}

/* ---- reads ---- */

static enum rf_code begin_hashed(struct te_data *data, const struct te_place *place,
                                 struct rf_error *err)
{
    const enum hash_algorithm algorithm = data->hdr.algorithm;
    struct data_extra *extra = data->extra;
    uint64_t offset = data->hdr.address - place->base;

    if (!has_token(data))
        return rf_fail(err, RF_E_DENIED, "digests are made for readers with a token");
    if (extra->failed != RF_OK)
        return rf_fail(err, extra->failed, "%s", extra->why_failed.text);
    if (extra->algorithm == 0) {
        if (hash_name(algorithm) == NULL)
            return rf_fail(err, RF_E_INVAL, "there is no digest algorithm %u", algorithm);
        enum rf_code code = read_digest_begin(&extra->digest, algorithm, err);
        if (code != RF_OK)
            return code;
        extra->algorithm = algorithm;
        extra->rank = place->rank;
        extra->pieces = (struct te_pieces){.end = 0};
    } else if (extra->algorithm != algorithm || extra->rank != place->rank) {
        return rf_fail(err, RF_E_INVAL, "a digest is of one rank and by one algorithm");
    }
    if (data->hdr.bytes > CHUNK_MAX_READ_BYTES - extra->pieces.bytes)
        return rf_fail(err, RF_E_INVAL, "a digest of more than %d bytes", CHUNK_MAX_READ_BYTES);
    te_pieces_add(&extra->pieces, offset, data->hdr.bytes);
    return RF_OK;
}

/* Whether the read can be answered. */
static enum rf_code begin_read(struct te_data *data, struct rf_error *err)
{
    const struct exporter *exporter = &data->policy->exporter;
    const struct te_place *place =
        te_space_find(&data->policy->space, data->hdr.address, data->hdr.bytes);
    enum rf_code code = RF_OK;

    if (place == NULL)
        return rf_fail(err, RF_E_INVAL,
                       "0x%" PRIx64 "+%" PRIu64 " lies in none of %" PRIu32 " ranks",
                       data->hdr.address, data->hdr.bytes, data->policy->space.count);
    bool hashed = data->hdr.op == TE_OP_HASHED;
    if (hashed)
        code = begin_hashed(data, place, err);
    if (code == RF_OK && has_token(data))
        code = exporter->lease_check(exporter->ctx, data->extra->lease, err);
    else if (code == RF_OK)
        code = te_share_begin(data->share, err);
    if (code != RF_OK)
        return code;
    data->shared = !has_token(data);
    data->hashed = hashed;
    data->range = (struct stream_range){
        .offset = data->hdr.address - place->base, .bytes = data->hdr.bytes, .count = 1};
    layout_cursor_init(&data->cursor, place->layout, &data->range, 1);
    data->left = data->hdr.bytes;
    return RF_OK;
}

static void take_read(struct te_data *data)
{
    struct rf_error error = {0};

    enum rf_code code = begin_read(data, &error);
    if (code == RF_OK) {
        say_status(data, TE_STATUS_OK);
        if (!is_v2(data->hdr.op))
            data->words_bytes = 0;
        return;
    }
    if (data->hdr.op == TE_OP_HASHED && has_token(data) && data->extra->failed == RF_OK) {
        data->extra->failed = code; /* nor is there a digest of the others */
        data->extra->why_failed = error;
    }
    refuse(data, code, &error);
}

/* ---- what has a body: our additions ---- */

static void take_token(struct te_data *data)
{
    const struct exporter *exporter = &data->policy->exporter;
    struct data_extra *extra = data->extra;
    struct rf_error error = {0};

    enum rf_code code =
        exporter->lease_acquire(exporter->ctx, extra->body, "te", &extra->lease, &error);
    if (code == RF_OK) {
        say_status(data, TE_STATUS_OK);
        return;
    }
    log_debug("reader refused", "code=%s why=\"%s\"", rf_code_name(code), error.text);
    say_status(data, (uint32_t)TE_STATUS_CODE + (uint32_t)code);
    end(data);
}

/* Whether the ranges in the body are what was read. */
static enum rf_code check_ranges(const struct data_extra *extra, const struct te_policy *policy,
                                 uint32_t rank, const struct stream_range *ranges, uint32_t count,
                                 struct rf_error *err)
{
    const struct layout *layout = policy->exporter.rank_layout(policy->exporter.ctx, rank);
    uint64_t bytes = 0;

    if (layout == NULL)
        return rf_fail(err, RF_E_INVAL, "the seed has no rank %" PRIu32, rank);
    enum rf_code code = stream_ranges_check(ranges, count, layout->stream_bytes, &bytes, err);
    if (code != RF_OK)
        return code;
    if (extra->algorithm == 0 || rank != extra->rank || bytes != extra->pieces.bytes ||
        !te_pieces_are(&extra->pieces, ranges, count))
        return rf_fail(err, RF_E_INVAL,
                       "these %" PRIu32 " ranges of %" PRIu64 " bytes are not the %" PRIu64
                       " bytes read",
                       count, bytes, extra->pieces.bytes);
    return RF_OK;
}

static void take_digest(struct te_data *data)
{
    struct data_extra *extra = data->extra;
    uint32_t most = (extra->body_bytes - CHUNK_READ_BYTES) / CHUNK_RANGE_BYTES;
    struct stream_range *ranges = calloc(most + 1, sizeof *ranges);
    struct rf_error error = {0};
    enum rf_code code = extra->failed;
    uint32_t count = 0;
    uint32_t rank = 0;

    if (code != RF_OK)
        error = extra->why_failed;
    else if (ranges == NULL)
        code = rf_fail(&error, RF_E_NOMEM, "no memory for %" PRIu32 " ranges", most);
    if (code == RF_OK)
        code =
            chunk_read_decode(extra->body, extra->body_bytes, &rank, ranges, most, &count, &error);
    if (code == RF_OK)
        code = check_ranges(extra, data->policy, rank, ranges, count, &error);
    if (code == RF_OK) {
        say_status(data, TE_STATUS_OK);
        read_digest_final(&extra->digest, rank, ranges, count, data->words + TE_STATUS_BYTES);
        data->words_bytes += (uint8_t)hash_bytes(extra->algorithm);
    } else {
        refuse(data, code, &error);
    }
    extra->algorithm = 0;
    extra->failed = RF_OK;
    free(ranges);
}

static void take_body(struct te_data *data)
{
    if (data->hdr.op == TE_OP_TOKEN)
        take_token(data);
    else
        take_digest(data);
    free(data->extra->body);
    data->extra->body = NULL;
}

/* Makes room for the body of the header. */
static void await_body(struct te_data *data)
{
    bool token = data->hdr.op == TE_OP_TOKEN;
    uint64_t least = token ? CHUNK_TOKEN_BYTES : CHUNK_READ_BYTES + CHUNK_RANGE_BYTES;
    uint64_t most = token ? CHUNK_TOKEN_BYTES : CHUNK_MAX_READ_BODY;
    struct rf_error error = {0};

    if (data->hdr.bytes < least || data->hdr.bytes > most || token == has_token(data)) {
        rf_fail(&error, RF_E_PROTO, "a token comes once, of %d bytes; a digest's ranges after it",
                CHUNK_TOKEN_BYTES);
        refuse_and_end(data, RF_E_PROTO, &error);
        return;
    }
    if (data->extra == NULL)
        data->extra = calloc(1, sizeof *data->extra);
    if (data->extra != NULL)
        data->extra->body = malloc(data->hdr.bytes);
    if (data->extra == NULL || data->extra->body == NULL) {
        rf_fail(&error, RF_E_NOMEM, "no memory for %" PRIu64 " bytes", data->hdr.bytes);
        refuse_and_end(data, RF_E_NOMEM, &error);
        return;
    }
    data->extra->body_bytes = (uint32_t)data->hdr.bytes;
    data->extra->body_got = 0;
    data->state = DATA_BODY;
}

/* ---- requests ---- */

static void take_header(struct te_data *data)
{
    struct rf_error error = {0};

    switch (data->hdr.op) {
    case TE_OP_READ:
    case TE_OP_READ | TE_OP_V2:
    case TE_OP_HASHED:
        take_read(data);
        return;
    case TE_OP_TOKEN:
    case TE_OP_DIGEST:
        await_body(data);
        return;
    case TE_OP_WRITE:
    case TE_OP_WRITE | TE_OP_V2:
        rf_fail(&error, RF_E_DENIED, "what is served is not written to");
        break;
    default:
        rf_fail(&error, RF_E_UNSUPPORTED, "unknown opcode");
        break;
    }
    refuse_and_end(data, RF_E_DENIED, &error);
}

/* Works off what has arrived, until there is something to send. */
static void advance(struct te_data *data)
{
    uint32_t at = 0;

    while (data->state == DATA_IDLE || data->state == DATA_BODY) {
        struct data_extra *extra = data->extra;
        uint32_t here = data->in_bytes - at;
        if (data->state == DATA_IDLE) {
            if (here < TE_HDR_BYTES)
                break;
            te_hdr_decode(data->in + at, &data->hdr);
            at += TE_HDR_BYTES;
            take_header(data);
            continue;
        }
        assert(extra != NULL && extra->body != NULL);
        uint32_t wanted = extra->body_bytes - extra->body_got;
        uint32_t bytes = here < wanted ? here : wanted;
        memcpy(extra->body + extra->body_got, data->in + at, bytes);
        extra->body_got += bytes;
        at += bytes;
        if (bytes < wanted)
            break;
        take_body(data);
    }
    if (data->state == DATA_ENDING)
        at = data->in_bytes;
    data->in_bytes -= (uint8_t)at;
    if (at > 0 && data->in_bytes > 0)
        memmove(data->in, data->in + at, data->in_bytes);
    if (data->drain && data->state == DATA_IDLE)
        end(data);
}

uint8_t *te_data_space(struct te_data *data, size_t *ret_bytes)
{
    if (data->state == DATA_BODY) {
        struct data_extra *extra = data->extra;
        *ret_bytes = extra->body_bytes - extra->body_got;
        return extra->body + extra->body_got;
    }
    *ret_bytes = sizeof data->in - data->in_bytes;
    return data->in + data->in_bytes;
}

void te_data_arrived(struct te_data *data, size_t bytes)
{
    if (data->state == DATA_ENDING)
        return;
    if (data->state == DATA_BODY) {
        struct data_extra *extra = data->extra;
        assert(bytes <= extra->body_bytes - extra->body_got);
        extra->body_got += (uint32_t)bytes;
        if (extra->body_got == extra->body_bytes)
            take_body(data);
    } else {
        assert(bytes <= sizeof data->in - data->in_bytes);
        data->in_bytes += (uint8_t)bytes;
    }
    advance(data);
}

/* ---- sending ---- */

bool te_data_has_output(const struct te_data *data)
{
    return data->words_sent < data->words_bytes || data->left > 0;
}

bool te_data_is_finished(const struct te_data *data)
{
    return data->state == DATA_ENDING && !te_data_has_output(data);
}

uint32_t te_data_reads(const struct te_data *data)
{
    if (data->state != DATA_ANSWER && data->state != DATA_BODY)
        return 0;
    return 1 + data->in_bytes / TE_HDR_BYTES;
}

bool te_data_out(struct te_data *data, struct net_out *ret_out, enum rf_code *ret_code,
                 struct rf_error *err)
{
    uint64_t left = 0;

    *ret_code = RF_OK;
    net_out_reset(ret_out);
    if (!te_data_has_output(data))
        return false;
    if (data->words_sent < data->words_bytes)
        net_out_add(ret_out, data->words + data->words_sent, data->words_bytes - data->words_sent);
    if (data->left > 0)
        *ret_code =
            net_out_add_stream(ret_out, &data->cursor, data->left, &data->limits, &left, err);
    ret_out->more = left > 0 || data->in_bytes >= TE_HDR_BYTES;
    return *ret_code == RF_OK;
}

/* After it was sent, as it is in the core's cache then. */
static void hash_sent(struct data_extra *extra, const struct segment *piece)
{
    if (extra->failed == RF_OK)
        extra->failed = read_digest_update_piece(&extra->digest, piece, &extra->why_failed);
}

static void stream_sent(struct te_data *data, uint64_t bytes)
{
    const struct exporter *exporter = &data->policy->exporter;
    struct segment piece;

    assert(bytes <= data->left);
    for (uint64_t left = bytes; left > 0; left -= piece.bytes) {
        bool some = layout_cursor_peek(&data->cursor, left, &piece);
        assert(some);
        (void)some;
        if (data->hashed)
            hash_sent(data->extra, &piece);
        layout_cursor_skip(&data->cursor, piece.bytes);
    }
    data->left -= bytes;
    exporter->lease_account(exporter->ctx, data->shared ? data->share->lease : data->extra->lease,
                            bytes);
}

void te_data_sent(struct te_data *data, uint64_t bytes)
{
    uint64_t words = data->words_bytes - data->words_sent;

    words = words < bytes ? words : bytes;
    data->words_sent += (uint8_t)words;
    if (bytes > words)
        stream_sent(data, bytes - words);
    if (te_data_has_output(data))
        return;
    if (data->shared)
        te_share_end(data->share);
    data->shared = false;
    data->hashed = false;
    if (data->state == DATA_ANSWER) {
        data->state = DATA_IDLE;
        advance(data);
    }
}

void te_data_no_bulk(struct te_data *data, enum net_bulk bulk)
{
    data->limits.no_bulk[bulk] = true;
}

void te_data_drain(struct te_data *data)
{
    data->drain = true;
    if (data->state == DATA_IDLE)
        end(data);
}
