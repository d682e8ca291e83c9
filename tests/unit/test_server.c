/* The HTTP side of a seed, seen from a plain socket. */
/* ctest: timeout=300 serial */
#include "base/cleanup.h"
#include "base/clock.h"
#include "format/safetensors.h"
#include "util/folder.h"
#include "util/web.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct web web;

static int start_web(void **state)
{
    const struct web_options options = {.max_readers = 2};

    (void)state;
    web_start(&web, &options);
    return 0;
}

static int stop_web(void **state)
{
    (void)state;
    web_stop(&web);
    return 0;
}

/* ---- helpers ---- */

static json_t *parse(const struct web_answer *answer)
{
    json_error_t why;
    json_t *value = json_loadb((const char *)answer->body.data, answer->body.bytes,
                               JSON_REJECT_DUPLICATES, &why);

    if (value == NULL)
        fail_msg("not JSON: %s: %s", why.text, (const char *)answer->body.data);
    assert_int_equal(answer->body.data[answer->body.bytes - 1], '\n');
    return value;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (text == NULL)
        fail_msg("\"%s\" is missing or no string", key);
    return text;
}

static json_int_t number_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_integer(value))
        fail_msg("\"%s\" is missing or no number", key);
    return json_integer_value(value);
}

/* The answer is an error with this status and code, whose line holds these words. */
static void assert_error(const struct web_answer *answer, int status, const char *code,
                         const char *words)
{
    if (answer->status != status)
        fail_msg("status %d instead of %d: %s", answer->status, status,
                 answer->body.data != NULL ? (const char *)answer->body.data : "");
    assert_true(answer->whole);
    json_t *value = parse(answer);
    const json_t *error = json_object_get(value, "error");
    assert_string_equal(text_of(error, "code"), code);
    if (strstr(text_of(error, "message"), words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", text_of(error, "message"), words);
    json_decref(value);
}

static void expect_error(const char *head, int status, const char *code, const char *words)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    web_ask(web.port, head, NULL, 0, &answer);
    assert_error(&answer, status, code, words);
}

/* GET path answers 200 with exactly these bytes. */
static void expect_bytes(const char *path, const void *data, size_t bytes)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    web_get(web.port, path, &answer);
    assert_int_equal(answer.status, 200);
    assert_true(answer.whole);
    assert_int_equal(answer.body.bytes, bytes);
    assert_memory_equal(answer.body.data, data, bytes);
}

/* A range of path: 206, its place, and these bytes. */
static void expect_range(const char *path, const char *range, const char *content_range,
                         const void *data, size_t bytes)
{
    struct web_answer answer WEB_ANSWER_AUTO;
    char head[512];

    snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nRange: %s\r\n", path, range);
    web_ask(web.port, head, NULL, 0, &answer);
    assert_int_equal(answer.status, 206);
    assert_string_equal(web_header(&answer, "Content-Range"), content_range);
    assert_true(answer.whole);
    assert_int_equal(answer.body.bytes, bytes);
    assert_memory_equal(answer.body.data, data, bytes);
}

static void assert_alive(void)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    web_get(web.port, "/healthz", &answer);
    assert_int_equal(answer.status, 200);
    assert_string_equal((const char *)answer.body.data, "{\"status\":\"ready\"}\n");
}

/* ---- state ---- */

static void health_says_ready(void **state)
{
    (void)state;
    assert_alive();
}

static void health_follows_the_state(void **state)
{
    const struct web_options options = {.unpublished = true};

    (void)state;
    web_start(&web, &options);
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/healthz", &answer);
        assert_int_equal(answer.status, 503);
        assert_string_equal(web_header(&answer, "Retry-After"), "1");
        json_t *value = parse(&answer);
        assert_string_equal(text_of(value, "status"), "loading");
        assert_true(text_of(value, "reason")[0] != '\0');
        json_decref(value);
    }
    expect_error("GET /v1/manifest HTTP/1.1\r\n", 503, "RF_E_UNREACHABLE", "loading");
    expect_error("GET /v1/digests?rank=0 HTTP/1.1\r\n", 503, "RF_E_UNREACHABLE", "loading");
    expect_error("GET /v1/files/config.json HTTP/1.1\r\n", 503, "RF_E_UNREACHABLE", "loading");
    expect_error("POST /v1/lease HTTP/1.1\r\n", 503, "RF_E_UNREACHABLE", "loading");
    web_publish(&web);
    assert_alive();
    seed_drain(web.seed, 0);
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/healthz", &answer);
        assert_int_equal(answer.status, 503);
        assert_non_null(strstr((const char *)answer.body.data, "\"draining\""));
    }
    expect_error("GET /v1/tensors/big?rank=0 HTTP/1.1\r\n", 503, "RF_E_UNREACHABLE", "draining");
    expect_error("POST /v1/lease HTTP/1.1\r\n", 503, "RF_E_UNREACHABLE", "draining");
    {
        /* Forks under way still verify what they have, and fetch the files. */
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/digests?rank=0", &answer);
        assert_int_equal(answer.status, 200);
        expect_bytes("/v1/files/empty.txt", "", 0);
    }
    seed_fail(web.seed, RF_E_CHANGED, "a file is not what it was");
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/healthz", &answer);
        assert_int_equal(answer.status, 503);
        json_t *value = parse(&answer);
        assert_string_equal(text_of(value, "status"), "failed");
        assert_string_equal(text_of(value, "reason"), "a file is not what it was");
        json_decref(value);
    }
    expect_error("GET /v1/manifest HTTP/1.1\r\n", 503, "RF_E_CHANGED", "not what it was");
    expect_error("GET /v1/files/config.json HTTP/1.1\r\n", 503, "RF_E_CHANGED", "not what it was");
    expect_error("POST /v1/lease HTTP/1.1\r\n", 503, "RF_E_CHANGED", "not what it was");
    web_stop(&web);
}

