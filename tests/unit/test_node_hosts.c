/* Nodes: which ranks each holds, where they are, and every text that says so wrongly. */
#include "control/node_hosts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- placement ---- */

static void every_rank_is_on_one_node(void **state)
{
    (void)state;
    static const struct {
        uint32_t tp;
        uint32_t nodes;
    } cases[] = {{1, 1}, {8, 1}, {16, 2}, {16, 16}, {12, 3}, {1024, 4}, {1024, 1024}};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t next = 0;

        for (uint32_t node = 0; node < cases[i].nodes; node++) {
            struct node_span span = {0};
            assert_int_equal(node_span(cases[i].tp, cases[i].nodes, node, &span, NULL), RF_OK);
            assert_int_equal(span.first, next);
            assert_int_equal(span.count, cases[i].tp / cases[i].nodes);
            for (uint32_t rank = span.first; rank < span.first + span.count; rank++)
                assert_int_equal(node_of_rank(cases[i].tp, cases[i].nodes, rank), node);
            next += span.count;
        }
        assert_int_equal(next, cases[i].tp);
    }
}

static void the_document_s_nodes_hold_eight_ranks_each(void **state)
{
    (void)state;
    struct node_span span = {0};

    assert_int_equal(node_span(16, 2, 0, &span, NULL), RF_OK);
    assert_int_equal(span.first, 0);
    assert_int_equal(span.count, 8);
    assert_int_equal(node_span(16, 2, 1, &span, NULL), RF_OK);
    assert_int_equal(span.first, 8);
    assert_int_equal(span.count, 8);
}

