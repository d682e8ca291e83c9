/* What an SGLang rank publishes: decoded exactly, or refused in words. */
#include "base/buf.h"
#include "wire/weight_map.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define INFO(tensors) \
    "{\"rank\":0,\"remote_instance_transfer_engine_info\":[\"10.0.0.1:15000\",{" tensors "}]}"

static void decode(const char *json, struct weight_map *ret_map)
{
    struct rf_error err;

    if (weight_map_decode(json, strlen(json), ret_map, &err) != RF_OK)
        fail_msg("%s: %s", json, err.text);
}

static void refused(const char *json, enum rf_code code, const char *words)
{
    struct weight_map map = {.count = 0};
    struct rf_error err = {.code = RF_OK};

    if (weight_map_decode(json, strlen(json), &map, &err) == RF_OK)
        fail_msg("taken: %s", json);
    if (err.code != code || strstr(err.text, words) == NULL)
        fail_msg("%s: %s \"%s\", expected \"%s\"", json, rf_code_name(err.code), err.text, words);
    assert_null(map.entries);
}

static void tensors_come_out_by_name(void **state)
{
    struct weight_map map;

    (void)state;
    decode(INFO("\"b\":[4096,3,2],\"a\":[139637976727552,512,8],\"e\":[0,0,4]"), &map);
    assert_int_equal(map.rank, 0);
    assert_string_equal(map.session, "10.0.0.1:15000");
    assert_int_equal(map.count, 3);
    assert_string_equal(map.entries[0].name, "a");
    assert_true(map.entries[0].address == 139637976727552);
    assert_true(map.entries[0].bytes == 4096);
    assert_string_equal(map.entries[1].name, "b");
    assert_true(map.entries[1].bytes == 6);
    assert_int_equal(map.entries[1].element_bytes, 2);
    assert_true(map.entries[2].bytes == 0);
    assert_ptr_equal(weight_map_find(&map, "b"), &map.entries[1]);
    assert_null(weight_map_find(&map, "c"));
    weight_map_free(&map);
    assert_null(weight_map_find(&map, "b"));
}

static void addresses_above_2_to_the_53_are_exact(void **state)
{
    struct weight_map map;

    (void)state;
    decode(INFO("\"x\":[9007199254740993,1,1],\"y\":[18446744073709551614,1,1]"), &map);
    assert_true(map.entries[0].address == UINT64_C(9007199254740993));
    assert_true(map.entries[1].address == UINT64_MAX - 1);
    weight_map_free(&map);
}

static void unknown_members_are_skipped(void **state)
{
    struct weight_map map;

    (void)state;
    decode(
        " {\"new\":[{}],\"remote_instance_transfer_engine_info\":[\"h:1\",{},{\"alternates\":1}],"
        "\"rank\":7,\"protocol\":\"tcp\"}\n",
        &map);
    assert_int_equal(map.rank, 7);
    assert_int_equal(map.count, 0);
    weight_map_free(&map);
}

static void escaped_names_are_resolved(void **state)
{
    struct weight_map map;

    (void)state;
    decode(INFO("\"\\u00fc\\\"\":[1,1,1]"), &map);
    assert_string_equal(map.entries[0].name, "\xc3\xbc\"");
    weight_map_free(&map);
}

static void hostile_places_are_refused_with_the_tensors_name(void **state)
{
    (void)state;
    refused(INFO("\"w\":[18446744073709551615,1,2]"), RF_E_PROTO, "tensor w: its end wraps around");
    refused(INFO("\"w\":[4096,9223372036854775808,2]"), RF_E_PROTO,
            "tensor w: more bytes than there are");
    refused(INFO("\"w\":[0,1,2]"), RF_E_PROTO, "tensor w: at address 0");
    refused(INFO("\"w\":[4096,1,0]"), RF_E_PROTO, "tensor w: elements of no dtype's size");
    refused(INFO("\"w\":[4096,1,17]"), RF_E_PROTO, "tensor w: elements of no dtype's size");
    refused(INFO("\"w\":[4096,1,4294967298]"), RF_E_PROTO, "elements of no dtype's size");
    refused(INFO("\"w\":[-1,1,2]"), RF_E_PROTO, "tensor w: ");
    refused(INFO("\"w\":[4096,1.5,2]"), RF_E_PROTO, "tensor w: ");
    refused(INFO("\"w\":[4096,1e3,2]"), RF_E_PROTO, "tensor w: ");
    refused(INFO("\"w\":[18446744073709551616,1,2]"), RF_E_PROTO, "tensor w: ");
    refused(INFO("\"w\":[\"1\",1,2]"), RF_E_PROTO, "tensor w: ");
    refused(INFO("\"w\":[4096,1]"), RF_E_PROTO, "fewer than 3");
    refused(INFO("\"w\":[4096,1,2,3]"), RF_E_PROTO, "more than 3");
    refused(INFO("\"w\":{}"), RF_E_PROTO, "tensor w: ");
    refused(INFO("\"w\":[4096,1,2],\"w\":[4096,1,2]"), RF_E_PROTO, "tensor w is there twice");
    refused(INFO("\"w\\u0000\":[4096,1,2]"), RF_E_PROTO, "NUL");
}