static void instance_says_all(void **state)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    (void)state;
    web_get(web.port, "/v1/instance", &answer);
    assert_int_equal(answer.status, 200);
    assert_string_equal(web_header(&answer, "Content-Type"), "application/json");
    json_t *value = parse(&answer);
    assert_string_equal(text_of(value, "instance_id"), seed_instance_id(web.seed));
    assert_string_equal(web_header(&answer, "X-Rfork-Instance"), seed_instance_id(web.seed));
    assert_string_equal(text_of(value, "version"), rf_version());
    assert_string_equal(text_of(value, "state"), "ready");
    assert_string_equal(text_of(value, "state_reason"), "");
    assert_string_equal(text_of(value, "model"), "tiny <b>&\"model\"");
    assert_string_equal(text_of(value, "architecture"), "TinyForCausalLM");
    assert_string_equal(text_of(value, "quantisation"), "none");
    assert_string_equal(text_of(value, "layout"), "checkpoint");
    assert_string_equal(text_of(value, "stage"), "checkpoint");
    assert_int_equal(strlen(text_of(value, "manifest_id")), 32);
    assert_int_equal(strncmp(text_of(value, "root_digest"), "xxh3-128:", 9), 0);
    assert_int_equal(number_of(value, "bytes"), web.stream_bytes[0] + web.stream_bytes[1]);
    assert_int_equal(number_of(value, "tensor_count"), 7);
    assert_int_equal(number_of(value, "rank_count"), 2);
    assert_int_equal(number_of(value, "digest_chunks_known"),
                     number_of(value, "digest_chunks_total"));
    const json_t *endpoints = json_object_get(value, "endpoints");
    assert_int_equal(json_array_size(endpoints), 1);
    assert_string_equal(text_of(json_array_get(endpoints, 0), "transport"), "null");
    json_decref(value);
}

static void loading_instance_has_no_root(void **state)
{
    const struct web_options options = {.unpublished = true};
    struct web_answer answer WEB_ANSWER_AUTO;

    (void)state;
    web_start(&web, &options);
    web_get(web.port, "/v1/instance", &answer);
    assert_int_equal(answer.status, 200);
    json_t *value = parse(&answer);
    assert_string_equal(text_of(value, "state"), "loading");
    assert_true(json_is_null(json_object_get(value, "root_digest")));
    assert_string_equal(text_of(value, "manifest_id"), "");
    json_decref(value);
    web_stop(&web);
}

/* Every line is a comment or "name{labels} value", and what is promised is there. */
static void metrics_follow_the_text_format(void **state)
{
    static const char *const wanted[] = {
        "\nrfork_build_info{version=\"",
        "\nrfork_state{state=\"ready\"} 1\n",
        "\nrfork_state{state=\"failed\"} 0\n",
        "\nrfork_model_bytes ",
        "\nrfork_leases_opened_total ",
        "\nrfork_denied_tokens_total ",
        "\nrfork_digest_chunks_known ",
        "\nrfork_sent_bytes_total{transport=\"null\"} 0\n",
        "\nrfork_http_requests_total{status=\"200\"}",
        "\nrfork_model_info{model=\"tiny <b>&\\\"model\\\"\"",
        "\nprocess_resident_memory_bytes ",
    };
    struct web_answer answer WEB_ANSWER_AUTO;

    (void)state;
    assert_alive();
    web_get(web.port, "/metrics", &answer);
    assert_int_equal(answer.status, 200);
    assert_string_equal(web_header(&answer, "Content-Type"),
                        "text/plain; version=0.0.4; charset=utf-8");
    for (unsigned i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        if (strstr((const char *)answer.body.data, wanted[i]) == NULL)
            fail_msg("no %s", wanted[i] + 1);
    }
    char *rest = NULL;
    for (char *line = strtok_r((char *)answer.body.data, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        if (line[0] == '#')
            continue;
        char *end = NULL;
        const char *number = strrchr(line, ' ');
        assert_non_null(number);
        strtod(number + 1, &end);
        if (end == number + 1 || *end != '\0')
            fail_msg("not a sample: %s", line);
    }
}

static void status_page_is_escaped(void **state)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    (void)state;
    web_get(web.port, "/", &answer);
    assert_int_equal(answer.status, 200);
    assert_string_equal(web_header(&answer, "Content-Type"), "text/html; charset=utf-8");
    assert_non_null(strstr((const char *)answer.body.data, "tiny &lt;b&gt;&amp;&quot;model&quot;"));
    assert_null(strstr((const char *)answer.body.data, "<b>"));
}

