/* SGLang's control plane, seen from plain sockets and from ZeroMQ: the info routes, the bootstrap
 * server, and the nodes of one model. */
/* ctest: timeout=300 serial */
#include "base/cleanup.h"
#include "base/clock.h"
#include "control/engine_info.h"
#include "control/nodes.h"
#include "util/web.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <zmq.h>

#include <cmocka.h>

static const char info_path[] = "/remote_instance_transfer_engine_info";
static const struct nodes_options alone = {.tp_size = 2};

/* ---- helpers ---- */

static const char *te_address(const struct web *web)
{
    uint32_t count = 0;
    const struct endpoint *endpoints = seed_endpoints(web->seed, &count);

    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(endpoints[i].transport, "te") == 0)
            return endpoints[i].address;
    }
    fail_msg("te is not offered");
    return "";
}

/* The tensors of rank 1 ("a.weight", "only.one"), as SGLang is told of them. */
static const char *tensors_of_rank1(const struct web *web, char out[256])
{
    uint64_t base = seed_rank_base(web->seed, "te", 1);

    snprintf(out, 256, "{\"a.weight\":[%" PRIu64 ",6,4],\"only.one\":[%" PRIu64 ",7,1]}", base,
             base + 24);
    return out;
}

static void expect_at(uint16_t port, const char *head, const char *body, int status,
                      const char *wanted)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    web_ask(port, head, body, body != NULL ? strlen(body) : 0, &answer);
    if (answer.status != status || !answer.whole ||
        strcmp((const char *)answer.body.data, wanted) != 0)
        fail_msg("%s: %d %s\ninstead of %d %s", head, answer.status,
                 answer.body.data != NULL ? (const char *)answer.body.data : "", status, wanted);
}

static void expect(uint16_t port, const char *path, int status, const char *wanted)
{
    char head[512];

    snprintf(head, sizeof head, "GET %s HTTP/1.1\r\n", path);
    expect_at(port, head, NULL, status, wanted);
}

/* The answer's status, and words that are in its body. */
static void expect_words(uint16_t port, const char *path, int status, const char *words)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    web_get(port, path, &answer);
    if (answer.status != status || strstr((const char *)answer.body.data, words) == NULL)
        fail_msg("%s: %d %s\ninstead of %d and \"%s\"", path, answer.status,
                 (const char *)answer.body.data, status, words);
}

static void put(uint16_t port, const char *body, int status, const char *wanted)
{
    expect_at(port, "PUT /register_transfer_engine_info HTTP/1.1\r\n", body, status, wanted);
}

/* ---- the info routes ---- */

static void both_info_paths_answer_as_sglang_does(void **state)
{
    static const char *const paths[] = {"/remote_instance_transfer_engine_info",
                                        "/get_remote_instance_transfer_engine_info"};
    const struct web_options options = {.nodes = &alone};
    struct web_answer answer WEB_ANSWER_AUTO;
    char path[128];
    char wanted[1024];
    char tensors[256];
    struct web web;

    (void)state;
    web_start(&web, &options);
    for (unsigned i = 0; i < 2; i++) {
        uint64_t base = seed_rank_base(web.seed, "te", 0);
        snprintf(path, sizeof path, "%s?rank=0", paths[i]);
        snprintf(wanted, sizeof wanted,
                 "{\"rank\":0,\"remote_instance_transfer_engine_info\":[\"%s\",{"
                 "\"a.weight\":[%" PRIu64 ",6,4],\"alias.weight\":[%" PRIu64 ",6,4],"
                 "\"big\":[%" PRIu64 ",%d,1],\"empty\":[%" PRIu64 ",0,2],"
                 "\"sub/\xc3\xbc n&\":[%" PRIu64 ",5,2]}]}",
                 te_address(&web), base, base, base + 24, WEB_BIG_BYTES, base + 24 + WEB_BIG_BYTES,
                 base + 24 + WEB_BIG_BYTES);
        expect(web.port, path, 200, wanted);
        snprintf(path, sizeof path, "%s?rank=1&what=ever", paths[i]);
        snprintf(wanted, sizeof wanted,
                 "{\"rank\":1,\"remote_instance_transfer_engine_info\":[\"%s\",%s]}",
                 te_address(&web), tensors_of_rank1(&web, tensors));
        expect(web.port, path, 200, wanted);
    }
    web_get(web.port, "/remote_instance_transfer_engine_info?rank=1", &answer);
    assert_string_equal(web_header(&answer, "Content-Type"), "application/json");
    web_stop(&web);
}

static void wrong_ranks_are_answered_as_sglang_does(void **state)
{
    static const char missing[] = "{\"error\":{\"message\":\"Missing or invalid rank parameter\"}}";
#define NO_NUMBER(input)                                                           \
    "{\"detail\":[{\"type\":\"int_parsing\",\"loc\":[\"query\",\"rank\"],\"msg\":" \
    "\"Input should be a valid integer, unable to parse string as an integer\","   \
    "\"input\":\"" input "\"}]}"
    const struct web_options options = {.nodes = &alone};
    struct web web;

    (void)state;
    web_start(&web, &options);
    expect(web.port, info_path, 400, missing);
    expect(web.port, "/remote_instance_transfer_engine_info?rank=-1", 400, missing);
    expect(web.port, "/remote_instance_transfer_engine_info?rank=x", 422, NO_NUMBER("x"));
    expect(web.port, "/remote_instance_transfer_engine_info?rank=", 422, NO_NUMBER(""));
    expect(web.port, "/remote_instance_transfer_engine_info?rank=1%22", 422, NO_NUMBER("1\\\""));
    expect(web.port, "/remote_instance_transfer_engine_info?rank=-", 422, NO_NUMBER("-"));
    expect(web.port, "/remote_instance_transfer_engine_info?rank=1.5", 422, NO_NUMBER("1.5"));
    expect_words(web.port, "/remote_instance_transfer_engine_info?rank=2", 400,
                 "{\"error\":{\"message\":\"Failed to get transfer engine info for rank 2");
    expect_words(web.port, "/remote_instance_transfer_engine_info?rank=18446744073709551616", 400,
                 "Failed to get transfer engine info for rank 18446744073709551616");
    expect_words(web.port, "/remote_instance_transfer_engine_info?rank=%2000", 200, "{\"rank\":0,");
    web_stop(&web);
}

