/* The codec of Mooncake's TransferEngine: what each release says is understood, and nothing else. */
#include "util/bytes.h"
#include "util/golden.h"
#include "wire/te.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* As releases wrote them. */
static const char release_0_3_6[] =
    "{\"buffers\":[{\"addr\":139654158352384,\"length\":67108864,\"name\":\"127.0.0.1:15330\"}],"
    "\"name\":\"127.0.0.1:15330\",\"protocol\":\"tcp\",\"tcp_data_port\":15562,"
    "\"timestamp\":\"2026-11-23 11:47:05.286833\"}\n";
static const char release_0_3_12[] =
    "{\"buffers\":[{\"addr\":139654158352384,\"length\":67108864,\"name\":\"127.0.0.1:15330\"}],"
    "\"name\":\"127.0.0.1:15330\",\"protocol\":\"tcp\",\"tcp_data_port\":15562,"
    "\"tcp_proto_version\":2,\"timestamp\":\"2026-11-23 11:47:05.286833\"}\n";
static const char release_0_3_13[] =
    "{\"buffers\":[{\"addr\":139654158352384,\"length\":67108864,\"name\":\"10.77.0.1:16274\"}],"
    "\"name\":\"10.77.0.1:16274\",\"protocol\":\"tcp\",\"rdma_server_name\":\"10.77.0.1:16274\","
    "\"tcp_data_host\":\"10.77.0.1\",\"tcp_data_port\":15562,\"tcp_proto_version\":2,"
    "\"timestamp\":\"2026-11-23 11:47:05.286833\"}\n";

static enum rf_code decode(const char *json, struct te_descriptor *ret_descriptor,
                           struct rf_error *err)
{
    uint8_t *exact = exact_copy(json, strlen(json));
    enum rf_code code = te_descriptor_decode(exact, strlen(json), ret_descriptor, err);

    free(exact); /* nothing of the text is kept */
    return code;
}

/* With these members in place of its buffers, or added to what is there. */
static enum rf_code decode_buffers(const char *buffers, struct te_descriptor *ret_descriptor,
                                   struct rf_error *err)
{
    char json[4096];

    int n = snprintf(json, sizeof json, "{\"buffers\":%s,\"name\":\"a:1\",\"protocol\":\"tcp\"}",
                     buffers);
    assert_in_range(n, 1, sizeof json - 1);
    return decode(json, ret_descriptor, err);
}

static void assert_buffers_refused(const char *buffers, const char *words)
{
    struct te_descriptor descriptor;
    struct rf_error err = {0};

    if (decode_buffers(buffers, &descriptor, &err) != RF_E_PROTO)
        fail_msg("accepted: %s", buffers);
    assert_says(&err, words);
}

static void assert_refused(const char *json, const char *words)
{
    struct te_descriptor descriptor;
    struct rf_error err = {0};

    if (decode(json, &descriptor, &err) != RF_E_PROTO)
        fail_msg("accepted: %s", json);
    assert_says(&err, words);
}

/* ---- handshake frames ---- */

static void frame_is_length_type_json(void **state)
{
    (void)state;
    BUF_AUTO struct buf out = {.bytes = 0};
    uint64_t bytes = 0;

    te_frame_encode(TE_METADATA, "{}\n", 3, &out);
    te_frame_encode(TE_OLD_FORM, "{}\n", 3, &out);
    golden_check("te_frames.bin", out.data, out.bytes);
    assert_int_equal(te_frame_length(out.data, TE_DEFAULT_FRAME_BYTES, &bytes, NULL), RF_OK);
    assert_int_equal(bytes, 4);
    assert_int_equal(te_frame_type(out.data[8]), TE_METADATA);
    assert_int_equal(te_frame_length(out.data + 12, TE_DEFAULT_FRAME_BYTES, &bytes, NULL), RF_OK);
    assert_int_equal(bytes, 3);
    assert_int_equal(te_frame_type(out.data[20]), TE_OLD_FORM);
}

