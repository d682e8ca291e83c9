#include "transport/te/intake.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

enum place_kind { PLACE_STATUS, PLACE_SINK, PLACE_NOWHERE, PLACE_DIGEST };

void te_intake_init(struct te_intake *intake, const struct te_places *places, uint8_t *scratch)
{
    memset(intake, 0, sizeof *intake);
    intake->places = places;
    intake->last = &intake->first;
    intake->scratch = scratch;
}

void te_intake_free(struct te_intake *intake)
{
    buf_free(&intake->spill);
}

static uint32_t slot_of(const struct te_intake *intake, uint32_t index)
{
    return (intake->head + index) % TE_WINDOW;
}

/* The request that is `index` behind the first. */
static const struct te_request *request_at(const struct te_intake *intake, uint32_t index)
{
    return &intake->requests[slot_of(intake, index)];
}

/* ---- reads ---- */

static void ask_for(struct te_intake *intake, struct read *read)
{
    intake->asking = read;
    intake->asking_rank = read != NULL ? te_places_find(intake->places, read->rank) : NULL;
    intake->asking_range = 0;
    intake->asking_repeat = 0;
    intake->asking_done = 0;
    intake->asking_segment = 0;
    intake->asked_digest = false;
}

/* The first failure is kept. What has been asked is still received, into nowhere. */
static void fail_read(struct te_intake *intake, struct read *read, enum rf_code code)
{
    read->code = code;
    if (intake->asking == read)
        ask_for(intake, read->next);
}

static enum rf_code check_read(const struct te_intake *intake, const struct read *read,
                               struct rf_error *err)
{
    const struct te_rank_places *rank = te_places_find(intake->places, read->rank);
    uint64_t bytes = 0;

    if (rank == NULL)
        return rf_fail(err, RF_E_INVAL, "the engine holds no rank %" PRIu32, read->rank);
    if (read->digest != 0 && !intake->ours)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "rank %" PRIu32 ": a digest is asked for, which this engine cannot make: "
                       "it is no seed of ours",
                       read->rank);
    enum rf_code code =
        stream_ranges_check(read->ranges, read->range_count, rank->stream_bytes, &bytes, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "rank %" PRIu32, read->rank);
}

void te_intake_add(struct te_intake *intake, struct read *read)
{
    read->next = NULL;
    read->id = 0;
    read->code = check_read(intake, read, &read->error);
    *intake->last = read;
    intake->last = &read->next;
    intake->in_flight++;
    if (intake->asking == NULL)
        ask_for(intake, read);
}

struct read *te_intake_take(struct te_intake *intake)
{
    struct read *read = intake->first;

    if (read == NULL)
        return NULL;
    if (intake->asking == read)
        ask_for(intake, read->next);
    intake->first = read->next;
    if (intake->first == NULL)
        intake->last = &intake->first;
    intake->in_flight--;
    return read;
}

struct read *te_intake_ended(struct te_intake *intake)
{
    const struct read *first = intake->first;

    if (first == NULL || first->id > 0 || intake->asking == first)
        return NULL;
    return te_intake_take(intake);
}

/* ---- asking ---- */

static struct te_request *push(struct te_intake *intake)
{
    struct te_request *request = &intake->requests[slot_of(intake, intake->count++)];

    *request = (struct te_request){.read = intake->asking};
    intake->asking->id++;
    return request;
}

/* The next piece of the read that is being asked; false at its end. */
static bool ask_piece(struct te_intake *intake)
{
    const struct read *read = intake->asking;
    const struct stream_range *range = &read->ranges[intake->asking_range];

    if (intake->asking_range == read->range_count)
        return false;
    uint64_t offset = range->offset + intake->asking_repeat * range->stride + intake->asking_done;
    uint64_t bytes = range->bytes - intake->asking_done;
    intake->asking_segment = te_places_segment(intake->asking_rank, offset, intake->asking_segment);
    const struct te_segment *segment = &intake->asking_rank->segments[intake->asking_segment];
    uint64_t before = offset - segment->stream_offset;
    if (bytes > segment->bytes - before)
        bytes = segment->bytes - before;
    if (bytes > TE_REQUEST_BYTES)
        bytes = TE_REQUEST_BYTES;

    struct te_request *request = push(intake);
    request->offset = offset;
    request->address = segment->address + before;
    request->bytes = bytes;
    request->op = TE_OP_READ;
    if (intake->statuses)
        request->op = read->digest != 0 ? TE_OP_HASHED : TE_OP_READ | TE_OP_V2;

    intake->asking_done += bytes;
    if (intake->asking_done == range->bytes) {
        intake->asking_done = 0;
        intake->asking_repeat++;
    }
    if (intake->asking_repeat == range->count) {
        intake->asking_repeat = 0;
        intake->asking_range++;
    }
    return true;
}