static void nothing_is_said_before_it_is_complete(void **state)
{
    const struct web_options options = {.nodes = &alone, .unpublished = true};
    struct web web;

    (void)state;
    web_start(&web, &options);
    expect_words(web.port, "/remote_instance_transfer_engine_info?rank=0", 400,
                 "Failed to get transfer engine info for rank 0: the model is being loaded");
    expect(nodes_bootstrap_port(web.nodes), "/get_transfer_engine_info?rank=0", 404,
           "{\"detail\":\"No transfer engine info for rank 0\"}");
    expect(web.port, "/health", 503, "");
    expect_words(web.port, "/server_info", 503, "loading");
    web_publish(&web);
    expect_words(web.port, "/remote_instance_transfer_engine_info?rank=0", 200, "\"a.weight\"");
    expect(web.port, "/health", 200, "");
    expect(web.port, "/healthz", 200, "{\"status\":\"ready\"}\n");
    seed_drain(web.seed, 0);
    expect_words(web.port, "/remote_instance_transfer_engine_info?rank=0", 400, "about to stop");
    web_stop(&web);
}

/* The store is published, but what there is to say about it is not. */
static void ready_is_said_only_after_publication(void **state)
{
    const struct web_options options = {.nodes = &alone, .unpublished = true};
    struct rf_error err;
    struct web web;

    (void)state;
    web_start(&web, &options);
    assert_int_equal(seed_publish(web.seed, web.store, &err), RF_OK);
    expect_words(web.port, "/healthz", 503, "loading");
    expect(web.port, "/health", 503, "");
    web_stop(&web);
}

static void without_te_it_says_how_to_start_it(void **state)
{
    const struct web_options options = {.max_readers = 1};
    struct web web;

    (void)state;
    web_start(&web, &options);
    expect_words(web.port, "/remote_instance_transfer_engine_info?rank=0", 400,
                 "rank 0: start this instance with "
                 "--remote-instance-weight-loader-start-seed-via-transfer-engine");
    expect(web.port, "/health", 200, "");
    web_stop(&web);
}

static void a_wildcard_becomes_the_address_that_was_reached(void **state)
{
    const struct web_options options = {.nodes = &alone, .server = {.host = "0.0.0.0"}};
    char wanted[512];
    char tensors[256];
    struct web web;

    (void)state;
    web_start(&web, &options);
    assert_memory_equal(te_address(&web), "0.0.0.0:", 8);
    snprintf(wanted, sizeof wanted,
             "{\"rank\":1,\"remote_instance_transfer_engine_info\":[\"127.0.0.1:%s\",%s]}",
             te_address(&web) + 8, tensors_of_rank1(&web, tensors));
    expect(web.port, "/remote_instance_transfer_engine_info?rank=1", 200, wanted);
    web_stop(&web);
}

static void server_info_says_what_is_true(void **state)
{
    const struct web_options options = {.nodes = &alone, .server = {.model_path = "/m/\"tiny\""}};
    char wanted[512];
    struct web web;

    (void)state;
    web_start(&web, &options);
    snprintf(wanted, sizeof wanted,
             "{\"tp_size\":2,\"pp_size\":1,\"ep_size\":1,\"dp_size\":1,"
             "\"served_model_name\":\"tiny <b>&\\\"model\\\"\",\"model_path\":\"/m/\\\"tiny\\\"\","
             "\"remote_instance_weight_loader_start_seed_via_transfer_engine\":true,"
             "\"nnodes\":1,\"node_rank\":0,\"engine_info_bootstrap_port\":%u,\"version\":\"%s\"}\n",
             nodes_bootstrap_port(web.nodes), rf_version());
    expect(web.port, "/server_info", 200, wanted);
    expect(web.port, "/get_server_info", 200, wanted);
    web_stop(&web);
}

/* ---- the bootstrap server ---- */

#define REGISTRATION(rank, session, dict)                                               \
    "{\"tp_rank\":" rank ",\"transfer_engine_info\":{\"session_id\":\"" session "\",\"" \
    "weights_info_dict\":" dict "}}"

static void what_is_registered_can_be_asked_for(void **state)
{
    const struct web_options options = {.nodes = &alone};
    char wanted[512];
    char tensors[256];
    struct web web;

    (void)state;
    web_start(&web, &options);
    uint16_t port = nodes_bootstrap_port(web.nodes);
    expect(port, "/health", 200, "OK");
    expect(port, "/get_transfer_engine_info?rank=5", 404,
           "{\"detail\":\"No transfer engine info for rank 5\"}");
    put(port, REGISTRATION("5", "h:1", "{\"a\":[1,2,3]}"), 200, "OK");
    put(port, REGISTRATION("5", "h:2", "{\"b\":[4,5,6]}"), 200, "OK"); /* the last one counts */
    snprintf(wanted, sizeof wanted,
             "{\"rank\":5,\"remote_instance_transfer_engine_info\":[\"h:2\",{\"b\":[4,5,6]}]}");
    expect(port, "/get_transfer_engine_info?rank=5", 200, wanted);
    expect(web.port, "/remote_instance_transfer_engine_info?rank=5", 200, wanted);
    snprintf(wanted, sizeof wanted,
             "{\"rank\":1,\"remote_instance_transfer_engine_info\":[\"%s\",%s]}", te_address(&web),
             tensors_of_rank1(&web, tensors));
    expect(port, "/get_transfer_engine_info?rank=1", 200, wanted);
    web_stop(&web);
}

