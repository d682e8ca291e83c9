#include "control/client.h"

#include "base/clock.h"
#include "control/instance_json.h"
#include "control/json_read.h"
#include "control/seed_url.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    CLIENT_DEFAULT_TIMEOUT_MS = 10000,
    CLIENT_CLOSE_TIMEOUT_MS = 1000,
    CLIENT_POLL_MS = 100, /* how late a cancellation may be noticed */
    CLIENT_MAX_JSON_BYTES = 1 << 20,
    CLIENT_MAX_ERROR_BYTES = 16 << 10,  /* of an error's body; what follows is dropped */
    CLIENT_MAX_DROPPED_BYTES = 1 << 20, /* and beyond that the connection is closed */
    CLIENT_MAX_HEADER_BYTES = 64 << 10,
    CLIENT_MAX_WAIT_MS = 30000, /* the longest wait that a seed accepts */
    CLIENT_PAUSE_MS = 50,       /* before asking again a seed that should have waited and did not */
    CLIENT_PATH_BYTES = 160,
};

struct client {
    struct seed_url url;
    uint64_t timeout_ms;
    const atomic_bool *cancel;
    CURL *easy;
    CURLM *multi;
    char curl_error[CURL_ERROR_SIZE];
    char peer[SEED_URL_HOST_BYTES];  /* the address that the last answer came from */
    char local[SEED_URL_HOST_BYTES]; /* and where it came to */
    bool is_foreign;                 /* that was no seed of ours */
};

/* One request and what came back. */
struct exchange {
    /* in */
    const char *method;
    const char *path;   /* encoded */
    const char *body;   /* JSON, or NULL */
    const char *bearer; /* token as text, or NULL */
    const char *range;  /* "0-99", or NULL */
    uint64_t timeout_ms;
    uint64_t max_bytes;
    bool ignore_cancel;
    bool any_server; /* the peer need not be a seed */
    bool any_answer; /* nor its answer a good one */
    struct buf *out; /* of answers that are no errors; appended to */
    /* out */
    struct client *client;
    long status;
    bool is_seed; /* the answer carries an instance's id */
    bool too_large;
    bool headers_too_large;
    bool no_memory;
    uint64_t header_bytes;
    uint64_t got_bytes;
    struct buf error_body;
    char type[64];
    char content_range[96];
};

/* ---- what libcurl calls ---- */

/* The value of the header `name` in the line, if it is that one. */
static void keep_header(const char *line, size_t bytes, const char *name, char *out, size_t room)
{
    size_t name_bytes = strlen(name);

    if (bytes <= name_bytes || strncasecmp(line, name, name_bytes) != 0 || line[name_bytes] != ':')
        return;
    line += name_bytes + 1;
    bytes -= name_bytes + 1;
    while (bytes > 0 && (*line == ' ' || *line == '\t')) {
        line++;
        bytes--;
    }
    while (bytes > 0 && (unsigned char)line[bytes - 1] <= ' ')
        bytes--;
    bytes = bytes < room ? bytes : room - 1;
    memcpy(out, line, bytes);
    out[bytes] = '\0';
}

static size_t on_header(char *line, size_t size, size_t count, void *cls)
{
    struct exchange *exchange = cls;
    size_t bytes = size * count;
    char id[64] = "";

    /* libcurl keeps all headers; without an end to them it would keep them until memory is full. */
    exchange->header_bytes += bytes;
    if (exchange->header_bytes > CLIENT_MAX_HEADER_BYTES) {
        exchange->headers_too_large = true;
        return 0;
    }
    keep_header(line, bytes, "X-Rfork-Instance", id, sizeof id);
    keep_header(line, bytes, "Content-Type", exchange->type, sizeof exchange->type);
    keep_header(line, bytes, "Content-Range", exchange->content_range,
                sizeof exchange->content_range);
    exchange->is_seed = exchange->is_seed || id[0] != '\0';
    return bytes;
}

static bool status_is_good(long status)
{
    return status >= 200 && status < 300;
}

