/* Read with the byte tables of docs/wire-protocol.md beside it: each encoder and its decoder walk
 * the same fields in the same order, and what a decoder accepts, the encoder turns into the same
 * bytes again (tests/fuzz/fuzz_chunk.c). */
#include "wire/chunk.h"

#include <assert.h>
#include <inttypes.h>

static const char magic_chunk[] = "rfork/1\n";

/* ---- hello and welcome ---- */

enum rf_code chunk_magic_get(struct wire_in *in, const char *protocol, const char *magic,
                             struct rf_error *err)
{
    uint64_t left = wire_left(in);
    const uint8_t *got = wire_get_bytes(in, CHUNK_MAGIC_BYTES);
    char seen[CHUNK_MAGIC_BYTES + 1] = "";

    if (got == NULL)
        return rf_fail(err, RF_E_PROTO, "%s: got %" PRIu64 " bytes, need %d to know the protocol",
                       protocol, left, CHUNK_MAGIC_BYTES);
    if (memcmp(got, magic, CHUNK_MAGIC_BYTES) == 0)
        return RF_OK;

    /* What came instead is the best hint at who is at the other end: "GET / HT", "SSH-2.0-", a TLS
     * record. */
    for (unsigned i = 0; i < CHUNK_MAGIC_BYTES; i++)
        seen[i] = got[i] >= ' ' && got[i] <= '~' ? (char)got[i] : '.';
    return rf_fail(err, RF_E_PROTO,
                   "%s: begins with \"%s\", not \"%.7s\": another protocol; check the port",
                   protocol, seen, magic);
}

void chunk_hello_put(struct wire_out *out, const char *magic, const struct chunk_hello *hello)
{
    wire_set_bytes(out, magic, CHUNK_MAGIC_BYTES);
    wire_set_u16(out, hello->version_min);
    wire_set_u16(out, hello->version_max);
    wire_set_u32(out, 0);
    wire_set_bytes(out, hello->token, CHUNK_TOKEN_BYTES);
}

enum rf_code chunk_hello_get(struct wire_in *in, const char *protocol, const char *magic,
                             struct chunk_hello *ret_hello, struct rf_error *err)
{
    uint64_t left = wire_left(in);
    enum rf_code code = chunk_magic_get(in, protocol, magic, err);
    struct chunk_hello hello;

    if (code != RF_OK)
        return code;
    hello.version_min = wire_get_u16(in);
    hello.version_max = wire_get_u16(in);
    uint32_t flags = wire_get_u32(in);
    const uint8_t *token = wire_get_bytes(in, CHUNK_TOKEN_BYTES);
    if (token == NULL)
        return rf_fail(err, RF_E_PROTO, "%s: got %" PRIu64 " bytes, need %d", protocol, left,
                       CHUNK_HELLO_BYTES);
    if (hello.version_min == 0 || hello.version_min > hello.version_max)
        return rf_fail(err, RF_E_PROTO, "%s: offers versions %u to %u, which is no range", protocol,
                       hello.version_min, hello.version_max);
    if (flags != 0)
        return rf_fail(err, RF_E_PROTO, "%s: flags %#" PRIx32 ", none are defined", protocol,
                       flags);
    memcpy(hello.token, token, CHUNK_TOKEN_BYTES);
    *ret_hello = hello;
    return RF_OK;
}

void chunk_hello_encode(const struct chunk_hello *hello, uint8_t out[CHUNK_HELLO_BYTES])
{
    struct wire_out at = {.at = out};

    chunk_hello_put(&at, magic_chunk, hello);
    assert(at.at == out + CHUNK_HELLO_BYTES);
}

enum rf_code chunk_hello_decode(const uint8_t *buf, size_t len, struct chunk_hello *ret_hello,
                                struct rf_error *err)
{
    struct wire_in in = wire_in_over(buf, len);

    return chunk_hello_get(&in, "hello", magic_chunk, ret_hello, err);
}

uint16_t chunk_version_choose(const struct chunk_hello *hello)
{
    if (hello->version_min > CHUNK_VERSION)
        return 0;
    return hello->version_max < CHUNK_VERSION ? hello->version_max : CHUNK_VERSION;
}

void chunk_welcome_encode(const struct chunk_welcome *welcome, uint8_t out[CHUNK_WELCOME_BYTES])
{
    struct wire_out at = {.at = out};

    wire_set_bytes(&at, magic_chunk, CHUNK_MAGIC_BYTES);
    wire_set_u16(&at, welcome->version);
    wire_set_u16(&at, welcome->status);
    wire_set_u32(&at, welcome->max_in_flight);
    wire_set_u64(&at, welcome->max_read_bytes);
    wire_set_u64(&at, 0);
    assert(at.at == out + CHUNK_WELCOME_BYTES);
}

