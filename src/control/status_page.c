/* GET /: what people want to see first. Plain HTML, no scripts, nothing from elsewhere. */
#include "base/clock.h"
#include "base/size.h"
#include "control/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void escaped(struct buf *out, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '<':
            buf_append(out, "&lt;", 4);
            break;
        case '>':
            buf_append(out, "&gt;", 4);
            break;
        case '&':
            buf_append(out, "&amp;", 5);
            break;
        case '"':
            buf_append(out, "&quot;", 6);
            break;
        case '\'':
            buf_append(out, "&#39;", 5);
            break;
        default:
            buf_append(out, text, 1);
        }
    }
}

static void row(struct buf *out, const char *name, const char *value)
{
    buf_printf(out, "<tr><th>%s</th><td>", name);
    escaped(out, value);
    buf_printf(out, "</td></tr>\n");
}

static void model_rows(struct buf *out, struct server *server, const struct store *store)
{
    const struct manifest *manifest = store->manifest;
    char text[HASH_TEXT_BYTES];
    char size[SIZE_TEXT_BYTES];

    row(out, "model", manifest->model);
    row(out, "architecture", manifest->architecture);
    row(out, "quantisation", manifest->quantisation);
    snprintf(text, sizeof text, "%s (%" PRIu64 " bytes), ranks: %" PRIu32,
             size_text(manifest_total_bytes(manifest), size), manifest_total_bytes(manifest),
             manifest->rank_count);
    row(out, "size", text);
    route_manifest_id(manifest, text);
    row(out, "manifest", text);
    route_root_text(server, store, text);
    row(out, "digest", text[0] != '\0' ? text : "being made");
}

static void seed_rows(struct buf *out, struct seed *seed)
{
    struct seed_stats stats = {.leases_now = 0};
    char text[TRANSPORT_ADDRESS_BYTES + 64];
    char size[SIZE_TEXT_BYTES];
    uint32_t count = 0;

    seed_stats(seed, &stats);
    snprintf(text, sizeof text, "%" PRIu32 " now, %" PRIu64 " so far", stats.leases_now,
             stats.leases_opened);
    row(out, "readers", text);
    snprintf(text, sizeof text, "%" PRIu64 " of %" PRIu64 " chunks", stats.digest_chunks_known,
             stats.digest_chunks_total);
    row(out, "digests", text);
    const struct endpoint *endpoints = seed_endpoints(seed, &count);
    for (uint32_t i = 0; i < count; i++) {
        snprintf(text, sizeof text, "%s, %s sent", endpoints[i].address,
                 size_text(stats.bytes_sent[i], size));
        row(out, endpoints[i].transport, text);
    }
    const char *refused = seed_refused_transports(seed);
    if (refused[0] != '\0')
        row(out, "not offered", refused);
}

void route_status_page(struct request *request, struct reply *reply)
{
    struct server *server = request->server;
    char reason[SERVER_REASON_BYTES];
    char text[SIZE_TEXT_BYTES];
    enum seed_state state = route_state(server, reason);
    struct store *store = seed_store(server->seed);
    struct buf out = {0};

    buf_printf(&out, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                     "<title>rfork seed</title>\n<style>body{font:16px sans-serif;margin:2em}"
                     "th{text-align:left;padding-right:1.5em;vertical-align:top}"
                     "td{overflow-wrap:anywhere}</style></head>\n"
                     "<body><h1>rfork seed</h1>\n<table>\n");
    row(&out, "state", seed_state_name(state));
    if (reason[0] != '\0')
        row(&out, "reason", reason);
    if (store != NULL)
        model_rows(&out, server, store);
    seed_rows(&out, server->seed);
    row(&out, "up for", size_seconds_text(clock_seconds(server->start_ns, clock_now_ns()), text));
    row(&out, "version", rf_version());
    row(&out, "instance", seed_instance_id(server->seed));
    buf_printf(&out, "</table>\n<p><a href=\"/v1/instance\">instance</a> "
                     "<a href=\"/v1/manifest?format=json\">manifest</a> "
                     "<a href=\"/v1/files\">files</a> "
                     "<a href=\"/metrics\">metrics</a> "
                     "<a href=\"/healthz\">health</a></p>\n</body></html>");
    reply_text(request, reply, MHD_HTTP_OK, "text/html; charset=utf-8", &out);
    /* Names come from model files: nothing in them may become active. */
    reply_header(reply, "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'");
    reply_header(reply, "X-Content-Type-Options", "nosniff");
}