static void our_own_ranks_cannot_be_redirected(void **state)
{
    const struct web_options options = {.nodes = &alone, .unpublished = true};
    static const char refused[] = "{\"detail\":\"rank 0 is this instance's own: nobody else can "
                                  "register it\"}";
    struct web web;

    (void)state;
    web_start(&web, &options);
    put(nodes_bootstrap_port(web.nodes), REGISTRATION("0", "evil:1", "{}"), 400, refused);
    web_publish(&web);
    put(nodes_bootstrap_port(web.nodes), REGISTRATION("0", "evil:1", "{}"), 400, refused);
    expect_words(web.port, "/remote_instance_transfer_engine_info?rank=0", 200, te_address(&web));
    web_stop(&web);
}

#define NO_OBJECT(text)                                                                          \
    "{\"detail\":[{\"type\":\"dict_type\",\"loc\":[\"body\"],\"msg\":\"Input should be a valid " \
    "dictionary\",\"input\":" text "}]}"
#define NO_JSON(at, why)                                            \
    "{\"detail\":[{\"type\":\"json_invalid\",\"loc\":[\"body\"," at \
    "],\"msg\":\"JSON decode error\","                              \
    "\"input\":{},\"ctx\":{\"error\":\"" why "\"}}]}"

static void wrong_requests_are_answered_in_its_words(void **state)
{
    const struct web_options options = {.nodes = &alone};
    struct web web;

    (void)state;
    web_start(&web, &options);
    uint16_t port = nodes_bootstrap_port(web.nodes);
    put(port, "{}", 400, "{\"detail\":\"registration: \\\"tp_rank\\\" is missing\"}");
    expect_at(port, "PUT /register_transfer_engine_info HTTP/1.1\r\n", NULL, 422,
              "{\"detail\":[{\"type\":\"missing\",\"loc\":[\"body\"],\"msg\":\"Field required\","
              "\"input\":null}]}");
    put(port, " [1, \"\\u00e9\"]", 422, NO_OBJECT(" [1, \"\\u00e9\"]"));
    put(port, "null", 422, NO_OBJECT("null"));
    put(port, "{\"tp_rank\":", 422, NO_JSON("11", "the text ends too early"));
    put(port, "{\"tp_rank\":1}x", 422, NO_JSON("13", "text after the end of the JSON value"));
    put(port, "\"\xff\"", 400, "{\"detail\":\"There was an error parsing the body\"}");
    put(port, REGISTRATION("\"3\"", "h:1", "{}"), 400,
        "{\"detail\":\"registration: expected a whole number from 0 to 2^64 - 1 (byte 11)\"}");
    put(port, REGISTRATION("7", "h", "{}"), 400,
        "{\"detail\":\"registration: the session id is not HOST:PORT (byte 53)\"}");
    expect(port, "/get_transfer_engine_info", 422,
           "{\"detail\":[{\"type\":\"missing\",\"loc\":[\"query\",\"rank\"],"
           "\"msg\":\"Field required\",\"input\":null}]}");
    expect(port, "/get_transfer_engine_info?rank=x", 422, NO_NUMBER("x"));
    expect(port, "/get_transfer_engine_info?rank=-1", 400,
           "{\"detail\":\"Invalid rank parameter\"}");
    expect(port, "/get_transfer_engine_info?rank=9&rank=x", 422, NO_NUMBER("x"));
    expect(port, "/get_transfer_engine_info?rank=x&rank=9", 404,
           "{\"detail\":\"No transfer engine info for rank 9\"}");
    expect(port, "/v1/instance", 404, "{\"detail\":\"Not Found\"}");
    expect(port, "/register_transfer_engine_info", 405, "{\"detail\":\"Method Not Allowed\"}");
    expect_at(port, "DELETE /health HTTP/1.1\r\n", NULL, 405,
              "{\"detail\":\"Method Not Allowed\"}");
    expect_at(port, "DELETE /x HTTP/1.1\r\n", NULL, 404, "{\"detail\":\"Not Found\"}");
    expect(port, "/health", 200, "OK");
    web_stop(&web);
}

/* A registration of so many tensors. */
static void make_registration(uint64_t rank, unsigned tensors, struct buf *out)
{
    buf_printf(out,
               "{\"tp_rank\":%" PRIu64 ",\"transfer_engine_info\":{\"session_id\":\"h:1\","
               "\"weights_info_dict\":{",
               rank);
    for (unsigned i = 0; i < tensors; i++)
        buf_printf(out, "%s\"model.layers.%u.mlp.experts.weight\":[%u,4096,2]", i > 0 ? "," : "", i,
                   i * 8192);
    buf_printf(out, "}}}");
}

static void large_registrations_are_taken_there_and_nowhere_else(void **state)
{
    const struct web_options options = {.nodes = &alone};
    struct buf body BUF_AUTO = {0};
    struct web_answer answer WEB_ANSWER_AUTO;
    struct web_answer info WEB_ANSWER_AUTO;
    struct web_answer refused WEB_ANSWER_AUTO;
    struct web web;

    (void)state;
    web_start(&web, &options);
    uint16_t port = nodes_bootstrap_port(web.nodes);
    make_registration(9, 100000, &body);
    assert_true(body.bytes > 4 << 20);
    web_ask(port, "PUT /register_transfer_engine_info HTTP/1.1\r\n", body.data, body.bytes,
            &answer);
    assert_int_equal(answer.status, 200);
    web_get(web.port, "/remote_instance_transfer_engine_info?rank=9", &info);
    assert_int_equal(info.status, 200);
    assert_true(info.whole);
    assert_int_equal(info.body.data[info.body.bytes - 1], '}');
    assert_non_null(strstr((const char *)info.body.data, "layers.99999."));
    web_ask(web.port, "PUT /v1/lease HTTP/1.1\r\n", body.data, 100000, &refused);
    assert_int_equal(refused.status, 413);
    web_stop(&web);
}

