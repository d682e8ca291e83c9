/* What a seed may say to a reader, through the reader's state machine and without sockets. The
 * first byte of the input is how many reads are in flight; each next one how many bytes arrive at
 * once. Whatever comes, every read ends at most once, and its sink gets no byte more than was asked
 * for. */
#include "probe.h"
#include "transport/tcp/intake.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void probe_init(struct probe *probe, uint64_t id)
{
    *probe = (struct probe){
        .sink = {.where = probe_where, .took = probe_took},
        .offer_bytes = 400,
        .range = {.bytes = PROBE_BYTES - id * 90, .count = 1},
        .fail_after = id == 3 ? 100 : UINT64_MAX,
    };
    probe->read = (struct read){.ranges = &probe->range,
                                .range_count = 1,
                                .bytes = probe->range.bytes,
                                .sink = &probe->sink,
                                .user = probe,
                                .digest = id % 3 == 2 ? HASH_XXH3_128 : 0,
                                .id = id};
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
    must(!probe->failed || done->code == RF_E_CORRUPT);
}

/* Each of them has ended, or is still in flight, and none both. */
static void count_ends(struct tcp_intake *intake, const struct probe *probes, unsigned count)
{
    unsigned ended = 0;

    for (unsigned i = 0; i < count; i++)
        ended += probes[i].ended;
    must(ended + intake->in_flight == count);
    while (tcp_intake_take(intake) != NULL)
        ended++;
    must(ended == count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct probe probes[CHUNK_MAX_IN_FLIGHT];
    static uint8_t scratch[TCP_SCRATCH_BYTES];
    struct tcp_intake intake;
    const uint8_t *end = data + len;
    struct rf_error err = {0};
    enum rf_code code = RF_OK;

    unsigned count = len > 0 ? *data++ % (CHUNK_MAX_IN_FLIGHT + 1) : 0;
    tcp_intake_init(&intake, scratch);
    for (unsigned i = 0; i < count; i++) {
        probe_init(&probes[i], i + 1);
        tcp_intake_add(&intake, &probes[i].read);
    }
    while (data < end && code == RF_OK) {
        uint8_t step = *data++;
        uint64_t left = (uint64_t)(end - data);
        uint64_t most = step & 0x80 ? left : (uint64_t)step + 1;
        struct iovec iov[TCP_IN_IOV];
        struct read *done = NULL;
        int places = tcp_intake_where(&intake, iov);
        must(places >= 1 && places <= TCP_IN_IOV && tcp_intake_need(&intake) > 0);
        uint64_t got = arrive(iov, places, most < left ? most : left, data);
        data += got;
        if (got > 0)
            code = tcp_intake_arrived(&intake, got, &done, &err);
        if (done != NULL)
            take_end(done);
    }
    must(code == RF_OK || err.text[0] != '\0');
    count_ends(&intake, probes, count);
    return 0;
}
