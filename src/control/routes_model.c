/* The manifest and the digests: made once, kept, and waited for without holding a thread. */
#include "base/clock.h"
#include "control/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the cache ---- */

void cache_init(struct cache *cache)
{
    mutex_init(&cache->lock);
}

void cache_free(struct cache *cache)
{
    blob_unref(cache->manifest);
    blob_unref(cache->json);
    blob_unref(cache->digests);
    for (uint32_t i = 0; i < cache->rank_count; i++) {
        blob_unref(cache->ranks[i].json);
        blob_unref(cache->ranks[i].header);
    }
    free(cache->ranks);
    mutex_destroy(&cache->lock);
}

/* What is kept of a rank; NULL: no memory. */
static struct cached_rank *cached_rank_locked(struct cache *cache, const struct store *store,
                                              uint32_t rank, struct rf_error *err)
    RF_REQUIRES(cache->lock)
{
    uint32_t count = store->manifest->rank_count;

    if (cache->ranks == NULL)
        cache->ranks = calloc(count + (size_t)1, sizeof *cache->ranks);
    if (cache->ranks == NULL) {
        rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", count);
        return NULL;
    }
    cache->rank_count = count;
    return &cache->ranks[rank];
}

typedef enum rf_code (*make_fn)(const struct store *store, uint32_t rank, struct buf *out,
                                struct rf_error *err);

/* What the slot of a locked cache holds, made now if it is empty. The reference is the caller's;
 * NULL: err says why. */
static struct blob *slot_get(struct blob **slot, make_fn make, const struct store *store,
                             uint32_t rank, struct rf_error *err)
{
    struct buf bytes = {0};

    if (*slot != NULL)
        return blob_ref(*slot);
    if (make(store, rank, &bytes, err) != RF_OK) {
        buf_free(&bytes);
        return NULL;
    }
    *slot = blob_create(&bytes, err);
    return *slot != NULL ? blob_ref(*slot) : NULL;
}

static enum rf_code make_manifest(const struct store *store, uint32_t rank, struct buf *out,
                                  struct rf_error *err)
{
    (void)rank;
    return manifest_encode(store->manifest, out, err);
}

static enum rf_code make_json(const struct store *store, uint32_t rank, struct buf *out,
                              struct rf_error *err)
{
    (void)err;
    manifest_json(store->manifest, rank, out);
    if (out->bytes == 0 || out->data[out->bytes - 1] != '\n')
        buf_append(out, "\n", 1);
    return RF_OK; /* blob_create() looks at out->failed */
}

static struct blob *get_manifest(struct cache *cache, const struct store *store, bool json,
                                 uint32_t rank, struct rf_error *err)
{
    struct cached_rank *one = NULL;
    struct blob *blob = NULL;

    mutex_lock(&cache->lock);
    if (!json)
        blob = slot_get(&cache->manifest, make_manifest, store, rank, err);
    else if (rank == MANIFEST_NONE)
        blob = slot_get(&cache->json, make_json, store, rank, err);
    else if ((one = cached_rank_locked(cache, store, rank, err)) != NULL)
        blob = slot_get(&one->json, make_json, store, rank, err);
    mutex_unlock(&cache->lock);
    return blob;
}

struct blob *cache_rank_header(struct cache *cache, const struct store *store, uint32_t rank,
                               struct rf_error *err)
{
    struct blob *blob = NULL;

    mutex_lock(&cache->lock);
    struct cached_rank *one = cached_rank_locked(cache, store, rank, err);
    if (one != NULL)
        blob = slot_get(&one->header, store_rank_header, store, rank, err);
    mutex_unlock(&cache->lock);
    return blob;
}

void route_root_text(struct server *server, const struct store *store, char out[HASH_TEXT_BYTES])
{
    struct cache *cache = &server->cache;
    uint8_t root[HASH_MAX_BYTES];

    mutex_lock(&cache->lock);
    if (cache->root[0] == '\0' && store_root(store, root, NULL) == RF_OK)
        hash_text(store->manifest->algorithm, root, cache->root);
    memcpy(out, cache->root, HASH_TEXT_BYTES);
    mutex_unlock(&cache->lock);
}

/* ---- the manifest ---- */

static bool accepts_json(const struct request *request)
{
    const char *accept =
        MHD_lookup_connection_value(request->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_ACCEPT);

    return accept != NULL && strcasestr(accept, "application/json") != NULL;
}

void route_manifest(struct request *request, struct reply *reply)
{
    const char *format = target_arg(&request->target, "format");
    struct store *store = route_store(request, reply);
    struct rf_error err = {.code = RF_OK};
    uint32_t rank = MANIFEST_NONE;

    if (store == NULL)
        return;
    bool json = format != NULL ? strcmp(format, "json") == 0 : accepts_json(request);
    if (format != NULL && !json && strcmp(format, "binary") != 0)
        rf_fail(&err, RF_E_INVAL, "format=%.32s: there are json and binary", format);
    else if (target_arg(&request->target, "rank") != NULL && !json)
        rf_fail(&err, RF_E_INVAL, "rank= restricts the JSON only: add format=json");
    else if (target_arg(&request->target, "rank") != NULL)
        route_rank_argument(request, store, &rank, &err);
    struct blob *blob =
        err.code == RF_OK ? get_manifest(&request->server->cache, store, json, rank, &err) : NULL;
    if (blob == NULL)
        reply_error(request, reply, &err);
    else
        reply_blob(request, reply, MHD_HTTP_OK,
                   json ? "application/json" : "application/vnd.rfork.manifest", blob);
}