static void a_body_that_is_too_large_is_refused_before_it_comes(void **state)
{
    const struct web_options options = {.nodes = &alone};
    static const char head[] = "PUT /register_transfer_engine_info HTTP/1.1\r\nHost: h\r\n"
                               "Content-Length: 67108865\r\n\r\n";
    struct web_answer answer WEB_ANSWER_AUTO;
    struct web web;

    (void)state;
    web_start(&web, &options);
    rf_autoclose int fd = web_connect(nodes_bootstrap_port(web.nodes));
    assert_true(web_send(fd, head, strlen(head)));
    web_receive(fd, false, &answer);
    assert_int_equal(answer.status, 413);
    web_stop(&web);
}

/* ---- a node that answers by ZeroMQ, ours ---- */

static void *context;

static int start_zmq(void **state)
{
    (void)state;
    context = zmq_ctx_new();
    return context == NULL;
}

static int stop_zmq(void **state)
{
    (void)state;
    zmq_ctx_term(context);
    return 0;
}

static void *open_zmq(int type, uint16_t port)
{
    const int limit_ms = WEB_TIMEOUT_MS;
    const int zero = 0;
    char endpoint[64];

    void *socket = zmq_socket(context, type);
    assert_non_null(socket);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero), 0);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_RCVTIMEO, &limit_ms, sizeof limit_ms), 0);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", port);
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    return socket;
}

/* One question on a socket of its own; the answer as text. A node that sheds its connections may
 * lose a question: it is asked again then, as others would. */
static void ask_node(uint16_t port, const char *question, char *out, size_t room)
{
    const int patience_ms = 1000;
    int bytes = -1;

    for (unsigned tries = 0; tries < WEB_TIMEOUT_MS / 1000 && bytes < 0; tries++) {
        void *socket = open_zmq(ZMQ_REQ, port);
        zmq_setsockopt(socket, ZMQ_RCVTIMEO, &patience_ms, sizeof patience_ms);
        assert_int_equal(zmq_send(socket, question, strlen(question), 0), strlen(question));
        bytes = zmq_recv(socket, out, room - 1, 0);
        zmq_close(socket);
    }
    if (bytes < 0)
        fail_msg("no answer to %s", question);
    assert_in_range(bytes, 0, room - 1);
    out[bytes] = '\0';
}

static void expect_node(uint16_t port, const char *question, const char *wanted)
{
    char answer[1024];

    ask_node(port, question, answer, sizeof answer);
    assert_string_equal(answer, wanted);
}

static char two_addresses[2][NODE_HOST_BYTES] = {"127.0.0.1", "127.0.0.1"};
static const struct node_hosts two_hosts = {.hosts = two_addresses, .count = 2};
static const struct nodes_options second = {
    .node_count = 2, .node_rank = 1, .tp_size = 4, .hosts = &two_hosts};
/* Ranks 2 and 3 of four. */
static const struct web_options second_node = {.nodes = &second, .first_tp = 2, .tp_size = 4};

static void expect_node_is_well(const struct web *web)
{
    char wanted[512];
    char tensors[256];

    snprintf(wanted, sizeof wanted,
             "{\"success\":true,\"rank\":3,\"remote_instance_transfer_engine_info\":[\"%s\",%s]}",
             te_address(web), tensors_of_rank1(web, tensors));
    expect_node(nodes_info_port(web->nodes), "{\"action\":\"get_transfer_engine_info\",\"rank\":3}",
                wanted);
}

static void a_node_answers_questions_in_the_documents_words(void **state)
{
    struct web_options options = second_node;
    struct web web;

    (void)state;
    options.unpublished = true;
    web_start(&web, &options);
    uint16_t port = nodes_info_port(web.nodes);
    expect_node(port, "{\"action\":\"get_transfer_engine_info\",\"rank\":3}",
                "{\"success\":false,\"error\":\"Rank 3 not available on node 1: the model is being "
                "loaded: try again\"}");
    web_publish(&web);
    expect_node_is_well(&web);
    expect_node(port, "{\"action\":\"get_transfer_engine_info\",\"rank\":1}",
                "{\"success\":false,\"error\":\"Rank 1 not available on node 1\"}");
    expect_node(port, "{\"action\":\"get_transfer_engine_info\"}",
                "{\"success\":false,\"error\":\"Missing rank parameter\"}");
    expect_node(port, "{\"action\":\"dance\",\"rank\":0}",
                "{\"success\":false,\"error\":\"Unknown action: dance\"}");
    expect_node(port, "",
                "{\"success\":false,\"error\":\"question: the text ends too early (byte "
                "0)\"}");
    web_stop(&web);
}

static void a_node_publishes_its_own_address_for_a_wildcard(void **state)
{
    static char addresses[2][NODE_HOST_BYTES] = {"10.0.0.1", "10.0.0.2"};
    static const struct node_hosts hosts = {.hosts = addresses, .count = 2};
    const struct nodes_options nodes = {
        .host = "0.0.0.0", .node_count = 2, .node_rank = 1, .tp_size = 4, .hosts = &hosts};
    struct web_options options = second_node;
    char answer[1024];
    struct web web;

    (void)state;
    options.nodes = &nodes;
    options.server.host = "0.0.0.0";
    web_start(&web, &options);
    ask_node(nodes_info_port(web.nodes), "{\"action\":\"get_transfer_engine_info\",\"rank\":2}",
             answer, sizeof answer);
    assert_non_null(strstr(answer, "[\"10.0.0.2:"));
    web_stop(&web);
}

