/* The map exchange's codec. What it shares with the native protocol is tested in test_chunk.c. */
#include "util/bytes.h"
#include "util/golden.h"
#include "wire/map.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void hello_survives_the_wire(void **state)
{
    (void)state;
    struct map_hello sent = {.hello = {.version_min = 1, .version_max = 2}, .rank = 5};
    struct map_hello got;
    uint8_t raw[MAP_HELLO_BYTES];

    memset(sent.hello.token, 0x5a, CHUNK_TOKEN_BYTES);
    map_hello_encode(&sent, raw);
    golden_check("map_hello_v1.bin", raw, sizeof raw);
    assert_int_equal(map_hello_decode(raw, sizeof raw, &got, NULL), RF_OK);
    assert_int_equal(got.hello.version_min, 1);
    assert_int_equal(got.hello.version_max, 2);
    assert_memory_equal(got.hello.token, sent.hello.token, CHUNK_TOKEN_BYTES);
    assert_int_equal(got.rank, 5);
}

static void truncated_hello_is_refused(void **state)
{
    (void)state;
    struct map_hello hello = {.hello = {.version_min = 1, .version_max = 1}, .rank = 0};
    uint8_t raw[MAP_HELLO_BYTES];

    map_hello_encode(&hello, raw);
    for (size_t len = 0; len < sizeof raw; len++) {
        uint8_t *cut = exact_copy(raw, len);
        assert_int_equal(map_hello_decode(cut, len, &hello, NULL), RF_E_PROTO);
        free(cut);
    }
}

static void hello_of_the_native_protocol_is_refused(void **state)
{
    (void)state;
    struct chunk_hello native = {.version_min = 1, .version_max = 1};
    struct map_hello hello;
    uint8_t raw[MAP_HELLO_BYTES] = {0};

    chunk_hello_encode(&native, raw);
    assert_int_equal(map_hello_decode(raw, sizeof raw, &hello, NULL), RF_E_PROTO);
}

/* ---- grant ---- */

static enum rf_code decode_grant(struct map_grant grant)
{
    struct map_grant got;
    uint8_t raw[MAP_GRANT_BYTES];

    map_grant_encode(&grant, raw);
    return map_grant_decode(raw, sizeof raw, &got, NULL);
}

static void grant_survives_the_wire(void **state)
{
    (void)state;
    struct map_grant sent = {
        .version = 1, .status = RF_OK, .fd_count = 2, .segment_count = 70000, .text_bytes = 0};
    struct map_grant got;
    uint8_t raw[MAP_GRANT_BYTES];

    map_grant_encode(&sent, raw);
    golden_check("map_grant_v1.bin", raw, sizeof raw);
    assert_int_equal(map_grant_decode(raw, sizeof raw, &got, NULL), RF_OK);
    assert_int_equal(got.version, 1);
    assert_int_equal(got.status, RF_OK);
    assert_int_equal(got.fd_count, 2);
    assert_int_equal(got.segment_count, 70000);
    assert_int_equal(got.text_bytes, 0);
}

static void truncated_grant_is_refused(void **state)
{
    (void)state;
    struct map_grant grant = {.version = 1, .fd_count = 1, .segment_count = 1};
    uint8_t raw[MAP_GRANT_BYTES];

    map_grant_encode(&grant, raw);
    for (size_t len = 0; len < sizeof raw; len++) {
        uint8_t *cut = exact_copy(raw, len);
        assert_int_equal(map_grant_decode(cut, len, &grant, NULL), RF_E_PROTO);
        free(cut);
    }
}

static void grant_beyond_the_limits_is_refused(void **state)
{
    (void)state;
    const uint32_t fds = MAP_MAX_FDS;
    const uint32_t segments = MAP_MAX_SEGMENTS;

    assert_int_equal(decode_grant((struct map_grant){1, RF_OK, fds, segments, 0}), RF_OK);
    assert_int_equal(decode_grant((struct map_grant){1, RF_OK, fds + 1, segments, 0}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){1, RF_OK, fds, segments + 1, 0}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){1, RF_OK, fds, UINT32_MAX, 0}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){0, RF_OK, 1, 1, 0}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){2, RF_OK, 1, 1, 0}), RF_E_PROTO);
}

