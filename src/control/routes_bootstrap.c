/* SGLang's bootstrap server: where the ranks of all nodes register, and are asked for. */
#include "base/json_scan.h"
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

/* ---- bodies that its framework does not hand on ---- */

enum { BODY_MAX_SHOWN_BYTES = 4096 };

/* One thing that is wrong with the body, in FastAPI's form. at: where in it; SIZE_MAX: as a whole. */
static void reply_body_error(struct request *request, struct reply *reply, const char *type,
                             size_t at, const char *msg, const char *rest)
{
    struct buf json = {0};

    buf_printf(&json, "{\"detail\":[{\"type\":\"%s\",\"loc\":[\"body\"", type);
    if (at != SIZE_MAX)
        buf_printf(&json, ",%zu", at);
    buf_printf(&json, "],\"msg\":\"%s\",\"input\":", msg);
    buf_append(&json, rest, strlen(rest));
    buf_printf(&json, "}]}");
    reply_exact(request, reply, MHD_HTTP_UNPROCESSABLE_CONTENT, "application/json", &json);
}

static void reply_no_json(struct request *request, struct reply *reply,
                          const struct json_scan *scan)
{
    struct buf rest BUF_AUTO = {0};

    buf_printf(&rest, "{},\"ctx\":{\"error\":");
    buf_json_string(&rest, scan->problem, strlen(scan->problem));
    buf_printf(&rest, "}");
    buf_append(&rest, "", 1);
    reply_body_error(request, reply, "json_invalid", (size_t)(scan->at - scan->start),
                     "JSON decode error", rest.failed ? "{}" : (const char *)rest.data);
}

/* The value is shown as it came, if it is short. */
static void reply_no_object(struct request *request, struct reply *reply)
{
    struct buf value BUF_AUTO = {0};
    bool is_shown = request->body.bytes <= BODY_MAX_SHOWN_BYTES;

    if (is_shown)
        buf_append(&value, request->body.data, request->body.bytes);
    buf_append(&value, "", 1);
    reply_body_error(request, reply, "dict_type", SIZE_MAX, "Input should be a valid dictionary",
                     is_shown && !value.failed ? (const char *)value.data : "null");
}

/* Answers what FastAPI would not have handed on; false: it would. */
static bool reply_wrong_body(struct request *request, struct reply *reply)
{
    const struct buf *body = &request->body;
    struct arena arena = {0};
    struct json_scan scan;

    if (body->bytes == 0) {
        reply_body_error(request, reply, "missing", SIZE_MAX, "Field required", "null");
        return true;
    }
    if (!json_utf8_ok((const char *)body->data, body->bytes)) {
        sglang_reply_detail(request, reply, MHD_HTTP_BAD_REQUEST,
                            "There was an error parsing the body");
        return true;
    }
    json_scan_init(&scan, body->data, body->bytes, &arena);
    bool is_object = json_next(&scan) == '{';
    bool is_json = json_skip(&scan, 0) && json_end(&scan);
    if (!is_json && !scan.no_memory)
        reply_no_json(request, reply, &scan);
    else if (is_json && !is_object)
        reply_no_object(request, reply);
    arena_free(&arena);
    return scan.no_memory ? false : !is_json || !is_object;
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
    if (code != RF_E_NOMEM && reply_wrong_body(request, reply))
        return;
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
    .as_fastapi = true,
};