static void hostile_peers_of_the_info_service_are_harmless(void **state)
{
    static const char many[8192];
    char answer[256];
    struct web web;

    (void)state;
    web_start(&web, &second_node);
    uint16_t port = nodes_info_port(web.nodes);
    /* No ZeroMQ at all. */
    rf_autoclose int garbage = web_connect(port);
    assert_true(web_send(garbage,
                         "GET / HTTP/1.1\r\n\r\n and so on and on, for more than a "
                         "greeting has, to be sure of it\r\n",
                         80));
    /* A frame that is too large: the connection ends. */
    void *large = open_zmq(ZMQ_DEALER, port);
    assert_int_equal(zmq_send(large, "", 0, ZMQ_SNDMORE), 0);
    assert_int_equal(zmq_send(large, many, sizeof many, 0), sizeof many);
    /* Two frames. */
    void *two = open_zmq(ZMQ_REQ, port);
    assert_int_equal(zmq_send(two, "{}", 2, ZMQ_SNDMORE), 2);
    assert_int_equal(zmq_send(two, "{}", 2, 0), 2);
    int bytes = zmq_recv(two, answer, sizeof answer - 1, 0);
    assert_in_range(bytes, 1, sizeof answer - 1);
    answer[bytes] = '\0';
    assert_string_equal(answer, "{\"success\":false,\"error\":\"a question is one frame\"}");
    /* Thousands of questions whose answers nobody takes. */
    void *flood = open_zmq(ZMQ_DEALER, port);
    for (unsigned i = 0; i < 3000; i++) {
        zmq_send(flood, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
        zmq_send(flood, "{}", 2, ZMQ_DONTWAIT);
    }
    expect_node_is_well(&web);
    zmq_close(flood);
    zmq_close(two);
    zmq_close(large);
    web_stop(&web);
}

/* Greets as ZeroMQ's REQ does, by hand: libzmq would keep a message until it is whole. */
static int connect_raw_zmq(uint16_t port)
{
    static const char greeting[64] = "\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL";
    static const char ready[] = "\x04\x19\x05READY\x0bSocket-Type\0\0\0\3REQ";
    int fd = web_connect(port);

    assert_true(web_send(fd, greeting, sizeof greeting));
    assert_true(web_send(fd, ready, sizeof ready - 1));
    return fd;
}

static void a_message_without_end_ends_its_connection_alone(void **state)
{
    enum { FRAME_BYTES = 255, FRAMES = 1024, MAX_BYTES = 512 << 20 };
    static char frames[FRAMES][2 + FRAME_BYTES];
    struct web web;

    (void)state;
    web_start(&web, &second_node);
    void *other = open_zmq(ZMQ_REQ, nodes_info_port(web.nodes));
    rf_autoclose int fd = connect_raw_zmq(nodes_info_port(web.nodes));
    for (unsigned i = 0; i < FRAMES; i++)
        memcpy(frames[i], "\x01\xff", 2); /* more come, so long */
    uint64_t sent = 0;
    while (sent < MAX_BYTES && web_send(fd, frames, sizeof frames))
        sent += sizeof frames;
    assert_true(sent < MAX_BYTES);
    assert_int_equal(zmq_send(other, "{}", 2, 0), 2);
    char answer[256];
    assert_in_range(zmq_recv(other, answer, sizeof answer, 0), 1, sizeof answer);
    zmq_close(other);
    expect_node_is_well(&web);
    web_stop(&web);
}

static void many_questions_over_one_connection_are_answered(void **state)
{
    enum { QUESTIONS = 3000 };
    static const char question[] = "{\"action\":\"get_transfer_engine_info\",\"rank\":0}";
    char answer[256];
    struct web web;

    (void)state;
    web_start(&web, &second_node);
    void *socket = open_zmq(ZMQ_REQ, nodes_info_port(web.nodes));
    for (unsigned i = 0; i < QUESTIONS; i++) {
        assert_int_equal(zmq_send(socket, question, sizeof question - 1, 0), sizeof question - 1);
        assert_in_range(zmq_recv(socket, answer, sizeof answer, 0), 1, sizeof answer);
    }
    zmq_close(socket);
    web_stop(&web);
}

static void too_many_connections_to_the_info_service_are_ended(void **state)
{
    enum { CONNECTIONS = 120 };
    struct rlimit before;
    int fds[CONNECTIONS];
    struct web web;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    const struct rlimit fewer = {.rlim_cur = 800, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &fewer), 0); /* an eighth of it is allowed */
    web_start(&web, &second_node);
    for (unsigned i = 0; i < CONNECTIONS; i++)
        fds[i] = web_connect(nodes_info_port(web.nodes));
    assert_true(web_wait_closed(fds[0], WEB_TIMEOUT_MS));
    for (unsigned i = 0; i < CONNECTIONS; i++)
        close(fds[i]);
    expect_node_is_well(&web);
    web_stop(&web);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
}

/* ---- the first node asks ---- */

/* Ranks 0 and 1 of four; node 1 answers at this port. */
static void start_first(struct web *web, uint16_t info_port, uint64_t timeout_ms)
{
    const struct nodes_options nodes = {.node_count = 2,
                                        .tp_size = 4,
                                        .hosts = &two_hosts,
                                        .info_port = info_port,
                                        .timeout_ms = timeout_ms};
    const struct web_options options = {.nodes = &nodes, .tp_size = 4};

    web_start(web, &options);
}

static void the_first_node_answers_for_the_others(void **state)
{
    char wanted[512];
    char tensors[256];
    struct web node;
    struct web first;

    (void)state;
    web_start(&node, &second_node);
    start_first(&first, nodes_info_port(node.nodes), 0);
    snprintf(wanted, sizeof wanted,
             "{\"rank\":3,\"remote_instance_transfer_engine_info\":[\"%s\",%s]}", te_address(&node),
             tensors_of_rank1(&node, tensors));
    expect(first.port, "/remote_instance_transfer_engine_info?rank=3", 200, wanted);
    expect(first.port, "/get_remote_instance_transfer_engine_info?rank=3", 200, wanted);
    expect(nodes_bootstrap_port(first.nodes), "/get_transfer_engine_info?rank=3", 200, wanted);
    expect_words(first.port, "/remote_instance_transfer_engine_info?rank=2", 200, "\"sub/");
    expect_words(first.port, "/remote_instance_transfer_engine_info?rank=1", 200,
                 te_address(&first));
    expect(first.port, "/remote_instance_transfer_engine_info?rank=4", 400,
           "{\"error\":{\"message\":\"Failed to get transfer engine info for rank 4\"}}");
    web_stop(&first);
    web_stop(&node);
}

