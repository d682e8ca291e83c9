#include "control/sglang_ask.h"

#include "control/json_read.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    SGLANG_PATH_BYTES = 96,
    SGLANG_MAX_SERVER_BYTES = 4 << 20, /* of /server_info: arguments, and state of each scheduler */
};

/* SGLang's own client knows the old path alone, so every release has it. */
static const struct sglang_route routes[] = {
    {.path = "/get_remote_instance_transfer_engine_info"},
    {.path = "/remote_instance_transfer_engine_info"},
    {.path = "/get_transfer_engine_info", .bootstrap = true},
};

enum { SGLANG_ROUTE_COUNT = sizeof(routes) / sizeof(routes[0]) };

/* A route that is not there is answered by the web framework, in other words than a rank that is
 * not. */
static bool no_such_route(long status, const char *words)
{
    return status == 405 || (status == 404 && strstr(words, "transfer engine info") == NULL);
}

static bool is_object(const struct buf *body)
{
    size_t at = 0;

    while (at < body->bytes && (body->data[at] == ' ' || body->data[at] == '\t' ||
                                body->data[at] == '\r' || body->data[at] == '\n'))
        at++;
    return at < body->bytes && body->data[at] == '{';
}

static enum rf_code refused(struct client *client, const struct sglang_route *route, uint32_t rank,
                            long status, const char *words, struct rf_error *err)
{
    const char *colon = words[0] != '\0' ? ": " : "";

    if (status == 401 || status == 403)
        return rf_fail(
            err, RF_E_DENIED,
            "%s: %s: HTTP %ld%s%s: the server wants an API key, which SGLang's clients do "
            "not send either: start it without one to fork from it",
            client_url(client), route->path, status, colon, words);
    if (status >= 500)
        return rf_fail(err, RF_E_UNREACHABLE, "%s: %s?rank=%" PRIu32 ": HTTP %ld%s%s",
                       client_url(client), route->path, rank, status, colon, words);
    if (status == 400 || status == 404) {
        rf_fail(
            err, RF_E_UNREACHABLE,
            "%s publishes no weights of rank %" PRIu32 " (HTTP %ld%s%s): it is still loading, or "
            "was not started with --remote-instance-weight-loader-start-seed-via-transfer-engine",
            client_url(client), rank, status, colon, words);
        return RF_AGAIN;
    }
    return rf_fail(err, RF_E_PROTO, "%s: %s?rank=%" PRIu32 ": HTTP %ld%s%s", client_url(client),
                   route->path, rank, status, colon, words);
}

/* *ret_absent: the server has no such route. */
static enum rf_code ask(struct client *client, const struct sglang_route *route, uint32_t rank,
                        struct weight_map *ret_map, bool *ret_absent, struct rf_error *err)
{
    BUF_AUTO struct buf body = {0};
    struct weight_map map;
    char path[SGLANG_PATH_BYTES];
    char words[CLIENT_WORDS_BYTES];
    long status = 0;

    *ret_absent = false;
    snprintf(path, sizeof(path), "%s?rank=%" PRIu32, route->path, rank);
    enum rf_code code =
        client_ask_any(client, path, NULL, WEIGHT_MAP_MAX_BYTES, &body, &status, err);
    if (code != RF_OK)
        return code;
    if (status != 200) {
        client_words(body.data, body.bytes, words);
        *ret_absent = no_such_route(status, words);
        return refused(client, route, rank, status, words, err);
    }
    code = weight_map_decode(body.data, body.bytes, &map, err);
    /* Some servers have a page for every path. */
    *ret_absent = code == RF_E_PROTO && !is_object(&body);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "%s: %s", client_url(client), path);
    if (map.rank != rank) {
        code = rf_fail(err, RF_E_PROTO, "%s: %s: answered for rank %" PRIu64, client_url(client),
                       path, map.rank);
        weight_map_free(&map);
        return code;
    }
    *ret_map = map;
    return RF_OK;
}

enum rf_code sglang_ask_map(struct client *client, struct sglang_route *route, uint32_t rank,
                            struct weight_map *ret_map, struct rf_error *err)
{
    bool absent;

    if (route->path != NULL)
        return ask(client, route, rank, ret_map, &absent, err);
    for (unsigned i = 0; i < SGLANG_ROUTE_COUNT; i++) {
        enum rf_code code = ask(client, &routes[i], rank, ret_map, &absent, err);

        if (absent)
            continue;
        if (code == RF_OK || code == RF_AGAIN)
            *route = routes[i];
        return code;
    }
    return rf_fail(
        err, RF_E_UNREACHABLE,
        "%s: something answered, but it is neither an rfork seed nor an SGLang server: it "
        "has no %s, nor any later name of that",
        client_url(client), routes[0].path);
}

/* ---- the server ---- */

static uint32_t number_of(const json_t *object, const char *key)
{
    uint64_t number = 0;

    (void)json_read_u64(object, key, JSON_OPTIONAL, MANIFEST_MAX_RANKS, &number, NULL);
    return (uint32_t)number;
}

static void read_server(const json_t *object, struct sglang_server *server)
{
    const char *path = "";
    const char *name = "";

    server->tp_size = number_of(object, "tp_size");
    server->pp_size = number_of(object, "pp_size");
    server->ep_size = number_of(object, "ep_size");
    (void)json_read_text(object, "model_path", JSON_OPTIONAL, 4096, &path, NULL);
    (void)json_read_text(object, "served_model_name", JSON_OPTIONAL, 4096, &name, NULL);
    name = name[0] != '\0' ? name : path;
    size_t bytes = strlen(name);
    while (bytes > 1 && name[bytes - 1] == '/')
        bytes--;
    const char *slash = memrchr(name, '/', bytes);
    if (slash != NULL && slash + 1 < name + bytes) {
        bytes -= (size_t)(slash + 1 - name);
        name = slash + 1;
    }
    snprintf(server->model, sizeof(server->model), "%.*s",
             (int)(bytes < sizeof(server->model) ? bytes : sizeof(server->model) - 1), name);
    rf_text_sanitise(server->model);
}

enum rf_code sglang_ask_server(struct client *client, struct sglang_server *ret_server,
                               struct rf_error *err)
{
    static const char *const paths[] = {"/server_info", "/get_server_info"};
    struct sglang_server server = {.tp_size = 0};

    for (unsigned i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        BUF_AUTO struct buf body = {0};
        json_t *object = NULL;
        long status = 0;
        enum rf_code code =
            client_ask_any(client, paths[i], NULL, SGLANG_MAX_SERVER_BYTES, &body, &status, err);

        if (code == RF_E_CANCELLED || code == RF_E_NOMEM)
            return code;
        if (code != RF_OK)
            break; /* an answer that does not come: not a second time */
        if (status != 200 ||
            json_read_object(body.data, body.bytes, paths[i], &object, NULL) != RF_OK)
            continue;
        read_server(object, &server);
        json_decref(object);
        break;
    }
    *ret_server = server;
    return RF_OK;
}