/* ---- manifest ---- */

static void manifest_is_binary_unless_json_is_asked_for(void **state)
{
    struct manifest *manifest = NULL;
    struct rf_error err;

    (void)state;
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/manifest", &answer);
        assert_int_equal(answer.status, 200);
        assert_string_equal(web_header(&answer, "Content-Type"), "application/vnd.rfork.manifest");
        assert_int_equal(manifest_decode(answer.body.data, answer.body.bytes, &manifest, &err),
                         RF_OK);
        assert_memory_equal(manifest->id, web.store->manifest->id, 16);
        manifest_unref(manifest);
    }
    static const char *const asks[] = {
        "GET /v1/manifest?format=json HTTP/1.1\r\n",
        "GET /v1/manifest HTTP/1.1\r\nAccept: text/html, application/json\r\n",
        "GET /v1/manifest?format=json&rank=1 HTTP/1.1\r\n",
    };
    for (unsigned i = 0; i < sizeof asks / sizeof asks[0]; i++) {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_ask(web.port, asks[i], NULL, 0, &answer);
        assert_int_equal(answer.status, 200);
        json_t *value = parse(&answer);
        assert_true(json_is_object(value));
        bool has_rank0 = strstr((const char *)answer.body.data, "\"big\"") != NULL;
        assert_int_equal(has_rank0, i != 2);
        json_decref(value);
    }
}

static void manifest_arguments_are_checked(void **state)
{
    (void)state;
    expect_error("GET /v1/manifest?format=xml HTTP/1.1\r\n", 400, "RF_E_INVAL", "format=xml");
    expect_error("GET /v1/manifest?rank=0 HTTP/1.1\r\n", 400, "RF_E_INVAL", "format=json");
    expect_error("GET /v1/manifest?format=json&rank=2 HTTP/1.1\r\n", 400, "RF_E_INVAL",
                 "rank 2: there are 2");
    expect_error("GET /v1/manifest?format=json&rank=-1 HTTP/1.1\r\n", 400, "RF_E_INVAL", "rank=-1");
    expect_error("GET /v1/manifest?format=json&rank= HTTP/1.1\r\n", 400, "RF_E_INVAL", "rank=");
    expect_error("GET /v1/manifest?format=json&rank=0x1 HTTP/1.1\r\n", 400, "RF_E_INVAL",
                 "rank=0x1");
    expect_error("GET /v1/manifest?format=json&rank=99999999999999999999999 HTTP/1.1\r\n", 400,
                 "RF_E_INVAL", "rank=9");
    expect_error("GET /v1/manifest?format=json&format=json HTTP/1.1\r\n", 400, "RF_E_INVAL",
                 "twice");
    expect_error("GET /v1/manifest?colour=red HTTP/1.1\r\n", 400, "RF_E_INVAL", "format rank");
}

/* ---- digests ---- */

static void digests_arrive_whole_and_in_part(void **state)
{
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 49);
    struct rf_error err;

    (void)state;
    assert_int_equal(digest_table_count(web.store->ranks[0].digests), 49);
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/digests?rank=0&from=40&wait_ms=10000", &answer);
        assert_int_equal(answer.status, 200);
        assert_int_equal(digest_table_merge(table, answer.body.data, answer.body.bytes, &err),
                         RF_OK);
        assert_int_equal(digest_table_known(table), 9);
    }
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/digests?rank=0", &answer);
        assert_int_equal(digest_table_merge(table, answer.body.data, answer.body.bytes, &err),
                         RF_OK);
        assert_int_equal(digest_table_known(table), 49);
    }
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/digests?rank=0&from=18446744073709551615&wait_ms=30000", &answer);
        assert_int_equal(answer.status, 200);
        assert_int_equal(digest_table_merge(table, answer.body.data, answer.body.bytes, &err),
                         RF_OK);
    }
    digest_table_destroy(table);
}

