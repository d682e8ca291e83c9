/* The native protocol's codec: what survives it, what it refuses, and that its bytes never
 * change. */
#include "util/bytes.h"
#include "util/golden.h"
#include "wire/chunk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* ---- hello ---- */

static struct chunk_hello some_hello(void)
{
    struct chunk_hello hello = {.version_min = 1, .version_max = 3};

    for (unsigned i = 0; i < CHUNK_TOKEN_BYTES; i++)
        hello.token[i] = (uint8_t)(0xa0 + i);
    return hello;
}

static void hello_survives_the_wire(void **state)
{
    (void)state;
    struct chunk_hello sent = some_hello();
    struct chunk_hello got;
    uint8_t raw[CHUNK_HELLO_BYTES];

    chunk_hello_encode(&sent, raw);
    assert_int_equal(chunk_hello_decode(raw, sizeof raw, &got, NULL), RF_OK);
    assert_int_equal(got.version_min, 1);
    assert_int_equal(got.version_max, 3);
    assert_memory_equal(got.token, sent.token, CHUNK_TOKEN_BYTES);
}

static void released_hello_is_still_made(void **state)
{
    (void)state;
    struct chunk_hello hello = some_hello();
    uint8_t raw[CHUNK_HELLO_BYTES];

    chunk_hello_encode(&hello, raw);
    golden_check("chunk_hello_v1.bin", raw, sizeof raw);
}

static void truncated_hello_is_refused(void **state)
{
    (void)state;
    struct chunk_hello hello = some_hello();
    uint8_t raw[CHUNK_HELLO_BYTES];

    chunk_hello_encode(&hello, raw);
    for (size_t len = 0; len < sizeof raw; len++) {
        uint8_t *cut = exact_copy(raw, len);
        assert_int_equal(chunk_hello_decode(cut, len, &hello, NULL), RF_E_PROTO);
        free(cut);
    }
}

static void another_protocol_is_shown(void **state)
{
    (void)state;
    static const uint8_t http[CHUNK_HELLO_BYTES] =
        "GET /v1/instance HTTP/1.1\r\nHost: seed\r\n\r\n";
    static const uint8_t tls[CHUNK_HELLO_BYTES] = {0x16, 0x03, 0x01, 0x02, 0x00, 'h', 'i', 0xff};
    struct chunk_hello hello;
    struct rf_error err;

    assert_int_equal(chunk_hello_decode(http, sizeof http, &hello, &err), RF_E_PROTO);
    assert_says(&err, "\"GET /v1/\"");
    assert_int_equal(chunk_hello_decode(tls, sizeof tls, &hello, &err), RF_E_PROTO);
    assert_says(&err, "\".....hi.\"");
}

static void reserved_flags_are_refused(void **state)
{
    (void)state;
    struct chunk_hello hello = some_hello();
    uint8_t raw[CHUNK_HELLO_BYTES];

    chunk_hello_encode(&hello, raw);
    for (unsigned bit = 0; bit < 32; bit++) {
        raw[12 + bit / 8] = (uint8_t)(1u << (bit % 8));
        assert_int_equal(chunk_hello_decode(raw, sizeof raw, &hello, NULL), RF_E_PROTO);
        raw[12 + bit / 8] = 0;
    }
}

static void impossible_versions_are_refused(void **state)
{
    (void)state;
    struct chunk_hello hello = some_hello();
    uint8_t raw[CHUNK_HELLO_BYTES];

    hello.version_min = 0; /* stands for "none" in a welcome */
    chunk_hello_encode(&hello, raw);
    assert_int_equal(chunk_hello_decode(raw, sizeof raw, &hello, NULL), RF_E_PROTO);
    hello.version_min = 4;
    chunk_hello_encode(&hello, raw);
    assert_int_equal(chunk_hello_decode(raw, sizeof raw, &hello, NULL), RF_E_PROTO);
}

