/* What anybody may say to a te seed, through its two state machines and without sockets. The first
 * byte of the input chooses: a handshake, a data connection, or one that has said its token. Each
 * next one says how many bytes arrive at once, and how many of the answer the socket takes.
 * Afterwards all that was said is read again, and the answers must be those that it deserves. */
#include "behind.h"
#include "transport/te/data.h"
#include "transport/te/shake.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { RANKS = 2 };

static const uint64_t bases[RANKS] = {UINT64_C(1) << 44, UINT64_C(3) << 44};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* ---- what was said and answered ---- */

struct talk {
    struct te_shake *shake; /* or */
    struct te_data *data;
    struct buf said;
    struct buf heard;
    bool drained;
};

static void put_in(struct talk *talk, const uint8_t *bytes, size_t count)
{
    while (count > 0) {
        size_t room = 0;
        uint8_t *at = talk->shake != NULL ? te_shake_space(talk->shake, &room)
                                          : te_data_space(talk->data, &room);
        size_t n = count < room ? count : room;
        if (n == 0)
            return; /* it has enough to do */
        memcpy(at, bytes, n);
        buf_append(&talk->said, bytes, n);
        if (talk->shake != NULL)
            te_shake_arrived(talk->shake, n);
        else
            te_data_arrived(talk->data, n);
        bytes += n;
        count -= n;
    }
}

static bool has_output(const struct talk *talk)
{
    return talk->shake != NULL ? te_shake_has_output(talk->shake) : te_data_has_output(talk->data);
}

/* The socket takes `most` bytes of what is to be sent. */
static void take_answer(struct talk *talk, struct net_out *out, uint64_t most)
{
    enum rf_code code = RF_OK;
    uint64_t sent = 0;

    bool some = talk->shake != NULL ? te_shake_out(talk->shake, out)
                                    : te_data_out(talk->data, out, &code, NULL);
    must(code == RF_OK && some == has_output(talk)); /* memory can always be read */
    for (int i = 0; some && i < out->iov_count && sent < most; i++) {
        uint64_t n = out->iov[i].iov_len < most - sent ? out->iov[i].iov_len : most - sent;
        buf_append(&talk->heard, out->iov[i].iov_base, n);
        sent += n;
    }
    if (sent > 0 && talk->shake != NULL)
        te_shake_sent(talk->shake, sent);
    else if (sent > 0)
        te_data_sent(talk->data, sent);
}

/* ---- whether it was right ---- */

static void hear_stream(struct wire_in *heard, uint64_t offset, uint64_t bytes)
{
    uint8_t expected[BEHIND_BYTES];
    const uint8_t *got = wire_get_bytes(heard, bytes);

    must(got != NULL);
    for (uint64_t at = offset; at < offset + bytes; at++) {
        uint64_t segment = at / BEHIND_SEGMENT_BYTES * BEHIND_SEGMENT_BYTES;
        uint64_t size = BEHIND_BYTES - segment < BEHIND_SEGMENT_BYTES ? BEHIND_BYTES - segment
                                                                      : BEHIND_SEGMENT_BYTES;
        expected[at - offset] = behind_content[BEHIND_BYTES - segment - size + (at - segment)];
    }
    must(memcmp(got, expected, bytes) == 0);
}

static uint32_t hear_status(struct wire_in *heard)
{
    const uint8_t *raw = wire_get_bytes(heard, TE_STATUS_BYTES);
    uint32_t status = 0;

    must(raw != NULL && te_status_decode(raw, &status, NULL) == RF_OK);
    return status;
}

/* Returns whether anything may follow. */
static bool judge_read(const struct te_hdr *hdr, bool token, struct wire_in *heard)
{
    bool v2 = (hdr->op & TE_OP_V2) != 0;

    for (unsigned rank = 0; rank < RANKS; rank++) {
        uint64_t offset = hdr->address - bases[rank];
        bool inside =
            offset < BEHIND_BYTES && hdr->bytes > 0 && hdr->bytes <= BEHIND_BYTES - offset;
        if (!inside || (hdr->op == TE_OP_HASHED && !token))
            continue;
        uint32_t status = v2 ? hear_status(heard) : TE_STATUS_OK;
        if (status != TE_STATUS_OK) { /* of a digest that cannot be */
            must(hdr->op == TE_OP_HASHED && status > TE_STATUS_CODE);
            return true;
        }
        hear_stream(heard, offset, hdr->bytes);
        return true;
    }
    if (v2)
        must(token ? hear_status(heard) > TE_STATUS_CODE
                   : hear_status(heard) == TE_STATUS_REJECTED);
    return v2 && token;
}

static bool judge_body(const struct te_hdr *hdr, struct wire_in *said, struct wire_in *heard,
                       bool *token)
{
    bool first = hdr->op == TE_OP_TOKEN && !*token && hdr->bytes == CHUNK_TOKEN_BYTES;
    bool later = hdr->op == TE_OP_DIGEST && *token && hdr->bytes <= CHUNK_MAX_READ_BODY &&
                 hdr->bytes >= CHUNK_READ_BYTES + CHUNK_RANGE_BYTES;

    if (!first && !later) {
        must(hear_status(heard) != TE_STATUS_OK);
        return false;
    }
    const uint8_t *body = wire_get_bytes(said, hdr->bytes);
    if (body == NULL)
        return false; /* it never came whole */
    uint32_t status = hear_status(heard);
    must(status == TE_STATUS_OK || status > TE_STATUS_CODE);
    if (first) {
        *token = status == TE_STATUS_OK;
        must(*token == (body[0] != 0xff));
        return *token;
    }
    must(status != TE_STATUS_OK || wire_left(heard) >= 16);
    return true;
}