static void digest_arguments_are_checked(void **state)
{
    (void)state;
    expect_error("GET /v1/digests HTTP/1.1\r\n", 400, "RF_E_INVAL", "which of the 2 ranks");
    expect_error("GET /v1/digests?rank=7 HTTP/1.1\r\n", 400, "RF_E_INVAL", "rank 7");
    expect_error("GET /v1/digests?rank=0&wait_ms=30001 HTTP/1.1\r\n", 400, "RF_E_INVAL", "wait_ms");
    expect_error("GET /v1/digests?rank=0&from=x HTTP/1.1\r\n", 400, "RF_E_INVAL", "from=x");
    expect_error("GET /v1/digests?rank=0&%ff=1 HTTP/1.1\r\n", 400, "RF_E_INVAL", "UTF-8");
}

static void tensor_digests_are_made_on_demand(void **state)
{
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 5);
    struct web_answer answer WEB_ANSWER_AUTO;
    struct rf_error err;

    (void)state;
    web_get(web.port, "/v1/tensor-digests?rank=0&wait_ms=20000", &answer);
    assert_int_equal(answer.status, 200);
    assert_int_equal(digest_table_merge(table, answer.body.data, answer.body.bytes, &err), RF_OK);
    assert_int_equal(digest_table_known(table), 5);
    digest_table_destroy(table);
}

/* ---- leases ---- */

static void open_lease(const char *body, char token[65])
{
    struct web_answer answer WEB_ANSWER_AUTO;

    web_ask(web.port, "POST /v1/lease HTTP/1.1\r\n", body, strlen(body), &answer);
    assert_int_equal(answer.status, 201);
    json_t *value = parse(&answer);
    assert_int_equal(strlen(text_of(value, "token")), 64);
    snprintf(token, 65, "%s", text_of(value, "token"));
    assert_int_equal(number_of(value, "ttl_ms"), 20000);
    assert_int_equal(strlen(text_of(value, "manifest_id")), 32);
    assert_int_equal(json_array_size(json_object_get(value, "endpoints")), 1);
    const json_t *sources = json_object_get(value, "sources");
    assert_string_equal(text_of(json_array_get(sources, 0), "url"), server_url(web.server));
    json_decref(value);
}

static int lease_request(const char *method, const char *authorization)
{
    struct web_answer answer WEB_ANSWER_AUTO;
    char head[512];

    snprintf(head, sizeof head, "%s /v1/lease HTTP/1.1\r\nAuthorization: %s\r\n", method,
             authorization);
    web_ask(web.port, head, NULL, 0, &answer);
    if (answer.status == 401)
        assert_string_equal(web_header(&answer, "WWW-Authenticate"), "Bearer");
    return answer.status;
}

static void leases_open_renew_and_close(void **state)
{
    char token[65];
    char bearer[96];

    (void)state;
    open_lease("{\"client\":\"test\"}", token);
    snprintf(bearer, sizeof bearer, "Bearer %s", token);
    assert_int_equal(lease_request("PUT", bearer), 204);
    assert_int_equal(lease_request("DELETE", bearer), 204);
    assert_int_equal(lease_request("DELETE", bearer), 403);
    assert_int_equal(lease_request("PUT", bearer), 403);
}

static void wrong_tokens_are_refused(void **state)
{
    char zeros[96] = "Bearer ";

    (void)state;
    memset(zeros + 7, '0', 64);
    assert_int_equal(lease_request("PUT", zeros), 403);
    zeros[70] = '\0';
    assert_int_equal(lease_request("PUT", zeros), 401);
    assert_int_equal(lease_request("PUT", "Basic dXNlcjpwYXNz"), 401);
    assert_int_equal(lease_request("DELETE", "Bearer zz"), 401);
    expect_error("PUT /v1/lease HTTP/1.1\r\n", 401, "RF_E_DENIED", "no token");
}

static void too_many_readers_are_told_to_wait(void **state)
{
    char tokens[2][65];
    char bearer[96];

    (void)state;
    open_lease("", tokens[0]);
    open_lease("{}", tokens[1]);
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_ask(web.port, "POST /v1/lease HTTP/1.1\r\n", "", 0, &answer);
        assert_error(&answer, 429, "RF_E_NOMEM", "2 readers");
        assert_string_equal(web_header(&answer, "Retry-After"), "1");
    }
    for (unsigned i = 0; i < 2; i++) {
        snprintf(bearer, sizeof bearer, "Bearer %.64s", tokens[i]);
        assert_int_equal(lease_request("DELETE", bearer), 204);
    }
}

static void expect_lease_error(const char *body, int status, const char *code, const char *words)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    web_ask(web.port, "POST /v1/lease HTTP/1.1\r\n", body, strlen(body), &answer);
    assert_error(&answer, status, code, words);
}

static void lease_bodies_are_checked(void **state)
{
    (void)state;
    expect_lease_error("{", 400, "RF_E_INVAL", "not JSON");
    expect_lease_error("[]", 400, "RF_E_INVAL", "not an object");
    expect_lease_error("{\"client\":1}", 400, "RF_E_INVAL", "not a string");
    expect_lease_error("{\"client\":\"a\\u000ab\"}", 400, "RF_E_INVAL", "control characters");
    expect_lease_error("{\"client\":\"a\",\"client\":\"b\"}", 400, "RF_E_INVAL", "duplicate");
    expect_lease_error("{\"manifest_id\":\"00112233\"}", 409, "RF_E_MISMATCH", "not 00112233");
    expect_lease_error("\xff\xfe", 400, "RF_E_INVAL", "not JSON");
}

