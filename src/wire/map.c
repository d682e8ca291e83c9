#include "wire/map.h"

#include <assert.h>
#include <inttypes.h>

static const char magic_map[] = "rfmap/1\n";

void map_hello_encode(const struct map_hello *hello, uint8_t out[MAP_HELLO_BYTES])
{
    struct wire_out at = {.at = out};

    chunk_hello_put(&at, magic_map, &hello->hello);
    wire_set_u32(&at, hello->rank);
    assert(at.at == out + MAP_HELLO_BYTES);
}

enum rf_code map_hello_decode(const uint8_t *buf, size_t len, struct map_hello *ret_hello,
                              struct rf_error *err)
{
    struct wire_in in = wire_in_over(buf, len);
    struct map_hello hello;
    enum rf_code code = chunk_hello_get(&in, "map hello", magic_map, &hello.hello, err);

    if (code != RF_OK)
        return code;
    hello.rank = wire_get_u32(&in);
    if (!in.ok)
        return rf_fail(err, RF_E_PROTO, "map hello: got %zu bytes, need %d", len, MAP_HELLO_BYTES);
    *ret_hello = hello;
    return RF_OK;
}

void map_grant_encode(const struct map_grant *grant, uint8_t out[MAP_GRANT_BYTES])
{
    struct wire_out at = {.at = out};

    wire_set_bytes(&at, magic_map, CHUNK_MAGIC_BYTES);
    wire_set_u16(&at, grant->version);
    wire_set_u16(&at, grant->status);
    wire_set_u32(&at, grant->fd_count);
    wire_set_u32(&at, grant->segment_count);
    wire_set_u32(&at, grant->text_bytes);
    wire_set_u64(&at, 0);
    assert(at.at == out + MAP_GRANT_BYTES);
}

/* What must hold in a refusal: nothing is granted, and the reason is short. */
static enum rf_code refusal_check(const struct map_grant *grant, struct rf_error *err)
{
    if (grant->fd_count != 0 || grant->segment_count != 0)
        return rf_fail(err, RF_E_PROTO,
                       "map grant: refused with status %u, yet %" PRIu32 " descriptors and %" PRIu32
                       " segments",
                       grant->status, grant->fd_count, grant->segment_count);
    if (grant->text_bytes > CHUNK_MAX_ERROR_BYTES)
        return rf_fail(err, RF_E_PROTO, "map grant: text of %" PRIu32 " bytes, allowed are %d",
                       grant->text_bytes, CHUNK_MAX_ERROR_BYTES);
    return RF_OK;
}

static enum rf_code grant_check(const struct map_grant *grant, struct rf_error *err)
{
    if (grant->version == 0 || grant->version > CHUNK_VERSION)
        return rf_fail(err, RF_E_PROTO,
                       "map grant: the seed chose version %u of the offered 1 to %d",
                       grant->version, CHUNK_VERSION);
    if (grant->fd_count > MAP_MAX_FDS || grant->segment_count > MAP_MAX_SEGMENTS)
        return rf_fail(err, RF_E_PROTO,
                       "map grant: %" PRIu32 " descriptors and %" PRIu32
                       " segments, allowed are %d and %d",
                       grant->fd_count, grant->segment_count, MAP_MAX_FDS, MAP_MAX_SEGMENTS);
    if ((grant->fd_count == 0) != (grant->segment_count == 0))
        return rf_fail(err, RF_E_PROTO,
                       "map grant: %" PRIu32 " descriptors for %" PRIu32 " segments",
                       grant->fd_count, grant->segment_count);
    if (grant->text_bytes != 0)
        return rf_fail(err, RF_E_PROTO, "map grant: %" PRIu32 " bytes of error text, but no error",
                       grant->text_bytes);
    return RF_OK;
}

enum rf_code map_grant_decode(const uint8_t *buf, size_t len, struct map_grant *ret_grant,
                              struct rf_error *err)
{
    struct wire_in in = wire_in_over(buf, len);
    enum rf_code code = chunk_magic_get(&in, "map grant", magic_map, err);
    struct map_grant grant;

    if (code != RF_OK)
        return code;
    grant.version = wire_get_u16(&in);
    grant.status = wire_get_u16(&in);
    grant.fd_count = wire_get_u32(&in);
    grant.segment_count = wire_get_u32(&in);
    grant.text_bytes = wire_get_u32(&in);
    uint64_t zero = wire_get_u64(&in);
    if (!in.ok)
        return rf_fail(err, RF_E_PROTO, "map grant: got %zu bytes, need %d", len, MAP_GRANT_BYTES);
    if (zero != 0)
        return rf_fail(err, RF_E_PROTO, "map grant: reserved field is %#" PRIx64 ", not 0", zero);
    if (!chunk_code_ok(grant.status))
        return rf_fail(err, RF_E_PROTO, "map grant: unknown status %u", grant.status);
    code = grant.status == RF_OK ? grant_check(&grant, err) : refusal_check(&grant, err);
    if (code == RF_OK)
        *ret_grant = grant;
    return code;
}

void map_segment_encode(const struct map_segment *segment, uint8_t out[MAP_SEGMENT_BYTES])
{
    struct wire_out at = {.at = out};

    wire_set_u64(&at, segment->stream_offset);
    wire_set_u64(&at, segment->bytes);
    wire_set_u64(&at, segment->fd_offset);
    wire_set_u32(&at, segment->fd_index);
    wire_set_u32(&at, 0);
    assert(at.at == out + MAP_SEGMENT_BYTES);
}

enum rf_code map_segment_decode(const uint8_t *buf, size_t len, struct map_segment *ret_segment,
                                struct rf_error *err)
{
    struct wire_in in = wire_in_over(buf, len);
    struct map_segment segment;
    uint64_t end;

    segment.stream_offset = wire_get_u64(&in);
    segment.bytes = wire_get_u64(&in);
    segment.fd_offset = wire_get_u64(&in);
    segment.fd_index = wire_get_u32(&in);
    uint32_t zero = wire_get_u32(&in);
    if (!in.ok)
        return rf_fail(err, RF_E_PROTO, "map segment: got %zu bytes, need %d", len,
                       MAP_SEGMENT_BYTES);
    if (zero != 0)
        return rf_fail(err, RF_E_PROTO, "map segment: reserved field is %#" PRIx32 ", not 0", zero);
    if (segment.fd_index >= MAP_MAX_FDS)
        return rf_fail(err, RF_E_PROTO, "map segment: descriptor %" PRIu32 ", there are at most %d",
                       segment.fd_index, MAP_MAX_FDS);
    if (segment.bytes == 0 || __builtin_add_overflow(segment.stream_offset, segment.bytes, &end) ||
        __builtin_add_overflow(segment.fd_offset, segment.bytes, &end))
        return rf_fail(err, RF_E_PROTO,
                       "map segment: %" PRIu64 " bytes at %" PRIu64 " of the stream and %" PRIu64
                       " of descriptor %" PRIu32 ": empty or beyond 2^64",
                       segment.bytes, segment.stream_offset, segment.fd_offset, segment.fd_index);
    *ret_segment = segment;
    return RF_OK;
}