static size_t on_body(char *data, size_t size, size_t count, void *cls)
{
    struct exchange *exchange = cls;
    size_t bytes = size * count;
    long status = 0;

    curl_easy_getinfo(exchange->client->easy, CURLINFO_RESPONSE_CODE, &status);
    exchange->got_bytes += bytes;
    if (!status_is_good(status)) {
        size_t room = CLIENT_MAX_ERROR_BYTES - exchange->error_body.bytes;
        buf_append(&exchange->error_body, data, bytes < room ? bytes : room);
        return exchange->got_bytes <= CLIENT_MAX_DROPPED_BYTES ? bytes : 0;
    }
    if (exchange->got_bytes > exchange->max_bytes) {
        exchange->too_large = true;
        return 0;
    }
    buf_append(exchange->out, data, bytes);
    exchange->no_memory = exchange->out->failed;
    return exchange->no_memory ? 0 : bytes;
}

/* ---- making a client ---- */

static void curl_start(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static enum rf_code prepare_handle(struct client *client, struct rf_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, curl_start);
    client->easy = curl_easy_init();
    client->multi = curl_multi_init();
    if (client->easy == NULL || client->multi == NULL)
        return rf_fail(err, RF_E_NOMEM, "libcurl cannot start: no memory");
    return RF_OK;
}

enum rf_code client_create(const char *url, const struct client_options *options,
                           struct client **ret_client, struct rf_error *err)
{
    struct client *client = calloc(1, sizeof *client);

    if (client == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a client");
    enum rf_code code = seed_url_parse(url, &client->url, err);
    if (code == RF_OK)
        code = prepare_handle(client, err);
    if (code != RF_OK) {
        client_destroy(client);
        return code;
    }
    client->timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : CLIENT_DEFAULT_TIMEOUT_MS;
    client->cancel = options->cancel;
    *ret_client = client;
    return RF_OK;
}

void client_destroy(struct client *client)
{
    if (client == NULL)
        return;
    if (client->easy != NULL)
        curl_easy_cleanup(client->easy);
    if (client->multi != NULL)
        curl_multi_cleanup(client->multi);
    free(client);
}

const char *client_url(const struct client *client)
{
    return client->url.text;
}

bool client_is_foreign(const struct client *client)
{
    return client->is_foreign;
}

/* ---- one request ---- */

static struct curl_slist *headers_of(const struct exchange *exchange)
{
    struct curl_slist *list = NULL;
    char line[128];

    if (exchange->body != NULL)
        list = curl_slist_append(list, "Content-Type: application/json");
    if (exchange->bearer != NULL) {
        snprintf(line, sizeof line, "Authorization: Bearer %s", exchange->bearer);
        list = curl_slist_append(list, line);
    }
    return list;
}

static void set_options(struct client *client, struct exchange *exchange, const char *url,
                        struct curl_slist *headers)
{
    CURL *easy = client->easy;

    curl_easy_reset(easy); /* connections stay open */
    client->curl_error[0] = '\0';
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, client->curl_error);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    /* A name server that does not answer must not hold us beyond the deadline. */
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http");
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    /* Seeds are reached directly: http_proxy is meant for the world outside the cluster. */
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, exchange->method);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "rfork/" RFORK_VERSION);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, exchange);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, exchange);
    if (exchange->body != NULL)
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, exchange->body);
    if (exchange->range != NULL)
        curl_easy_setopt(easy, CURLOPT_RANGE, exchange->range);
}

/* Drives the transfer; *ret_done is what libcurl says once it has ended. RF_E_CANCELLED,
 * RF_E_TIMEOUT, RF_E_FAILED. */
