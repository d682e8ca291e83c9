/* The life of an instance. Its control plane answers from the first moment ("loading"); a thread
 * fills the store; the main thread waits for signals. */
#include "cli/serve.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "control/nodes.h"
#include "control/server.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

enum {
    SERVE_LOOK_MS = 250,    /* between two looks at the seed's state */
    SERVE_CANCEL_MS = 3000, /* for a fork to notice that it was cancelled */
    SERVE_FAILED_MS = 5000, /* for readers to be told why their seed failed */
};

struct instance {
    const struct serve_command *command;
    struct seed *seed;
    struct server *server;
    struct nodes *nodes; /* NULL: nothing is published for TransferEngine */
    struct serve_loaded loaded;
    uint64_t start_ns;
    pthread_t thread;
    int done_fd;       /* readable when the loading thread has ended */
    enum rf_code code; /* of the loading thread; read after it was joined */
    struct rf_error error;
};

/* What SGLang's clients ask, and the other nodes. */
static enum rf_code start_nodes(struct instance *instance, struct rf_error *err)
{
    const struct serve_command *command = instance->command;
    const struct serve_sglang *sglang = &command->sglang;
    bool named = sglang->node_hosts.count > 0;
    const char *first = sglang->dist_init.host;

    if (!sglang->start_seed)
        return RF_OK;
    if (first[0] == '\0' && named)
        first = sglang->node_hosts.hosts[0];
    const struct nodes_options options = {
        .host = command->host,
        .node_count = (uint32_t)sglang->nnodes,
        .node_rank = (uint32_t)sglang->node_rank,
        .tp_size = (uint32_t)command->shard.tp,
        .hosts = sglang->info_port != 0 && named ? &sglang->node_hosts : NULL,
        .info_port = (uint16_t)sglang->info_port,
        .bootstrap_port = (uint16_t)sglang->bootstrap_port,
        .bootstrap_host = first[0] != '\0' ? first : NULL,
    };
    enum rf_code code = nodes_create(&options, instance->seed, &instance->nodes, err);
    return code == RF_OK ? nodes_start(instance->nodes, err) : code;
}

static enum rf_code instance_start(struct instance *instance, struct rf_error *err)
{
    const struct serve_command *command = instance->command;
    static const char *const with_te[] = {"te", NULL};
    const struct seed_options seed_options = {
        .also = command->sglang.start_seed ? with_te : NULL,
        .te_port = (uint16_t)command->te_port,
        .host = command->host,
        .data_port = (uint16_t)command->data_port,
        .socket = command->socket,
        .max_readers = (uint32_t)command->max_readers,
    };
    struct server_options server_options = {
        .host = command->host,
        .port = (uint16_t)command->port,
        .model_path = command->model_path,
    };

    instance->done_fd = eventfd(0, EFD_CLOEXEC);
    if (instance->done_fd < 0)
        return rf_fail_sys(err, "eventfd");
    enum rf_code code = seed_create(&seed_options, &instance->seed, err);
    if (code == RF_OK)
        code = start_nodes(instance, err);
    server_options.nodes = instance->nodes;
    if (code == RF_OK)
        code = server_start(&server_options, instance->seed, &instance->server, err);
    if (code != RF_OK)
        return code;
    instance->start_ns = clock_now_ns();
    output_note("listening on %s, loading", server_url(instance->server));
    return RF_OK;
}

static void instance_end(struct instance *instance)
{
    server_stop(instance->server);
    nodes_destroy(instance->nodes);
    seed_destroy(instance->seed);
    store_destroy(instance->loaded.store);
    if (instance->done_fd >= 0)
        close(instance->done_fd);
}

/* ---- loading ---- */

/* Whoever waits until the first node is ready wants the ranks of all. */
static enum rf_code await_nodes(struct nodes *nodes, uint64_t wait_ms, struct rf_error *err)
{
    struct rf_error missing = {.code = RF_OK};
    enum rf_code code = nodes_await(nodes, 0, &missing);