static void segments_and_descriptors_come_together(void **state)
{
    (void)state;
    assert_int_equal(decode_grant((struct map_grant){1, RF_OK, 0, 0, 0}), RF_OK);
    assert_int_equal(decode_grant((struct map_grant){1, RF_OK, 1, 0, 0}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){1, RF_OK, 0, 1, 0}), RF_E_PROTO);
}

static void refusal_grants_nothing_and_grant_explains_nothing(void **state)
{
    (void)state;
    assert_int_equal(decode_grant((struct map_grant){1, RF_E_DENIED, 0, 0, 512}), RF_OK);
    assert_int_equal(decode_grant((struct map_grant){0, RF_E_PROTO, 0, 0, 0}), RF_OK);
    assert_int_equal(decode_grant((struct map_grant){1, RF_E_DENIED, 0, 0, 513}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){1, RF_E_DENIED, 1, 0, 5}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){1, RF_E_DENIED, 0, 1, 5}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){1, RF_OK, 1, 1, 5}), RF_E_PROTO);
    assert_int_equal(decode_grant((struct map_grant){1, RF_AGAIN, 0, 0, 5}), RF_E_PROTO);
}

/* ---- segments ---- */

static enum rf_code decode_segment(struct map_segment segment)
{
    struct map_segment got;
    uint8_t raw[MAP_SEGMENT_BYTES];

    map_segment_encode(&segment, raw);
    return map_segment_decode(raw, sizeof raw, &got, NULL);
}

static void segment_survives_the_wire(void **state)
{
    (void)state;
    struct map_segment sent = {
        .stream_offset = 4096, .bytes = UINT64_C(3) << 33, .fd_offset = 77, .fd_index = 63};
    struct map_segment got;
    uint8_t raw[MAP_SEGMENT_BYTES];

    map_segment_encode(&sent, raw);
    golden_check("map_segment_v1.bin", raw, sizeof raw);
    assert_int_equal(map_segment_decode(raw, sizeof raw, &got, NULL), RF_OK);
    assert_int_equal(got.stream_offset, 4096);
    assert_int_equal(got.bytes, UINT64_C(3) << 33);
    assert_int_equal(got.fd_offset, 77);
    assert_int_equal(got.fd_index, 63);
}

static void truncated_segment_is_refused(void **state)
{
    (void)state;
    struct map_segment segment = {.bytes = 1};
    uint8_t raw[MAP_SEGMENT_BYTES];

    map_segment_encode(&segment, raw);
    for (size_t len = 0; len < sizeof raw; len++) {
        uint8_t *cut = exact_copy(raw, len);
        assert_int_equal(map_segment_decode(cut, len, &segment, NULL), RF_E_PROTO);
        free(cut);
    }
}

static void impossible_segments_are_refused(void **state)
{
    (void)state;
    assert_int_equal(decode_segment((struct map_segment){0, 0, 0, 0}), RF_E_PROTO);
    assert_int_equal(decode_segment((struct map_segment){0, 1, 0, MAP_MAX_FDS}), RF_E_PROTO);
    assert_int_equal(decode_segment((struct map_segment){UINT64_MAX, 1, 0, 0}), RF_E_PROTO);
    assert_int_equal(decode_segment((struct map_segment){0, 1, UINT64_MAX, 0}), RF_E_PROTO);
    assert_int_equal(decode_segment((struct map_segment){0, UINT64_MAX, 1, 0}), RF_E_PROTO);
    assert_int_equal(decode_segment((struct map_segment){0, UINT64_MAX, 0, 0}), RF_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_survives_the_wire),
        cmocka_unit_test(truncated_hello_is_refused),
        cmocka_unit_test(hello_of_the_native_protocol_is_refused),
        cmocka_unit_test(grant_survives_the_wire),
        cmocka_unit_test(truncated_grant_is_refused),
        cmocka_unit_test(grant_beyond_the_limits_is_refused),
        cmocka_unit_test(segments_and_descriptors_come_together),
        cmocka_unit_test(refusal_grants_nothing_and_grant_explains_nothing),
        cmocka_unit_test(segment_survives_the_wire),
        cmocka_unit_test(truncated_segment_is_refused),
        cmocka_unit_test(impossible_segments_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