static void highest_common_version_is_chosen(void **state)
{
    (void)state;
    struct chunk_hello hello = {.version_min = 1, .version_max = 1};

    assert_int_equal(chunk_version_choose(&hello), 1);
    hello.version_max = UINT16_MAX;
    assert_int_equal(chunk_version_choose(&hello), CHUNK_VERSION);
    hello.version_min = CHUNK_VERSION + 1;
    assert_int_equal(chunk_version_choose(&hello), 0);
}

/* ---- welcome ---- */

static const struct chunk_welcome some_welcome = {
    .version = 1,
    .status = RF_OK,
    .max_in_flight = 8,
    .max_read_bytes = 32 << 20,
};

static void welcome_survives_the_wire(void **state)
{
    (void)state;
    struct chunk_welcome got;
    uint8_t raw[CHUNK_WELCOME_BYTES];

    chunk_welcome_encode(&some_welcome, raw);
    golden_check("chunk_welcome_v1.bin", raw, sizeof raw);
    assert_int_equal(chunk_welcome_decode(raw, sizeof raw, &got, NULL), RF_OK);
    assert_int_equal(got.version, 1);
    assert_int_equal(got.status, RF_OK);
    assert_int_equal(got.max_in_flight, 8);
    assert_int_equal(got.max_read_bytes, 32 << 20);
}

static void truncated_welcome_is_refused(void **state)
{
    (void)state;
    struct chunk_welcome got;
    uint8_t raw[CHUNK_WELCOME_BYTES];

    chunk_welcome_encode(&some_welcome, raw);
    for (size_t len = 0; len < sizeof raw; len++) {
        uint8_t *cut = exact_copy(raw, len);
        assert_int_equal(chunk_welcome_decode(cut, len, &got, NULL), RF_E_PROTO);
        free(cut);
    }
}

static void assert_welcome(struct chunk_welcome welcome, enum rf_code code)
{
    struct chunk_welcome got;
    uint8_t raw[CHUNK_WELCOME_BYTES];

    chunk_welcome_encode(&welcome, raw);
    assert_int_equal(chunk_welcome_decode(raw, sizeof raw, &got, NULL), code);
}

static void welcome_beyond_the_limits_is_refused(void **state)
{
    (void)state;
    assert_welcome((struct chunk_welcome){1, RF_OK, 0, 1}, RF_E_PROTO);
    assert_welcome((struct chunk_welcome){1, RF_OK, CHUNK_MAX_IN_FLIGHT, 1}, RF_OK);
    assert_welcome((struct chunk_welcome){1, RF_OK, CHUNK_MAX_IN_FLIGHT + 1, 1}, RF_E_PROTO);
    assert_welcome((struct chunk_welcome){1, RF_OK, 1, 0}, RF_E_PROTO);
    assert_welcome((struct chunk_welcome){1, RF_OK, 1, CHUNK_MAX_READ_BYTES}, RF_OK);
    assert_welcome((struct chunk_welcome){1, RF_OK, 1, CHUNK_MAX_READ_BYTES + 1}, RF_E_PROTO);
    assert_welcome((struct chunk_welcome){0, RF_OK, 1, 1}, RF_E_PROTO);
    assert_welcome((struct chunk_welcome){CHUNK_VERSION + 1, RF_OK, 1, 1}, RF_E_PROTO);
}

static void refusal_needs_no_limits_but_a_known_reason(void **state)
{
    (void)state;
    assert_welcome((struct chunk_welcome){0, RF_E_PROTO, 0, 0}, RF_OK);
    assert_welcome((struct chunk_welcome){1, RF_E_DENIED, 0, 0}, RF_OK);
    assert_welcome((struct chunk_welcome){1, RF_E_CHANGED + 1, 0, 0}, RF_E_PROTO);
    assert_welcome((struct chunk_welcome){1, RF_AGAIN, 0, 0}, RF_E_PROTO);
    assert_welcome((struct chunk_welcome){1, UINT16_MAX, 0, 0}, RF_E_PROTO);
}

