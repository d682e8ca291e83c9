/* What a seed says of itself: health, instance, and what other routes ask before they answer. */
#include "control/instance_json.h"
#include "control/internal.h"
#include "control/nodes.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const loading_reason = "the model is being loaded";

static enum seed_state state_and_reason(struct seed *seed, char reason[SERVER_REASON_BYTES])
{
    enum seed_state state = seed_state(seed, reason);

    if (state == SEED_LOADING)
        snprintf(reason, SERVER_REASON_BYTES, "%s", loading_reason);
    else if (state == SEED_DRAINING)
        snprintf(reason, SERVER_REASON_BYTES, "the seed is about to stop");
    return state;
}

enum seed_state route_state(struct server *server, char reason[SERVER_REASON_BYTES])
{
    enum seed_state state = state_and_reason(server->seed, reason);
    struct nodes *nodes = server->options.nodes;
    const char *why = state == SEED_READY && nodes != NULL ? nodes_not_ready(nodes) : NULL;

    if (why == NULL)
        return state;
    snprintf(reason, SERVER_REASON_BYTES, "%s", why);
    return SEED_LOADING;
}

struct store *route_store(struct request *request, struct reply *reply)
{
    char reason[SERVER_REASON_BYTES];
    enum seed_state state = state_and_reason(request->server->seed, reason);
    struct store *store = seed_store(request->server->seed);

    if (state == SEED_FAILED) {
        reply_status(request, reply, MHD_HTTP_SERVICE_UNAVAILABLE, RF_E_CHANGED, "failed: %.400s",
                     reason);
        return NULL;
    }
    if (state == SEED_LOADING || store == NULL) {
        reply_status(request, reply, MHD_HTTP_SERVICE_UNAVAILABLE, RF_E_UNREACHABLE,
                     "loading: %s: try again", loading_reason);
        return NULL;
    }
    return store;
}

struct store *route_store_for_bytes(struct request *request, struct reply *reply,
                                    bool while_draining)
{
    struct rf_error err = {.code = RF_OK};
    struct store *store = route_store(request, reply);

    if (store == NULL)
        return NULL;
    if (!while_draining && seed_state(request->server->seed, NULL) == SEED_DRAINING) {
        reply_status(request, reply, MHD_HTTP_SERVICE_UNAVAILABLE, RF_E_UNREACHABLE,
                     "draining: the seed is about to stop: ask another");
        return NULL;
    }
    if (store_check(store, &err) != RF_OK) {
        reply_error(request, reply, &err);
        return NULL;
    }
    return store;
}

enum rf_code route_rank_argument(const struct request *request, const struct store *store,
                                 uint32_t *ret_rank, struct rf_error *err)
{
    uint32_t count = store->manifest->rank_count;
    uint64_t rank = 0;

    if (target_arg(&request->target, "rank") == NULL && count > 1)
        return rf_fail(err, RF_E_INVAL, "say which of the %" PRIu32 " ranks: rank=0 to %" PRIu32,
                       count, count - 1);
    enum rf_code code = target_u64(&request->target, "rank", UINT32_MAX, &rank, err);
    if (code != RF_OK)
        return code;
    if (rank >= count)
        return rf_fail(err, RF_E_INVAL, "rank %" PRIu64 ": there are %" PRIu32 ", counted from 0",
                       rank, count);
    *ret_rank = (uint32_t)rank;
    return RF_OK;
}

void route_manifest_id(const struct manifest *manifest, char out[HASH_TEXT_BYTES])
{
    char text[HASH_TEXT_BYTES];

    const char *colon = strchr(hash_text(manifest->algorithm, manifest->id, text), ':');
    snprintf(out, HASH_TEXT_BYTES, "%s", colon != NULL ? colon + 1 : text);
}