/* A fake node at a port of its own that takes questions and answers each with the next text; NULL:
 * with two frames; "-": not at all. */
struct fake_node {
    void *socket;
    uint16_t port;
};

static void fake_open(struct fake_node *fake)
{
    const int limit_ms = WEB_TIMEOUT_MS;
    const int zero = 0;
    char endpoint[128];
    size_t bytes = sizeof endpoint;

    fake->socket = zmq_socket(context, ZMQ_REP);
    assert_non_null(fake->socket);
    assert_int_equal(zmq_setsockopt(fake->socket, ZMQ_LINGER, &zero, sizeof zero), 0);
    assert_int_equal(zmq_setsockopt(fake->socket, ZMQ_RCVTIMEO, &limit_ms, sizeof limit_ms), 0);
    assert_int_equal(zmq_bind(fake->socket, "tcp://127.0.0.1:*"), 0);
    assert_int_equal(zmq_getsockopt(fake->socket, ZMQ_LAST_ENDPOINT, endpoint, &bytes), 0);
    fake->port = (uint16_t)strtoul(strrchr(endpoint, ':') + 1, NULL, 10);
}

/* Asks the first node about a rank; the fake gives this answer. */
static void expect_with_answer(const struct fake_node *fake, uint16_t port, unsigned rank,
                               const char *answer, int status, const char *words)
{
    struct web_answer got WEB_ANSWER_AUTO;
    char question[128];
    char wanted[128];
    char text[256];

    int fd = web_connect(port);
    snprintf(text, sizeof text, "GET %s?rank=%u HTTP/1.1\r\nHost: h\r\n\r\n", info_path, rank);
    assert_true(web_send(fd, text, strlen(text)));
    snprintf(wanted, sizeof wanted, "{\"action\":\"get_transfer_engine_info\",\"rank\":%u}", rank);
    int bytes = zmq_recv(fake->socket, question, sizeof question - 1, 0);
    assert_int_equal(bytes, strlen(wanted));
    assert_memory_equal(question, wanted, strlen(wanted));
    if (answer == NULL) {
        assert_int_equal(zmq_send(fake->socket, "{}", 2, ZMQ_SNDMORE), 2);
        answer = "{}";
    }
    assert_int_equal(zmq_send(fake->socket, answer, strlen(answer), 0), strlen(answer));
    web_receive(fd, false, &got);
    if (got.status != status || strstr((const char *)got.body.data, words) == NULL)
        fail_msg("%s: %d %s\ninstead of %d and \"%s\"", answer, got.status,
                 (const char *)got.body.data, status, words);
    close(fd);
}

static void a_node_that_answers_garbage_is_named(void **state)
{
    static const char *const answers[] = {
        "garbage",
        "{\"success\":true}",
        "{\"success\":true,\"rank\":2,\"remote_instance_transfer_engine_info\":[\"h:1\",{}]}",
        "",
        NULL,
    };
    struct fake_node fake;
    struct web first;
    char words[128];

    (void)state;
    fake_open(&fake);
    for (unsigned i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        start_first(&first, fake.port, 0);
        snprintf(words, sizeof words,
                 "Failed to get transfer engine info for rank 3: node 1 (127.0.0.1:%u): its answer",
                 fake.port);
        expect_with_answer(&fake, first.port, 3, answers[i], 400, words);
        /* And nobody is harmed. */
        expect_with_answer(&fake, first.port, 2,
                           "{\"success\":true,\"rank\":2,\"remote_instance_transfer_engine_info\":"
                           "[\"h:1\",{\"x\":[1,2,3]}]}",
                           200, "[\"h:1\",{\"x\":[1,2,3]}]");
        web_stop(&first);
    }
    zmq_close(fake.socket);
}

static void a_node_that_refuses_is_quoted(void **state)
{
    struct fake_node fake;
    struct web first;

    (void)state;
    fake_open(&fake);
    start_first(&first, fake.port, 0);
    expect_with_answer(&fake, first.port, 3,
                       "{\"success\":false,\"error\":\"Rank 3 not available on node 1\"}", 400,
                       "it refused: Rank 3 not available on node 1\"}}");
    web_stop(&first);
    zmq_close(fake.socket);
}

static void a_node_that_is_down_or_silent_is_named_within_the_deadline(void **state)
{
    struct fake_node fake;
    struct web first;
    char words[160];

    (void)state;
    fake_open(&fake); /* nobody receives: it is silent */
    start_first(&first, fake.port, 200);
    snprintf(words, sizeof words, "info for rank 3: node 1 (127.0.0.1:%u): no answer within 200 ms",
             fake.port);
    expect_words(first.port, "/remote_instance_transfer_engine_info?rank=3", 400, words);
    zmq_close(fake.socket); /* and now it is down */
    snprintf(words, sizeof words, "info for rank 2: node 1 (127.0.0.1:%u): no answer within 200 ms",
             fake.port);
    expect_words(first.port, "/remote_instance_transfer_engine_info?rank=2", 400, words);
    expect_words(first.port, "/remote_instance_transfer_engine_info?rank=1", 200, "\"rank\":1");
    web_stop(&first);
}

