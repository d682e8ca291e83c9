/* The life of a seed: create, publish, watch, drain, destroy. */
#include "seed/seed.h"

#include "base/log.h"
#include "base/rand.h"
#include "seed/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SEED_DEFAULT_MAX_READERS = 256,
    /* Places of readers that never came are free again after it; a fork that takes longer before
     * it connects renews its lease. */
    SEED_DEFAULT_LEASE_TTL_MS = 20000,
    SEED_WATCH_MS = 250, /* between two looks at files and leases */
    SEED_DRAIN_IN_FLIGHT_MS =
        1000, /* for reads in flight once the deadline for whole forks has passed */
};

const char *seed_state_name(enum seed_state state)
{
    static const char *const names[] = {"loading", "ready", "draining", "failed"};

    return (unsigned)state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

/* "[::1]", as in a URL, is "::1" to a socket. */
static char *copy_host(const char *host)
{
    size_t bytes = strlen(host);

    if (bytes > 2 && host[0] == '[' && host[bytes - 1] == ']')
        return strndup(host + 1, bytes - 2);
    return strdup(host);
}

enum rf_code seed_create(const struct seed_options *options, struct seed **ret_seed,
                         struct rf_error *err)
{
    struct seed *seed = calloc(1, sizeof(*seed));
    uint8_t id[16];

    if (seed == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a seed");
    mutex_init(&seed->lock);
    cond_init(&seed->changed);
    atomic_init(&seed->state, SEED_LOADING);
    atomic_init(&seed->stopping, false);
    seed->options = *options;
    if (seed->options.max_readers == 0)
        seed->options.max_readers = SEED_DEFAULT_MAX_READERS;
    if (seed->options.lease_ttl_ms == 0)
        seed->options.lease_ttl_ms = SEED_DEFAULT_LEASE_TTL_MS;
    seed->host = copy_host(options->host != NULL ? options->host : "127.0.0.1");
    seed->socket = options->socket != NULL ? strdup(options->socket) : NULL;
    enum rf_code code = rand_bytes(id, sizeof(id), err);
    if (code == RF_OK && (seed->host == NULL || (options->socket != NULL && seed->socket == NULL)))
        code = rf_fail(err, RF_E_NOMEM, "no memory for a seed");
    if (code != RF_OK) {
        seed_destroy(seed);
        return code;
    }
    for (unsigned i = 0; i < sizeof(id); i++)
        snprintf(seed->instance_id + (size_t)2 * i, 3, "%02x", id[i]);
    *ret_seed = seed;
    return RF_OK;
}

static void seed_set_state(struct seed *seed, enum seed_state state)
{
    mutex_lock(&seed->lock);
    if (atomic_load_explicit(&seed->state, memory_order_acquire) != SEED_FAILED)
        atomic_store_explicit(&seed->state, (int)state, memory_order_release);
    cond_broadcast(&seed->changed);
    mutex_unlock(&seed->lock);
}

void seed_fail(struct seed *seed, enum rf_code code, const char *reason)
{
    mutex_lock(&seed->lock);
    int before = atomic_load_explicit(&seed->state, memory_order_acquire);
    bool first = before != SEED_FAILED;
    if (first) {
        seed->fail_code = code;
        snprintf(seed->fail_reason, sizeof(seed->fail_reason), "%s", reason);
        atomic_store_explicit(&seed->state, SEED_FAILED, memory_order_release);
    }
    cond_broadcast(&seed->changed);
    mutex_unlock(&seed->lock);
    /* Before it has served anything, whoever loads is told, and says so. */
    if (first && before == SEED_LOADING)
        log_info("seed failed to load", "code=%s reason=\"%s\"", rf_code_name(code), reason);
    else if (first)
        log_error("seed stopped serving", "code=%s reason=\"%s\"", rf_code_name(code), reason);
}

enum seed_state seed_state(struct seed *seed, char *ret_reason)
{
    enum seed_state state =
        (enum seed_state)atomic_load_explicit(&seed->state, memory_order_acquire);

    if (ret_reason != NULL) {
        mutex_lock(&seed->lock);
        snprintf(ret_reason, RF_ERROR_TEXT_BYTES, "%s", seed->fail_reason);
        mutex_unlock(&seed->lock);
    }
    return state;
}

enum rf_code seed_serving(struct seed *seed, struct rf_error *err)
{
    enum seed_state state =
        (enum seed_state)atomic_load_explicit(&seed->state, memory_order_acquire);

    if (state == SEED_READY || state == SEED_DRAINING)
        return RF_OK;
    if (state == SEED_LOADING)
        return rf_fail(err, RF_E_UNREACHABLE, "this seed is still loading: try again");
    mutex_lock(&seed->lock);
    enum rf_code code =
        rf_fail(err, seed->fail_code, "this seed has stopped serving: %s", seed->fail_reason);
    mutex_unlock(&seed->lock);
    return code;
}

struct store *seed_store(struct seed *seed)
{
    enum seed_state state =
        (enum seed_state)atomic_load_explicit(&seed->state, memory_order_acquire);

    return state == SEED_LOADING ? NULL : seed->store;
}

const struct endpoint *seed_endpoints(struct seed *seed, uint32_t *ret_count)
{
    *ret_count = seed_store(seed) != NULL ? seed->transport_count : 0;
    return seed->endpoints;
}

const char *seed_refused_transports(struct seed *seed)
{
    return seed_store(seed) != NULL ? seed->refused : "";
}

uint64_t seed_rank_base(struct seed *seed, const char *transport, uint32_t rank)
{
    uint32_t count;
    const struct endpoint *endpoints = seed_endpoints(seed, &count);

    for (uint32_t i = 0; i < count; i++) {
        const struct seed_transport *slot = &seed->transports[i];

        if (strcmp(endpoints[i].transport, transport) == 0)
            return slot->transport->seed_base == NULL
                       ? 0
                       : slot->transport->seed_base(slot->half, rank);
    }
    return 0;
}

const char *seed_instance_id(struct seed *seed)
{
    return seed->instance_id;
}

/* ---- threads ---- */

static void *digest_main(void *arg)
{
    struct seed *seed = arg;
    unsigned threads = seed->options.digest_threads;
    struct rf_error error = {.code = RF_OK};
    uint64_t start_ns = clock_now_ns();

    if (threads == 0)
        threads = thread_cpus() > 1 ? thread_cpus() / 2 : 1;
    enum rf_code code = store_digest(seed->store, threads, &seed->stopping, &error);
    /* What was read from files is only known to be one version if they are still that version. */
    if (code == RF_OK)
        code = store_check(seed->store, &error);
    mutex_lock(&seed->lock);
    seed->digests_done = true;
    seed->digests_error = error;
    seed->digests_error.code = code;
    cond_broadcast(&seed->changed);
    mutex_unlock(&seed->lock);
    if (code == RF_OK)
        log_info("digests made", "seconds=%.3f", clock_seconds(start_ns, clock_now_ns()));
    else if (code != RF_E_CANCELLED)
        seed_fail(seed, code, error.text);
    return NULL;
}

static void *watch_main(void *arg)
{
    struct seed *seed = arg;

    while (!atomic_load_explicit(&seed->stopping, memory_order_acquire)) {
        struct rf_error error;

        if (seed_state(seed, NULL) != SEED_FAILED && store_check(seed->store, &error) != RF_OK)
            seed_fail(seed, error.code, error.text);
        seed_leases_sweep(seed, false);
        uint64_t next_ns = clock_deadline_ns(SEED_WATCH_MS);
        mutex_lock(&seed->lock);
        while (!atomic_load_explicit(&seed->stopping, memory_order_acquire) &&
               cond_wait_until(&seed->changed, &seed->lock, next_ns)) {
        }
        mutex_unlock(&seed->lock);
    }
    return NULL;
}

/* ---- publishing ---- */

static bool is_named(const char *const *names, const char *name)
{
    for (; names != NULL && *names != NULL; names++) {
        if (strcmp(*names, name) == 0)
            return true;
    }
    return false;
}

static bool transport_wanted(const struct seed *seed, const struct transport *transport)
{
    const struct seed_options *options = &seed->options;

    if (is_named(options->also, transport->name))
        return true;
    return options->transports == NULL ? !transport->on_request
                                       : is_named(options->transports, transport->name);
}

static void note_refused(struct seed *seed, const char *name, const char *why)
{
    size_t used = strlen(seed->refused);

    snprintf(seed->refused + used, sizeof(seed->refused) - used, "%s%s: %s", used > 0 ? "; " : "",
             name, why);
}

/* The fixed port of a transport that was asked for by name, or of the others. */
static uint16_t seed_port_for(const struct seed *seed, const struct transport *transport)
{
    return transport->on_request ? seed->options.te_port : seed->options.data_port;
}

/* A transport that cannot serve this model is left out; one that was given a port or a path and
 * cannot have it is an error, as a taken HTTP port is. */
static enum rf_code start_transport(struct seed *seed, const struct transport *transport,
                                    struct rf_error *err)
{
    struct seed_transport *slot = &seed->transports[seed->transport_count];
    struct transport_verdict verdict = {.usable = false};
    struct transport_seed_options options = {
        .host = seed->host,
        .port = seed_port_for(seed, transport),
        .socket = seed->socket,
        /* A reader may open several connections, and dead ones linger until they time out. Those that
         * come without a token are not counted as readers: that transport knows how many it takes. */
        .max_connections = transport->on_request ? 0 : seed->options.max_readers * 16,
    };
    struct rf_error error;

    transport->available(&verdict);
    if (!verdict.usable) {
        note_refused(seed, transport->name, verdict.reason);
        return RF_OK;
    }
    slot->seed = seed;
    slot->transport = transport;
    atomic_init(&slot->bytes_sent, 0);
    seed_exporter_init(slot);
    enum rf_code code = transport->seed_start(&slot->exporter, &options, &slot->half,
                                              &seed->endpoints[seed->transport_count], &error);
    if (code == RF_OK) {
        seed->transport_count++;
        return RF_OK;
    }
    note_refused(seed, transport->name, error.text);
    bool asked_for = is_named(seed->options.also, transport->name);
    if (code == RF_E_UNSUPPORTED && !asked_for)
        return RF_OK;
    if (seed->options.data_port != 0 || seed->socket != NULL || asked_for)
        return rf_fail(err, code, "%s: %s", transport->name, error.text);
    log_warn("transport not offered", "transport=%s why=\"%s\"", transport->name, error.text);
    return RF_OK;
}

static enum rf_code start_transports(struct seed *seed, struct rf_error *err)
{
    uint32_t count;
    const struct transport *const *list = transport_list(&count);

    for (uint32_t i = 0; i < count && seed->transport_count < TRANSPORT_MAX_ENDPOINTS; i++) {
        enum rf_code code = RF_OK;

        if (transport_wanted(seed, list[i]))
            code = start_transport(seed, list[i], err);
        if (code != RF_OK)
            return code;
    }
    if (seed->transport_count == 0)
        return rf_fail(err, RF_E_UNSUPPORTED, "no transport can serve this model: %s",
                       seed->refused[0] != '\0' ? seed->refused : "none of those asked for exists");
    return RF_OK;
}

enum rf_code seed_publish(struct seed *seed, struct store *store, struct rf_error *err)
{
    enum rf_code code;

    if (seed->store != NULL || seed_state(seed, NULL) != SEED_LOADING) {
        store_destroy(store);
        return rf_fail(err, RF_E_INVAL, "this seed has been published already");
    }
    seed->store = store;
    seed->tensor_jobs = calloc(store->manifest->rank_count, sizeof(*seed->tensor_jobs));
    if (seed->tensor_jobs == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a seed of %" PRIu32 " ranks",
                       store->manifest->rank_count);
    code = start_transports(seed, err);
    if (code != RF_OK)
        return code;
    code = thread_start(&seed->watch_thread, "rf-watch", watch_main, seed, err);
    if (code != RF_OK)
        return code;
    seed->watch_started = true;
    code = thread_start(&seed->digest_thread, "rf-digest", digest_main, seed, err);
    if (code != RF_OK)
        return code;
    seed->digest_started = true;
    seed_set_state(seed, SEED_READY);
    return RF_OK;
}

enum rf_code seed_wait_digests(struct seed *seed, uint64_t deadline_ns, struct rf_error *err)
{
    enum rf_code code;

    mutex_lock(&seed->lock);
    while (!seed->digests_done && cond_wait_until(&seed->changed, &seed->lock, deadline_ns)) {
    }
    if (!seed->digests_done) {
        code = rf_fail(err, RF_E_TIMEOUT, "the digests are not complete yet");
    } else {
        code = seed->digests_error.code;
        if (code != RF_OK)
            rf_fail(err, code, "%s", seed->digests_error.text);
    }
    mutex_unlock(&seed->lock);
    return code;
}

/* ---- ending ---- */

uint32_t seed_drain(struct seed *seed, uint64_t timeout_ms)
{
    uint64_t deadline_ns = clock_deadline_ns(timeout_ms);
    uint32_t cut = 0;

    if (seed_state(seed, NULL) == SEED_LOADING)
        return 0;
    seed_set_state(seed, SEED_DRAINING);
    /* Forks that are under way may end: only what needs the seed is waited for, not those that
     * mapped. */
    mutex_lock(&seed->lock);
    while (seed->reading > 0 && cond_wait_until(&seed->changed, &seed->lock, deadline_ns)) {
    }
    mutex_unlock(&seed->lock);
    deadline_ns = clock_deadline_ns(SEED_DRAIN_IN_FLIGHT_MS);
    for (uint32_t i = 0; i < seed->transport_count; i++) {
        struct seed_transport *slot = &seed->transports[i];

        cut += slot->transport->seed_drain(slot->half, deadline_ns);
    }
    return cut;
}

void seed_destroy(struct seed *seed)
{
    if (seed == NULL)
        return;
    mutex_lock(&seed->lock);
    atomic_store_explicit(&seed->stopping, true, memory_order_release);
    cond_broadcast(&seed->changed);
    mutex_unlock(&seed->lock);
    for (uint32_t i = 0; i < seed->transport_count; i++)
        seed->transports[i].transport->seed_stop(seed->transports[i].half);
    if (seed->digest_started)
        pthread_join(seed->digest_thread, NULL);
    if (seed->watch_started)
        pthread_join(seed->watch_thread, NULL);
    if (seed->tensor_jobs != NULL) {
        for (uint32_t i = 0; i < seed->store->manifest->rank_count; i++) {
            if (seed->tensor_jobs[i].table == NULL)
                continue;
            pthread_join(seed->tensor_jobs[i].thread, NULL);
            digest_table_destroy(seed->tensor_jobs[i].table);
        }
    }
    seed_leases_sweep(seed, true);
    store_destroy(seed->store);
    free(seed->tensor_jobs);
    free(seed->host);
    free(seed->socket);
    cond_destroy(&seed->changed);
    mutex_destroy(&seed->lock);
    free(seed);
}

/* ---- tensor digests ---- */

static enum rf_code tensor_digest_item(void *ctx, uint64_t item, struct rf_error *err)
{
    struct seed_tensor_job *job = ctx;
    uint8_t digest[HASH_MAX_BYTES];

    if (atomic_load_explicit(&job->seed->stopping, memory_order_acquire))
        return rf_fail(err, RF_E_CANCELLED, "the seed is stopping");
    enum rf_code code =
        store_tensor_digest(job->seed->store, job->rank, (uint32_t)item, digest, err);
    if (code == RF_OK)
        digest_table_set(job->table, item, digest);
    return code;
}

static void *tensor_job_main(void *arg)
{
    struct seed_tensor_job *job = arg;
    struct seed *seed = job->seed;
    const struct manifest_rank *rank = &seed->store->manifest->ranks[job->rank];
    struct rf_error error = {.code = RF_OK};
    unsigned threads = thread_cpus() > 1 ? thread_cpus() / 2 : 1;

    if (thread_parallel(threads, rank->tensor_count, tensor_digest_item, job, &error) != RF_OK) {
        mutex_lock(&seed->lock);
        job->error = error;
        mutex_unlock(&seed->lock);
    }
    return NULL;
}

enum rf_code seed_tensor_digests(struct seed *seed, uint32_t rank, uint64_t deadline_ns,
                                 struct digest_table **ret_table, struct rf_error *err)
{
    struct store *store = seed_store(seed);
    enum rf_code code = seed_serving(seed, err);

    if (code != RF_OK)
        return code;
    if (rank >= store->manifest->rank_count)
        return rf_fail(err, RF_E_INVAL, "rank %" PRIu32 ": there are %" PRIu32, rank,
                       store->manifest->rank_count);
    struct seed_tensor_job *job = &seed->tensor_jobs[rank];
    mutex_lock(&seed->lock);
    if (job->table == NULL) {
        uint64_t count = store->manifest->ranks[rank].tensor_count;
        struct digest_table *table = digest_table_create(store->manifest->algorithm, count);

        *job = (struct seed_tensor_job){.seed = seed, .rank = rank, .table = table};
        code = table == NULL ? rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " digests", count)
                             : thread_start(&job->thread, "rf-tdigest", tensor_job_main, job, err);
        if (code != RF_OK) {
            digest_table_destroy(table);
            job->table = NULL;
        }
    }
    if (code == RF_OK && job->error.code != RF_OK)
        code = rf_fail(err, job->error.code, "%s", job->error.text);
    struct digest_table *table = job->table;
    mutex_unlock(&seed->lock);
    if (code != RF_OK)
        return code;
    uint64_t known = digest_table_known(table);
    while (known < digest_table_count(table)) {
        uint64_t now = digest_table_wait(table, known, deadline_ns);

        if (now == known)
            break;
        known = now;
    }
    *ret_table = table;
    return RF_OK;
}

void seed_stats(struct seed *seed, struct seed_stats *ret_stats)
{
    struct seed_stats stats = {.leases_now = 0};
    struct store *store = seed_store(seed);

    mutex_lock(&seed->lock);
    stats.leases_opened = seed->leases_opened;
    stats.leases_refused = seed->leases_refused;
    stats.leases_expired = seed->leases_expired;
    stats.leases_now = seed->lease_count;
    stats.connections_now = seed->connections;
    stats.denied_tokens = seed->denied_tokens;
    mutex_unlock(&seed->lock);
    for (uint32_t i = 0; store != NULL && i < seed->transport_count; i++) {
        stats.bytes_sent[i] =
            atomic_load_explicit(&seed->transports[i].bytes_sent, memory_order_relaxed);
    }
    for (uint32_t i = 0; store != NULL && i < store->manifest->rank_count; i++) {
        stats.digest_chunks_known += digest_table_known(store->ranks[i].digests);
        stats.digest_chunks_total += digest_table_count(store->ranks[i].digests);
    }
    *ret_stats = stats;
}