/* ---- frame headers ---- */

static void header_survives_the_wire(void **state)
{
    (void)state;
    struct chunk_hdr sent = {CHUNK_DATA, CHUNK_FLAG_LAST, 65536, UINT64_C(0x1122334455667788)};
    struct chunk_hdr got;
    uint8_t raw[CHUNK_HDR_BYTES];

    chunk_hdr_encode(&sent, raw);
    golden_check("chunk_hdr_v1.bin", raw, sizeof raw);
    assert_int_equal(chunk_hdr_decode(raw, sizeof raw, &got, NULL), RF_OK);
    assert_int_equal(got.type, CHUNK_DATA);
    assert_int_equal(got.flags, CHUNK_FLAG_LAST);
    assert_int_equal(got.body_bytes, 65536);
    assert_int_equal(got.request_id, UINT64_C(0x1122334455667788));
}

static void truncated_header_is_refused(void **state)
{
    (void)state;
    struct chunk_hdr hdr = {CHUNK_GOODBYE, 0, 0, 0};
    uint8_t raw[CHUNK_HDR_BYTES];

    chunk_hdr_encode(&hdr, raw);
    for (size_t len = 0; len < sizeof raw; len++) {
        uint8_t *cut = exact_copy(raw, len);
        assert_int_equal(chunk_hdr_decode(cut, len, &hdr, NULL), RF_E_PROTO);
        free(cut);
    }
}

static enum rf_code decode_hdr(unsigned type, unsigned flags, uint32_t body_bytes)
{
    struct chunk_hdr hdr = {(enum chunk_type)type, (uint8_t)flags, body_bytes, 7};
    uint8_t raw[CHUNK_HDR_BYTES];

    chunk_hdr_encode(&hdr, raw);
    return chunk_hdr_decode(raw, sizeof raw, &hdr, NULL);
}

static void unknown_frame_types_are_refused(void **state)
{
    (void)state;
    assert_int_equal(decode_hdr(0, 0, 0), RF_E_PROTO);
    for (unsigned type = CHUNK_DIGEST + 1; type <= UINT8_MAX; type++)
        assert_int_equal(decode_hdr(type, 0, 0), RF_E_PROTO);
}

static void body_of_each_type_is_limited(void **state)
{
    (void)state;
    static const struct {
        unsigned type;
        uint32_t min;
        uint32_t max;
    } types[] = {
        {CHUNK_READ, 40, 8 + 4096 * 32}, {CHUNK_DATA, 1, 1 << 20}, {CHUNK_ERROR, 4, 4 + 512},
        {CHUNK_GOODBYE, 0, 0},           {CHUNK_DIGEST, 16, 32},
    };

    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++) {
        assert_int_equal(decode_hdr(types[i].type, 0, types[i].min), RF_OK);
        assert_int_equal(decode_hdr(types[i].type, 0, types[i].max), RF_OK);
        assert_int_equal(decode_hdr(types[i].type, 0, types[i].max + 1), RF_E_PROTO);
        assert_int_equal(decode_hdr(types[i].type, 0, UINT32_MAX), RF_E_PROTO);
        if (types[i].min > 0)
            assert_int_equal(decode_hdr(types[i].type, 0, types[i].min - 1), RF_E_PROTO);
    }
}

static void only_data_may_be_the_last(void **state)
{
    (void)state;
    assert_int_equal(decode_hdr(CHUNK_DATA, CHUNK_FLAG_LAST, 1), RF_OK);
    assert_int_equal(decode_hdr(CHUNK_DATA, CHUNK_FLAG_LAST | 2, 1), RF_E_PROTO);
    assert_int_equal(decode_hdr(CHUNK_READ, CHUNK_FLAG_LAST, 40), RF_E_PROTO);
    assert_int_equal(decode_hdr(CHUNK_ERROR, CHUNK_FLAG_LAST, 4), RF_E_PROTO);
    assert_int_equal(decode_hdr(CHUNK_GOODBYE, CHUNK_FLAG_LAST, 0), RF_E_PROTO);
}