static void frame_of_0_or_too_many_bytes_is_refused(void **state)
{
    (void)state;
    struct rf_error err = {0};
    uint8_t head[TE_FRAME_HEAD_BYTES] = {0};
    uint64_t bytes = 77;

    assert_int_equal(te_frame_length(head, 100, &bytes, &err), RF_E_PROTO);
    assert_says(&err, "a frame of 0 bytes");
    wire_put_uint(head, 101, 8);
    assert_int_equal(te_frame_length(head, 100, &bytes, &err), RF_E_PROTO);
    wire_put_uint(head, UINT64_MAX, 8);
    assert_int_equal(te_frame_length(head, TE_MAX_FRAME_BYTES, &bytes, &err), RF_E_PROTO);
    assert_says(&err, "18446744073709551615");
    assert_int_equal(bytes, 77);
    wire_put_uint(head, 100, 8);
    assert_int_equal(te_frame_length(head, 100, &bytes, &err), RF_OK);
    assert_int_equal(bytes, 100);
}

static void types_over_3_are_the_old_form(void **state)
{
    (void)state;

    for (unsigned first = 0; first < 256; first++)
        assert_int_equal(te_frame_type((uint8_t)first), first <= 3 ? first : (unsigned)TE_OLD_FORM);
}

static void answers_are_as_released(void **state)
{
    (void)state;
    static const enum te_type types[] = {TE_CONNECTION, TE_OLD_FORM, TE_NOTIFY, TE_PROBE};
    BUF_AUTO struct buf out = {.bytes = 0};

    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++)
        te_answer_encode(types[i], &out);
    golden_check("te_answers.bin", out.data, out.bytes);
}

/* ---- descriptors ---- */

static void descriptors_of_all_releases_are_understood(void **state)
{
    (void)state;
    static const char *const releases[] = {release_0_3_6, release_0_3_12, release_0_3_13};

    for (unsigned i = 0; i < 3; i++) {
        struct te_descriptor got;
        BUF_AUTO struct buf again = {.bytes = 0};

        assert_int_equal(decode(releases[i], &got, NULL), RF_OK);
        assert_string_equal(got.protocol, "tcp");
        assert_int_equal(got.data_port, 15562);
        assert_int_equal(got.version, i == 0 ? 1 : 2);
        assert_string_equal(got.data_host, i == 2 ? "10.77.0.1" : "");
        assert_string_equal(got.rdma_server, i == 2 ? "10.77.0.1:16274" : "");
        assert_int_equal(got.rfork, 0);
        assert_int_equal(got.buffer_count, 1);
        assert_int_equal(got.buffers[0].address, 139654158352384);
        assert_int_equal(got.buffers[0].bytes, 67108864);
        assert_string_equal(got.buffers[0].name, got.name);
        /* ... and written the same way. */
        te_descriptor_encode(&got, "2026-11-23 11:47:05.286833", &again);
        assert_int_equal(again.bytes, strlen(releases[i]));
        assert_memory_equal(again.data, releases[i], again.bytes);
        te_descriptor_free(&got);
    }
}

static void own_descriptor_survives_the_wire(void **state)
{
    (void)state;
    struct te_buffer buffers[] = {{4096, 100, "rank:0"}, {UINT64_C(1) << 63, 1 << 20, "rank:1"}};
    const struct te_descriptor sent = {.name = "[::1]:5000",
                                       .protocol = "tcp",
                                       .data_host = "::1",
                                       .rdma_server = "[::1]:5000",
                                       .data_port = 5001,
                                       .version = 2,
                                       .rfork = 1,
                                       .buffers = buffers,
                                       .buffer_count = 2};
    struct te_descriptor got;
    BUF_AUTO struct buf out = {.bytes = 0};

    te_descriptor_encode(&sent, "2026-01-01 00:00:00.000000", &out);
    golden_check("te_descriptor.bin", out.data, out.bytes);
    assert_int_equal(te_descriptor_decode(out.data, out.bytes, &got, NULL), RF_OK);
    assert_int_equal(got.rfork, 1);
    assert_int_equal(got.buffer_count, 2);
    assert_int_equal(got.buffers[1].address, UINT64_C(1) << 63);
    assert_string_equal(got.buffers[1].name, "rank:1");
    te_descriptor_free(&got);
    out.bytes = 0;
    te_descriptor_encode(&sent, NULL, &out); /* now */
    assert_int_equal(te_descriptor_decode(out.data, out.bytes, &got, NULL), RF_OK);
    te_descriptor_free(&got);
}

