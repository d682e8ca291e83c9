/* Leases: who may read, and since when nobody has heard of them. */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/rand.h"
#include "seed/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEED_LEASE_GONE_MS = 10000 };

static struct seed_lease **lease_find_locked(struct seed *seed, const uint8_t *token)
    RF_REQUIRES(seed->lock)
{
    struct seed_lease **found = NULL;

    /* All are compared, so that the time taken says nothing about which one matched. */
    for (struct seed_lease **at = &seed->leases; *at != NULL; at = &(*at)->next) {
        if (rand_token_equal((*at)->token, token, CHUNK_TOKEN_BYTES))
            found = at;
    }
    return found;
}

static enum rf_code lease_unknown_locked(struct seed *seed, struct rf_error *err)
    RF_REQUIRES(seed->lock)
{
    seed->denied_tokens++;
    return rf_fail(err, RF_E_DENIED,
                   "the token belongs to no open lease: it expired, was closed, or is another "
                   "seed's; open a new lease");
}

/* Takes a lease out of the list; frees it unless connections still hold it. */
static void lease_end_locked(struct seed *seed, struct seed_lease **at) RF_REQUIRES(seed->lock)
{
    struct seed_lease *lease = *at;

    *at = lease->next;
    lease->next = NULL;
    seed->lease_count--;
    atomic_store_explicit(&lease->closed, true, memory_order_release);
    if (lease->connections == 0)
        free(lease);
    cond_broadcast(&seed->changed);
}

void seed_leases_sweep(struct seed *seed, bool all)
{
    uint64_t now = clock_now_ns();

    mutex_lock(&seed->lock);
    for (struct seed_lease **at = &seed->leases; *at != NULL;) {
        struct seed_lease *lease = *at;

        if (!all && (lease->connections > 0 || now < lease->expires_ns)) {
            at = &lease->next;
            continue;
        }
        if (!all) {
            seed->leases_expired++;
            log_info("lease expired", "client=\"%s\"", lease->client);
        }
        lease_end_locked(seed, at);
    }
    mutex_unlock(&seed->lock);
}

enum rf_code seed_lease_open(struct seed *seed, const char *client,
                             uint8_t ret_token[CHUNK_TOKEN_BYTES], uint64_t *ret_ttl_ms,
                             struct rf_error *err)
{
    char reason[RF_ERROR_TEXT_BYTES];
    enum seed_state state = seed_state(seed, reason);
    uint64_t ttl_ms = seed->options.lease_ttl_ms;

    if (state == SEED_FAILED)
        return rf_fail(err, RF_E_CHANGED, "this seed has stopped serving: %s", reason);
    if (state != SEED_READY)
        return rf_fail(err, RF_E_UNREACHABLE, "this seed is %s: try again, or ask another",
                       seed_state_name(state));

    rf_autofree struct seed_lease *lease = calloc(1, sizeof(*lease));
    if (lease == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a lease");
    enum rf_code code = rand_bytes(lease->token, sizeof(lease->token), err);
    if (code != RF_OK)
        return code;
    snprintf(lease->client, sizeof(lease->client), "%s", client != NULL ? client : "");
    rf_text_sanitise(lease->client);
    lease->expires_ns = clock_deadline_ns(ttl_ms);
    atomic_init(&lease->closed, false);

    mutex_lock(&seed->lock);
    if (seed->lease_count >= seed->options.max_readers) {
        seed->leases_refused++;
        code = rf_fail(err, RF_E_NOMEM,
                       "this seed has %" PRIu32 " readers, its limit: try again in a second, or "
                       "raise its --max-readers",
                       seed->lease_count);
    } else {
        memcpy(ret_token, lease->token, CHUNK_TOKEN_BYTES);
        *ret_ttl_ms = ttl_ms;
        lease->next = seed->leases;
        seed->leases = lease;
        lease = NULL;
        seed->lease_count++;
        seed->leases_opened++;
    }
    mutex_unlock(&seed->lock);
    return code;
}

enum rf_code seed_lease_renew(struct seed *seed, const uint8_t token[CHUNK_TOKEN_BYTES],
                              struct rf_error *err)
{
    enum rf_code code = RF_OK;

    mutex_lock(&seed->lock);
    struct seed_lease **at = lease_find_locked(seed, token);
    if (at == NULL)
        code = lease_unknown_locked(seed, err);
    else
        (*at)->expires_ns = clock_deadline_ns(seed->options.lease_ttl_ms);
    mutex_unlock(&seed->lock);
    return code;
}

enum rf_code seed_lease_close(struct seed *seed, const uint8_t token[CHUNK_TOKEN_BYTES],
                              struct rf_error *err)
{
    enum rf_code code = RF_OK;