static void only_a_read_asks_for_a_digest_and_for_one(void **state)
{
    (void)state;
    assert_int_equal(decode_hdr(CHUNK_READ, CHUNK_FLAG_XXH3, 40), RF_OK);
    assert_int_equal(decode_hdr(CHUNK_READ, CHUNK_FLAG_SHA256, 40), RF_OK);
    assert_int_equal(decode_hdr(CHUNK_READ, CHUNK_FLAG_XXH3 | CHUNK_FLAG_SHA256, 40), RF_E_PROTO);
    assert_int_equal(decode_hdr(CHUNK_READ, 8, 40), RF_E_PROTO);
    assert_int_equal(decode_hdr(CHUNK_DATA, CHUNK_FLAG_XXH3, 1), RF_E_PROTO);
    assert_int_equal(decode_hdr(CHUNK_DIGEST, CHUNK_FLAG_LAST, 16), RF_E_PROTO);
    assert_int_equal(decode_hdr(CHUNK_DIGEST, 0, 20), RF_E_PROTO);
    assert_int_equal(chunk_digest_wanted(chunk_digest_flag(HASH_XXH3_128)), HASH_XXH3_128);
    assert_int_equal(chunk_digest_wanted(chunk_digest_flag(HASH_SHA256)), HASH_SHA256);
    assert_int_equal(chunk_digest_wanted(chunk_digest_flag(0)), 0);
}

static void digest_frames_survive_the_wire(void **state)
{
    (void)state;
    const struct chunk_hdr asks = {CHUNK_READ, CHUNK_FLAG_SHA256, 40, 9};
    const struct chunk_hdr says = {CHUNK_DIGEST, 0, 32, 9};
    uint8_t raw[2 * CHUNK_HDR_BYTES];
    struct chunk_hdr got;

    chunk_hdr_encode(&asks, raw);
    chunk_hdr_encode(&says, raw + CHUNK_HDR_BYTES);
    golden_check("chunk_digest_hdr_v1.bin", raw, sizeof raw);
    assert_int_equal(chunk_hdr_decode(raw, CHUNK_HDR_BYTES, &got, NULL), RF_OK);
    assert_int_equal(got.flags, CHUNK_FLAG_SHA256);
    assert_int_equal(chunk_hdr_decode(raw + CHUNK_HDR_BYTES, CHUNK_HDR_BYTES, &got, NULL), RF_OK);
    assert_int_equal(got.type, CHUNK_DIGEST);
    assert_int_equal(got.body_bytes, 32);
}

static void reserved_bytes_of_a_header_are_refused(void **state)
{
    (void)state;
    struct chunk_hdr hdr = {CHUNK_DATA, 0, 1, 7};
    uint8_t raw[CHUNK_HDR_BYTES];

    chunk_hdr_encode(&hdr, raw);
    raw[3] = 1;
    assert_int_equal(chunk_hdr_decode(raw, sizeof raw, &hdr, NULL), RF_E_PROTO);
}

/* ---- READ ---- */

static const struct stream_range some_ranges[] = {
    {.offset = 0, .bytes = 8 << 20, .stride = 0, .count = 1},
    {.offset = UINT64_C(5) << 40, .bytes = 4096, .stride = 16384, .count = 1000},
};

static void read_survives_the_wire(void **state)
{
    (void)state;
    struct stream_range got[2];
    uint32_t rank = 0;
    uint32_t count = 0;
    BUF_AUTO struct buf raw = {0};

    chunk_read_encode(3, some_ranges, 2, &raw);
    golden_check("chunk_read_v1.bin", raw.data, raw.bytes);
    assert_int_equal(chunk_read_decode(raw.data, raw.bytes, &rank, got, 2, &count, NULL), RF_OK);
    assert_int_equal(rank, 3);
    assert_int_equal(count, 2);
    assert_memory_equal(got, some_ranges, sizeof got);
}