static void ask_digest(struct te_intake *intake)
{
    struct te_request *request = push(intake);

    request->op = TE_OP_DIGEST;
    request->bytes = hash_bytes(request->read->digest);
    intake->asked_digest = true;
}

void te_intake_ask(struct te_intake *intake)
{
    while (intake->asking != NULL) {
        struct read *read = intake->asking;

        if (read->code == RF_OK && intake->count == TE_WINDOW)
            return;
        if (read->code == RF_OK && ask_piece(intake))
            continue;
        if (read->code == RF_OK && read->digest != 0 && !intake->asked_digest)
            ask_digest(intake);
        else
            ask_for(intake, read->next);
    }
}

void te_intake_encode(const struct te_intake *intake, uint32_t from, uint32_t count,
                      struct buf *out)
{
    for (uint32_t i = from; i < from + count; i++) {
        const struct te_request *request = request_at(intake, i);
        const struct read *read = request->read;
        bool digest = request->op == TE_OP_DIGEST;
        struct te_hdr hdr = {.bytes = request->bytes,
                             .address = request->address,
                             .op = request->op,
                             .algorithm = (uint8_t)read->digest};
        uint8_t *at = buf_reserve(out, TE_HDR_BYTES);

        if (at == NULL)
            return;
        if (digest)
            hdr.bytes = CHUNK_READ_BYTES + (uint64_t)read->range_count * CHUNK_RANGE_BYTES;
        te_hdr_encode(&hdr, at);
        out->bytes += TE_HDR_BYTES;
        if (digest)
            chunk_read_encode(read->rank, read->ranges, read->range_count, out);
    }
}

/* ---- where bytes go ---- */

/* What a sink offers, while it is dealt out. */
struct offer {
    struct iovec iov[TE_IN_IOV];
    int count;
    int at;
    bool asked;
};

static void place(struct te_intake *intake, enum place_kind kind, void *base, uint64_t bytes)
{
    intake->iov[intake->iov_count] = (struct iovec){.iov_base = base, .iov_len = bytes};
    intake->kinds[intake->iov_count++] = (uint8_t)kind;
}

/* false: the read has failed. */
static bool ask_sink(struct te_intake *intake, struct read *read, struct offer *offer)
{
    uint64_t bytes = 0;
    uint64_t sum = 0;

    if (offer->asked)
        return true;
    offer->asked = true;
    offer->count = read->sink->where(read->sink, offer->iov, TE_IN_IOV, &bytes);
    for (int i = 0; i < offer->count && i < TE_IN_IOV; i++)
        sum += offer->iov[i].iov_len;
    if (offer->count > 0 && offer->count <= TE_IN_IOV && bytes > 0 && bytes == sum)
        return true;
    fail_read(intake, read,
              rf_fail(&read->error, RF_E_INVAL, "the sink offers %d places for %" PRIu64 " bytes",
                      offer->count, bytes));
    return false;
}

/* Deals out places for the next `bytes` of the read, at most `*most`, which is lowered; returns how
 * many bytes have places now. */
static uint64_t deal_out(struct te_intake *intake, struct offer *offer, uint64_t bytes,
                         uint64_t *most)
{
    uint64_t placed = 0;

    while (placed<bytes && * most> 0 && offer->at < offer->count && intake->iov_count < TE_IN_IOV) {
        struct iovec *from = &offer->iov[offer->at];
        uint64_t piece = bytes - placed < *most ? bytes - placed : *most;

        if (piece > from->iov_len)
            piece = from->iov_len;
        if (piece > 0)
            place(intake, PLACE_SINK, from->iov_base, piece);
        from->iov_base = (uint8_t *)from->iov_base + piece;
        from->iov_len -= piece;
        if (from->iov_len == 0)
            offer->at++;
        placed += piece;
        *most -= piece;
    }
    return placed;
}

/* Places for what is left of the answer to a request. false: no more can follow behind it. */
static bool place_body(struct te_intake *intake, const struct te_request *request, uint64_t got,
                       struct offer *offer, uint64_t *most)
{
    uint64_t bytes = request->bytes - got;