static void impossible_placements_are_refused_in_words(void **state)
{
    (void)state;
    static const struct {
        uint32_t tp;
        uint32_t nodes;
        uint32_t node;
        const char *says;
    } cases[] = {
        {16, 0, 0, "0 nodes: 1 to 1024"},
        {2000, 1025, 0, "1025 nodes: 1 to 1024"},
        {16, 2, 2, "node 2 does not exist: with 2 there are 0 to 1"},
        {16, 2, UINT32_MAX, "node 4294967295 does not exist"},
        {15, 2, 0, "15 ranks cannot be divided equally among 2 nodes"},
        {1, 2, 0, "1 rank cannot be divided"},
        {0, 1, 0, "0 ranks cannot be divided"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct node_span span = {.first = 77};
        struct rf_error err = {0};
        assert_int_equal(node_span(cases[i].tp, cases[i].nodes, cases[i].node, &span, &err),
                         RF_E_INVAL);
        assert_non_null(strstr(err.text, cases[i].says));
        assert_int_equal(span.first, 77);
    }
}

/* ---- addresses ---- */

static void addresses_of_nodes_are_read(void **state)
{
    (void)state;
    struct node_hosts hosts = {0};

    assert_int_equal(
        node_hosts_parse("{\"1\": \"node-1-addr\", \"0\": \"node-0-addr\"}", 2, &hosts, NULL),
        RF_OK);
    assert_int_equal(hosts.count, 2);
    assert_string_equal(hosts.hosts[0], "node-0-addr");
    assert_string_equal(hosts.hosts[1], "node-1-addr");
    node_hosts_free(&hosts);
    assert_null(hosts.hosts);

    assert_int_equal(
        node_hosts_parse("{\"0\":\"fe80::1%eth0\",\"1\":\"[fd00::2]\",\"2\":\"10.0.0.1\"}", 3,
                         &hosts, NULL),
        RF_OK);
    assert_string_equal(hosts.hosts[0], "fe80::1%eth0");
    assert_string_equal(hosts.hosts[1], "fd00::2");
    node_hosts_free(&hosts);
}

static void the_first_node_may_share_its_address(void **state)
{
    (void)state;
    struct node_hosts hosts = {0};

    assert_int_equal(node_hosts_parse("{\"0\":\"::1\",\"1\":\"::1\"}", 2, &hosts, NULL), RF_OK);
    node_hosts_free(&hosts);
}

static void wrong_addresses_of_nodes_are_refused_in_words(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        uint32_t nodes;
        const char *says;
    } cases[] = {
        {"", 2, "not a JSON object"},
        {"{", 2, "not a JSON object"},
        {"[\"a\",\"b\"]", 2, "it is something else"},
        {"{'0':'a'}", 1, "not a JSON object"},
        {"{\"0\":\"a\"} x", 1, "not a JSON object"},
        {"{\"0\":\"a\",\"0\":\"b\"}", 1, "duplicate"},
        {"{\"0\":\"a\"}", 2, "the address of node 1 is missing"},
        {"{\"1\":\"a\"}", 2, "the address of node 0 is missing"},
        {"{}", 1, "the address of node 0 is missing"},
        {"{\"0\":\"a\",\"1\":\"b\"}", 1, "node 1 does not exist: there is 1 node, from 0 on"},
        {"{\"0\":\"a\",\"1\":\"b\",\"2\":\"c\"}", 2, "node 2 does not exist: there are 2 nodes"},
        {"{\"4294967296\":\"a\"}", 1, "node 4294967296 does not exist"},
        {"{\"99999999999999999999999\":\"a\"}", 1, "does not exist"},
        {"{\"00\":\"a\"}", 1, "\"00\" is no node"},
        {"{\"-1\":\"a\"}", 1, "\"-1\" is no node"},
        {"{\"\":\"a\"}", 1, "\"\" is no node"},
        {"{\"0x0\":\"a\"}", 1, "is no node"},
        {"{\"0\":7}", 1, "node 0: its address is no string"},
        {"{\"0\":null}", 1, "node 0: its address is no string"},
        {"{\"0\":\"\"}", 1, "the address is empty"},
        {"{\"0\":\"10.0.0.1:5000\"}", 1, "without a port is wanted"},
        {"{\"0\":\"http://a\"}", 1, "is no address"},
        {"{\"0\":\"a b\"}", 1, "is no address"},
        {"{\"0\":\"a\\n\"}", 1, "is no address"},
        {"{\"0\":\"a/../b\"}", 1, "is no address"},
        {"{\"0\":\"user@a\"}", 1, "is no address"},
        {"{\"0\":\"a\",\"1\":\"b\",\"2\":\"B\"}", 3, "nodes 1 and 2 have the same address"},
        {"{}", 0, "0 nodes"},
        {"{}", 1025, "1025 nodes"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct node_hosts hosts = {.count = 77};
        struct rf_error err = {0};
        enum rf_code code = node_hosts_parse(cases[i].json, cases[i].nodes, &hosts, &err);
        if (code != RF_E_INVAL || strstr(err.text, cases[i].says) == NULL)
            fail_msg("%s: %d: %s", cases[i].json, (int)code, err.text);
        assert_int_equal(hosts.count, 77);
    }
}

static void an_address_has_a_bounded_length(void **state)
{
    (void)state;
    char json[400];
    char name[300];
    struct node_hosts hosts = {0};
    struct node_address address;

    memset(name, 'a', sizeof(name));
    for (size_t bytes = NODE_HOST_BYTES - 1; bytes <= NODE_HOST_BYTES + 3; bytes++) {
        enum rf_code wanted = bytes < NODE_HOST_BYTES ? RF_OK : RF_E_INVAL;

        snprintf(json, sizeof(json), "{\"0\":\"%.*s\"}", (int)bytes, name);
        assert_int_equal(node_hosts_parse(json, 1, &hosts, NULL), wanted);
        node_hosts_free(&hosts);
        snprintf(json, sizeof(json), "%.*s:1", (int)bytes, name);
        assert_int_equal(node_address_parse(json, &address, NULL), wanted);
    }
}

static void the_address_of_the_first_node_is_read(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *host;
        uint16_t port;
    } cases[] = {
        {"node-0-addr:5000", "node-0-addr", 5000},
        {"127.0.0.1:1", "127.0.0.1", 1},
        {"[::1]:65535", "::1", 65535},
        {"[fe80::1%eth0]:80", "fe80::1%eth0", 80},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct node_address address;
        assert_int_equal(node_address_parse(cases[i].text, &address, NULL), RF_OK);
        assert_string_equal(address.host, cases[i].host);
        assert_int_equal(address.port, cases[i].port);
    }
}