static void truncated_read_is_refused(void **state)
{
    (void)state;
    struct stream_range got[2];
    uint32_t rank = 0;
    uint32_t count = 0;
    BUF_AUTO struct buf raw = {0};

    chunk_read_encode(3, some_ranges, 2, &raw);
    for (size_t len = 0; len < raw.bytes; len++) {
        uint8_t *cut = exact_copy(raw.data, len);
        assert_int_equal(chunk_read_decode(cut, len, &rank, got, 2, &count, NULL), RF_E_PROTO);
        free(cut);
    }
    assert_int_equal(count, 0); /* results of a failure are untouched */
}

static void read_whose_count_lies_is_refused(void **state)
{
    (void)state;
    static const uint32_t lies[] = {0, 1, 3, CHUNK_MAX_RANGES, CHUNK_MAX_RANGES + 1, UINT32_MAX};
    static struct stream_range got[CHUNK_MAX_RANGES];
    uint32_t rank = 0;
    uint32_t count = 0;
    BUF_AUTO struct buf raw = {0};

    chunk_read_encode(3, some_ranges, 2, &raw);
    for (unsigned i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        wire_put_uint(raw.data + 4, lies[i], 4);
        assert_int_equal(
            chunk_read_decode(raw.data, raw.bytes, &rank, got, CHUNK_MAX_RANGES, &count, NULL),
            RF_E_PROTO);
    }
}

static void read_is_no_longer_than_the_callers_array(void **state)
{
    (void)state;
    struct stream_range got[1];
    uint32_t rank = 0;
    uint32_t count = 0;
    BUF_AUTO struct buf raw = {0};

    chunk_read_encode(3, some_ranges, 2, &raw);
    assert_int_equal(chunk_read_decode(raw.data, raw.bytes, &rank, got, 1, &count, NULL),
                     RF_E_PROTO);
}

/* ---- ERROR ---- */

static void error_survives_the_wire(void **state)
{
    (void)state;
    struct rf_error err;
    BUF_AUTO struct buf raw = {0};

    chunk_error_encode(RF_E_CHANGED, "model.safetensors: was replaced", &raw);
    golden_check("chunk_error_v1.bin", raw.data, raw.bytes);
    assert_int_equal(chunk_error_decode(raw.data, raw.bytes, &err), RF_E_CHANGED);
    assert_int_equal(err.code, RF_E_CHANGED);
    assert_string_equal(err.text, "model.safetensors: was replaced");
}

static void error_of_an_unknown_kind_is_the_peers_fault(void **state)
{
    (void)state;
    static const uint32_t codes[] = {RF_OK, RF_E_CHANGED + 1, RF_AGAIN, UINT32_MAX};
    struct rf_error err;

    for (unsigned i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        BUF_AUTO struct buf raw = {0};
        chunk_error_encode((enum rf_code)codes[i], "why", &raw);
        assert_int_equal(chunk_error_decode(raw.data, raw.bytes, &err), RF_E_PROTO);
        assert_says(&err, "why");
    }
}

static void long_error_is_cut_between_characters(void **state)
{
    (void)state;
    char text[CHUNK_MAX_ERROR_BYTES + 8];
    BUF_AUTO struct buf raw = {0};

    /* 511 bytes, then a character of three: it does not fit, and no part of it may stay. */
    memset(text, 'a', sizeof text);
    memcpy(text + 511, "\xe2\x82\xac", 4);
    chunk_error_encode(RF_E_FAILED, text, &raw);
    assert_int_equal(raw.bytes, 4 + 511);
    assert_int_equal(raw.data[raw.bytes - 1], 'a');
}

