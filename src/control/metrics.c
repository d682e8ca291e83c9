/* GET /metrics: Prometheus text format 0.0.4
 * (https://prometheus.io/docs/instrumenting/exposition_formats/). */
#include "base/cleanup.h"
#include "base/clock.h"
#include "control/internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void head(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP rfork_%s %s\n# TYPE rfork_%s %s\n", name, help, name, type);
}

static void counter(struct buf *out, const char *name, const char *help, uint64_t value)
{
    head(out, name, "counter", help);
    buf_printf(out, "rfork_%s %" PRIu64 "\n", name, value);
}

static void gauge(struct buf *out, const char *name, const char *help, uint64_t value)
{
    head(out, name, "gauge", help);
    buf_printf(out, "rfork_%s %" PRIu64 "\n", name, value);
}

/* A label's value: backslash, quote and newline are escaped. */
static void label(struct buf *out, const char *text)
{
    buf_append(out, "\"", 1);
    for (; *text != '\0'; text++) {
        if (*text == '\n')
            buf_append(out, "\\n", 2);
        else if (*text == '\\' || *text == '"')
            buf_append(out, (const char[2]){'\\', *text}, 2);
        else
            buf_append(out, text, 1);
    }
    buf_append(out, "\"", 1);
}

static void put_state(struct buf *out, struct server *server)
{
    char reason[SERVER_REASON_BYTES];
    enum seed_state now = route_state(server, reason);

    head(out, "state", "gauge", "1 for the state the seed is in.");
    for (enum seed_state state = SEED_LOADING; state <= SEED_FAILED; state++)
        buf_printf(out, "rfork_state{state=\"%s\"} %d\n", seed_state_name(state), state == now);
}

static void put_model(struct buf *out, struct seed *seed)
{
    const struct store *store = seed_store(seed);
    const struct manifest *manifest = store != NULL ? store->manifest : NULL;

    gauge(out, "model_bytes", "Bytes of all ranks that are served.",
          manifest != NULL ? manifest_total_bytes(manifest) : 0);
    gauge(out, "model_ranks", "Ranks that are served.",
          manifest != NULL ? manifest->rank_count : 0);
    if (manifest == NULL)
        return;
    head(out, "model_info", "gauge", "What is served.");
    buf_printf(out, "rfork_model_info{model=");
    label(out, manifest->model);
    buf_printf(out, ",architecture=");
    label(out, manifest->architecture);
    buf_printf(out, "} 1\n");
}

static void put_seed(struct buf *out, struct seed *seed)
{
    struct seed_stats stats = {.leases_now = 0};
    uint32_t count = 0;

    seed_stats(seed, &stats);
    const struct endpoint *endpoints = seed_endpoints(seed, &count);
    counter(out, "leases_opened_total", "Leases opened.", stats.leases_opened);
    counter(out, "leases_refused_total", "Leases refused for too many readers.",
            stats.leases_refused);
    counter(out, "leases_expired_total", "Leases ended because nobody renewed them.",
            stats.leases_expired);
    gauge(out, "leases", "Leases open now.", stats.leases_now);
    gauge(out, "connections", "Data connections open now.", stats.connections_now);
    counter(out, "denied_tokens_total", "Requests with a token of no open lease.",
            stats.denied_tokens);
    gauge(out, "digest_chunks_known", "Chunks whose digest is known.", stats.digest_chunks_known);
    gauge(out, "digest_chunks", "Chunks of all ranks.", stats.digest_chunks_total);
    head(out, "sent_bytes_total", "counter", "Bytes of streams sent or mapped, by transport.");
    for (uint32_t i = 0; i < count; i++) {
        buf_printf(out, "rfork_sent_bytes_total{transport=");
        label(out, endpoints[i].transport);
        buf_printf(out, "} %" PRIu64 "\n", stats.bytes_sent[i]);
    }
}

static void put_http(struct buf *out, struct server *server)
{
    struct conns_stats stats;

    conns_stats(server->conns, &stats);
    head(out, "http_requests_total", "counter", "Requests answered, by status.");
    for (unsigned i = 0; i < SERVER_MAX_STATUS; i++) {
        uint64_t count = atomic_load_explicit(&server->by_status[i], memory_order_relaxed);
        if (count > 0)
            buf_printf(out, "rfork_http_requests_total{status=\"%u\"} %" PRIu64 "\n", i, count);
    }
    counter(out, "http_body_bytes_total", "Bytes of files, tensors and ranks sent over HTTP.",
            atomic_load_explicit(&server->body_bytes, memory_order_relaxed));
    head(out, "http_connections", "gauge", "HTTP connections open now, by what they do.");
    buf_printf(out,
               "rfork_http_connections{doing=\"idle\"} %" PRIu32
               "\nrfork_http_connections{doing=\"waiting_for_news\"} %" PRIu32
               "\nrfork_http_connections{doing=\"answering\"} %" PRIu32 "\n",
               stats.waiting_for_request, stats.polling, stats.answering);
    counter(out, "http_connections_accepted_total", "HTTP connections accepted.", stats.accepted);
    counter(
        out, "http_connections_timed_out_total",
        "HTTP connections closed because a request did not become complete in time, or none came.",
        stats.timed_out);
    counter(out, "http_connections_evicted_total",
            "HTTP connections ended to make room for others.", stats.evicted);
}

/* Resident memory; nothing where /proc is missing. */
static void put_process(struct buf *out)
{
    rf_autoclose int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    char text[128] = "";
    uint64_t pages = 0;

    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return;
    const char *second = strchr(text, ' ');
    if (second == NULL ||
        !target_digits(second + 1, strcspn(second + 1, " \n"), UINT64_MAX, &pages))
        return;
    buf_printf(out,
               "# HELP process_resident_memory_bytes Resident memory of the process.\n"
               "# TYPE process_resident_memory_bytes gauge\n"
               "process_resident_memory_bytes %" PRIu64 "\n",
               pages * (uint64_t)sysconf(_SC_PAGESIZE));
}

void route_metrics(struct request *request, struct reply *reply)
{
    struct server *server = request->server;
    struct buf out = {0};

    head(&out, "build_info", "gauge", "The version that runs.");
    buf_printf(&out, "rfork_build_info{version=\"%s\"} 1\n", rf_version());
    head(&out, "uptime_seconds", "gauge", "Seconds since the HTTP server started.");
    buf_printf(&out, "rfork_uptime_seconds %.3f\n",
               clock_seconds(server->start_ns, clock_now_ns()));
    put_state(&out, server);
    put_model(&out, server->seed);
    put_seed(&out, server->seed);
    put_http(&out, server);
    put_process(&out);
    if (out.bytes > 0)
        out.bytes--; /* reply_text() adds the last newline */
    reply_text(request, reply, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", &out);
}
