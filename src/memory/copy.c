#include "base/thread.h"
#include "memory/region.h"

#include <string.h>

enum { COPY_PIECE_BYTES = 4 * 1024 * 1024, COPY_MAX_THREADS = 8 };

struct copy {
    uint8_t *dst;
    const uint8_t *src;
    uint64_t bytes;
};

static enum rf_code copy_piece(void *ctx, uint64_t item, struct rf_error *err)
{
    const struct copy *copy = ctx;
    uint64_t from = item * COPY_PIECE_BYTES;
    uint64_t bytes = copy->bytes - from;

    (void)err;
    bytes = bytes < COPY_PIECE_BYTES ? bytes : COPY_PIECE_BYTES;
    memcpy(copy->dst + from, copy->src + from, (size_t)bytes);
    return RF_OK;
}

void memory_copy(void *dst, const void *src, uint64_t bytes, unsigned threads)
{
    struct copy copy = {.dst = dst, .src = src, .bytes = bytes};

    if (bytes == 0)
        return;
    if (threads == 0) {
        threads = thread_cpus();
        threads = threads < COPY_MAX_THREADS ? threads : COPY_MAX_THREADS;
    }
    uint64_t pieces = (bytes - 1) / COPY_PIECE_BYTES + 1;
    (void)thread_parallel(threads, pieces, copy_piece, &copy, NULL); /* copying cannot fail */
}