static void large_bodies_are_refused(void **state)
{
    static char body[200000];

    (void)state;
    memset(body, ' ', sizeof body);
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_ask(web.port, "POST /v1/lease HTTP/1.1\r\n", body, sizeof body, &answer);
        assert_error(&answer, 413, "RF_E_INVAL", "65536");
    }
    /* A body that is announced but never sent is refused without being waited for. */
    struct web_answer answer WEB_ANSWER_AUTO;
    int fd = web_connect(web.port);
    const char *head = "POST /v1/lease HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n";
    assert_true(web_send(fd, head, strlen(head)));
    web_receive(fd, false, &answer);
    assert_error(&answer, 413, "RF_E_INVAL", "65536");
    assert_true(web_wait_closed(fd, WEB_TIMEOUT_MS));
    close(fd);
}

/* Sends the same chunk so many times, and returns the answer. */
static void post_chunked(const char *chunk, unsigned count, struct web_answer *ret_answer)
{
    const char *head = "POST /v1/lease HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    int fd = web_connect(web.port);

    assert_true(web_send(fd, head, strlen(head)));
    for (unsigned i = 0; i < count; i++)
        assert_true(web_send(fd, chunk, strlen(chunk)));
    assert_true(web_send(fd, "0\r\n\r\n", 5));
    web_receive(fd, false, ret_answer);
    close(fd);
}

static void chunked_bodies_are_read(void **state)
{
    char chunk[1100];
    char bearer[96];

    (void)state;
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        post_chunked("2\r\n{}\r\n", 1, &answer);
        assert_int_equal(answer.status, 201);
        json_t *value = parse(&answer);
        snprintf(bearer, sizeof bearer, "Bearer %.64s", text_of(value, "token"));
        json_decref(value);
        assert_int_equal(lease_request("DELETE", bearer), 204);
    }
    struct web_answer answer WEB_ANSWER_AUTO;
    snprintf(chunk, sizeof chunk, "400\r\n%1024s\r\n", "");
    post_chunked(chunk, 100, &answer);
    assert_error(&answer, 413, "RF_E_INVAL", "65536");
}

/* ---- files ---- */

static void files_are_listed(void **state)
{
    struct web_answer answer WEB_ANSWER_AUTO;

    (void)state;
    web_get(web.port, "/v1/files", &answer);
    assert_int_equal(answer.status, 200);
    json_t *value = parse(&answer);
    const json_t *files = json_object_get(value, "files");
    assert_int_equal(json_array_size(files), 4);
    assert_string_equal(text_of(json_array_get(files, 0), "name"), "model.safetensors");
    assert_string_equal(text_of(json_array_get(files, 0), "kind"), "weights");
    const json_t *config = json_array_get(files, 1);
    assert_string_equal(text_of(config, "name"), "config.json");
    assert_int_equal(number_of(config, "bytes"), 27);
    assert_int_equal(strncmp(text_of(config, "digest"), "xxh3-128:", 9), 0);
    json_decref(value);
}

static void side_files_are_served(void **state)
{
    (void)state;
    expect_bytes("/v1/files/config.json", "{\"architectures\":[\"Tiny\"]}\n", 27);
    expect_bytes("/v1/files/sub/vocab%20list.txt", "one\ntwo\n", 8);
    expect_bytes("/v1/files/sub%2Fvocab%20list.txt", "one\ntwo\n", 8);
    expect_bytes("/v1/files/empty.txt", "", 0);
}

static void only_names_of_the_manifest_exist(void **state)
{
    (void)state;
    expect_error("GET /v1/files/nope HTTP/1.1\r\n", 404, "RF_E_INVAL", "config.json");
    expect_error("GET /v1/files/ HTTP/1.1\r\n", 404, "RF_E_INVAL", "no file");
    expect_error("GET /v1/files/sub HTTP/1.1\r\n", 404, "RF_E_INVAL", "no file sub");
    expect_error("GET /v1/files/../../etc/passwd HTTP/1.1\r\n", 404, "RF_E_INVAL", "no file");
    expect_error("GET /v1/files/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n", 404, "RF_E_INVAL",
                 "no file");
    expect_error("GET /v1/files//etc/passwd HTTP/1.1\r\n", 404, "RF_E_INVAL", "no file");
    expect_error("GET /v1/files/config.json%00 HTTP/1.1\r\n", 400, "RF_E_INVAL", "NUL");
    expect_error("GET /v1/files/config.json%0 HTTP/1.1\r\n", 400, "RF_E_INVAL", "percent");
    expect_error("GET /v1/files/config.json%zz HTTP/1.1\r\n", 400, "RF_E_INVAL", "percent");
    expect_error("GET /v1/files/%c0%af HTTP/1.1\r\n", 400, "RF_E_INVAL", "UTF-8");
}

