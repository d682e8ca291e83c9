#include "base/rand.h"

#include <errno.h>
#include <sys/random.h>

enum rf_code rand_bytes(void *out, size_t bytes, struct rf_error *err)
{
    uint8_t *at = out;

    while (bytes > 0) {
        ssize_t got = getrandom(at, bytes, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rf_fail_sys(err, "getrandom, %zu bytes", bytes);
        at += got;
        bytes -= (size_t)got;
    }
    return RF_OK;
}

uint64_t rand_next(struct rand_seq *seq)
{
    seq->state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t mixed = seq->state;
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ mixed >> 31;
}

uint64_t rand_below(struct rand_seq *seq, uint64_t below)
{
    if (below < 2)
        return 0;
    /* Numbers under 2^64 mod below would come up once more often than the others. */
    uint64_t unfair = (0 - below) % below;
    uint64_t value = rand_next(seq);
    while (value < unfair)
        value = rand_next(seq);
    return value % below;
}

bool rand_token_equal(const void *a, const void *b, size_t bytes)
{
    const volatile uint8_t *left = a;
    const volatile uint8_t *right = b;
    uint8_t differ = 0;

    for (size_t i = 0; i < bytes; i++)
        differ |= (uint8_t)(left[i] ^ right[i]);
    return differ == 0;
}