/* What must hold in a welcome that lets the reader in. */
static enum rf_code welcome_check(const struct chunk_welcome *welcome, struct rf_error *err)
{
    if (welcome->version == 0 || welcome->version > CHUNK_VERSION)
        return rf_fail(err, RF_E_PROTO, "welcome: the seed chose version %u of the offered 1 to %d",
                       welcome->version, CHUNK_VERSION);
    if (welcome->max_in_flight == 0 || welcome->max_in_flight > CHUNK_MAX_IN_FLIGHT)
        return rf_fail(err, RF_E_PROTO,
                       "welcome: %" PRIu32 " reads in flight, the protocol has 1 to %d",
                       welcome->max_in_flight, CHUNK_MAX_IN_FLIGHT);
    if (welcome->max_read_bytes == 0 || welcome->max_read_bytes > CHUNK_MAX_READ_BYTES)
        return rf_fail(err, RF_E_PROTO,
                       "welcome: reads of %" PRIu64 " bytes, the protocol has 1 to %d",
                       welcome->max_read_bytes, CHUNK_MAX_READ_BYTES);
    return RF_OK;
}

enum rf_code chunk_welcome_decode(const uint8_t *buf, size_t len, struct chunk_welcome *ret_welcome,
                                  struct rf_error *err)
{
    struct wire_in in = wire_in_over(buf, len);
    enum rf_code code = chunk_magic_get(&in, "welcome", magic_chunk, err);
    struct chunk_welcome welcome;

    if (code != RF_OK)
        return code;
    welcome.version = wire_get_u16(&in);
    welcome.status = wire_get_u16(&in);
    welcome.max_in_flight = wire_get_u32(&in);
    welcome.max_read_bytes = wire_get_u64(&in);
    uint64_t zero = wire_get_u64(&in);
    if (!in.ok)
        return rf_fail(err, RF_E_PROTO, "welcome: got %zu bytes, need %d", len,
                       CHUNK_WELCOME_BYTES);
    if (zero != 0)
        return rf_fail(err, RF_E_PROTO, "welcome: reserved field is %#" PRIx64 ", not 0", zero);
    if (!chunk_code_ok(welcome.status))
        return rf_fail(err, RF_E_PROTO, "welcome: unknown status %u", welcome.status);
    if (welcome.status == RF_OK)
        code = welcome_check(&welcome, err);
    if (code == RF_OK)
        *ret_welcome = welcome;
    return code;
}

/* ---- frame headers ---- */

void chunk_hdr_encode(const struct chunk_hdr *hdr, uint8_t out[CHUNK_HDR_BYTES])
{
    struct wire_out at = {.at = out};

    wire_set_u8(&at, (uint8_t)hdr->type);
    wire_set_u8(&at, hdr->flags);
    wire_set_u16(&at, 0);
    wire_set_u32(&at, hdr->body_bytes);
    wire_set_u64(&at, hdr->request_id);
    assert(at.at == out + CHUNK_HDR_BYTES);
}

/* What each type of frame allows. A type that is not here has no name. */
static const struct {
    const char *name;
    uint32_t min_body;
    uint32_t max_body;
    uint8_t flags;
} chunk_types[] = {
    [CHUNK_READ] = {"READ", CHUNK_READ_BYTES + CHUNK_RANGE_BYTES, CHUNK_MAX_READ_BODY,
                    CHUNK_FLAG_XXH3 | CHUNK_FLAG_SHA256},
    [CHUNK_DATA] = {"DATA", 1, CHUNK_MAX_DATA_BYTES, CHUNK_FLAG_LAST},
    [CHUNK_ERROR] = {"ERROR", 4, CHUNK_MAX_ERROR_BODY, 0},
    [CHUNK_GOODBYE] = {"GOODBYE", 0, 0, 0},
    [CHUNK_DIGEST] = {"DIGEST", 16, HASH_MAX_BYTES, 0},
};

enum rf_code chunk_hdr_decode(const uint8_t *buf, size_t len, struct chunk_hdr *ret_hdr,
                              struct rf_error *err)
{
    struct wire_in in = wire_in_over(buf, len);
    struct chunk_hdr hdr;