static void ranges_of_files(void **state)
{
    const char *config = "{\"architectures\":[\"Tiny\"]}\n";
    const char *path = "/v1/files/config.json";

    (void)state;
    expect_range(path, "bytes=0-0", "bytes 0-0/27", config, 1);
    expect_range(path, "bytes=2-5", "bytes 2-5/27", config + 2, 4);
    expect_range(path, "bytes=20-", "bytes 20-26/27", config + 20, 7);
    expect_range(path, "bytes=-3", "bytes 24-26/27", config + 24, 3);
    expect_range(path, "bytes=-1000", "bytes 0-26/27", config, 27);
    expect_range(path, "bytes=26-99999999999999999999999", "bytes 26-26/27", config + 26, 1);
    expect_range(path, "BYTES=0-0", "bytes 0-0/27", config, 1);
    /* Several ranges, other units, and what does not follow the grammar: the whole. */
    static const char *const ignored[] = {"bytes=0-1,3-4", "bytes=5-2", "bytes=a-b",
                                          "bytes=--1",     "bytes=1",   "lines=0-1",
                                          "bytes=0-1 3-4", "bytes="};
    for (unsigned i = 0; i < sizeof ignored / sizeof ignored[0]; i++) {
        struct web_answer answer WEB_ANSWER_AUTO;
        char head[256];
        snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nRange: %s\r\n", path, ignored[i]);
        web_ask(web.port, head, NULL, 0, &answer);
        assert_int_equal(answer.status, 200);
        assert_int_equal(answer.body.bytes, 27);
    }
    static const char *const beyond[] = {"bytes=27-", "bytes=27-30", "bytes=-0",
                                         "bytes=99999999999999999999-"};
    for (unsigned i = 0; i < sizeof beyond / sizeof beyond[0]; i++) {
        struct web_answer answer WEB_ANSWER_AUTO;
        char head[256];
        snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nRange: %s\r\n", path, beyond[i]);
        web_ask(web.port, head, NULL, 0, &answer);
        assert_error(&answer, 416, "RF_E_INVAL", "27 bytes");
        assert_string_equal(web_header(&answer, "Content-Range"), "bytes */27");
    }
    expect_error("GET /v1/files/empty.txt HTTP/1.1\r\nRange: bytes=0-\r\n", 416, "RF_E_INVAL",
                 "0 bytes");
}

static void tags_of_files_are_honoured(void **state)
{
    char tag[100];
    char head[512];

    (void)state;
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/files/config.json", &answer);
        snprintf(tag, sizeof tag, "%s", web_header(&answer, "ETag"));
        assert_int_equal(strncmp(tag, "\"xxh3-128:", 10), 0);
    }
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        snprintf(head, sizeof head, "GET /v1/files/config.json HTTP/1.1\r\nIf-None-Match: %s\r\n",
                 tag);
        web_ask(web.port, head, NULL, 0, &answer);
        assert_int_equal(answer.status, 304);
        assert_string_equal(web_header(&answer, "ETag"), tag);
    }
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        snprintf(head, sizeof head,
                 "GET /v1/files/config.json HTTP/1.1\r\nRange: bytes=0-1\r\nIf-Range: %s\r\n", tag);
        web_ask(web.port, head, NULL, 0, &answer);
        assert_int_equal(answer.status, 206);
    }
    struct web_answer answer WEB_ANSWER_AUTO;
    web_ask(web.port,
            "GET /v1/files/config.json HTTP/1.1\r\nRange: bytes=0-1\r\nIf-Range: \"old\"\r\n", NULL,
            0, &answer);
    assert_int_equal(answer.status, 200);
}

static void weight_files_are_put_together(void **state)
{
    struct buf want BUF_AUTO = {0};
    const struct store_file *header = &web.store->files[0];
    char content[96];

    (void)state;
    buf_append(&want, header->data, header->bytes);
    buf_append(&want, web.memory[0], web.stream_bytes[0]);
    expect_bytes("/v1/files/model.safetensors", want.data, want.bytes);
    uint64_t from = header->bytes - 3; /* across the border */
    snprintf(content, sizeof content, "bytes %" PRIu64 "-%" PRIu64 "/%zu", from, from + 9,
             want.bytes);
    char range[64];
    snprintf(range, sizeof range, "bytes=%" PRIu64 "-%" PRIu64, from, from + 9);
    expect_range("/v1/files/model.safetensors", range, content, want.data + from, 10);
}

/* ---- tensors and ranks ---- */