static enum rf_code drive(struct client *client, const struct exchange *exchange,
                          CURLcode *ret_done, struct rf_error *err)
{
    uint64_t deadline_ns = clock_deadline_ns(exchange->timeout_ms);

    for (;;) {
        int running = 0;
        int left = 0;
        CURLMcode code = curl_multi_perform(client->multi, &running);
        const CURLMsg *message = curl_multi_info_read(client->multi, &left);
        if (message != NULL && message->msg == CURLMSG_DONE) {
            *ret_done = message->data.result;
            return RF_OK;
        }
        if (!exchange->ignore_cancel && client->cancel != NULL &&
            atomic_load_explicit(client->cancel, memory_order_relaxed))
            return rf_fail(err, RF_E_CANCELLED, "%s: cancelled", client->url.text);
        int left_ms = clock_left_ms(deadline_ns);
        if (left_ms == 0)
            return rf_fail(err, RF_E_TIMEOUT, "%s: no%s answer to %s within %" PRIu64 " ms",
                           client->url.text, exchange->header_bytes > 0 ? " complete" : "",
                           exchange->path, exchange->timeout_ms);
        if (code == CURLM_OK)
            code = curl_multi_poll(client->multi, NULL, 0,
                                   left_ms < CLIENT_POLL_MS ? left_ms : CLIENT_POLL_MS, NULL);
        if (code != CURLM_OK)
            return rf_fail(err, RF_E_FAILED, "%s: %s", client->url.text, curl_multi_strerror(code));
    }
}

static enum rf_code not_a_seed(const struct client *client, const struct exchange *exchange,
                               const char *what, struct rf_error *err)
{
    if (exchange->status > 0)
        return rf_fail(err, RF_E_UNREACHABLE,
                       "%s: something answered (HTTP %ld, %s), but it is not an rfork seed",
                       client->url.text, exchange->status,
                       exchange->type[0] != '\0' ? exchange->type : "no type");
    return rf_fail(err, RF_E_UNREACHABLE, "%s: something answered, but it is not an rfork seed: %s",
                   client->url.text, what);
}

/* What libcurl could not do. */
static enum rf_code transfer_failed(const struct client *client, const struct exchange *exchange,
                                    CURLcode result, struct rf_error *err)
{
    const char *why =
        client->curl_error[0] != '\0' ? client->curl_error : curl_easy_strerror(result);

    if (exchange->no_memory)
        return rf_fail(err, RF_E_NOMEM, "%s: no memory for the answer to %s", client->url.text,
                       exchange->path);
    if (exchange->too_large)
        return rf_fail(err, RF_E_PROTO, "%s: the answer to %s is larger than %" PRIu64 " bytes",
                       client->url.text, exchange->path, exchange->max_bytes);
    if (exchange->headers_too_large)
        return rf_fail(err, RF_E_PROTO, "%s: the answer to %s has more than %d bytes of headers",
                       client->url.text, exchange->path, CLIENT_MAX_HEADER_BYTES);
    switch (result) {
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
        return rf_fail(err, RF_E_UNREACHABLE, "%s: no seed answers there: %s", client->url.text,
                       why);
    case CURLE_UNSUPPORTED_PROTOCOL: /* HTTP/0.9: it did not begin with a status line */
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_HTTP2:
        return not_a_seed(client, exchange, why, err);
    case CURLE_OUT_OF_MEMORY:
        return rf_fail(err, RF_E_NOMEM, "%s: %s", client->url.text, why);
    case CURLE_OPERATION_TIMEDOUT:
        return rf_fail(err, RF_E_TIMEOUT, "%s: %s", client->url.text, why);
    default: /* broken off, malformed */
        return rf_fail(err, RF_E_UNREACHABLE, "%s: the answer to %s broke off: %s",
                       client->url.text, exchange->path, why);
    }
}

static enum rf_code code_of_name(const char *name)
{
    for (int code = RF_E_FAILED; code <= RF_E_CHANGED; code++) {
        if (strcmp(name, rf_code_name((enum rf_code)code)) == 0)
            return (enum rf_code)code;
    }
    return RF_OK;
}

static enum rf_code code_of_status(long status)
{
    switch (status) {
    case 401:
    case 403:
        return RF_E_DENIED;
    case 409:
        return RF_E_MISMATCH;
    case 429:
        return RF_E_NOMEM;
    case 503:
        return RF_E_UNREACHABLE;
    case 400:
    case 404:
    case 416:
        return RF_E_INVAL;
    default:
        return RF_E_PROTO;
    }
}