    if (intake->iov_count == TE_IN_IOV)
        return false;
    if (request->op == TE_OP_DIGEST) {
        place(intake, PLACE_DIGEST, intake->digest + got, bytes);
        return true;
    }
    if (request->read->code != RF_OK) {
        /* Nowhere is somewhere all the same: after a refusal it is looked at again. */
        uint64_t room = TE_SCRATCH_BYTES - intake->scratch_used;
        uint64_t piece = bytes < room ? bytes : room;
        if (piece > 0)
            place(intake, PLACE_NOWHERE, intake->scratch + intake->scratch_used, piece);
        intake->scratch_used += piece;
        return piece == bytes;
    }
    if (!ask_sink(intake, request->read, offer))
        return false;
    return deal_out(intake, offer, bytes, most) == bytes;
}

int te_intake_where(struct te_intake *intake, struct iovec **ret_iov)
{
    struct offer offer;
    uint64_t most = TE_PIECE_BYTES;
    const struct read *read = request_at(intake, 0)->read;

    assert(intake->expected > 0 && intake->expected <= intake->count);
    offer.asked = false;
    offer.count = 0;
    offer.at = 0;
    intake->iov_count = 0;
    intake->scratch_used = 0;
    for (uint32_t i = 0; i < intake->expected && intake->iov_count < TE_IN_IOV; i++) {
        const struct te_request *request = request_at(intake, i);
        uint32_t status_bytes = i == 0 ? intake->status_bytes : 0;
        uint8_t *status =
            i == 0 ? intake->status + status_bytes : intake->more_statuses[intake->iov_count];

        if (intake->statuses && status_bytes < TE_STATUS_BYTES)
            place(intake, PLACE_STATUS, status, TE_STATUS_BYTES - status_bytes);
        /* Another read has another sink, or this one's in another state. */
        if (request->read != read ||
            !place_body(intake, request, i == 0 ? intake->got : 0, &offer, &most))
            break;
    }
    /* A sink that failed while there were places already: they were none of its own. */
    *ret_iov = intake->iov;
    return (int)intake->iov_count;
}

uint64_t te_intake_need(const struct te_intake *intake)
{
    uint64_t need = 0;

    if (intake->expected == 0)
        return 1;
    if (intake->statuses && intake->status_bytes < TE_STATUS_BYTES)
        return TE_STATUS_BYTES - intake->status_bytes;
    need = request_at(intake, 0)->bytes - intake->got;
    for (uint32_t i = 1; i < intake->expected && need < TE_PIECE_BYTES; i++) {
        if (intake->statuses)
            return need + TE_STATUS_BYTES;
        need += request_at(intake, i)->bytes;
    }
    return need;
}

/* ---- what has come ---- */

/* Tells the sink. Once for all that one call received, as a sink may hash what it is told of. */
static void tell_sink(struct te_intake *intake)
{
    struct read *read = intake->taken_read;
    uint64_t bytes = intake->taken_bytes;

    intake->taken_read = NULL;
    intake->taken_bytes = 0;
    if (bytes == 0 || read->code != RF_OK)
        return;
    enum rf_code code = read->sink->took(read->sink, bytes, &read->error);
    if (code != RF_OK)
        fail_read(intake, read, code);
}

/* The first request has its answer. */
static void pop(struct te_intake *intake)
{
    request_at(intake, 0)->read->id--;
    intake->head = (intake->head + 1) % TE_WINDOW;
    intake->count--;
    intake->expected--;
    intake->status_bytes = 0;
    intake->got = 0;
}

/* RF_AGAIN: the first request is refused, what has places behind it does not come. */
static enum rf_code take_status(struct te_intake *intake, struct rf_error *err)
{
    const struct te_request *request = request_at(intake, 0);
    struct read *read = request->read;
    uint32_t status = 0;
    enum rf_code said = RF_E_CHANGED;
    enum rf_code code = te_status_decode(intake->status, &status, err);

    if (code == RF_OK && status == TE_STATUS_OK)
        return RF_OK;
    bool known =
        code == RF_OK && (intake->ours ? status >= TE_STATUS_CODE : status == TE_STATUS_REJECTED);
    if (known && intake->ours) {
        said = (enum rf_code)(status - TE_STATUS_CODE);
        known = said != RF_OK && chunk_code_ok(said);
    }
    if (code == RF_OK && !known)
        code = rf_fail(err, RF_E_PROTO, "status %" PRIu32 ", which nobody has defined", status);
    if (code != RF_OK)
        return rf_error_wrap(err, code,
                             "rank %" PRIu32 ", stream offset %" PRIu64 ", %" PRIu64
                             " bytes at %#" PRIx64,
                             read->rank, request->offset, request->bytes, request->address);
    tell_sink(intake);
    if (read->code == RF_OK)
        fail_read(intake, read,
                  rf_fail(&read->error, said,
                          "rank %" PRIu32 ", stream offset %" PRIu64 ": %" PRIu64
                          " bytes at address %#" PRIx64 " are refused: %s",
                          read->rank, request->offset, request->bytes, request->address,
                          intake->ours ? rf_code_name(said)
                                       : "no longer registered; ask the engine anew"));
    intake->line_over = !intake->ours;
    pop(intake);
    return RF_AGAIN;
}