static void tensors_are_raw_bytes(void **state)
{
    (void)state;
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/tensors/a.weight?rank=0", &answer);
        assert_int_equal(answer.status, 200);
        assert_string_equal(web_header(&answer, "X-Rfork-Dtype"), "F32");
        assert_string_equal(web_header(&answer, "X-Rfork-Shape"), "[2,3]");
        assert_int_equal(answer.body.bytes, 24);
        assert_memory_equal(answer.body.data, web.memory[0], 24);
    }
    expect_bytes("/v1/tensors/alias.weight?rank=0", web.memory[0], 24);
    expect_bytes("/v1/tensors/a.weight?rank=1", web.memory[1], 24);
    expect_bytes("/v1/tensors/only.one?rank=1", web.memory[1] + 24, 7);
    expect_bytes("/v1/tensors/big?rank=0", web.memory[0] + 24, WEB_BIG_BYTES);
    expect_bytes("/v1/tensors/empty?rank=0", "", 0);
    expect_bytes("/v1/tensors/sub/%C3%BC%20n%26?rank=0", web.memory[0] + 24 + WEB_BIG_BYTES, 10);
    expect_range("/v1/tensors/big?rank=0", "bytes=1000000-2999999", "bytes 1000000-2999999/3145728",
                 web.memory[0] + 24 + 1000000, 2000000);
    expect_range("/v1/tensors/big?rank=0", "bytes=-1", "bytes 3145727-3145727/3145728",
                 web.memory[0] + 24 + WEB_BIG_BYTES - 1, 1);
}

static void unknown_tensors_name_their_neighbours(void **state)
{
    (void)state;
    expect_error("GET /v1/tensors/a.weigth?rank=0 HTTP/1.1\r\n", 404, "RF_E_INVAL", "a.weight");
    expect_error("GET /v1/tensors/zzz?rank=1 HTTP/1.1\r\n", 404, "RF_E_INVAL", "only.one");
    expect_error("GET /v1/tensors/?rank=1 HTTP/1.1\r\n", 404, "RF_E_INVAL", "nearest");
    expect_error("GET /v1/tensors/big HTTP/1.1\r\n", 400, "RF_E_INVAL", "which of the 2 ranks");
    expect_error("GET /v1/tensors/big?rank=2 HTTP/1.1\r\n", 400, "RF_E_INVAL", "rank 2");
}

static void ranks_are_safetensors_files(void **state)
{
    struct web_answer answer WEB_ANSWER_AUTO;
    struct st_header header;
    struct rf_error err;
    uint64_t json_bytes = 0;

    (void)state;
    web_get(web.port, "/v1/ranks/0.safetensors", &answer);
    assert_int_equal(answer.status, 200);
    assert_true(answer.whole);
    memcpy(&json_bytes, answer.body.data, 8);
    assert_int_equal(
        st_header_parse("rank", answer.body.data + 8, json_bytes, answer.body.bytes, &header, &err),
        RF_OK);
    assert_int_equal(header.data_bytes, web.stream_bytes[0]);
    assert_memory_equal(answer.body.data + header.data_offset, web.memory[0], web.stream_bytes[0]);
    char range[64];
    char content[96];
    uint64_t from = header.data_offset - 1;
    snprintf(range, sizeof range, "bytes=%" PRIu64 "-%" PRIu64, from, from + 200000);
    snprintf(content, sizeof content, "bytes %" PRIu64 "-%" PRIu64 "/%zu", from, from + 200000,
             answer.body.bytes);
    expect_range("/v1/ranks/0.safetensors", range, content, answer.body.data + from, 200001);
    st_header_free(&header);
    static const char *const wrong[] = {"2.safetensors",
                                        "x.safetensors",
                                        "0",
                                        "0.safetensors.bak",
                                        ".safetensors",
                                        "-1.safetensors",
                                        "00000000000000000000000000000000000001x.safetensors"};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char head[256];
        snprintf(head, sizeof head, "GET /v1/ranks/%s HTTP/1.1\r\n", wrong[i]);
        expect_error(head, 404, "RF_E_INVAL", "0.safetensors to 1.safetensors");
    }
}

/* ---- methods and paths ---- */

static void head_answers_as_get_without_a_body(void **state)
{
    static const char *const paths[] = {
        "/",
        "/healthz",
        "/v1/instance",
        "/v1/manifest",
        "/v1/manifest?format=json",
        "/v1/digests?rank=0",
        "/v1/files",
        "/v1/files/config.json",
        "/v1/files/model.safetensors",
        "/v1/tensors/big?rank=0",
        "/v1/ranks/1.safetensors",
        "/v1/files/nope",
        "/nowhere",
    };

    (void)state;
    for (unsigned i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        struct web_answer get WEB_ANSWER_AUTO;
        struct web_answer head WEB_ANSWER_AUTO;
        char ask[256];

        web_get(web.port, paths[i], &get);
        snprintf(ask, sizeof ask, "HEAD %s HTTP/1.1\r\nRange: bytes=0-1\r\n", paths[i]);
        web_ask(web.port, ask, NULL, 0, &head);
        assert_int_equal(head.status, get.status);
        assert_int_equal(head.body.bytes, 0);
        char length[64];
        snprintf(length, sizeof length, "%s", web_header(&get, "Content-Length"));
        if (strcmp(paths[i], "/") != 0 && strcmp(paths[i], "/metrics") != 0)
            assert_string_equal(web_header(&head, "Content-Length"), length);
        snprintf(length, sizeof length, "%s", web_header(&get, "Content-Type"));
        assert_string_equal(web_header(&head, "Content-Type"), length);
    }
}

