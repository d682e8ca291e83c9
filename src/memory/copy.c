#include "base/thread.h"
#include "memory/region.h"

#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum { COPY_PIECE_BYTES = 4 * 1024 * 1024, COPY_MAX_THREADS = 16 };

struct copy {
    uint8_t *dst;
    const uint8_t *src;
    uint64_t bytes;
};

/* memcpy() writes past the caches too, but only in one call of about the size of the last cache,
 * which a thread's piece is not. 2 GiB on a Xeon with 300 MiB of it, GB/s, at 1, 4, 8 and 16
 * threads: pieces of up to 64 MiB by memcpy() 7.4, 24, 40, 52; like this 9.7, 34, 51, 73. */
void memory_stream(void *to, const void *from, size_t bytes)
{
    uint8_t *dst = to;
    const uint8_t *src = from;

#if defined(__x86_64__)
    size_t head = (size_t)(-(uintptr_t)dst % 64);

    head = head < bytes ? head : bytes;
    memcpy(dst, src, head);
    dst += head;
    src += head;
    bytes -= head;
    for (; bytes >= 64; bytes -= 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)src);
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(src + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(src + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(src + 48));
        _mm_stream_si128((__m128i *)(void *)dst, a);
        _mm_stream_si128((__m128i *)(void *)(dst + 16), b);
        _mm_stream_si128((__m128i *)(void *)(dst + 32), c);
        _mm_stream_si128((__m128i *)(void *)(dst + 48), d);
        dst += 64;
        src += 64;
    }
#endif
    memcpy(dst, src, bytes);
}

void memory_stream_end(void)
{
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

static enum rf_code copy_piece(void *ctx, uint64_t item, struct rf_error *err)
{
    const struct copy *copy = ctx;
    uint64_t from = item * COPY_PIECE_BYTES;
    uint64_t bytes = copy->bytes - from;

    (void)err;
    bytes = bytes < COPY_PIECE_BYTES ? bytes : COPY_PIECE_BYTES;
    if (copy->bytes >= MEMORY_STREAM_BYTES) {
        memory_stream(copy->dst + from, copy->src + from, (size_t)bytes);
        memory_stream_end();
    } else {
        memcpy(copy->dst + from, copy->src + from, (size_t)bytes);
    }
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