static void a_wrong_address_of_the_first_node_is_refused(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "",           "node",    "node:",          ":5000",       "node:0",
        "node:65536", "a:-1",    "a:99999999",     "a:80 ",       "::1:5000",
        "[]:80",      "[::1:80", "a:8a",           "http://a:80", "a b:80",
        "[::1]80",    "::1",     "fe80::1:80",     ":",           "::",
        "tcp://a:80", "a:b:80",  "[10.0.0.1:5]:6",
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct node_address address = {.port = 77};
        struct rf_error err = {0};
        if (node_address_parse(cases[i], &address, &err) != RF_E_INVAL)
            fail_msg("\"%s\" is accepted: %s %d", cases[i], address.host, address.port);
        assert_true(err.text[0] != '\0');
        assert_int_equal(address.port, 77);
    }
}

/* ---- ports ---- */

static void a_port_for_each_rank_is_read(void **state)
{
    (void)state;
    uint16_t *ports = NULL;

    assert_int_equal(node_ports_parse(" [1, 65535 ,50000]", 3, &ports, NULL), RF_OK);
    assert_int_equal(ports[0], 1);
    assert_int_equal(ports[1], 65535);
    assert_int_equal(ports[2], 50000);
    free(ports);
}

static void wrong_lists_of_ports_are_refused_in_words(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        uint32_t count;
        const char *says;
    } cases[] = {
        {"", 1, "not a JSON list"},
        {"50000,50001", 2, "not a JSON list"},
        {"50000", 1, "not a JSON list"},
        {"{\"0\":1}", 1, "it is something else"},
        {"[1", 1, "not a JSON list"},
        {"[1] 2", 1, "not a JSON list"},
        {"[]", 1, "0 ports for 1 rank: one for each"},
        {"[1]", 2, "1 port for 2 ranks"},
        {"[1,2,3]", 2, "3 ports for 2 ranks"},
        {"[0]", 1, "0 is not in 1 ... 65535"},
        {"[65536]", 1, "65536 is not in"},
        {"[-1]", 1, "-1 is not in"},
        {"[9007199254740993]", 1, "9007199254740993 is not in"},
        {"[99999999999999999999]", 1, "not a JSON list"},
        {"[1.0]", 1, "no whole number"},
        {"[\"1\"]", 1, "no whole number"},
        {"[true]", 1, "no whole number"},
        {"[null]", 1, "no whole number"},
        {"[[1]]", 1, "no whole number"},
        {"[7,8,7]", 3, "port 7 is in the list twice"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint16_t *ports = NULL;
        struct rf_error err = {0};
        enum rf_code code = node_ports_parse(cases[i].json, cases[i].count, &ports, &err);
        if (code != RF_E_INVAL || strstr(err.text, cases[i].says) == NULL)
            fail_msg("%s: %d: %s", cases[i].json, (int)code, err.text);
        assert_null(ports);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rank_is_on_one_node),
        cmocka_unit_test(the_document_s_nodes_hold_eight_ranks_each),
        cmocka_unit_test(impossible_placements_are_refused_in_words),
        cmocka_unit_test(addresses_of_nodes_are_read),
        cmocka_unit_test(the_first_node_may_share_its_address),
        cmocka_unit_test(wrong_addresses_of_nodes_are_refused_in_words),
        cmocka_unit_test(an_address_has_a_bounded_length),
        cmocka_unit_test(the_address_of_the_first_node_is_read),
        cmocka_unit_test(a_wrong_address_of_the_first_node_is_refused),
        cmocka_unit_test(a_port_for_each_rank_is_read),
        cmocka_unit_test(wrong_lists_of_ports_are_refused_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
