/* What SGLang's clients ask of an instance. */
#include "base/clock.h"
#include "control/sglang_http.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { SGLANG_GRACE_MS = 500 }; /* for a question's own deadline to come first */

/* ---- where a rank's tensors are ---- */

static void put_error(struct request *request, struct reply *reply, const char *text,
                      const char *rank, const char *reason)
{
    struct buf message BUF_AUTO = {0};
    struct buf json = {0};

    buf_printf(&message, "%s%s%s%s", text, rank, reason[0] != '\0' ? ": " : "", reason);
    buf_printf(&json, "{\"error\":{\"message\":");
    if (message.failed)
        json.failed = true;
    else
        buf_json_string(&json, (const char *)message.data, message.bytes);
    buf_printf(&json, "}}");
    reply_exact(request, reply, MHD_HTTP_BAD_REQUEST, "application/json", &json);
}

static bool info_is_settled(void *ctx)
{
    const struct request *request = ctx;

    return nodes_settled(request->server->options.nodes, request->info_rank);
}

static const char failed[] = "Failed to get transfer engine info for rank ";

static void reply_rank(struct request *request, struct reply *reply, uint64_t rank,
                       const char *digits)
{
    struct nodes *nodes = request->server->options.nodes;
    struct rf_error err = {.code = RF_OK};
    struct info_found found;

    if (nodes == NULL) {
        put_error(request, reply, failed, digits,
                  "start this instance with --remote-instance-weight-loader-start-seed-via-"
                  "transfer-engine");
        return;
    }
    enum rf_code code = nodes_find(nodes, rank, !request->waited, &found, &err);
    if (code == RF_AGAIN) {
        request->info_rank = rank;
        *reply = (struct reply){.wait = true,
                                .wait_deadline_ns =
                                    clock_deadline_ns(nodes->options.timeout_ms + SGLANG_GRACE_MS),
                                .wait_ready = info_is_settled};
    } else if (code != RF_OK) {
        put_error(request, reply, failed, digits, err.text);
    } else {
        sglang_reply_info(request, reply, rank, &found);
    }
}

void route_engine_info(struct request *request, struct reply *reply)
{
    const char *text = target_arg(&request->target, "rank");
    char digits[SGLANG_RANK_DIGITS + 1];
    uint64_t rank = 0;

    switch (sglang_rank_parse(text, &rank, digits)) {
    case SGLANG_RANK_NO_NUMBER:
        sglang_reply_unprocessable(request, reply, text);
        break;
    case SGLANG_RANK:
        reply_rank(request, reply, rank, digits);
        break;
    default:
        put_error(request, reply, "Missing or invalid rank parameter", "", "");
        break;
    }
}

/* ---- what it is ---- */

void route_sglang_health(struct request *request, struct reply *reply)
{
    char reason[SERVER_REASON_BYTES];
    bool ready = route_state(request->server, reason) == SEED_READY;

    reply_empty(request, reply, ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE);
}

static void put_nodes(const struct nodes *nodes, struct buf *json)
{
    buf_printf(json,
               ",\"remote_instance_weight_loader_start_seed_via_transfer_engine\":%s,"
               "\"nnodes\":%" PRIu32 ",\"node_rank\":%" PRIu32,
               nodes != NULL ? "true" : "false", nodes != NULL ? nodes->options.node_count : 1,
               nodes != NULL ? nodes->options.node_rank : 0);
    if (nodes != NULL && nodes->bootstrap != NULL)
        buf_printf(json, ",\"engine_info_bootstrap_port\":%u", nodes_bootstrap_port(nodes));
}

void route_server_info(struct request *request, struct reply *reply)
{
    const struct server *server = request->server;
    const struct store *store = route_store(request, reply);
    struct buf json = {0};

    if (store == NULL)
        return;
    const struct manifest *manifest = store->manifest;
    const struct rank_id *id = &manifest->ranks[0].id;
    buf_printf(&json,
               "{\"tp_size\":%" PRIu32 ",\"pp_size\":%" PRIu32 ",\"ep_size\":%" PRIu32
               ",\"dp_size\":%" PRIu32 ",\"served_model_name\":",
               id->tp_size, id->pp_size, id->ep_size, id->dp_size);
    buf_json_string(&json, manifest->model, strlen(manifest->model));
    if (server->model_path != NULL) {
        buf_printf(&json, ",\"model_path\":");
        buf_json_string(&json, server->model_path, strlen(server->model_path));
    }
    put_nodes(server->options.nodes, &json);
    buf_printf(&json, ",\"version\":\"%s\"}", rf_version());
    reply_json(request, reply, MHD_HTTP_OK, &json);
}