/* All that was said was answered as it deserves, in order. Digests end the comparison: how long they
 * are depends on more than their request. */
static void judge_data(const struct talk *talk)
{
    struct wire_in said = wire_in_over(talk->said.data, talk->said.bytes);
    struct wire_in heard = wire_in_over(talk->heard.data, talk->heard.bytes);
    bool token = false;
    bool on = true;

    while (on && wire_left(&said) >= TE_HDR_BYTES) {
        struct te_hdr hdr;
        te_hdr_decode(wire_get_bytes(&said, TE_HDR_BYTES), &hdr);
        if (talk->drained && wire_left(&heard) == 0)
            return; /* it was not to be answered any more */
        switch (hdr.op) {
        case TE_OP_READ:
        case TE_OP_READ | TE_OP_V2:
        case TE_OP_HASHED:
            on = judge_read(&hdr, token, &heard);
            break;
        case TE_OP_TOKEN:
        case TE_OP_DIGEST:
            on = judge_body(&hdr, &said, &heard, &token);
            if (hdr.op == TE_OP_DIGEST)
                return;
            break;
        default:
            if ((hdr.op & TE_OP_V2) != 0)
                must(hear_status(&heard) != TE_STATUS_OK);
            on = false;
            break;
        }
    }
    must(wire_left(&heard) == 0);
}

static void judge_shake(const struct talk *talk)
{
    uint64_t asked = 0;
    uint64_t answered = 0;

    if (talk->heard.bytes == 0)
        return;
    must(talk->said.bytes > TE_FRAME_HEAD_BYTES && talk->heard.bytes > TE_FRAME_HEAD_BYTES);
    must(te_frame_length(talk->said.data, TE_MAX_QUESTION_BYTES, &asked, NULL) == RF_OK);
    must(talk->said.bytes - TE_FRAME_HEAD_BYTES >= asked);
    must(te_frame_length(talk->heard.data, TE_DEFAULT_FRAME_BYTES, &answered, NULL) == RF_OK);
    must(talk->heard.bytes - TE_FRAME_HEAD_BYTES == answered);
    enum te_type type = te_frame_type(talk->said.data[TE_FRAME_HEAD_BYTES]);
    uint8_t first = talk->heard.data[TE_FRAME_HEAD_BYTES];
    must(type == TE_OLD_FORM ? first == '{' : first == type);
}

/* ---- between the two ---- */

static void converse(struct talk *talk, const uint8_t *data, const uint8_t *end)
{
    static struct net_out out;

    while (data < end) {
        uint8_t step = *data++;
        size_t bytes = step & 0x80 ? (size_t)(end - data) : (size_t)(step & 0x3f);
        if (bytes > (size_t)(end - data))
            bytes = (size_t)(end - data);
        if (step == 0x7f) {
            talk->drained = true;
            if (talk->shake != NULL)
                te_shake_drain(talk->shake);
            else
                te_data_drain(talk->data);
        }
        put_in(talk, data, bytes);
        data += bytes;
        take_answer(talk, &out, (uint64_t)step * 7);
    }
    /* A reader that takes everything gets everything. */
    for (unsigned i = 0; has_output(talk); i++) {
        must(i < 2000 * 1000);
        take_answer(talk, &out, UINT64_MAX);
    }
}

static void say_token(struct talk *talk)
{
    uint8_t raw[TE_HDR_BYTES + CHUNK_TOKEN_BYTES] = {0};

    te_hdr_encode(&(struct te_hdr){.bytes = CHUNK_TOKEN_BYTES, .op = TE_OP_TOKEN}, raw);
    put_in(talk, raw, sizeof raw);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct te_share share;
    struct te_place places[RANKS];
    struct te_buffer buffers[RANKS];
    struct te_policy policy = {.exporter = behind_exporter(RANKS),
                               .space = {.places = places, .count = RANKS},
                               .buffers = buffers,
                               .handshake_port = 1,
                               .data_port = 2};
    struct talk talk = {.drained = false};
    uint8_t kind = len > 0 ? data[0] % 3 : 0;

    for (uint32_t i = 0; i < RANKS; i++) {
        places[i] = (struct te_place){
            .base = bases[i], .bytes = BEHIND_BYTES, .rank = i, .layout = &behind_layout};
        buffers[i] = (struct te_buffer){.address = bases[i], .bytes = BEHIND_BYTES, .name = "r"};
    }
    share = (struct te_share){.policy = &policy};
    if (kind == 0)
        talk.shake = te_shake_create(&policy, &share, "127.0.0.1");
    else
        talk.data = te_data_create(&policy, &share);
    must(talk.shake != NULL || talk.data != NULL);
    if (kind == 2)
        say_token(&talk);
    if (len > 0)
        converse(&talk, data + 1, data + len);
    must(!talk.said.failed && !talk.heard.failed);
    if (kind == 0)
        judge_shake(&talk);
    else
        judge_data(&talk);
    te_shake_destroy(talk.shake);
    must(talk.data == NULL || te_data_reads(talk.data) <= 1); /* a body that did not come whole */
    te_data_destroy(talk.data);
    must(share.reads == 0);
    (void)te_share_tick(&share, 0, true);
    must(behind_leases == 0);
    buf_free(&talk.said);
    buf_free(&talk.heard);
    return 0;
}