void client_words(const void *body, size_t bytes, char out[CLIENT_WORDS_BYTES])
{
    const char *words = "";
    json_t *object = NULL;

    out[0] = '\0';
    if (json_read_object(body, bytes, "error", &object, NULL) != RF_OK)
        return;
    const json_t *error = json_object_get(object, "error");
    if (json_is_object(error))
        (void)json_read_text(error, "message", JSON_OPTIONAL, CLIENT_WORDS_BYTES - 1, &words, NULL);
    else if (json_is_string(error))
        (void)json_read_text(object, "error", JSON_OPTIONAL, CLIENT_WORDS_BYTES - 1, &words, NULL);
    else if (json_is_string(json_object_get(object, "detail")))
        (void)json_read_text(object, "detail", JSON_OPTIONAL, CLIENT_WORDS_BYTES - 1, &words, NULL);
    snprintf(out, CLIENT_WORDS_BYTES, "%s", words);
    json_decref(object);
}

/* An answer that says no, in the seed's own words where there are any. */
static enum rf_code seed_refused(const struct client *client, const struct exchange *exchange,
                                 struct rf_error *err)
{
    enum rf_code code = code_of_status(exchange->status);
    const char *name = "";
    const char *message = "no reason given";
    char words[CLIENT_WORDS_BYTES] = "";
    json_t *object = NULL;

    if (json_read_object(exchange->error_body.data, exchange->error_body.bytes, "error", &object,
                         NULL) == RF_OK) {
        const json_t *error = json_object_get(object, "error");
        if (json_read_text(error, "code", JSON_REQUIRED, 32, &name, NULL) == RF_OK &&
            json_read_text(error, "message", JSON_REQUIRED, RF_ERROR_TEXT_BYTES, &message, NULL) ==
                RF_OK &&
            code_of_name(name) != RF_OK)
            code = code_of_name(name);
    }
    if (exchange->any_server)
        client_words(exchange->error_body.data, exchange->error_body.bytes, words);
    if (words[0] != '\0')
        message = words;
    rf_fail(err, code, "%s: %ld: %s", client->url.text, exchange->status, message);
    json_decref(object);
    return code;
}

static enum rf_code judge(struct client *client, struct exchange *exchange, CURLcode result,
                          struct rf_error *err)
{
    const char *peer = NULL;
    const char *local = NULL;

    curl_easy_getinfo(client->easy, CURLINFO_RESPONSE_CODE, &exchange->status);
    if (curl_easy_getinfo(client->easy, CURLINFO_PRIMARY_IP, &peer) == CURLE_OK && peer != NULL)
        snprintf(client->peer, sizeof client->peer, "%s", peer);
    if (curl_easy_getinfo(client->easy, CURLINFO_LOCAL_IP, &local) == CURLE_OK && local != NULL)
        snprintf(client->local, sizeof client->local, "%s", local);
    client->is_foreign = exchange->status > 0 && !exchange->is_seed;
    if (client->is_foreign && !exchange->any_server && !exchange->no_memory)
        return not_a_seed(client, exchange, "", err);
    if (exchange->any_answer && exchange->status > 0 && !status_is_good(exchange->status)) {
        buf_append(exchange->out, exchange->error_body.data, exchange->error_body.bytes);
        return RF_OK;
    }
    if (exchange->status > 0 && !status_is_good(exchange->status))
        return seed_refused(client, exchange, err);
    return result == CURLE_OK ? RF_OK : transfer_failed(client, exchange, result, err);
}

static enum rf_code exchange_run(struct client *client, struct exchange *exchange,
                                 struct rf_error *err)
{
    struct buf url BUF_AUTO = {0};
    struct curl_slist *headers = headers_of(exchange);
    CURLcode result = CURLE_OK;

    if (exchange->method == NULL)
        exchange->method = "GET";
    if (exchange->timeout_ms == 0)
        exchange->timeout_ms = client->timeout_ms;
    exchange->client = client;
    client->is_foreign = false;
    buf_printf(&url, "%s%s", client->url.text, exchange->path);
    if (url.failed) {
        curl_slist_free_all(headers);
        return rf_fail(err, RF_E_NOMEM, "no memory for a request");
    }
    set_options(client, exchange, (const char *)url.data, headers);
    CURLMcode added = curl_multi_add_handle(client->multi, client->easy);
    enum rf_code code = added == CURLM_OK ? drive(client, exchange, &result, err)
                                          : rf_fail(err, RF_E_FAILED, "%s: %s", client->url.text,
                                                    curl_multi_strerror(added));
    if (code == RF_OK)
        code = judge(client, exchange, result, err);
    /* Ends a transfer that is not done, with its connection. */
    curl_multi_remove_handle(client->multi, client->easy);
    curl_easy_reset(client->easy);
    curl_slist_free_all(headers);
    buf_free(&exchange->error_body);
    return code;
}

