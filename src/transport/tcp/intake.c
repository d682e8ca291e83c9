#include "transport/tcp/intake.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

void tcp_intake_init(struct tcp_intake *intake, uint8_t *scratch)
{
    memset(intake, 0, sizeof *intake);
    intake->last = &intake->first;
    intake->scratch = scratch;
}

void tcp_intake_add(struct tcp_intake *intake, struct read *read)
{
    read->next = NULL;
    read->code = RF_OK;
    *intake->last = read;
    intake->last = &read->next;
    intake->in_flight++;
}

struct read *tcp_intake_take(struct tcp_intake *intake)
{
    struct read *read = intake->first;

    if (read == NULL)
        return NULL;
    intake->first = read->next;
    if (intake->first == NULL)
        intake->last = &intake->first;
    intake->in_flight--;
    intake->begun = false;
    intake->discard = false;
    return read;
}

/* ---- where bytes go ---- */

/* The rest of the read is received into nowhere. */
static void fail_read(struct tcp_intake *intake, enum rf_code code)
{
    intake->first->code = code;
    intake->discard = true;
}

static int where_body(struct tcp_intake *intake, struct iovec *iov)
{
    uint64_t most = intake->body_left < TCP_PIECE_BYTES ? intake->body_left : TCP_PIECE_BYTES;
    uint64_t offered = 0;
    struct read *read = intake->first;

    if (intake->discard) {
        intake->offered = most < TCP_SCRATCH_BYTES ? most : TCP_SCRATCH_BYTES;
        iov[0] = (struct iovec){.iov_base = intake->scratch, .iov_len = intake->offered};
        return 1;
    }
    int count = read->sink->where(read->sink, iov, TCP_IN_IOV - 1, &offered);
    if (count <= 0 || count >= TCP_IN_IOV || offered == 0 || offered > intake->read_left) {
        fail_read(intake,
                  rf_fail(&read->error, RF_E_INVAL,
                          "the sink offers %d places for %" PRIu64 " bytes, %" PRIu64 " are left",
                          count, offered, intake->read_left));
        return 0;
    }
    /* Cut to what this frame still brings. */
    intake->offered = 0;
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len >= most - intake->offered) {
            iov[i].iov_len = most - intake->offered;
            count = i + 1;
        }
        intake->offered += iov[i].iov_len;
    }
    return count;
}

/* Whether this frame's body is taken whole before anything is done with it. */
static bool body_is_small(const struct tcp_intake *intake)
{
    return intake->frame.type == CHUNK_ERROR || intake->frame.type == CHUNK_DIGEST;
}

int tcp_intake_where(struct tcp_intake *intake, struct iovec *iov)
{
    int count = 0;

    if (intake->head_bytes < CHUNK_HDR_BYTES) {
        iov[0] = (struct iovec){.iov_base = intake->head + intake->head_bytes,
                                .iov_len = CHUNK_HDR_BYTES - intake->head_bytes};
        return 1;
    }
    if (body_is_small(intake)) {
        iov[0] = (struct iovec){
            .iov_base = intake->small_body + (intake->frame.body_bytes - intake->body_left),
            .iov_len = intake->body_left,
        };
        return 1;
    }
    count = where_body(intake, iov);
    /* With the end of a body the next header comes along: half the calls. */
    if (count > 0 && intake->offered == intake->body_left) {
        iov[count++] = (struct iovec){.iov_base = intake->head, .iov_len = CHUNK_HDR_BYTES};
    }
    return count;
}

uint32_t tcp_intake_need(const struct tcp_intake *intake)
{
    return intake->head_bytes == CHUNK_HDR_BYTES && intake->body_left > 0 ? intake->body_left : 1;
}

/* ---- what came ---- */

/* A DIGEST comes when the read's last byte is there, and only if it was asked for. */
static enum rf_code check_digest(const struct tcp_intake *intake, struct rf_error *err)
{
    const struct read *read = intake->first;

    if (read->digest == 0)
        return rf_fail(err, RF_E_PROTO,
                       "the seed sends a digest of request %" PRIu64 ", none was asked for",
                       read->id);
    if (intake->read_left > 0)
        return rf_fail(err, RF_E_PROTO,
                       "the seed sends the digest of request %" PRIu64 ", %" PRIu64
                       " bytes of it are left",
                       read->id, intake->read_left);
    if (intake->frame.body_bytes != hash_bytes(read->digest))
        return rf_fail(err, RF_E_PROTO, "the seed sends a digest of %" PRIu32 " bytes, %s has %u",
                       intake->frame.body_bytes, hash_name(read->digest), hash_bytes(read->digest));
    return RF_OK;
}

/* Checks a DATA, DIGEST or ERROR header against the read that is next. */
static enum rf_code check_frame(struct tcp_intake *intake, struct rf_error *err)
{
    const struct chunk_hdr *frame = &intake->frame;
    struct read *read = intake->first;