    unsigned type = wire_get_u8(&in);
    hdr.flags = wire_get_u8(&in);
    uint16_t zero = wire_get_u16(&in);
    hdr.body_bytes = wire_get_u32(&in);
    hdr.request_id = wire_get_u64(&in);
    if (!in.ok)
        return rf_fail(err, RF_E_PROTO, "frame header: got %zu bytes, need %d", len,
                       CHUNK_HDR_BYTES);
    if (type >= sizeof(chunk_types) / sizeof(chunk_types[0]) || chunk_types[type].name == NULL)
        return rf_fail(err, RF_E_PROTO, "frame header: unknown type %u", type);

    const char *name = chunk_types[type].name;
    if ((hdr.flags & ~chunk_types[type].flags) != 0)
        return rf_fail(err, RF_E_PROTO, "%s frame: flags %#x, allowed are %#x", name, hdr.flags,
                       chunk_types[type].flags);
    if (zero != 0)
        return rf_fail(err, RF_E_PROTO, "%s frame: reserved field is %#x, not 0", name, zero);
    if (hdr.body_bytes < chunk_types[type].min_body || hdr.body_bytes > chunk_types[type].max_body)
        return rf_fail(err, RF_E_PROTO,
                       "%s frame: body of %" PRIu32 " bytes, allowed are %" PRIu32 " to %" PRIu32,
                       name, hdr.body_bytes, chunk_types[type].min_body,
                       chunk_types[type].max_body);
    if (type == CHUNK_READ && (hdr.flags & CHUNK_FLAG_XXH3) != 0 &&
        (hdr.flags & CHUNK_FLAG_SHA256) != 0)
        return rf_fail(err, RF_E_PROTO, "READ frame: asks for two digests, one is allowed");
    if (type == CHUNK_DIGEST && hdr.body_bytes != 16 && hdr.body_bytes != 32)
        return rf_fail(err, RF_E_PROTO, "DIGEST frame: body of %" PRIu32 " bytes, must be 16 or 32",
                       hdr.body_bytes);
    hdr.type = (enum chunk_type)type;
    *ret_hdr = hdr;
    return RF_OK;
}

uint8_t chunk_digest_flag(enum hash_algorithm algorithm)
{
    if (algorithm == HASH_XXH3_128)
        return CHUNK_FLAG_XXH3;
    return algorithm == HASH_SHA256 ? CHUNK_FLAG_SHA256 : 0;
}

enum hash_algorithm chunk_digest_wanted(uint8_t flags)
{
    if ((flags & CHUNK_FLAG_XXH3) != 0)
        return HASH_XXH3_128;
    return (flags & CHUNK_FLAG_SHA256) != 0 ? HASH_SHA256 : 0;
}

/* ---- READ ---- */

void chunk_range_encode(const struct stream_range *range, uint8_t out[CHUNK_RANGE_BYTES])
{
    struct wire_out at = {.at = out};

    wire_set_u64(&at, range->offset);
    wire_set_u64(&at, range->bytes);
    wire_set_u64(&at, range->stride);
    wire_set_u64(&at, range->count);
}

void chunk_read_encode(uint32_t rank, const struct stream_range *ranges, uint32_t count,
                       struct buf *out)
{
    assert(count >= 1 && count <= CHUNK_MAX_RANGES);
    size_t bytes = CHUNK_READ_BYTES + (size_t)count * CHUNK_RANGE_BYTES;
    struct wire_out at = {.at = buf_reserve(out, bytes)};

    if (at.at == NULL)
        return;
    wire_set_u32(&at, rank);
    wire_set_u32(&at, count);
    for (uint32_t i = 0; i < count; i++) {
        chunk_range_encode(&ranges[i], at.at);
        at.at += CHUNK_RANGE_BYTES;
    }
    out->bytes += bytes;
}

enum rf_code chunk_read_decode(const uint8_t *body, size_t len, uint32_t *ret_rank,
                               struct stream_range *ranges, uint32_t max, uint32_t *ret_count,
                               struct rf_error *err)
{
    struct wire_in in = wire_in_over(body, len);
    uint32_t limit = max < CHUNK_MAX_RANGES ? max : CHUNK_MAX_RANGES;