/* ---- digests ---- */

bool route_news(void *ctx)
{
    struct request *request = ctx;
    struct seed *seed = request->server->seed;
    struct digest_table *table = request->wait_table;
    uint8_t digest[HASH_MAX_BYTES];
    struct rf_error err;

    if (seed_state(seed, NULL) == SEED_FAILED)
        return true;
    uint64_t known = digest_table_known(table);
    if (known == digest_table_count(table))
        return true;
    if (request->wait_tensors) /* they may also have failed */
        return seed_tensor_digests(seed, request->wait_rank, 0, &table, &err) != RF_OK;
    if (request->wait_from >= digest_table_count(table) || known > request->wait_known)
        return true;
    return digest_table_get(table, request->wait_from, digest);
}

/* The piece from `from` on, as it is now. The reference is the caller's. */
static struct blob *get_digests(struct cache *cache, const struct digest_table *table,
                                uint64_t from, struct rf_error *err)
{
    struct blob *blob = NULL;
    struct buf bytes = {0};

    mutex_lock(&cache->lock);
    /* Counted before they are encoded: the piece may hold more, and then it is made once more. */
    uint64_t known = digest_table_known(table);
    if (cache->digests == NULL || cache->digests_of != table || cache->digests_from != from ||
        cache->digests_known != known) {
        digest_table_encode(table, from, &bytes);
        blob_unref(cache->digests);
        cache->digests = blob_create(&bytes, err);
        cache->digests_of = table;
        cache->digests_from = from;
        cache->digests_known = known;
    }
    if (cache->digests != NULL)
        blob = blob_ref(cache->digests);
    mutex_unlock(&cache->lock);
    return blob;
}

/* Waits if that was asked for, there is nothing new, and it has not waited yet; true: reply is a
 * wait. */
static bool wait_for_news(struct request *request, struct reply *reply, uint64_t wait_ms)
{
    if (request->waited || wait_ms == 0 || route_news(request))
        return false;
    *reply = (struct reply){
        .wait = true, .wait_deadline_ns = clock_deadline_ns(wait_ms), .wait_ready = route_news};
    return true;
}

static void reply_digests(struct request *request, struct reply *reply, uint64_t wait_ms)
{
    struct rf_error err = {.code = RF_OK};
    struct digest_table *table = request->wait_table;

    if (wait_for_news(request, reply, wait_ms))
        return;
    /* While waiting the seed may have failed. */
    if (route_store(request, reply) == NULL)
        return;
    bool complete = digest_table_known(table) == digest_table_count(table);
    unsigned status = request->wait_tensors && !complete ? MHD_HTTP_ACCEPTED : MHD_HTTP_OK;
    struct blob *blob = get_digests(&request->server->cache, table, request->wait_from, &err);
    if (blob == NULL)
        reply_error(request, reply, &err);
    else
        reply_blob(request, reply, status, "application/vnd.rfork.digests", blob);
}

/* The arguments that both kinds share. */
static enum rf_code digest_arguments(struct request *request, const struct store *store,
                                     uint64_t *ret_wait_ms, struct rf_error *err)
{
    enum rf_code code = route_rank_argument(request, store, &request->wait_rank, err);

    if (code == RF_OK)
        code = target_u64(&request->target, "from", UINT64_MAX, &request->wait_from, err);
    if (code == RF_OK)
        code = target_u64(&request->target, "known", UINT64_MAX, &request->wait_known, err);
    if (code == RF_OK)
        code = target_u64(&request->target, "wait_ms", SERVER_MAX_WAIT_MS, ret_wait_ms, err);
    return code;
}

void route_digests(struct request *request, struct reply *reply)
{
    struct store *store = route_store(request, reply);
    struct rf_error err = {.code = RF_OK};
    uint64_t wait_ms = 0;

    if (store == NULL)
        return;
    if (digest_arguments(request, store, &wait_ms, &err) != RF_OK) {
        reply_error(request, reply, &err);
        return;
    }
    request->wait_table = store->ranks[request->wait_rank].digests;
    reply_digests(request, reply, wait_ms);
}

void route_tensor_digests(struct request *request, struct reply *reply)
{
    struct store *store = route_store(request, reply);
    struct rf_error err = {.code = RF_OK};
    uint64_t wait_ms = 0;

    if (store == NULL)
        return;
    enum rf_code code = digest_arguments(request, store, &wait_ms, &err);
    if (code == RF_OK) /* starts them on first demand; does not wait */
        code = seed_tensor_digests(request->server->seed, request->wait_rank, 0,
                                   &request->wait_table, &err);
    if (code != RF_OK) {
        reply_error(request, reply, &err);
        return;
    }
    request->wait_tensors = true;
    reply_digests(request, reply, wait_ms);
}