/* ---- the calls ---- */

/* What a wildcard in an endpoint stands for: the address that was dialled, or that its name led
 * to. */
static const char *dialled(const struct client *client)
{
    return client->url.is_address || client->peer[0] == '\0' ? client->url.host : client->peer;
}

enum rf_code client_instance(struct client *client, struct instance_info *ret_info,
                             struct rf_error *err)
{
    struct buf out BUF_AUTO = {0};
    struct exchange exchange = {
        .path = "/v1/instance", .max_bytes = CLIENT_MAX_JSON_BYTES, .out = &out};

    enum rf_code code = exchange_run(client, &exchange, err);
    client->is_foreign = client->is_foreign || exchange.status == 404;
    if (code != RF_OK)
        return code;
    code = instance_json_parse(out.data, out.bytes, dialled(client), ret_info, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "%s", client->url.text);
}

void instance_info_free(struct instance_info *info)
{
    if (info == NULL)
        return;
    arena_free(&info->arena);
    *info = (struct instance_info){.bytes = 0};
}

enum rf_code client_manifest(struct client *client, struct manifest **ret_manifest,
                             struct rf_error *err)
{
    struct buf out BUF_AUTO = {0};
    struct exchange exchange = {
        .path = "/v1/manifest?format=binary", .max_bytes = MANIFEST_MAX_BYTES, .out = &out};

    enum rf_code code = exchange_run(client, &exchange, err);
    if (code != RF_OK)
        return code;
    code = manifest_decode(out.data, out.bytes, ret_manifest, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "%s: /v1/manifest", client->url.text);
}

enum rf_code client_lease_open(struct client *client, struct lease *ret_lease, struct rf_error *err)
{
    struct buf out BUF_AUTO = {0};
    struct exchange exchange = {.method = "POST",
                                .path = "/v1/lease",
                                .body = "{\"client\":\"rfork/" RFORK_VERSION "\"}",
                                .max_bytes = CLIENT_MAX_JSON_BYTES,
                                .out = &out};

    enum rf_code code = exchange_run(client, &exchange, err);
    if (code != RF_OK)
        return code;
    code = lease_json_parse(out.data, out.bytes, dialled(client), ret_lease, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "%s", client->url.text);
}

enum rf_code client_lease_renew(struct client *client, const struct lease *lease,
                                struct rf_error *err)
{
    struct buf out BUF_AUTO = {0};
    char token[2 * CHUNK_TOKEN_BYTES + 1];
    struct exchange exchange = {.method = "PUT",
                                .path = "/v1/lease",
                                .bearer = token,
                                .max_bytes = CLIENT_MAX_JSON_BYTES,
                                .out = &out};

    lease_token_text(lease->token, token);
    return exchange_run(client, &exchange, err);
}

void client_lease_close(struct client *client, const struct lease *lease)
{
    struct buf out BUF_AUTO = {0};
    char token[2 * CHUNK_TOKEN_BYTES + 1];
    struct exchange exchange = {.method = "DELETE",
                                .path = "/v1/lease",
                                .bearer = token,
                                .timeout_ms = CLIENT_CLOSE_TIMEOUT_MS,
                                .ignore_cancel = true,
                                .max_bytes = CLIENT_MAX_JSON_BYTES,
                                .out = &out};

    lease_token_text(lease->token, token);
    exchange_run(client, &exchange, NULL);
}

/* The first entry that is not known, or the table's size. */
static uint64_t first_unknown(const struct digest_table *table)
{
    uint64_t count = digest_table_count(table);
    uint8_t digest[HASH_MAX_BYTES];
    uint64_t at = 0;

    while (at < count && digest_table_get(table, at, digest))
        at++;
    return at;
}