static void truncated_descriptor_is_refused(void **state)
{
    (void)state;
    size_t whole = strlen(release_0_3_13) - 1; /* the newline is not needed */

    for (size_t len = 0; len < whole; len++) {
        uint8_t *cut = exact_copy(release_0_3_13, len);
        struct te_descriptor got;
        struct rf_error err = {0};

        assert_int_equal(te_descriptor_decode(cut, len, &got, &err), RF_E_PROTO);
        assert_says(&err, "descriptor: ");
        free(cut);
    }
}

static void numbers_are_exact_to_2_64(void **state)
{
    (void)state;
    static const uint64_t numbers[] = {(UINT64_C(1) << 53) + 1, UINT64_C(0x01ffffffffffffff),
                                       UINT64_C(0x7fffffffffffffff), UINT64_MAX - 1};

    for (unsigned i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct te_descriptor got;
        char buffers[128];

        snprintf(buffers, sizeof buffers, "[{\"addr\":%" PRIu64 ",\"length\":1}]", numbers[i]);
        assert_int_equal(decode_buffers(buffers, &got, NULL), RF_OK);
        assert_int_equal(got.buffers[0].address, numbers[i]);
        te_descriptor_free(&got);
        snprintf(buffers, sizeof buffers, "[{\"addr\":1,\"length\":%" PRIu64 "}]", numbers[i]);
        assert_int_equal(decode_buffers(buffers, &got, NULL), RF_OK);
        assert_int_equal(got.buffers[0].bytes, numbers[i]);
        te_descriptor_free(&got);
    }
}

static void numbers_that_are_no_addresses_are_refused(void **state)
{
    (void)state;

    assert_buffers_refused("[{\"addr\":0,\"length\":1}]", "neither may be 0");
    assert_buffers_refused("[{\"addr\":1,\"length\":0}]", "neither may be 0");
    assert_buffers_refused("[{\"length\":1}]", "neither may be 0");
    assert_buffers_refused("[{\"addr\":1}]", "neither may be 0");
    assert_buffers_refused("[{\"addr\":18446744073709551615,\"length\":1}]", "beyond 2^64");
    assert_buffers_refused("[{\"addr\":2,\"length\":18446744073709551614}]", "beyond 2^64");
    assert_buffers_refused("[{\"addr\":18446744073709551616,\"length\":1}]", "descriptor: ");
    assert_buffers_refused("[{\"addr\":-1,\"length\":1}]", "descriptor: ");
    assert_buffers_refused("[{\"addr\":1.5,\"length\":1}]", "descriptor: ");
    assert_buffers_refused("[{\"addr\":1e3,\"length\":1}]", "descriptor: ");
    assert_buffers_refused("[{\"addr\":\"1\",\"length\":1}]", "descriptor: ");
    assert_buffers_refused("[{\"addr\":true,\"length\":1}]", "descriptor: ");
}

static void overlapping_buffers_are_refused(void **state)
{
    (void)state;
    struct te_descriptor got;

    assert_buffers_refused("[{\"addr\":100,\"length\":11},{\"addr\":110,\"length\":1}]", "overlap");
    assert_buffers_refused("[{\"addr\":110,\"length\":1},{\"addr\":100,\"length\":11}]", "overlap");
    assert_buffers_refused("[{\"addr\":5,\"length\":1},{\"addr\":5,\"length\":1}]", "overlap");
    /* Neighbours are fine, and brought in order. */
    assert_int_equal(
        decode_buffers("[{\"addr\":110,\"length\":1},{\"addr\":100,\"length\":10}]", &got, NULL),
        RF_OK);
    assert_int_equal(got.buffers[0].address, 100);
    assert_int_equal(got.buffers[1].address, 110);
    te_descriptor_free(&got);
}