    uint32_t rank = wire_get_u32(&in);
    uint32_t count = wire_get_u32(&in);
    if (!in.ok)
        return rf_fail(err, RF_E_PROTO, "READ: body of %zu bytes, need %d", len, CHUNK_READ_BYTES);
    if (count == 0 || count > limit)
        return rf_fail(err, RF_E_PROTO, "READ: %" PRIu32 " ranges, allowed are 1 to %" PRIu32,
                       count, limit);
    /* count is at most 4096 here: no product below can wrap. */
    if (wire_left(&in) != (uint64_t)count * CHUNK_RANGE_BYTES)
        return rf_fail(err, RF_E_PROTO, "READ: body of %zu bytes, %" PRIu32 " ranges take %" PRIu32,
                       len, count, CHUNK_READ_BYTES + count * CHUNK_RANGE_BYTES);
    for (uint32_t i = 0; i < count; i++) {
        ranges[i].offset = wire_get_u64(&in);
        ranges[i].bytes = wire_get_u64(&in);
        ranges[i].stride = wire_get_u64(&in);
        ranges[i].count = wire_get_u64(&in);
    }
    *ret_rank = rank;
    *ret_count = count;
    return RF_OK;
}

/* ---- ERROR ---- */

bool chunk_code_ok(uint32_t code)
{
    return code <= RF_E_CHANGED;
}

void chunk_error_encode(enum rf_code code, const char *text, struct buf *out)
{
    size_t bytes = strnlen(text, CHUNK_MAX_ERROR_BYTES + 1);

    if (bytes > CHUNK_MAX_ERROR_BYTES) {
        bytes = CHUNK_MAX_ERROR_BYTES;
        while (bytes > 0 && ((uint8_t)text[bytes] & 0xc0) == 0x80)
            bytes--; /* a UTF-8 continuation byte: its character does not fit whole */
    }
    wire_put_u32(out, code);
    buf_append(out, text, bytes);
}

enum rf_code chunk_error_decode(const uint8_t *body, size_t len, struct rf_error *err)
{
    struct wire_in in = wire_in_over(body, len);
    uint32_t code = wire_get_u32(&in);

    if (!in.ok)
        return rf_fail(err, RF_E_PROTO, "ERROR: body of %zu bytes, need 4", len);

    uint64_t bytes = wire_left(&in);
    if (bytes > CHUNK_MAX_ERROR_BYTES)
        return rf_fail(err, RF_E_PROTO, "ERROR: text of %" PRIu64 " bytes, allowed are %d", bytes,
                       CHUNK_MAX_ERROR_BYTES);
    const char *text = (const char *)in.at;
    bytes = strnlen(text, bytes); /* a NUL ends it: what comes behind could not be shown */
    if (code == RF_OK || !chunk_code_ok(code))
        return rf_fail(err, RF_E_PROTO, "ERROR: code %" PRIu32 " is no failure we know: %.*s", code,
                       (int)bytes, text);
    if (bytes == 0)
        return rf_fail(err, (enum rf_code)code, "the peer gives no reason");
    return rf_fail(err, (enum rf_code)code, "%.*s", (int)bytes, text);
}

/* ---- ranges ---- */

/* Whether all `count` pieces lie in [0, stream_bytes); *ret_bytes is their sum. */
static bool range_fits(const struct stream_range *range, uint64_t stream_bytes, uint64_t *ret_bytes)
{
    uint64_t reach;

    if (range->bytes == 0 || range->count == 0)
        return false;
    if (range->count == 1 ? range->stride != 0 : range->stride < range->bytes)
        return false;
    /* The last piece reaches furthest: offset + (count - 1) * stride + bytes. As no piece overlaps
     * another, count * bytes is no more than that and cannot wrap either. */
    if (__builtin_mul_overflow(range->count - 1, range->stride, &reach) ||
        __builtin_add_overflow(reach, range->offset, &reach) ||
        __builtin_add_overflow(reach, range->bytes, &reach) || reach > stream_bytes)
        return false;
    *ret_bytes = range->count * range->bytes;
    return true;
}

enum rf_code stream_ranges_check(const struct stream_range *ranges, uint32_t count,
                                 uint64_t stream_bytes, uint64_t *ret_bytes, struct rf_error *err)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct stream_range *range = &ranges[i];
        uint64_t bytes = 0;

        if (!range_fits(range, stream_bytes, &bytes))
            return rf_fail(err, RF_E_INVAL,
                           "range %" PRIu32 " of %" PRIu32 ": %" PRIu64 " pieces of %" PRIu64
                           " bytes at %" PRIu64 ", %" PRIu64
                           " apart: malformed, or not inside the stream of %" PRIu64 " bytes",
                           i, count, range->count, range->bytes, range->offset, range->stride,
                           stream_bytes);
        /* Ranges may repeat each other, so only this sum can wrap. */
        if (__builtin_add_overflow(sum, bytes, &sum))
            return rf_fail(err, RF_E_INVAL,
                           "range %" PRIu32 " of %" PRIu32 ": more than 2^64 bytes in all", i,
                           count);
    }
    *ret_bytes = sum;
    return RF_OK;
}