    if (code == RF_E_TIMEOUT && wait_ms > 0) {
        output_note("waiting up to %.3g s for other nodes: missing are %s", (double)wait_ms / 1000,
                    missing.text);
        code = nodes_await(nodes, wait_ms, &missing);
    }
    if (code == RF_E_TIMEOUT) {
        output_note("warning: ready without other nodes: missing are %s; who asks for these ranks "
                    "is refused until they are there",
                    missing.text);
        code = RF_OK;
    }
    if (code == RF_OK)
        nodes_open(nodes);
    else
        *err = missing;
    return code;
}

static void *load_main(void *arg)
{
    struct instance *instance = arg;
    struct serve_loaded *loaded = &instance->loaded;
    uint64_t one = 1;

    instance->code = serve_load(instance->command, loaded, &instance->error);
    if (instance->code == RF_OK)
        instance->code =
            seed_publish(instance->seed, rf_take(loaded->store, NULL), &instance->error);
    if (instance->code == RF_OK && instance->nodes != NULL)
        instance->code = nodes_publish(instance->nodes, &instance->error);
    if (instance->code == RF_OK && instance->nodes != NULL)
        instance->code =
            await_nodes(instance->nodes, instance->command->sglang.wait_nodes_ms, &instance->error);
    (void)!write(instance->done_fd, &one, sizeof(one));
    return NULL;
}

/* A signal came before the loader was done. A fork notices it and ends in order. Reads of files
 * do not, and hold nothing that the kernel would not take back: then the process ends with that
 * thread still in it. */
static void wait_cancelled(struct instance *instance)
{
    struct pollfd done = {.fd = instance->done_fd, .events = POLLIN};
    bool notices = atomic_load_explicit(&instance->loaded.notices_cancel, memory_order_acquire);

    if (poll(&done, 1, notices ? SERVE_CANCEL_MS : 0) > 0)
        return;
    progress_end();
    output_note("interrupted while loading");
    server_stop(instance->server);
    _exit(RF_E_CANCELLED);
}

static enum rf_code instance_load(struct instance *instance, struct rf_error *err)
{
    enum rf_code code = thread_start(&instance->thread, "rf-load", load_main, instance, err);

    if (code != RF_OK)
        return code;
    if (signals_wait(instance->done_fd, -1))
        wait_cancelled(instance);
    pthread_join(instance->thread, NULL);
    if (instance->code != RF_OK) {
        *err = instance->error;
        seed_fail(instance->seed, instance->code, instance->error.text);
        return instance->code;
    }
    return RF_OK;
}

/* ---- ready ---- */

static void list_transports(struct instance *instance, char *out, size_t room)
{
    uint32_t count;
    const struct endpoint *endpoints = seed_endpoints(instance->seed, &count);
    size_t used = 0;

    out[0] = '\0';
    for (uint32_t i = 0; i < count && used < room; i++)
        used += (size_t)snprintf(out + used, room - used, "%s%s", i > 0 ? "," : "",
                                 endpoints[i].transport);
}

/* "map (copy)" as one word of the line: "map-copy". */
static void one_word(const char *transport, char *out, size_t room)
{
    const char *space = strchr(transport, ' ');

    snprintf(out, room, "%.*s%s",
             (int)(space != NULL ? space - transport : (ptrdiff_t)strlen(transport)), transport,
             space != NULL ? "-copy" : "");
}

static void json_ranks(const struct manifest *manifest, struct jsonout *out)
{
    char name[64];

    jsonout_open(out, "ranks", '[');
    for (uint32_t i = 0; i < manifest->rank_count; i++)
        jsonout_text(out, NULL, rank_id_text(&manifest->ranks[i].id, name));
    jsonout_close(out, ']');
    jsonout_text(out, "layout", manifest->layout);
}

/* What a checkpoint cost; of a fork nothing is known but that it holds its bytes. */
static void parts_text(const struct serve_loaded *loaded, char *out, size_t room)
{
    out[0] = '\0';
    if (loaded->from_files)
        snprintf(out, room, " viewed=%" PRIu64 " made=%" PRIu64, loaded->viewed_bytes,
                 loaded->made_bytes);
}

static enum rf_code say_ready(struct instance *instance, struct rf_error *err)
{
    const struct manifest *manifest = seed_store(instance->seed)->manifest;
    const struct serve_loaded *loaded = &instance->loaded;
    double seconds = clock_seconds(instance->start_ns, clock_now_ns());
    struct jsonout out = {.comma = false};
    char transports[256];
    char word[sizeof(loaded->transport) + 8];
    char ranks[128];
    char parts[64];
    uint64_t tensors = 0;

