/* The native protocol's decoders. The first byte chooses one; what it accepts must be what its
 * encoder makes of it again. */
#include "must.h"
#include "wire/chunk.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void fuzz_hello(const uint8_t *data, size_t size)
{
    struct chunk_hello hello;
    uint8_t again[CHUNK_HELLO_BYTES];

    if (chunk_hello_decode(data, size, &hello, NULL) != RF_OK)
        return;
    chunk_hello_encode(&hello, again);
    must(memcmp(again, data, sizeof again) == 0);
    must(chunk_version_choose(&hello) <= CHUNK_VERSION);
}

static void fuzz_welcome(const uint8_t *data, size_t size)
{
    struct chunk_welcome welcome;
    uint8_t again[CHUNK_WELCOME_BYTES];

    if (chunk_welcome_decode(data, size, &welcome, NULL) != RF_OK)
        return;
    chunk_welcome_encode(&welcome, again);
    must(memcmp(again, data, sizeof again) == 0);
}

static void fuzz_hdr(const uint8_t *data, size_t size)
{
    struct chunk_hdr hdr;
    uint8_t again[CHUNK_HDR_BYTES];

    if (chunk_hdr_decode(data, size, &hdr, NULL) != RF_OK)
        return;
    chunk_hdr_encode(&hdr, again);
    must(memcmp(again, data, sizeof again) == 0);
}

/* Ranges that pass the check lie inside the stream, piece by piece. */
static void fuzz_ranges(const struct stream_range *ranges, uint32_t count, uint64_t stream_bytes)
{
    uint64_t bytes = 0;
    uint64_t sum = 0;

    if (stream_ranges_check(ranges, count, stream_bytes, &bytes, NULL) != RF_OK)
        return;
    for (uint32_t i = 0; i < count; i++) {
        __extension__ typedef unsigned __int128 wide;
        wide end = (wide)ranges[i].offset + (wide)(ranges[i].count - 1) * ranges[i].stride +
                   ranges[i].bytes;
        must(end <= stream_bytes);
        sum += ranges[i].count * ranges[i].bytes;
    }
    must(sum == bytes);
}

static void fuzz_read(const uint8_t *data, size_t size)
{
    static struct stream_range ranges[CHUNK_MAX_RANGES];
    uint32_t rank = 0;
    uint32_t count = 0;
    struct buf again = {0};

    if (chunk_read_decode(data, size, &rank, ranges, CHUNK_MAX_RANGES, &count, NULL) != RF_OK)
        return;
    chunk_read_encode(rank, ranges, count, &again);
    must(again.bytes == size && memcmp(again.data, data, size) == 0);
    buf_free(&again);
    fuzz_ranges(ranges, count, UINT64_MAX);
    fuzz_ranges(ranges, count, 1 << 20);
}

static void fuzz_error(const uint8_t *data, size_t size)
{
    struct rf_error err = {.code = RF_OK};
    enum rf_code code = chunk_error_decode(data, size, &err);

    must(code != RF_OK && code == err.code && err.text[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const targets[])(const uint8_t *, size_t) = {fuzz_hello, fuzz_welcome, fuzz_hdr,
                                                               fuzz_read, fuzz_error};

    if (size > 0)
        targets[data[0] % (sizeof targets / sizeof targets[0])](data + 1, size - 1);
    return 0;
}