/* One piece, as digest_table_encode() makes it. */
static uint64_t piece_max_bytes(const struct digest_table *table, uint64_t from)
{
    uint64_t chunks = digest_table_count(table) - from;

    chunks = chunks < DIGEST_MAX_PIECE_CHUNKS ? chunks : DIGEST_MAX_PIECE_CHUNKS;
    return DIGEST_HEAD_BYTES + (chunks + 7) / 8 + chunks * HASH_MAX_BYTES + DIGEST_CHECK_BYTES;
}

static enum rf_code fetch_digests(struct client *client, const char *path, uint64_t from,
                                  uint64_t wait_ms, struct digest_table *table,
                                  struct rf_error *err)
{
    struct buf out BUF_AUTO = {0};
    struct exchange exchange = {.path = path,
                                .timeout_ms = client->timeout_ms + wait_ms,
                                .max_bytes = piece_max_bytes(table, from),
                                .out = &out};

    enum rf_code code = exchange_run(client, &exchange, err);
    if (code != RF_OK)
        return code;
    code = digest_table_merge(table, out.data, out.bytes, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "%s: %s", client->url.text, path);
}

enum rf_code client_digests(struct client *client, uint32_t rank, uint64_t wait_ms,
                            struct digest_table *table, struct rf_error *err)
{
    char path[CLIENT_PATH_BYTES];
    uint64_t from = first_unknown(table);

    if (from == digest_table_count(table))
        return RF_OK;
    wait_ms = wait_ms < CLIENT_MAX_WAIT_MS ? wait_ms : CLIENT_MAX_WAIT_MS;
    snprintf(path, sizeof path,
             "/v1/digests?rank=%" PRIu32 "&from=%" PRIu64 "&known=%" PRIu64 "&wait_ms=%" PRIu64,
             rank, from, digest_table_known(table), wait_ms);
    return fetch_digests(client, path, from, wait_ms, table, err);
}

/* Sleeps, unless it is cancelled meanwhile. */
static void pause_ms(struct client *client, int timeout_ms)
{
    curl_multi_poll(client->multi, NULL, 0, timeout_ms, NULL);
}

static enum rf_code tensor_digests_until(struct client *client, uint32_t rank, uint64_t deadline_ns,
                                         struct digest_table *table, struct rf_error *err)
{
    uint64_t count = digest_table_count(table);
    char path[CLIENT_PATH_BYTES];

    while (digest_table_known(table) < count) {
        uint64_t known = digest_table_known(table);
        uint64_t from = first_unknown(table);
        int left_ms = clock_left_ms(deadline_ns);
        if (left_ms == 0)
            return rf_fail(err, RF_E_TIMEOUT,
                           "%s: %" PRIu64 " of %" PRIu64 " tensor digests were ready in time",
                           client->url.text, known, count);
        int wait_ms = left_ms < CLIENT_MAX_WAIT_MS ? left_ms : CLIENT_MAX_WAIT_MS;
        snprintf(path, sizeof path,
                 "/v1/tensor-digests?rank=%" PRIu32 "&from=%" PRIu64 "&wait_ms=%d", rank, from,
                 wait_ms);
        enum rf_code code = fetch_digests(client, path, from, (uint64_t)wait_ms, table, err);
        if (code != RF_OK)
            return code;
        /* A seed that needs the connection for others answers before the time. */
        if (digest_table_known(table) == known)
            pause_ms(client, CLIENT_PAUSE_MS);
    }
    return RF_OK;
}

enum rf_code client_tensor_digests(struct client *client, uint32_t rank, uint64_t tensor_count,
                                   enum hash_algorithm algorithm, uint64_t deadline_ns,
                                   struct digest_table **ret_table, struct rf_error *err)
{
    struct digest_table *table = digest_table_create(algorithm, tensor_count);

    if (table == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " digests", tensor_count);
    enum rf_code code = tensor_digests_until(client, rank, deadline_ns, table, err);
    if (code != RF_OK) {
        digest_table_destroy(table);
        return code;
    }
    *ret_table = table;
    return RF_OK;
}