static void many_questions_wait_for_one_silent_node_at_once(void **state)
{
    enum { CLIENTS = 40 };
    int fds[CLIENTS];
    struct fake_node fake;
    struct web first;

    (void)state;
    fake_open(&fake);
    start_first(&first, fake.port, 500);
    for (unsigned i = 0; i < CLIENTS; i++) {
        char text[128];
        fds[i] = web_connect(first.port);
        snprintf(text, sizeof text, "GET %s?rank=%u HTTP/1.1\r\nHost: h\r\n\r\n", info_path,
                 2 + i % 2);
        assert_true(web_send(fds[i], text, strlen(text)));
    }
    /* No thread is held by them. */
    expect_words(first.port, "/healthz", 200, "ready");
    for (unsigned i = 0; i < CLIENTS; i++) {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_receive(fds[i], false, &answer);
        assert_int_equal(answer.status, 400);
        close(fds[i]);
    }
    web_stop(&first);
    zmq_close(fake.socket);
}

static void stopping_does_not_wait_for_a_silent_node(void **state)
{
    struct fake_node fake;
    struct web first;

    (void)state;
    fake_open(&fake);
    start_first(&first, fake.port, 60 * 60 * 1000);
    rf_autoclose int fd = web_connect(first.port);
    assert_true(web_send(fd,
                         "GET /remote_instance_transfer_engine_info?rank=3 HTTP/1.1\r\n"
                         "Host: h\r\n\r\n",
                         71));
    char question[128];
    assert_true(zmq_recv(fake.socket, question, sizeof question, 0) > 0);
    web_stop(&first);
    zmq_close(fake.socket);
}

/* ---- registering ---- */

static void a_node_registers_its_ranks_at_the_first(void **state)
{
    struct nodes_options nodes = second;
    struct web_options options = second_node;
    char wanted[512];
    char tensors[256];
    struct web first;
    struct web node;

    (void)state;
    start_first(&first, 0, 0); /* asks nobody */
    nodes.hosts = NULL;
    nodes.host = "0.0.0.0";
    nodes.bootstrap_host = "localhost";
    nodes.bootstrap_port = nodes_bootstrap_port(first.nodes);
    options.nodes = &nodes;
    options.server.host = "0.0.0.0";
    expect_words(first.port, "/remote_instance_transfer_engine_info?rank=3", 400,
                 "node 1 (127.0.0.1): nobody has registered it");
    web_start(&node, &options); /* returns when it has registered */
    snprintf(wanted, sizeof wanted,
             "{\"rank\":3,\"remote_instance_transfer_engine_info\":[\"127.0.0.1:%s\",%s]}",
             te_address(&node) + strlen("0.0.0.0:"), tensors_of_rank1(&node, tensors));
    expect(first.port, "/remote_instance_transfer_engine_info?rank=3", 200, wanted);
    expect_words(first.port, "/remote_instance_transfer_engine_info?rank=2", 200, "\"rank\":2");
    web_stop(&node);
    web_stop(&first);
}

static void a_first_node_that_is_not_there_holds_nobody_up(void **state)
{
    const struct nodes_options nodes = {.node_count = 2,
                                        .node_rank = 1,
                                        .tp_size = 4,
                                        .bootstrap_host = "127.0.0.1",
                                        .bootstrap_port = 1,
                                        .timeout_ms = 200};
    struct web_options options = second_node;
    struct web node;

    (void)state;
    options.nodes = &nodes;
    web_start(&node, &options);
    expect(node.port, "/healthz", 200, "{\"status\":\"ready\"}\n");
    expect_words(node.port, "/remote_instance_transfer_engine_info?rank=3", 200, "\"rank\":3");
    web_stop(&node);
}

static void the_first_waits_for_the_ranks_of_all_others(void **state)
{
    const struct nodes_options nodes = {.node_count = 3, .tp_size = 12};
    const struct web_options options = {.nodes = &nodes, .tp_size = 12};
    struct rf_error err = {.code = RF_OK};
    struct web first;

    (void)state;
    web_start(&first, &options);
    uint16_t port = nodes_bootstrap_port(first.nodes);
    put(port, REGISTRATION("5", "h:1", "{}"), 200, "OK");
    assert_int_equal(nodes_await(first.nodes, 0, &err), RF_E_TIMEOUT);
    assert_string_equal(err.text, "node 1: rank 4, 6-7; node 2: rank 8-11");
    put(port, REGISTRATION("4", "h:1", "{}"), 200, "OK");
    put(port, REGISTRATION("6", "h:1", "{}"), 200, "OK");
    put(port, REGISTRATION("7", "h:1", "{}"), 200, "OK");
    for (unsigned rank = 8; rank < 11; rank++) {
        char text[256];
        snprintf(text, sizeof text, REGISTRATION("%u", "h:2", "{}"), rank);
        put(port, text, 200, "OK");
    }
    assert_int_equal(nodes_await(first.nodes, 20, &err), RF_E_TIMEOUT);
    assert_string_equal(err.text, "node 2: rank 11");
    put(port, REGISTRATION("11", "h:2", "{}"), 200, "OK");
    assert_int_equal(nodes_await(first.nodes, 0, &err), RF_OK);
    web_stop(&first);
}

static void a_list_of_many_missing_nodes_is_short(void **state)
{
    const struct nodes_options nodes = {.node_count = 1024, .tp_size = 4096};
    const struct web_options options = {.nodes = &nodes, .tp_size = 4096};
    struct rf_error err = {.code = RF_OK};
    struct web first;

    (void)state;
    web_start(&first, &options);
    assert_int_equal(nodes_await(first.nodes, 1, &err), RF_E_TIMEOUT);
    assert_non_null(strstr(err.text, "node 1: rank 4-7; node 2: rank 8-11; "));
    assert_non_null(strstr(err.text, " other nodes"));
    web_stop(&first);
}