static void members_of_the_wrong_type_are_refused(void **state)
{
    (void)state;

    assert_buffers_refused("{}", "a list of buffers");
    assert_buffers_refused("7", "a list of buffers");
    assert_buffers_refused("[7]", "an object in");
    assert_buffers_refused("[[]]", "an object in");
    assert_buffers_refused("[{\"addr\":1,\"length\":1,\"name\":3}]", "expected a string");
    assert_refused("[]", "expected an object");
    assert_refused("null", "expected an object");
    assert_refused("{\"name\":1}", "expected a string");
    assert_refused("{\"name\":\"a:1\",\"protocol\":{}}", "expected a string");
    assert_refused("{\"name\":\"a:1\",\"protocol\":[1]}", "expected a string");
    assert_refused("{\"tcp_data_port\":\"1\"}", "descriptor: ");
    assert_refused("{\"tcp_data_port\":65536}", "a port over 65535");
    assert_refused("{\"tcp_data_port\":-1}", "descriptor: ");
    assert_refused("{\"tcp_proto_version\":4294967296}", "a version over");
    assert_refused("{\"rfork\":4294967296}", "a version over");
    assert_refused("{\"tcp_data_host\":null}", "expected a string");
    assert_refused("{\"name\":\"a\\u0000b\"}", "holds a NUL");
}

static void members_that_are_there_twice_are_refused(void **state)
{
    (void)state;

    assert_refused("{\"name\":\"a\",\"name\":\"a\"}", "twice");
    assert_refused("{\"buffers\":[],\"buffers\":[]}", "twice");
    assert_refused("{\"tcp_data_port\":1,\"tcp_data_port\":1}", "twice");
    assert_buffers_refused("[{\"addr\":1,\"addr\":2,\"length\":1}]", "twice");
    assert_buffers_refused("[{\"addr\":1,\"length\":1,\"length\":1}]", "twice");
}

static void members_that_must_be_there(void **state)
{
    (void)state;

    assert_refused("{}", "no \"name\"");
    assert_refused("{\"name\":\"a:1\"}", "no \"protocol\"");
    assert_refused("{\"name\":\"a:1\",\"protocol\":[]}", "no \"protocol\"");
    assert_refused("{\"name\":\"a:1\",\"protocol\":\"\"}", "no \"protocol\"");
    assert_refused("{\"name\":\"a:1\",\"protocol\":\"tcp\"} {}", "text after the end");
}

static void absent_members_have_defaults(void **state)
{
    (void)state;
    struct te_descriptor got;

    assert_int_equal(decode("{\"name\":\"a:1\",\"protocol\":\"tcp\"}", &got, NULL), RF_OK);
    assert_string_equal(got.data_host, "");
    assert_string_equal(got.rdma_server, "");
    assert_int_equal(got.data_port, 0);
    assert_int_equal(got.version, 1);
    assert_int_equal(got.rfork, 0);
    assert_int_equal(got.buffer_count, 0);
    assert_null(te_descriptor_find(&got, 1, 1));
    te_descriptor_free(&got);
    assert_int_equal(decode_buffers("null", &got, NULL), RF_OK);
    te_descriptor_free(&got);
}

static void unknown_members_are_skipped(void **state)
{
    (void)state;
    struct te_descriptor got;

    assert_int_equal(
        decode("{\"buffers\":[{\"addr\":16,\"length\":1,\"name\":\"cpu:0\",\"rkey\":[1,2],"
               "\"lkey\":[3,4],\"deep\":{\"a\":[{\"b\":null}]}}],\"devices\":"
               "[{\"gid\":\"00:01\",\"lid\":7,\"name\":\"mlx5_0\"}],\"name\":\"a:1\","
               "\"priority_matrix\":{\"cpu:0\":[[\"mlx5_0\"],[]]},"
               "\"protocol\":\"rdma\",\"tcp_data_port\":0,\"next\":-1.5e3}",
               &got, NULL),
        RF_OK);
    assert_string_equal(got.protocol, "rdma");
    assert_int_equal(got.buffer_count, 1);
    te_descriptor_free(&got);
}

