/* What readers' fuzz targets put behind a reader: a sink that checks what it is given. */
#ifndef FUZZ_PROBE_H
#define FUZZ_PROBE_H

#include "must.h"
#include "transport/transport.h"

#include <string.h>

enum { PROBE_BYTES = 1500 }; /* of the longest read */

/* A sink in two halves of memory, which fails once it has had fail_after bytes. */
struct probe {
    struct sink sink;
    struct read read;
    struct stream_range range;
    uint64_t offer_bytes; /* of each half */
    uint64_t done;
    uint64_t offered;
    uint64_t fail_after;
    bool failed;
    bool ended;
    uint8_t to[PROBE_BYTES];
};

static inline int probe_where(struct sink *sink, struct iovec *iov, int max, uint64_t *ret_bytes)
{
    struct probe *probe = (struct probe *)sink;
    uint64_t left = probe->read.bytes - probe->done;
    uint64_t first = left < probe->offer_bytes ? left : probe->offer_bytes;
    uint64_t second = left - first < probe->offer_bytes ? left - first : probe->offer_bytes;

    must(!probe->ended && !probe->failed && left > 0 && max >= 2);
    iov[0] = (struct iovec){.iov_base = probe->to + probe->done, .iov_len = first};
    iov[1] = (struct iovec){.iov_base = probe->to + probe->done + first, .iov_len = second};
    probe->offered = first + second;
    *ret_bytes = probe->offered;
    return second > 0 ? 2 : 1;
}

static inline enum rf_code probe_took(struct sink *sink, uint64_t bytes, struct rf_error *err)
{
    struct probe *probe = (struct probe *)sink;

    must(!probe->ended && !probe->failed && bytes > 0 && bytes <= probe->offered);
    probe->done += bytes;
    probe->offered = 0;
    probe->failed = probe->done >= probe->fail_after;
    return probe->failed ? rf_fail(err, RF_E_CORRUPT, "enough") : RF_OK;
}

/* Lets up to `most` bytes of the input arrive where the intake wants them; returns how many. */
static inline uint64_t arrive(const struct iovec *iov, int places, uint64_t most,
                              const uint8_t *data)
{
    uint64_t got = 0;

    for (int i = 0; i < places && got < most; i++) {
        uint64_t n = iov[i].iov_len < most - got ? iov[i].iov_len : most - got;
        must(n > 0);
        memcpy(iov[i].iov_base, data + got, n);
        got += n;
    }
    return got;
}

#endif