    mutex_lock(&seed->lock);
    struct seed_lease **at = lease_find_locked(seed, token);
    if (at == NULL)
        code = lease_unknown_locked(seed, err);
    else
        lease_end_locked(seed, at);
    mutex_unlock(&seed->lock);
    return code;
}

/* ---- what transports ask ---- */

static bool transport_needs_seed(const struct seed_transport *transport)
{
    return transport->transport->map == NULL;
}

static enum rf_code export_lease_acquire(void *ctx, const uint8_t token[CHUNK_TOKEN_BYTES],
                                         const char *transport_name, void **ret_lease,
                                         struct rf_error *err)
{
    struct seed_transport *transport = ctx;
    struct seed *seed = transport->seed;
    enum rf_code code = seed_serving(seed, err);

    if (code != RF_OK)
        return code;
    mutex_lock(&seed->lock);
    struct seed_lease **at = lease_find_locked(seed, token);
    if (at == NULL) {
        code = lease_unknown_locked(seed, err);
    } else {
        (*at)->connections++;
        seed->connections++;
        if (transport_needs_seed(transport)) {
            (*at)->reading++;
            seed->reading++;
        }
        *ret_lease = *at;
    }
    mutex_unlock(&seed->lock);
    log_debug("reader connected", "transport=%s ok=%d", transport_name, code == RF_OK);
    return code;
}

/* Counts as a connection, and in a drain as a reader, but not against max_readers: whoever reads
 * so has no way of being told. */
static enum rf_code export_lease_open(void *ctx, const char *transport_name, void **ret_lease,
                                      struct rf_error *err)
{
    struct seed_transport *transport = ctx;
    struct seed *seed = transport->seed;
    enum rf_code code = seed_serving(seed, err);
    struct seed_lease *lease = code == RF_OK ? calloc(1, sizeof(*lease)) : NULL;

    if (code != RF_OK)
        return code;
    if (lease == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a lease");
    snprintf(lease->client, sizeof(lease->client), "%s", transport_name);
    atomic_init(&lease->closed, false);
    lease->tokenless = true;
    lease->connections = 1;
    lease->reading = transport_needs_seed(transport) ? 1 : 0;
    mutex_lock(&seed->lock);
    seed->connections++;
    seed->reading += lease->reading;
    mutex_unlock(&seed->lock);
    *ret_lease = lease;
    return RF_OK;
}

static void export_lease_release(void *ctx, void *held)
{
    struct seed_transport *transport = ctx;
    struct seed *seed = transport->seed;
    struct seed_lease *lease = held;

    mutex_lock(&seed->lock);
    lease->connections--;
    seed->connections--;
    if (transport_needs_seed(transport)) {
        lease->reading--;
        seed->reading--;
    }
    /* Whoever had connections and has none is gone, or about to come back: it need not keep its
     * place for as long as one that has not begun. */
    lease->expires_ns = clock_deadline_ns(seed->options.lease_ttl_ms < SEED_LEASE_GONE_MS
                                              ? seed->options.lease_ttl_ms
                                              : SEED_LEASE_GONE_MS);
    bool over = lease->tokenless || atomic_load_explicit(&lease->closed, memory_order_acquire);
    if (lease->connections == 0 && over)
        free(lease);
    cond_broadcast(&seed->changed);
    mutex_unlock(&seed->lock);
}

static enum rf_code export_lease_check(void *ctx, void *held, struct rf_error *err)
{
    struct seed_transport *transport = ctx;
    struct seed *seed = transport->seed;
    struct seed_lease *lease = held;
    enum rf_code code = seed_serving(seed, err);
    struct rf_error changed;

    if (code != RF_OK)
        return code;
    if (atomic_load_explicit(&lease->closed, memory_order_acquire))
        return rf_fail(err, RF_E_DENIED, "the lease was closed: open a new one");
    code = store_check(seed->store, &changed);
    if (code != RF_OK) {
        seed_fail(seed, code, changed.text);
        return rf_fail(err, code, "%s", changed.text);
    }
    return RF_OK;
}

static void export_lease_account(void *ctx, void *lease, uint64_t bytes)
{
    struct seed_transport *transport = ctx;

    (void)lease;
    atomic_fetch_add_explicit(&transport->bytes_sent, bytes, memory_order_relaxed);
}

static const struct layout *export_rank_layout(void *ctx, uint32_t rank)
{
    struct seed_transport *transport = ctx;
    const struct store *store = transport->seed->store;

    if (rank >= store->manifest->rank_count)
        return NULL;
    return &store->ranks[rank].layout;
}

void seed_exporter_init(struct seed_transport *transport)
{
    transport->exporter = (struct exporter){
        .ctx = transport,
        .lease_acquire = export_lease_acquire,
        .lease_open = export_lease_open,
        .lease_release = export_lease_release,
        .lease_check = export_lease_check,
        .lease_account = export_lease_account,
        .rank_layout = export_rank_layout,
    };
}