static void of_several_protocols_tcp_counts_or_the_first(void **state)
{
    (void)state;
    struct te_descriptor got;

    assert_int_equal(decode("{\"name\":\"a:1\",\"protocol\":[\"rdma\",\"tcp\"]}", &got, NULL),
                     RF_OK);
    assert_string_equal(got.protocol, "tcp");
    te_descriptor_free(&got);
    assert_int_equal(decode("{\"name\":\"a:1\",\"protocol\":[\"rdma\",\"hip\"]}", &got, NULL),
                     RF_OK);
    assert_string_equal(got.protocol, "rdma");
    te_descriptor_free(&got);
}

static void memory_without_addresses_is_left_out_unless_over_tcp(void **state)
{
    (void)state;
    struct te_descriptor got;

    assert_int_equal(decode("{\"buffers\":[{\"name\":\"x\",\"offset\":0,\"length\":9}],"
                            "\"name\":\"a:1\",\"protocol\":\"cxl\"}",
                            &got, NULL),
                     RF_OK);
    assert_int_equal(got.buffer_count, 0);
    te_descriptor_free(&got);
}

static void names_have_a_limit(void **state)
{
    (void)state;
    struct te_descriptor got;
    char json[1024];

    snprintf(json, sizeof json, "{\"name\":\"%0256d\",\"protocol\":\"tcp\"}", 7);
    assert_int_equal(decode(json, &got, NULL), RF_OK);
    assert_int_equal(strlen(got.name), TE_MAX_NAME_BYTES);
    te_descriptor_free(&got);
    snprintf(json, sizeof json, "{\"name\":\"%0257d\",\"protocol\":\"tcp\"}", 7);
    assert_refused(json, "more than 256 bytes");
}

static void too_many_buffers_are_refused(void **state)
{
    (void)state;
    BUF_AUTO struct buf json = {.bytes = 0};
    struct te_descriptor got;
    struct rf_error err = {0};

    buf_printf(&json, "{\"buffers\":[{}");
    for (uint32_t i = 0; i < TE_MAX_BUFFERS; i++)
        buf_append(&json, ",{}", 3);
    buf_printf(&json, "],\"name\":\"a:1\",\"protocol\":\"tcp\"}");
    assert_false(json.failed);
    assert_int_equal(te_descriptor_decode(json.data, json.bytes, &got, &err), RF_E_PROTO);
    assert_says(&err, "more than 4,000,000 buffers");
}

static void buffers_are_found_by_address(void **state)
{
    (void)state;
    struct te_descriptor got;

    assert_int_equal(decode_buffers("[{\"addr\":300,\"length\":50,\"name\":\"c\"},"
                                    "{\"addr\":100,\"length\":50,\"name\":\"a\"},"
                                    "{\"addr\":150,\"length\":50,\"name\":\"b\"}]",
                                    &got, NULL),
                     RF_OK);
    assert_string_equal(te_descriptor_find(&got, 100, 50)->name, "a");
    assert_string_equal(te_descriptor_find(&got, 149, 1)->name, "a");
    assert_string_equal(te_descriptor_find(&got, 150, 50)->name, "b");
    assert_string_equal(te_descriptor_find(&got, 349, 1)->name, "c");
    assert_null(te_descriptor_find(&got, 99, 1));
    assert_null(te_descriptor_find(&got, 100, 51)); /* not over two, even where they touch */
    assert_null(te_descriptor_find(&got, 201, 1));
    assert_null(te_descriptor_find(&got, 350, 1));
    assert_null(te_descriptor_find(&got, 349, UINT64_MAX));
    assert_null(te_descriptor_find(&got, UINT64_MAX, UINT64_MAX));
    te_descriptor_free(&got);
}

/* ---- data ---- */