void route_health(struct request *request, struct reply *reply)
{
    char reason[SERVER_REASON_BYTES];
    enum seed_state state = route_state(request->server, reason);
    struct buf json = {0};

    buf_printf(&json, "{\"status\":\"%s\"", seed_state_name(state));
    if (state != SEED_READY) {
        buf_printf(&json, ",\"reason\":");
        buf_json_string(&json, reason, strlen(reason));
    }
    buf_printf(&json, "}");
    reply_json(request, reply, state == SEED_READY ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE,
               &json);
}

static void put_text(struct buf *json, const char *key, const char *text)
{
    buf_printf(json, ",\"%s\":", key);
    buf_json_string(json, text, strlen(text));
}

static const char *stage_name(enum manifest_stage stage)
{
    static const char *const names[STAGE_COUNT] = {"checkpoint", "fused", "processed"};

    return (unsigned)stage < STAGE_COUNT ? names[stage] : "unknown";
}

static uint64_t count_tensors(const struct manifest *manifest)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < manifest->rank_count; i++)
        count += manifest->ranks[i].tensor_count;
    return count;
}

static void put_model(struct server *server, const struct store *store, struct buf *json)
{
    const struct manifest *manifest = store->manifest;
    char text[HASH_TEXT_BYTES];

    put_text(json, "model", manifest->model);
    put_text(json, "architecture", manifest->architecture);
    put_text(json, "quantisation", manifest->quantisation);
    put_text(json, "layout", manifest->layout);
    put_text(json, "stage", stage_name(manifest->stage));
    buf_printf(json, ",\"weight_version\":%" PRIu64, manifest->weight_version);
    route_manifest_id(manifest, text);
    put_text(json, "manifest_id", text);
    route_root_text(server, store, text);
    if (text[0] != '\0')
        put_text(json, "root_digest", text);
    else
        buf_printf(json, ",\"root_digest\":null");
    put_text(json, "digest_algorithm", hash_name(manifest->algorithm));
    buf_printf(json, ",\"chunk_bytes\":%" PRIu32, manifest->chunk_bytes);
    buf_printf(json, ",\"bytes\":%" PRIu64 ",\"tensor_count\":%" PRIu64 ",\"rank_count\":%" PRIu32,
               manifest_total_bytes(manifest), count_tensors(manifest), manifest->rank_count);
}

static void put_no_model(struct buf *json)
{
    static const char *const names[] = {"model",  "architecture", "quantisation",
                                        "layout", "stage",        "manifest_id"};

    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        put_text(json, names[i], "");
    buf_printf(json, ",\"root_digest\":null,\"bytes\":0,\"tensor_count\":0,\"rank_count\":0");
}

void route_instance(struct request *request, struct reply *reply)
{
    struct server *server = request->server;
    struct seed *seed = server->seed;
    struct store *store = seed_store(seed);
    char reason[SERVER_REASON_BYTES];
    char host_id[64];
    enum seed_state state = route_state(server, reason);
    struct seed_stats stats = {.leases_now = 0};
    struct buf json = {0};
    uint32_t count = 0;

    const struct endpoint *endpoints = seed_endpoints(seed, &count);
    const char *id = seed_instance_id(seed);
    seed_stats(seed, &stats);
    buf_printf(&json, "{\"instance_id\":");
    buf_json_string(&json, id, strlen(id));
    put_text(&json, "version", rf_version());
    put_text(&json, "state", seed_state_name(state));
    put_text(&json, "state_reason", reason);
    put_text(&json, "host_id", transport_host_id(host_id));
    if (store != NULL)
        put_model(server, store, &json);
    else
        put_no_model(&json);
    buf_printf(&json,
               ",\"digest_chunks_known\":%" PRIu64 ",\"digest_chunks_total\":%" PRIu64
               ",\"endpoints\":",
               stats.digest_chunks_known, stats.digest_chunks_total);
    endpoints_json(endpoints, count, &json);
    put_text(&json, "refused_transports", seed_refused_transports(seed));
    buf_printf(&json, "}");
    reply_json(request, reply, MHD_HTTP_OK, &json);
}