    if (frame->type == CHUNK_ERROR && frame->request_id == 0)
        return RF_OK; /* about the connection */
    if (read == NULL)
        return rf_fail(err, RF_E_PROTO, "the seed answers request %" PRIu64 ", none is open",
                       frame->request_id);
    if (read->id != frame->request_id)
        return rf_fail(err, RF_E_PROTO,
                       "the seed answers request %" PRIu64 ", the next one is %" PRIu64,
                       frame->request_id, read->id);
    if (!intake->begun) {
        intake->begun = true;
        intake->read_left = read->bytes;
    }
    if (frame->type == CHUNK_ERROR)
        return RF_OK;
    if (frame->type == CHUNK_DIGEST)
        return check_digest(intake, err);
    if (frame->body_bytes > intake->read_left)
        return rf_fail(err, RF_E_PROTO,
                       "the seed sends %" PRIu32 " bytes of request %" PRIu64 ", %" PRIu64
                       " are left",
                       frame->body_bytes, read->id, intake->read_left);
    bool last = (frame->flags & CHUNK_FLAG_LAST) != 0;
    if (last != (frame->body_bytes == intake->read_left))
        return rf_fail(err, RF_E_PROTO,
                       "the seed says that %" PRIu32 " bytes of request %" PRIu64
                       " are %sthe last, %" PRIu64 " are left",
                       frame->body_bytes, read->id, last ? "" : "not ", intake->read_left);
    return RF_OK;
}

static enum rf_code take_head(struct tcp_intake *intake, struct rf_error *err)
{
    enum rf_code code = chunk_hdr_decode(intake->head, CHUNK_HDR_BYTES, &intake->frame, err);

    if (code != RF_OK)
        return code;
    intake->body_left = intake->frame.body_bytes;
    switch (intake->frame.type) {
    case CHUNK_DATA:
    case CHUNK_ERROR:
    case CHUNK_DIGEST:
        return check_frame(intake, err);
    case CHUNK_GOODBYE:
        if (intake->goodbye)
            return rf_fail(err, RF_E_PROTO, "the seed says GOODBYE twice");
        intake->goodbye = true;
        intake->head_bytes = 0;
        return RF_OK;
    case CHUNK_READ:
        break;
    }
    return rf_fail(err, RF_E_PROTO, "frame of type %d: only readers send it", intake->frame.type);
}

/* A DIGEST frame is complete, and with it its read. */
static void take_digest(struct tcp_intake *intake, struct read **ret_done)
{
    memcpy(intake->first->said, intake->small_body, intake->frame.body_bytes);
    *ret_done = tcp_intake_take(intake);
}

/* An ERROR frame is complete. */
static enum rf_code take_error(struct tcp_intake *intake, struct read **ret_done,
                               struct rf_error *err)
{
    struct rf_error said = {0};

    enum rf_code code = chunk_error_decode(intake->small_body, intake->frame.body_bytes, &said);
    if (intake->frame.request_id == 0) {
        if (err != NULL)
            *err = said;
        return rf_error_wrap(err, code, "the seed ends the connection");
    }
    if (!intake->discard) {
        intake->first->code = code;
        intake->first->error = said;
    }
    *ret_done = tcp_intake_take(intake);
    return RF_OK;
}

static void take_body(struct tcp_intake *intake, uint64_t bytes, struct read **ret_done)
{
    struct read *read = intake->first;

    intake->body_left -= (uint32_t)bytes;
    intake->read_left -= bytes;
    if (!intake->discard) {
        enum rf_code code = read->sink->took(read->sink, bytes, &read->error);
        if (code != RF_OK)
            fail_read(intake, code);
    }
    if (intake->read_left == 0 && read->digest == 0)
        *ret_done = tcp_intake_take(intake);
}

enum rf_code tcp_intake_arrived(struct tcp_intake *intake, uint64_t bytes, struct read **ret_done,
                                struct rf_error *err)
{
    *ret_done = NULL;
    if (intake->head_bytes == CHUNK_HDR_BYTES && body_is_small(intake)) {
        assert(bytes <= intake->body_left);
        intake->body_left -= (uint32_t)bytes;
        if (intake->body_left > 0)
            return RF_OK;
        intake->head_bytes = 0;
        if (intake->frame.type == CHUNK_ERROR)
            return take_error(intake, ret_done, err);
        take_digest(intake, ret_done);
        return RF_OK;
    }
    if (intake->head_bytes == CHUNK_HDR_BYTES) {
        uint64_t body = bytes < intake->offered ? bytes : intake->offered;
        take_body(intake, body, ret_done);
        bytes -= body;
        if (intake->body_left > 0)
            return RF_OK;
        intake->head_bytes = 0;
    }
    assert(bytes <= CHUNK_HDR_BYTES - intake->head_bytes);
    intake->head_bytes += (uint32_t)bytes;
    return intake->head_bytes == CHUNK_HDR_BYTES ? take_head(intake, err) : RF_OK;
}