static void unknown_paths_list_the_known_ones(void **state)
{
    (void)state;
    expect_error("GET /nowhere HTTP/1.1\r\n", 404, "RF_E_INVAL", "/v1/ranks/R.safetensors");
    expect_error("GET /v1/lease/x HTTP/1.1\r\n", 404, "RF_E_INVAL", "/v1/lease");
    expect_error("POST /healthzz HTTP/1.1\r\n", 404, "RF_E_INVAL", "/healthz");
}

static void wrong_methods_name_the_right_ones(void **state)
{
    (void)state;
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_ask(web.port, "POST /healthz HTTP/1.1\r\n", "x", 1, &answer);
        assert_error(&answer, 405, "RF_E_INVAL", "GET, HEAD");
        assert_string_equal(web_header(&answer, "Allow"), "GET, HEAD");
    }
    {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_get(web.port, "/v1/lease", &answer);
        assert_error(&answer, 405, "RF_E_INVAL", "POST, PUT, DELETE");
        assert_string_equal(web_header(&answer, "Allow"), "POST, PUT, DELETE");
    }
    expect_error("BREW /metrics HTTP/1.1\r\n", 405, "RF_E_INVAL", "GET");
    expect_error("OPTIONS /v1/files/config.json HTTP/1.1\r\n", 405, "RF_E_INVAL", "GET");
}

static void connections_are_kept_for_more_requests(void **state)
{
    const char *ask = "GET /v1/files/config.json HTTP/1.1\r\nHost: x\r\n\r\n";
    int fd = web_connect(web.port);

    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        struct web_answer answer WEB_ANSWER_AUTO;
        assert_true(web_send(fd, ask, strlen(ask)));
        web_receive(fd, false, &answer);
        assert_int_equal(answer.status, 200);
        assert_int_equal(answer.body.bytes, 27);
    }
    /* Pipelined, and a GET with a body that is of no use. */
    const char *many = "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
                       "GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_true(web_send(fd, many, strlen(many)));
    for (unsigned i = 0; i < 2; i++) {
        struct web_answer answer WEB_ANSWER_AUTO;
        web_receive(fd, false, &answer);
        assert_int_equal(answer.status, 200);
    }
    close(fd);
}

int main(void)
{
    const struct CMUnitTest shared[] = {
        cmocka_unit_test(health_says_ready),
        cmocka_unit_test(instance_says_all),
        cmocka_unit_test(metrics_follow_the_text_format),
        cmocka_unit_test(status_page_is_escaped),
        cmocka_unit_test(manifest_is_binary_unless_json_is_asked_for),
        cmocka_unit_test(manifest_arguments_are_checked),
        cmocka_unit_test(digests_arrive_whole_and_in_part),
        cmocka_unit_test(digest_arguments_are_checked),
        cmocka_unit_test(tensor_digests_are_made_on_demand),
        cmocka_unit_test(leases_open_renew_and_close),
        cmocka_unit_test(wrong_tokens_are_refused),
        cmocka_unit_test(too_many_readers_are_told_to_wait),
        cmocka_unit_test(lease_bodies_are_checked),
        cmocka_unit_test(large_bodies_are_refused),
        cmocka_unit_test(chunked_bodies_are_read),
        cmocka_unit_test(files_are_listed),
        cmocka_unit_test(side_files_are_served),
        cmocka_unit_test(only_names_of_the_manifest_exist),
        cmocka_unit_test(ranges_of_files),
        cmocka_unit_test(tags_of_files_are_honoured),
        cmocka_unit_test(weight_files_are_put_together),
        cmocka_unit_test(tensors_are_raw_bytes),
        cmocka_unit_test(unknown_tensors_name_their_neighbours),
        cmocka_unit_test(ranks_are_safetensors_files),
        cmocka_unit_test(head_answers_as_get_without_a_body),
        cmocka_unit_test(unknown_paths_list_the_known_ones),
        cmocka_unit_test(wrong_methods_name_the_right_ones),
        cmocka_unit_test(connections_are_kept_for_more_requests),
    };
    const struct CMUnitTest own[] = {
        cmocka_unit_test(health_follows_the_state),
        cmocka_unit_test(loading_instance_has_no_root),
    };
    int failed = cmocka_run_group_tests_name("server", shared, start_web, stop_web);
    return failed + cmocka_run_group_tests_name("server alone", own, NULL, NULL);
}