static void take_body(struct te_intake *intake, enum place_kind kind, uint64_t bytes)
{
    const struct te_request *request = request_at(intake, 0);
    struct read *read = request->read;

    intake->got += bytes;
    if (kind == PLACE_SINK) {
        intake->taken_read = read;
        intake->taken_bytes += bytes;
    }
    if (intake->got < request->bytes)
        return;
    if (kind == PLACE_DIGEST && read->code == RF_OK)
        memcpy(read->said, intake->digest, request->bytes);
    pop(intake);
}

/* The first `bytes` of a place have come. RF_AGAIN: the places behind it are wrong. */
static enum rf_code take_place(struct te_intake *intake, uint64_t index, uint64_t bytes,
                               struct rf_error *err)
{
    enum place_kind kind = (enum place_kind)intake->kinds[index];
    uint8_t *status = intake->status + intake->status_bytes;

    if (kind != PLACE_STATUS) {
        take_body(intake, kind, bytes);
        return RF_OK;
    }
    if (intake->iov[index].iov_base != status)
        memcpy(status, intake->iov[index].iov_base, bytes);
    intake->status_bytes += (uint32_t)bytes;
    return intake->status_bytes == TE_STATUS_BYTES ? take_status(intake, err) : RF_OK;
}

/* Keeps what came to places from this one on. */
static enum rf_code spill_from(struct te_intake *intake, uint64_t index, uint64_t bytes,
                               struct rf_error *err)
{
    for (uint64_t i = index; bytes > 0; i++) {
        uint64_t piece = bytes < intake->iov[i].iov_len ? bytes : intake->iov[i].iov_len;

        buf_append(&intake->spill, intake->iov[i].iov_base, piece);
        bytes -= piece;
    }
    return intake->spill.failed ? rf_fail(err, RF_E_NOMEM, "no memory for an answer") : RF_OK;
}

/* Looks at what was spilt as if it came now, a place at a time. */
static enum rf_code replay(struct te_intake *intake, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    while (intake->spill_at < intake->spill.bytes && !intake->line_over) {
        uint64_t left = intake->spill.bytes - intake->spill_at;
        struct iovec *iov = NULL;

        if (intake->expected == 0)
            return rf_fail(err, RF_E_PROTO, "%" PRIu64 " bytes that nobody asked for", left);
        if (te_intake_where(intake, &iov) == 0)
            continue;
        uint64_t piece = left < iov[0].iov_len ? left : iov[0].iov_len;
        memcpy(iov[0].iov_base, intake->spill.data + intake->spill_at, piece);
        intake->spill_at += piece;
        code = take_place(intake, 0, piece, err);
        tell_sink(intake);
        if (code != RF_OK && code != RF_AGAIN)
            return code;
    }
    intake->spill.bytes = 0;
    intake->spill_at = 0;
    return RF_OK;
}

enum rf_code te_intake_arrived(struct te_intake *intake, uint64_t bytes, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (uint64_t i = 0; bytes > 0 && code == RF_OK; i++) {
        assert(i < intake->iov_count);
        uint64_t piece = bytes < intake->iov[i].iov_len ? bytes : intake->iov[i].iov_len;

        bytes -= piece;
        code = take_place(intake, i, piece, err);
        if (code == RF_AGAIN) {
            code = spill_from(intake, i + 1, bytes, err);
            break;
        }
    }
    tell_sink(intake);
    return code == RF_OK ? replay(intake, err) : code;
}

bool te_intake_begun(const struct te_intake *intake)
{
    return intake->status_bytes > 0 || intake->got > 0;
}

void te_intake_lost(struct te_intake *intake)
{
    struct te_request *first = &intake->requests[intake->head];
    uint32_t kept = 0;

    assert(!intake->ours);
    if (intake->count > 0) {
        first->address += intake->got;
        first->offset += intake->got;
        first->bytes -= intake->got;
    }
    for (uint32_t i = 0; i < intake->count; i++) {
        const struct te_request *request = request_at(intake, i);

        if (request->read->code != RF_OK)
            request->read->id--;
        else
            intake->requests[slot_of(intake, kept++)] = *request;
    }
    intake->count = kept;
    intake->expected = 0;
    intake->status_bytes = 0;
    intake->got = 0;
    intake->line_over = false;
}