static void error_that_is_short_or_too_long_is_refused(void **state)
{
    (void)state;
    static const uint8_t raw[CHUNK_MAX_ERROR_BODY + 1] = {RF_E_FAILED};
    struct rf_error err;

    for (size_t len = 0; len < 4; len++) {
        uint8_t *cut = exact_copy(raw, len);
        assert_int_equal(chunk_error_decode(cut, len, &err), RF_E_PROTO);
        free(cut);
    }
    assert_int_equal(chunk_error_decode(raw, 4, &err), RF_E_FAILED); /* without a text */
    assert_int_equal(chunk_error_decode(raw, CHUNK_MAX_ERROR_BODY, &err), RF_E_FAILED);
    assert_int_equal(chunk_error_decode(raw, CHUNK_MAX_ERROR_BODY + 1, &err), RF_E_PROTO);
}

static void error_without_words_still_says_something(void **state)
{
    (void)state;
    static const uint8_t silent[] = {RF_E_FAILED, 0, 0, 0};
    static const uint8_t nul[] = {RF_E_FAILED, 0, 0, 0, '\0', 'h', 'i'};
    struct rf_error err;

    assert_int_equal(chunk_error_decode(silent, sizeof silent, &err), RF_E_FAILED);
    assert_says(&err, "no reason");
    assert_int_equal(chunk_error_decode(nul, sizeof nul, &err), RF_E_FAILED);
    assert_says(&err, "no reason");
}

static void terminal_controls_in_an_error_are_not_passed_on(void **state)
{
    (void)state;
    struct rf_error err;
    BUF_AUTO struct buf raw = {0};

    chunk_error_encode(RF_E_FAILED, "\x1b[2J gone", &raw);
    assert_int_equal(chunk_error_decode(raw.data, raw.bytes, &err), RF_E_FAILED);
    assert_string_equal(err.text, "?[2J gone");
}

/* ---- ranges ---- */

static enum rf_code check_one(struct stream_range range, uint64_t stream_bytes, uint64_t *ret_bytes)
{
    return stream_ranges_check(&range, 1, stream_bytes, ret_bytes, NULL);
}

static void ranges_may_touch_the_end_but_not_pass_it(void **state)
{
    (void)state;
    uint64_t bytes = 0;

    assert_int_equal(check_one((struct stream_range){0, 100, 0, 1}, 100, &bytes), RF_OK);
    assert_int_equal(bytes, 100);
    assert_int_equal(check_one((struct stream_range){1, 100, 0, 1}, 100, &bytes), RF_E_INVAL);
    assert_int_equal(check_one((struct stream_range){100, 1, 0, 1}, 100, &bytes), RF_E_INVAL);
    /* pieces at 10, 40 and 70: the last one ends at 80 */
    assert_int_equal(check_one((struct stream_range){10, 10, 30, 3}, 80, &bytes), RF_OK);
    assert_int_equal(bytes, 30);
    assert_int_equal(check_one((struct stream_range){10, 10, 30, 3}, 79, &bytes), RF_E_INVAL);
    assert_int_equal(bytes, 30);
}

static void empty_and_overlapping_ranges_are_refused(void **state)
{
    (void)state;
    uint64_t bytes = 0;

    assert_int_equal(check_one((struct stream_range){0, 0, 0, 1}, 100, &bytes), RF_E_INVAL);
    assert_int_equal(check_one((struct stream_range){0, 1, 0, 0}, 100, &bytes), RF_E_INVAL);
    assert_int_equal(check_one((struct stream_range){0, 1, 5, 1}, 100, &bytes), RF_E_INVAL);
    assert_int_equal(check_one((struct stream_range){0, 10, 9, 2}, 100, &bytes), RF_E_INVAL);
    assert_int_equal(check_one((struct stream_range){0, 10, 10, 2}, 100, &bytes), RF_OK);
}