static void sessions_are_hosts_and_ports(void **state)
{
    static const char *const good[] = {"10.77.0.1:16274", "node-1:1", "[fd00::1]:65535",
                                       "::1:15000"};
    static const char *const bad[] = {"",     ":1",    "host",     "host:",     "host:0", "h:65536",
                                      "h:1x", "h h:1", "h\":1",    "h\\:1",     "h/x:1",  "h:-1",
                                      "h:1 ", "h\n:1", "h:000001", "\xc3\xbc:1"};
    char text[400];

    (void)state;
    for (unsigned i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(weight_map_session_ok(good[i], strlen(good[i])));
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (weight_map_session_ok(bad[i], strlen(bad[i])))
            fail_msg("\"%s\" was taken for a session", bad[i]);
    }
    memset(text, 'h', sizeof text);
    memcpy(text + 256, ":1", 3);
    assert_false(weight_map_session_ok(text, strlen(text)));
    memcpy(text + 255, ":1", 3);
    assert_true(weight_map_session_ok(text, strlen(text)));
}

static void what_is_no_such_answer_is_refused(void **state)
{
    (void)state;
    refused("", RF_E_PROTO, "");
    refused("[]", RF_E_PROTO, "not a JSON object");
    refused("{}", RF_E_PROTO, "is missing");
    refused("{\"rank\":0}", RF_E_PROTO, "is missing");
    refused("{\"remote_instance_transfer_engine_info\":[\"h:1\",{}]}", RF_E_PROTO, "\"rank\"");
    refused("{\"rank\":0,\"remote_instance_transfer_engine_info\":{\"backend\":\"nixl\"}}",
            RF_E_UNSUPPORTED, "another backend");
    refused("{\"rank\":0,\"remote_instance_transfer_engine_info\":null}", RF_E_PROTO, "session");
    refused("{\"rank\":0,\"remote_instance_transfer_engine_info\":[]}", RF_E_PROTO, "");
    refused("{\"rank\":0,\"remote_instance_transfer_engine_info\":[null,null]}", RF_E_PROTO,
            "no session id");
    refused("{\"rank\":0,\"remote_instance_transfer_engine_info\":[\"\",{}]}", RF_E_PROTO,
            "session id of 0");
    refused("{\"rank\":0,\"remote_instance_transfer_engine_info\":[\"a b:1\",{}]}", RF_E_PROTO,
            "\"a b:1\" is not HOST:PORT");
    refused("{\"rank\":0,\"remote_instance_transfer_engine_info\":[\"host\",{}]}", RF_E_PROTO,
            "\"host\" is not HOST:PORT");
    refused("{\"rank\":0,\"remote_instance_transfer_engine_info\":[\"h:1\"]}", RF_E_PROTO, "");
    refused("{\"rank\":0,\"rank\":0}", RF_E_PROTO, "twice");
    refused(INFO("") " x", RF_E_PROTO, "");
}

static void every_truncation_is_refused(void **state)
{
    static const char whole[] = INFO("\"model.w\":[4096,12,2],\"b\":[8192,1,4]");
    char text[sizeof(whole)];

    (void)state;
    for (size_t bytes = 0; bytes < sizeof(whole) - 1; bytes++) {
        memcpy(text, whole, bytes);
        text[bytes] = '\0';
        refused(text, RF_E_PROTO, "");
    }
}

static void many_tensors_are_taken(void **state)
{
    enum { MANY = 100 * 1000 };
    struct buf BUF_AUTO json = {0};
    struct weight_map map;
    char name[32];

    (void)state;
    buf_printf(&json, "{\"rank\":3,\"remote_instance_transfer_engine_info\":[\"h:1\",{");
    for (int i = 0; i < MANY; i++)
        buf_printf(&json, "%s\"t%d\":[%d,1,4]", i > 0 ? "," : "", i, 4096 + 4 * i);
    buf_printf(&json, "}]}");
    decode((const char *)json.data, &map);
    assert_int_equal(map.count, MANY);
    for (int i = 0; i < MANY; i += 997) {
        snprintf(name, sizeof(name), "t%d", i);
        assert_non_null(weight_map_find(&map, name));
        assert_true(weight_map_find(&map, name)->address == (uint64_t)(4096 + 4 * i));
    }
    weight_map_free(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_come_out_by_name),
        cmocka_unit_test(addresses_above_2_to_the_53_are_exact),
        cmocka_unit_test(unknown_members_are_skipped),
        cmocka_unit_test(escaped_names_are_resolved),
        cmocka_unit_test(hostile_places_are_refused_with_the_tensors_name),
        cmocka_unit_test(sessions_are_hosts_and_ports),
        cmocka_unit_test(what_is_no_such_answer_is_refused),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(many_tensors_are_taken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