    for (uint32_t i = 0; i < manifest->rank_count; i++)
        tensors += manifest->ranks[i].tensor_count;
    list_transports(instance, transports, sizeof(transports));
    if (!instance->command->json) {
        one_word(loaded->transport[0] != '\0' ? loaded->transport : "none", word, sizeof(word));
        parts_text(loaded, parts, sizeof(parts));
        output_line("rfork: ready url=%s bytes=%" PRIu64 " tensors=%" PRIu64
                    " ranks=%s layout=%.64s%s seconds=%.3f source=%s transport=%s transports=%s",
                    server_url(instance->server), manifest_total_bytes(manifest), tensors,
                    shards_ranks_text(manifest, ranks, sizeof(ranks)), manifest->layout, parts,
                    seconds, loaded->source, word, transports);
        return RF_OK;
    }
    jsonout_open(&out, NULL, '{');
    jsonout_text(&out, "state", "ready");
    jsonout_text(&out, "url", server_url(instance->server));
    jsonout_text(&out, "model", manifest->model);
    jsonout_u64(&out, "bytes", manifest_total_bytes(manifest));
    jsonout_u64(&out, "tensors", tensors);
    json_ranks(manifest, &out);
    if (loaded->from_files) {
        jsonout_u64(&out, "viewed_bytes", loaded->viewed_bytes);
        jsonout_u64(&out, "made_bytes", loaded->made_bytes);
    }
    jsonout_double(&out, "seconds", seconds);
    jsonout_text(&out, "source", loaded->source);
    jsonout_text_or_null(&out, "transport", loaded->transport);
    jsonout_text_or_null(&out, "reason", loaded->reason);
    jsonout_bool(&out, "verified", loaded->verified);
    jsonout_text(&out, "transports", transports);
    jsonout_text(&out, "transports_refused", seed_refused_transports(instance->seed));
    jsonout_text(&out, "instance_id", seed_instance_id(instance->seed));
    jsonout_u64(&out, "pid", (uint64_t)getpid());
    jsonout_close(&out, '}');
    return jsonout_print(&out, err);
}

/* ---- serving, and the end of it ---- */

/* Until a signal comes (RF_OK) or the seed fails. */
static enum rf_code instance_wait(struct instance *instance, struct rf_error *err)
{
    char reason[RF_ERROR_TEXT_BYTES];

    while (!signals_wait(-1, SERVE_LOOK_MS)) {
        if (seed_state(instance->seed, reason) == SEED_FAILED)
            return rf_fail(err, RF_E_CHANGED, "stopped serving: %.400s", reason);
    }
    return RF_OK;
}

static void instance_drain(struct instance *instance, uint64_t timeout_ms)
{
    struct seed_stats stats;

    seed_stats(instance->seed, &stats);
    log_info("draining", "leases=%" PRIu32 " connections=%" PRIu32 " timeout_ms=%" PRIu64,
             stats.leases_now, stats.connections_now, timeout_ms);
    uint32_t cut = seed_drain(instance->seed, timeout_ms);
    if (cut > 0)
        output_note("%" PRIu32 " read%s cut off when the time to drain was over", cut,
                    cut == 1 ? " was" : "s were");
}

int serve_run(const struct serve_command *command)
{
    struct instance instance = {.command = command, .done_fd = -1};
    struct rf_error error;
    enum rf_code code = instance_start(&instance, &error);

    if (code == RF_OK)
        code = instance_load(&instance, &error);
    if (code == RF_OK)
        code = say_ready(&instance, &error);
    if (code == RF_OK && output_check(&error) != RF_OK)
        code = rf_error_wrap(&error, error.code, "the ready line could not be written");
    if (code == RF_OK) {
        code = instance_wait(&instance, &error);
        /* After a failure nothing is served, but readers are told why before their connection
         * ends. */
        instance_drain(&instance, code == RF_OK || command->drain_timeout_ms < SERVE_FAILED_MS
                                      ? command->drain_timeout_ms
                                      : SERVE_FAILED_MS);
    }
    int exit_code = code != RF_OK ? output_error(&error) : RF_OK;
    instance_end(&instance);
    return exit_code;
}
