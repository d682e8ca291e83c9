/* SGLang's bootstrap server: where the ranks of all nodes register, and are asked for. */
#include "base/log.h"
#include "control/sglang_http.h"

#include <stdio.h>
#include <string.h>

static void reply_ok(struct request *request, struct reply *reply)
{
    struct buf text = {0};

    buf_printf(&text, "OK");
    reply_exact(request, reply, MHD_HTTP_OK, "text/plain; charset=utf-8", &text);
}

static void route_bootstrap_health(struct request *request, struct reply *reply)
{
    reply_ok(request, reply);
}

static void route_register(struct request *request, struct reply *reply)
{
    struct rf_error err = {.code = RF_OK};
    struct engine_info info;

    enum rf_code code = engine_info_parse_put(request->body.data, request->body.bytes, &info, &err);
    if (code == RF_OK)
        code = nodes_register(request->server->options.nodes, &info, &err);
    if (code == RF_OK) {
        reply_ok(request, reply);
        return;
    }
    log_warn("registration refused", "reason=\"%s\"", err.text);
    sglang_reply_detail(request, reply,
                        code == RF_E_NOMEM ? MHD_HTTP_SERVICE_UNAVAILABLE : MHD_HTTP_BAD_REQUEST,
                        err.text);
}

static void reply_registered(struct request *request, struct reply *reply, uint64_t rank,
                             const char *digits)
{
    struct rf_error err = {.code = RF_OK};
    struct info_found found;
    char text[RF_ERROR_TEXT_BYTES];

    if (nodes_find(request->server->options.nodes, rank, false, &found, &err) == RF_OK) {
        sglang_reply_info(request, reply, rank, &found);
        return;
    }
    /* SGLang's own sentence; what is known besides goes to the log. */
    log_debug("no info", "rank=%s reason=\"%s\"", digits, err.text);
    snprintf(text, sizeof text, "No transfer engine info for rank %s", digits);
    sglang_reply_detail(request, reply, MHD_HTTP_NOT_FOUND, text);
}

static void route_registered(struct request *request, struct reply *reply)
{
    const char *text = target_arg(&request->target, "rank");
    char digits[SGLANG_RANK_DIGITS + 1];
    uint64_t rank = 0;

    switch (sglang_rank_parse(text, &rank, digits)) {
    case SGLANG_RANK_NEGATIVE:
        sglang_reply_detail(request, reply, MHD_HTTP_BAD_REQUEST, "Invalid rank parameter");
        break;
    case SGLANG_RANK:
        reply_registered(request, reply, rank, digits);
        break;
    default:
        sglang_reply_unprocessable(request, reply, text);
        break;
    }
}

static const struct route routes[] = {
    {"/health", METHOD_GET, NULL, route_bootstrap_health, 0},
    {"/register_transfer_engine_info", METHOD_PUT, NULL, route_register, ENGINE_INFO_MAX_BYTES},
    {"/get_transfer_engine_info", METHOD_GET, NULL, route_registered, 0},
};

const struct route_table bootstrap_routes = {
    .routes = routes,
    .count = sizeof routes / sizeof routes[0],
    .paths = "GET /health /get_transfer_engine_info; PUT /register_transfer_engine_info",
};