/* The part asked for, and nothing else: 206 with its place, or 200 when it is the whole file. */
static enum rf_code check_part(const struct client *client, const struct exchange *exchange,
                               uint64_t from, uint64_t bytes, struct rf_error *err)
{
    char wanted[64];

    snprintf(wanted, sizeof wanted, "bytes %" PRIu64 "-%" PRIu64 "/", from, from + bytes - 1);
    bool placed = strncmp(exchange->content_range, wanted, strlen(wanted)) == 0;
    if (exchange->status == 206 ? !placed : from != 0)
        return rf_fail(err, RF_E_PROTO, "%s: %s: asked for %.*s, got HTTP %ld, \"%s\"",
                       client->url.text, exchange->path, (int)strlen(wanted) - 1, wanted,
                       exchange->status, exchange->content_range);
    if (exchange->got_bytes != bytes)
        return rf_fail(err, RF_E_PROTO, "%s: %s: %" PRIu64 " bytes instead of %" PRIu64,
                       client->url.text, exchange->path, exchange->got_bytes, bytes);
    return RF_OK;
}

enum rf_code client_file(struct client *client, const char *name, uint64_t from, uint64_t bytes,
                         struct buf *out, struct rf_error *err)
{
    struct buf path BUF_AUTO = {0};
    char range[64];
    uint64_t end = 0;
    size_t out_bytes = out->bytes;

    if (bytes == 0)
        return RF_OK;
    if (__builtin_add_overflow(from, bytes, &end) || end > INT64_MAX)
        return rf_fail(err, RF_E_INVAL, "%s: bytes %" PRIu64 "+%" PRIu64 " are no part of a file",
                       name, from, bytes);
    buf_printf(&path, "/v1/files/");
    seed_url_escape(name, &path);
    if (path.failed)
        return rf_fail(err, RF_E_NOMEM, "no memory for a request");
    snprintf(range, sizeof range, "%" PRIu64 "-%" PRIu64, from, end - 1);
    struct exchange exchange = {
        .path = (const char *)path.data, .range = range, .max_bytes = bytes, .out = out};
    enum rf_code code = exchange_run(client, &exchange, err);
    if (code == RF_OK)
        code = check_part(client, &exchange, from, bytes, err);
    if (code != RF_OK)
        out->bytes = out_bytes; /* no half answers */
    return code;
}

static enum rf_code check_path(const char *path, struct rf_error *err)
{
    if (path[0] != '/')
        return rf_fail(err, RF_E_INVAL, "\"%s\": a path begins with '/'", path);
    for (const char *at = path; *at != '\0'; at++) {
        if ((unsigned char)*at <= ' ' || *at == 0x7f || *at == '#')
            return rf_fail(err, RF_E_INVAL,
                           "\"%s\": blanks, control characters and '#' must be "
                           "percent-encoded in a path",
                           path);
    }
    return RF_OK;
}

static enum rf_code ask(struct client *client, struct exchange *exchange, struct rf_error *err)
{
    size_t out_bytes = exchange->out->bytes;
    enum rf_code code = check_path(exchange->path, err);

    if (code == RF_OK)
        code = exchange_run(client, exchange, err);
    if (code != RF_OK)
        exchange->out->bytes = out_bytes; /* no half answers */
    return code;
}

enum rf_code client_get(struct client *client, const char *path, uint64_t max_bytes,
                        struct buf *out, struct rf_error *err)
{
    struct exchange exchange = {.path = path, .max_bytes = max_bytes, .out = out};

    return ask(client, &exchange, err);
}

enum rf_code client_ask_any(struct client *client, const char *path, const char *json,
                            uint64_t max_bytes, struct buf *out, long *ret_status,
                            struct rf_error *err)
{
    struct exchange exchange = {.method = json != NULL ? "PUT" : "GET",
                                .path = path,
                                .body = json,
                                .max_bytes = max_bytes,
                                .out = out,
                                .any_server = true,
                                .any_answer = ret_status != NULL};
    enum rf_code code = ask(client, &exchange, err);

    if (code == RF_OK && ret_status != NULL)
        *ret_status = exchange.status;
    return code;
}

const char *client_local_address(const struct client *client)
{
    return client->local;
}