static void requests_survive_the_wire(void **state)
{
    (void)state;
    static const struct te_hdr hdrs[] = {
        {.bytes = 65536, .address = UINT64_C(0x7f8d5c400000), .op = TE_OP_READ | TE_OP_V2},
        {.bytes = UINT64_MAX, .address = (UINT64_C(1) << 53) + 1, .op = TE_OP_WRITE},
        {.bytes = 32, .op = TE_OP_TOKEN},
        {.bytes = 1, .address = 2, .op = TE_OP_HASHED, .algorithm = HASH_SHA256},
        {.op = TE_OP_DIGEST, .algorithm = HASH_XXH3_128},
    };
    enum { COUNT = sizeof hdrs / sizeof hdrs[0] };
    uint8_t raw[COUNT][TE_HDR_BYTES];

    for (unsigned i = 0; i < COUNT; i++) {
        struct te_hdr got = {0};

        te_hdr_encode(&hdrs[i], raw[i]);
        te_hdr_decode(raw[i], &got);
        assert_int_equal(got.bytes, hdrs[i].bytes);
        assert_int_equal(got.address, hdrs[i].address);
        assert_int_equal(got.op, hdrs[i].op);
        assert_int_equal(got.algorithm, hdrs[i].algorithm);
    }
    golden_check("te_requests.bin", raw, sizeof raw);
}

static void unused_bytes_of_a_request_are_ignored(void **state)
{
    (void)state;
    uint8_t raw[TE_HDR_BYTES];
    struct te_hdr got = {0};

    memset(raw, 0xff, sizeof raw);
    wire_put_uint(raw, 5, 8);
    wire_put_uint(raw + 8, 6, 8);
    raw[16] = TE_OP_READ;
    te_hdr_decode(raw, &got);
    assert_int_equal(got.bytes, 5);
    assert_int_equal(got.address, 6);
    assert_int_equal(got.op, TE_OP_READ);
}

static void statuses_survive_the_wire(void **state)
{
    (void)state;
    static const uint32_t statuses[] = {TE_STATUS_OK, TE_STATUS_REJECTED,
                                        TE_STATUS_CODE + RF_E_CHANGED};
    uint8_t raw[3][TE_STATUS_BYTES];
    uint32_t got = 77;

    for (unsigned i = 0; i < 3; i++) {
        te_status_encode(statuses[i], raw[i]);
        assert_int_equal(te_status_decode(raw[i], &got, NULL), RF_OK);
        assert_int_equal(got, statuses[i]);
    }
    golden_check("te_statuses.bin", raw, sizeof raw);
}

static void what_is_no_status_is_refused(void **state)
{
    (void)state;
    struct rf_error err = {0};
    uint8_t raw[TE_STATUS_BYTES];
    uint32_t got = 77;

    for (unsigned byte = 4; byte < TE_STATUS_BYTES; byte++) {
        te_status_encode(TE_STATUS_OK, raw);
        raw[byte] ^= 1;
        assert_int_equal(te_status_decode(raw, &got, &err), RF_E_PROTO);
        assert_says(&err, "in place of a status");
    }
    assert_int_equal(got, 77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frame_is_length_type_json),
        cmocka_unit_test(frame_of_0_or_too_many_bytes_is_refused),
        cmocka_unit_test(types_over_3_are_the_old_form),
        cmocka_unit_test(answers_are_as_released),
        cmocka_unit_test(descriptors_of_all_releases_are_understood),
        cmocka_unit_test(own_descriptor_survives_the_wire),
        cmocka_unit_test(truncated_descriptor_is_refused),
        cmocka_unit_test(numbers_are_exact_to_2_64),
        cmocka_unit_test(numbers_that_are_no_addresses_are_refused),
        cmocka_unit_test(overlapping_buffers_are_refused),
        cmocka_unit_test(members_of_the_wrong_type_are_refused),
        cmocka_unit_test(members_that_are_there_twice_are_refused),
        cmocka_unit_test(members_that_must_be_there),
        cmocka_unit_test(absent_members_have_defaults),
        cmocka_unit_test(unknown_members_are_skipped),
        cmocka_unit_test(of_several_protocols_tcp_counts_or_the_first),
        cmocka_unit_test(memory_without_addresses_is_left_out_unless_over_tcp),
        cmocka_unit_test(names_have_a_limit),
        cmocka_unit_test(too_many_buffers_are_refused),
        cmocka_unit_test(buffers_are_found_by_address),
        cmocka_unit_test(requests_survive_the_wire),
        cmocka_unit_test(unused_bytes_of_a_request_are_ignored),
        cmocka_unit_test(statuses_survive_the_wire),
        cmocka_unit_test(what_is_no_status_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
