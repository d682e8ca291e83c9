/* The map exchange's decoders. The first byte chooses one; what it accepts must be what its encoder
 * makes of it again. */
#include "must.h"
#include "wire/map.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void fuzz_hello(const uint8_t *data, size_t size)
{
    struct map_hello hello;
    uint8_t again[MAP_HELLO_BYTES];

    if (map_hello_decode(data, size, &hello, NULL) != RF_OK)
        return;
    map_hello_encode(&hello, again);
    must(memcmp(again, data, sizeof again) == 0);
}

static void fuzz_grant(const uint8_t *data, size_t size)
{
    struct map_grant grant;
    uint8_t again[MAP_GRANT_BYTES];

    if (map_grant_decode(data, size, &grant, NULL) != RF_OK)
        return;
    map_grant_encode(&grant, again);
    must(memcmp(again, data, sizeof again) == 0);
    must(grant.fd_count <= MAP_MAX_FDS && grant.segment_count <= MAP_MAX_SEGMENTS);
}

static void fuzz_segment(const uint8_t *data, size_t size)
{
    struct map_segment segment;
    uint8_t again[MAP_SEGMENT_BYTES];

    if (map_segment_decode(data, size, &segment, NULL) != RF_OK)
        return;
    map_segment_encode(&segment, again);
    must(memcmp(again, data, sizeof again) == 0);
    must(segment.bytes <= UINT64_MAX - segment.fd_offset);
    must(segment.bytes <= UINT64_MAX - segment.stream_offset);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const targets[])(const uint8_t *, size_t) = {fuzz_hello, fuzz_grant,
                                                               fuzz_segment};

    if (size > 0)
        targets[data[0] % (sizeof targets / sizeof targets[0])](data + 1, size - 1);
    return 0;
}
