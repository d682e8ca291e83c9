/* What an engine may say over data connections, through the reader's state machine and without
 * sockets. Of the input's first byte, two bits are the kind of engine and the others how many reads
 * are in flight; each next byte is how many bytes arrive at once, or that the connection is gone.
 * Whatever comes, every read ends at most once, and its sink gets no byte more than was asked for. */
#include "probe.h"
#include "transport/te/intake.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { PIECES = 20, PIECE_BYTES = 100, READS = 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void probe_init(struct probe *probe, unsigned id, bool ours)
{
    *probe = (struct probe){
        .sink = {.where = probe_where, .took = probe_took},
        .offer_bytes = 190,
        .range = {.offset = id * 31, .bytes = 20 + id, .stride = 110, .count = 1 + id % 10},
        .fail_after = id == 3 ? 30 : UINT64_MAX,
    };
    if (probe->range.count == 1)
        probe->range.stride = 0;
    probe->read = (struct read){.rank = id == 5, /* which there is not */
                                .ranges = &probe->range,
                                .range_count = 1,
                                .bytes = probe->range.bytes * probe->range.count,
                                .sink = &probe->sink,
                                .user = probe,
                                .digest = ours && id % 3 == 2 ? HASH_XXH3_128 : 0};
}

static void take_end(struct read *done)
{
    struct probe *probe = done->user;

    must(!probe->ended);
    probe->ended = true;
    if (done->code == RF_OK)
        must(probe->done == done->bytes);
    else
        must(done->error.text[0] != '\0');
}

static void describe(struct te_places *places)
{
    struct te_buffer buffers[PIECES];
    struct te_segment segments[PIECES];
    struct te_descriptor descriptor = {
        .name = "engine", .buffers = buffers, .buffer_count = PIECES};

    for (unsigned i = 0; i < PIECES; i++) {
        buffers[i] = (struct te_buffer){
            .address = 1000 + i * (PIECE_BYTES + i % 2), .name = "", .bytes = PIECE_BYTES};
        segments[i] = (struct te_segment){.stream_offset = (uint64_t)i * PIECE_BYTES,
                                          .bytes = PIECE_BYTES,
                                          .address = buffers[i].address};
        if (i > 0 && buffers[i].address < buffers[i - 1].address + PIECE_BYTES)
            buffers[i].address = segments[i].address = buffers[i - 1].address + PIECE_BYTES;
    }
    must(te_places_set(places, &descriptor, 0, segments, PIECES, PIECES * PIECE_BYTES, NULL) ==
         RF_OK);
}

/* One step of the input; *ret_code is what the intake made of it. Returns the bytes used. */
static uint64_t step(struct te_intake *intake, const uint8_t *data, uint64_t left, uint8_t what,
                     enum rf_code *ret_code, struct rf_error *err)
{
    uint64_t most = what & 0x80 ? left : (uint64_t)(what & 0x3f) + 1;
    struct iovec *iov = NULL;

    if (!intake->ours && (intake->line_over || (what & 0xc0) == 0x40)) {
        te_intake_lost(intake);
        return 0;
    }
    te_intake_ask(intake);
    /* As on one line, or on one of several. */
    intake->expected = what & 1 ? intake->count : intake->count > 0;
    if (intake->expected == 0)
        return 0;
    int places = te_intake_where(intake, &iov);
    must(places >= 0 && places <= TE_IN_IOV && te_intake_need(intake) > 0);
    uint64_t got = arrive(iov, places, most < left ? most : left, data);
    if (got > 0)
        *ret_code = te_intake_arrived(intake, got, err);
    return got;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct probe probes[READS];
    static uint8_t scratch[TE_SCRATCH_BYTES];
    static struct te_intake intake;
    struct te_places places = {.count = 0};
    struct buf out BUF_AUTO = {.bytes = 0};
    const uint8_t *end = data + len;
    struct rf_error err = {0};
    enum rf_code code = RF_OK;
    unsigned ended = 0;

    uint8_t kind = len > 0 ? *data++ : 0;
    unsigned count = (kind >> 2) % (READS + 1);
    describe(&places);
    te_intake_init(&intake, &places, scratch);
    intake.ours = (kind & 3) == 3;
    intake.statuses = (kind & 3) >= 2;
    for (unsigned i = 0; i < count; i++) {
        probe_init(&probes[i], i, intake.ours);
        te_intake_add(&intake, &probes[i].read);
    }
    while (data < end && code == RF_OK && intake.in_flight > 0) {
        uint8_t what = *data++;
        data += step(&intake, data, (uint64_t)(end - data), what, &code, &err);
        for (struct read *done = NULL; (done = te_intake_ended(&intake)) != NULL; ended++)
            take_end(done);
    }
    must(code == RF_OK || err.text[0] != '\0');
    te_intake_encode(&intake, 0, intake.count, &out);
    must(!out.failed && out.bytes >= intake.count * (uint64_t)TE_HDR_BYTES);
    must(ended + intake.in_flight == count);
    while (te_intake_take(&intake) != NULL)
        ended++;
    must(ended == count);
    te_intake_free(&intake);
    te_places_free(&places);
    return 0;
}