static void ranges_that_wrap_around_are_refused(void **state)
{
    (void)state;
    const uint64_t max = UINT64_MAX;
    const struct stream_range wrapping[] = {
        {max, 1, 0, 1},         {1, max, 0, 1},
        {max, max, 0, 1},       {0, 1, max, 2},
        {0, 1, max, max},       {0, 1, UINT64_C(1) << 32, (UINT64_C(1) << 32) + 1},
        {max, max, max, max},   {2, 1, max - 1, 2},
        {0, max, max, 2},       {1, 1, 1, max},
        {0, 2, 2, max / 2 + 2},
    };
    uint64_t bytes = 0;

    for (unsigned i = 0; i < sizeof wrapping / sizeof wrapping[0]; i++) {
        assert_int_equal(check_one(wrapping[i], 100, &bytes), RF_E_INVAL);
        assert_int_equal(check_one(wrapping[i], max, &bytes), RF_E_INVAL);
    }
    /* one whole stream of the largest size is no wrap, twice the same is */
    const struct stream_range whole[] = {{0, max, 0, 1}, {0, max, 0, 1}};
    assert_int_equal(stream_ranges_check(whole, 1, max, &bytes, NULL), RF_OK);
    assert_int_equal(stream_ranges_check(whole, 2, max, &bytes, NULL), RF_E_INVAL);
}

static void refused_range_is_named(void **state)
{
    (void)state;
    const struct stream_range ranges[] = {{0, 4, 0, 1}, {96, 8, 0, 1}};
    struct rf_error err;
    uint64_t bytes = 0;

    assert_int_equal(stream_ranges_check(ranges, 2, 100, &bytes, &err), RF_E_INVAL);
    assert_says(&err, "range 1 of 2");
    assert_says(&err, "at 96");
    assert_says(&err, "100 bytes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_survives_the_wire),
        cmocka_unit_test(released_hello_is_still_made),
        cmocka_unit_test(truncated_hello_is_refused),
        cmocka_unit_test(another_protocol_is_shown),
        cmocka_unit_test(reserved_flags_are_refused),
        cmocka_unit_test(impossible_versions_are_refused),
        cmocka_unit_test(highest_common_version_is_chosen),
        cmocka_unit_test(welcome_survives_the_wire),
        cmocka_unit_test(truncated_welcome_is_refused),
        cmocka_unit_test(welcome_beyond_the_limits_is_refused),
        cmocka_unit_test(refusal_needs_no_limits_but_a_known_reason),
        cmocka_unit_test(header_survives_the_wire),
        cmocka_unit_test(truncated_header_is_refused),
        cmocka_unit_test(unknown_frame_types_are_refused),
        cmocka_unit_test(body_of_each_type_is_limited),
        cmocka_unit_test(only_data_may_be_the_last),
        cmocka_unit_test(only_a_read_asks_for_a_digest_and_for_one),
        cmocka_unit_test(digest_frames_survive_the_wire),
        cmocka_unit_test(reserved_bytes_of_a_header_are_refused),
        cmocka_unit_test(read_survives_the_wire),
        cmocka_unit_test(truncated_read_is_refused),
        cmocka_unit_test(read_whose_count_lies_is_refused),
        cmocka_unit_test(read_is_no_longer_than_the_callers_array),
        cmocka_unit_test(error_survives_the_wire),
        cmocka_unit_test(error_of_an_unknown_kind_is_the_peers_fault),
        cmocka_unit_test(long_error_is_cut_between_characters),
        cmocka_unit_test(error_that_is_short_or_too_long_is_refused),
        cmocka_unit_test(error_without_words_still_says_something),
        cmocka_unit_test(terminal_controls_in_an_error_are_not_passed_on),
        cmocka_unit_test(ranges_may_touch_the_end_but_not_pass_it),
        cmocka_unit_test(empty_and_overlapping_ranges_are_refused),
        cmocka_unit_test(ranges_that_wrap_around_are_refused),
        cmocka_unit_test(refused_range_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