static void a_seed_that_fails_is_not_held_up_by_missing_nodes(void **state)
{
    const struct nodes_options nodes = {.node_count = 2, .tp_size = 4};
    const struct web_options options = {.nodes = &nodes, .tp_size = 4};
    struct rf_error err = {.code = RF_OK};
    struct web first;

    (void)state;
    web_start(&first, &options);
    seed_fail(first.seed, RF_E_CHANGED, "a file changed");
    assert_int_equal(nodes_await(first.nodes, WEB_TIMEOUT_MS, &err), RF_E_CHANGED);
    assert_non_null(strstr(err.text, "a file changed"));
    web_stop(&first);
}

static void a_refused_registration_is_no_failure_of_the_node(void **state)
{
    struct nodes_options nodes = second;
    struct web_options options = second_node;
    struct web first;
    struct web node;

    (void)state;
    start_first(&first, 0, 0);
    nodes.hosts = NULL;
    nodes.node_rank = 1;
    nodes.bootstrap_host = "127.0.0.1";
    nodes.bootstrap_port = nodes_bootstrap_port(first.nodes);
    options.nodes = &nodes;
    options.first_tp = 0; /* those of the first node */
    web_start(&node, &options);
    expect(node.port, "/healthz", 200, "{\"status\":\"ready\"}\n");
    expect_words(first.port, "/remote_instance_transfer_engine_info?rank=0", 200,
                 te_address(&first));
    web_stop(&node);
    web_stop(&first);
}

static void nonsense_about_nodes_is_refused(void **state)
{
    const struct nodes_options few = {.node_count = 2, .node_rank = 2, .tp_size = 4};
    const struct nodes_options odd = {.node_count = 3, .tp_size = 4};
    const struct nodes_options none = {.node_count = 2};
    const struct nodes_options hosts = {.node_count = 4, .tp_size = 4, .hosts = &two_hosts};
    struct nodes *nodes = NULL;
    struct rf_error err;

    (void)state;
    assert_int_equal(nodes_create(&few, NULL, &nodes, &err), RF_E_INVAL);
    assert_int_equal(nodes_create(&odd, NULL, &nodes, &err), RF_E_INVAL);
    assert_int_equal(nodes_create(&none, NULL, &nodes, &err), RF_E_INVAL);
    assert_int_equal(nodes_create(&hosts, NULL, &nodes, &err), RF_E_INVAL);
    assert_null(nodes);
}

static void a_taken_port_is_named_with_its_argument(void **state)
{
    const struct web_options options = {.nodes = &alone};
    struct nodes_options again = alone;
    struct nodes *nodes = NULL;
    struct rf_error err;
    struct web web;

    (void)state;
    web_start(&web, &options);
    again.bootstrap_port = nodes_bootstrap_port(web.nodes);
    assert_int_equal(nodes_create(&again, web.seed, &nodes, &err), RF_OK);
    assert_int_equal(nodes_start(nodes, &err), RF_E_SYS);
    assert_non_null(strstr(err.text, "--engine-info-bootstrap-port"));
    nodes_destroy(nodes);
    web_stop(&web);
    web_start(&web, &second_node);
    again = second;
    again.info_port = nodes_info_port(web.nodes);
    assert_int_equal(nodes_create(&again, web.seed, &nodes, &err), RF_OK);
    assert_int_equal(nodes_start(nodes, &err), RF_E_SYS);
    assert_non_null(strstr(err.text, "--inter-node-transfer-engine-info-port"));
    nodes_destroy(nodes);
    web_stop(&web);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_info_paths_answer_as_sglang_does),
        cmocka_unit_test(wrong_ranks_are_answered_as_sglang_does),
        cmocka_unit_test(nothing_is_said_before_it_is_complete),
        cmocka_unit_test(ready_is_said_only_after_publication),
        cmocka_unit_test(without_te_it_says_how_to_start_it),
        cmocka_unit_test(a_wildcard_becomes_the_address_that_was_reached),
        cmocka_unit_test(server_info_says_what_is_true),
        cmocka_unit_test(what_is_registered_can_be_asked_for),
        cmocka_unit_test(our_own_ranks_cannot_be_redirected),
        cmocka_unit_test(wrong_requests_are_answered_in_its_words),
        cmocka_unit_test(large_registrations_are_taken_there_and_nowhere_else),
        cmocka_unit_test(a_body_that_is_too_large_is_refused_before_it_comes),
        cmocka_unit_test(a_node_answers_questions_in_the_documents_words),
        cmocka_unit_test(a_node_publishes_its_own_address_for_a_wildcard),
        cmocka_unit_test(hostile_peers_of_the_info_service_are_harmless),
        cmocka_unit_test(a_message_without_end_ends_its_connection_alone),
        cmocka_unit_test(many_questions_over_one_connection_are_answered),
        cmocka_unit_test(too_many_connections_to_the_info_service_are_ended),
        cmocka_unit_test(the_first_node_answers_for_the_others),
        cmocka_unit_test(a_node_that_answers_garbage_is_named),
        cmocka_unit_test(a_node_that_refuses_is_quoted),
        cmocka_unit_test(a_node_that_is_down_or_silent_is_named_within_the_deadline),
        cmocka_unit_test(many_questions_wait_for_one_silent_node_at_once),
        cmocka_unit_test(stopping_does_not_wait_for_a_silent_node),
        cmocka_unit_test(a_node_registers_its_ranks_at_the_first),
        cmocka_unit_test(a_first_node_that_is_not_there_holds_nobody_up),
        cmocka_unit_test(the_first_waits_for_the_ranks_of_all_others),
        cmocka_unit_test(a_list_of_many_missing_nodes_is_short),
        cmocka_unit_test(a_seed_that_fails_is_not_held_up_by_missing_nodes),
        cmocka_unit_test(a_refused_registration_is_no_failure_of_the_node),
        cmocka_unit_test(nonsense_about_nodes_is_refused),
        cmocka_unit_test(a_taken_port_is_named_with_its_argument),
    };

    return cmocka_run_group_tests(tests, start_zmq, stop_zmq);
}
