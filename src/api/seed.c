/* The public seed: tensors of the caller's memory become a store. */
#include "seed/seed.h"

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/dtype.h"
#include "base/log.h"
#include "base/strmap.h"
#include "control/server.h"
#include <rfork/rfork.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { API_MAX_ALLOCS = 64, API_MAX_SIDE_BYTES = 64 << 20 };

/* Where a tensor's bytes are. Also the key by which a second name for the same bytes is found. */
struct api_place {
    const uint8_t *data;
    uint64_t bytes;
    uint64_t dtype;
};

struct api_file {
    uint8_t *data;
    uint64_t bytes;
};

struct rf_seed {
    struct arena arena;
    struct manifest_builder *builder; /* NULL once published */
    enum hash_algorithm algorithm;
    struct strmap *names; /* name -> index in places */
    struct strmap *tied;  /* place (as bytes) -> index of the first name that has it */
    struct api_place **places;
    const char **place_names;
    uint32_t tensor_count;
    uint32_t tensor_room;
    struct api_file *files; /* in the order they were added */
    uint32_t file_count;
    struct region *allocs[API_MAX_ALLOCS];
    uint32_t alloc_count;
    char *host;
    uint16_t port;
    uint32_t max_readers;
    struct seed *seed; /* from rf_seed_publish() on */
    struct server *server;
};

void rf_log_set_level(int level)
{
    log_set_level(level < 0 ? LOG_ERROR : level > LOG_TRACE ? LOG_TRACE : (enum log_level)level);
}

enum rf_code rf_seed_create(const struct rf_seed_options *options, struct rf_seed **ret_seed,
                            struct rf_error *err)
{
    static const struct rank_id only = {
        .tp_size = 1, .pp_size = 1, .ep_size = 1, .dp_size = 1, .role = ROLE_TARGET};
    struct manifest_identity identity = {
        .model = options->model != NULL ? options->model : "unnamed",
        .architecture = options->architecture != NULL ? options->architecture : "",
        .quantisation = "none",
        .layout = "checkpoint",
        .stage = STAGE_CHECKPOINT,
        .algorithm = options->sha256 ? HASH_SHA256 : HASH_XXH3_128,
        .chunk_bytes = (uint32_t)options->chunk_bytes,
    };

    if (options->chunk_bytes > MANIFEST_MAX_CHUNK_BYTES)
        return rf_fail(err, RF_E_INVAL, "chunk_bytes %" PRIu64 ": at most %d", options->chunk_bytes,
                       MANIFEST_MAX_CHUNK_BYTES);
    struct manifest_builder *builder = manifest_builder_create(&identity, err);
    if (builder == NULL)
        return options->chunk_bytes != 0 ? RF_E_INVAL : RF_E_NOMEM;
    struct rf_seed *seed = calloc(1, sizeof(*seed));
    if (seed != NULL) {
        seed->builder = builder;
        seed->algorithm = identity.algorithm;
        seed->names = strmap_create(0);
        seed->tied = strmap_create(0);
        seed->host = strdup(options->host != NULL ? options->host : "127.0.0.1");
        seed->port = options->port;
        seed->max_readers = options->max_readers;
    } else {
        manifest_builder_destroy(builder);
    }
    enum rf_code code = RF_OK;
    if (seed == NULL || seed->names == NULL || seed->tied == NULL || seed->host == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory for a seed");
    if (code == RF_OK)
        code = manifest_add_rank(builder, &only, err);
    if (code != RF_OK) {
        rf_seed_destroy(seed);
        return code;
    }
    *ret_seed = seed;
    return RF_OK;
}

static enum rf_code check_open(const struct rf_seed *seed, struct rf_error *err)
{
    if (seed->builder == NULL)
        return rf_fail(err, RF_E_INVAL, "the seed has been published: what it serves is fixed");
    return RF_OK;
}

static enum rf_code make_room(struct rf_seed *seed, struct rf_error *err)
{
    if (seed->tensor_count < seed->tensor_room)
        return RF_OK;
    uint32_t room = seed->tensor_room > 0 ? seed->tensor_room * 2 : 256;
    /* NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers */
    struct api_place **places = reallocarray(seed->places, room, sizeof(*places));

    if (places != NULL)
        seed->places = places;
    const char **names = reallocarray(seed->place_names, room, sizeof(*names));
    if (names != NULL)
        seed->place_names = names;
    if (places == NULL || names == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " tensors", room);
    seed->tensor_room = room;
    return RF_OK;
}

/* The place in the arena, and the name that has these bytes already, if one has. */
static struct api_place *place_new(struct rf_seed *seed, const struct api_place *at,
                                   const char **ret_alias_of)
{
    struct api_place *place = arena_alloc(&seed->arena, sizeof(*place));
    uint32_t first = seed->tensor_count;

    if (place == NULL)
        return NULL;
    *place = *at;
    *ret_alias_of = NULL;
    if (at->bytes == 0)
        return place;
    enum rf_code code =
        strmap_add(seed->tied, (const char *)place, sizeof(*place), seed->tensor_count, &first);
    if (code == RF_E_NOMEM)
        return NULL;
    if (code != RF_OK)
        *ret_alias_of = seed->place_names[first];
    return place;
}

enum rf_code rf_seed_add_tensor(struct rf_seed *seed, const struct rf_tensor *tensor,
                                const void *data, struct rf_error *err)
{
    struct api_place at = {.data = data, .dtype = (uint64_t)tensor->dtype};
    size_t name_bytes = strlen(tensor->name);
    const char *alias_of = NULL;
    enum rf_code code = check_open(seed, err);

    if (code == RF_OK)
        code = make_room(seed, err);
    if (code != RF_OK)
        return code;
    if (tensor->ndim > RF_MAX_DIMS ||
        !dtype_tensor_bytes(tensor->dtype, tensor->shape, tensor->ndim, &at.bytes))
        return rf_fail(err, RF_E_INVAL,
                       "tensor %s: %" PRIu32
                       " dimensions, or a size that is no whole number of bytes "
                       "below 2^64",
                       tensor->name, tensor->ndim);
    if (data == NULL && at.bytes > 0)
        return rf_fail(err, RF_E_INVAL, "tensor %s: data is NULL, it has %" PRIu64 " bytes",
                       tensor->name, at.bytes);
    if (strmap_find(seed->names, tensor->name, name_bytes, &(uint32_t){0}))
        return rf_fail(err, RF_E_INVAL, "tensor %s was added already", tensor->name);
    const char *name = arena_strndup(&seed->arena, tensor->name, name_bytes);
    struct api_place *place = name != NULL ? place_new(seed, &at, &alias_of) : NULL;
    if (place == NULL)
        return rf_fail(err, RF_E_NOMEM, "tensor %s: no memory", tensor->name);
    struct tensor entry = {
        .name = name,
        .name_bytes = (uint32_t)name_bytes,
        .dtype = tensor->dtype,
        .ndim = tensor->ndim,
        .shape = tensor->shape,
        .order = seed->tensor_count,
        .file = MANIFEST_NONE,
        .alias_of = MANIFEST_NONE,
    };
    code = manifest_add_tensor(seed->builder, &entry, alias_of, err);
    if (code != RF_OK)
        return code;
    if (strmap_add(seed->names, name, name_bytes, seed->tensor_count, NULL) != RF_OK)
        return rf_fail(err, RF_E_NOMEM, "tensor %s: no memory", tensor->name);
    seed->places[seed->tensor_count] = place;
    seed->place_names[seed->tensor_count] = name;
    seed->tensor_count++;
    return RF_OK;
}

enum rf_code rf_seed_add_file(struct rf_seed *seed, const char *name, const void *data,
                              size_t bytes, struct rf_error *err)
{
    struct manifest_file entry = {.name = name, .kind = FILE_SIDE, .bytes = bytes};
    enum rf_code code = check_open(seed, err);

    if (code != RF_OK)
        return code;
    if (bytes > API_MAX_SIDE_BYTES)
        return rf_fail(err, RF_E_INVAL, "file %s: %zu bytes, a side file has at most %d", name,
                       bytes, API_MAX_SIDE_BYTES);
    struct api_file *files =
        reallocarray(seed->files, (size_t)seed->file_count + 1, sizeof(*files));
    rf_autofree uint8_t *copy = malloc(bytes + 1);
    if (files != NULL)
        seed->files = files;
    if (files == NULL || copy == NULL)
        return rf_fail(err, RF_E_NOMEM, "file %s: no memory for %zu bytes", name, bytes);
    if (bytes > 0)
        memcpy(copy, data, bytes);
    hash_once(seed->algorithm, copy, bytes, entry.digest);
    code = manifest_add_file(seed->builder, &entry, err);
    if (code != RF_OK)
        return code;
    seed->files[seed->file_count++] =
        (struct api_file){.data = rf_take(copy, NULL), .bytes = bytes};
    return RF_OK;
}

enum rf_code rf_seed_alloc(struct rf_seed *seed, uint64_t bytes, void **ret_data,
                           struct rf_error *err)
{
    enum rf_code code = check_open(seed, err);

    if (code != RF_OK)
        return code;
    if (seed->alloc_count == API_MAX_ALLOCS)
        return rf_fail(err, RF_E_INVAL, "%d allocations already: make fewer, larger ones",
                       API_MAX_ALLOCS);
    code = region_create_memfd("rfork-engine", bytes, &seed->allocs[seed->alloc_count], err);
    if (code != RF_OK)
        return code;
    *ret_data = region_data_writable(seed->allocs[seed->alloc_count++]);
    return RF_OK;
}

/* ---- publishing ---- */

static struct region *alloc_that_holds(const struct rf_seed *seed, const struct api_place *place,
                                       uint64_t *ret_offset)
{
    for (uint32_t i = 0; i < seed->alloc_count; i++) {
        const uint8_t *from = region_data(seed->allocs[i]);
        uint64_t bytes = region_bytes(seed->allocs[i]);

        if (place->data >= from && (uint64_t)(place->data - from) <= bytes &&
            place->bytes <= bytes - (uint64_t)(place->data - from)) {
            *ret_offset = (uint64_t)(place->data - from);
            return seed->allocs[i];
        }
    }
    return NULL;
}

/* One region over all of the caller's memory, from the lowest address to the highest: only the
 * segments in it are ever read, so that what lies between them does not matter, and 60,000
 * tensors cost no more than one. */
static enum rf_code borrow_span(const struct rf_seed *seed, struct region **ret_span,
                                struct rf_error *err)
{
    const uint8_t *low = NULL;
    const uint8_t *high = NULL;
    uint64_t offset;

    for (uint32_t i = 0; i < seed->tensor_count; i++) {
        const struct api_place *place = seed->places[i];

        if (place->bytes == 0 || alloc_that_holds(seed, place, &offset) != NULL)
            continue;
        if (low == NULL || place->data < low)
            low = place->data;
        if (place->data + place->bytes > high)
            high = place->data + place->bytes;
    }
    if (low == NULL) {
        *ret_span = NULL;
        return RF_OK;
    }
    return region_create_borrowed(low, (uint64_t)(high - low), ret_span, err);
}

static enum rf_code lay_out(const struct rf_seed *seed, struct store *store, struct region *span,
                            struct rf_error *err)
{
    const struct manifest_rank *rank = &store->manifest->ranks[0];
    struct layout *layout = &store->ranks[0].layout;

    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];
        uint32_t index = 0;
        uint64_t offset = 0;

        if (tensor->bytes == 0 || tensor->alias_of != MANIFEST_NONE)
            continue;
        strmap_find(seed->names, tensor->name, tensor->name_bytes, &index);
        const struct api_place *place = seed->places[index];
        struct region *region = alloc_that_holds(seed, place, &offset);

        if (region == NULL) {
            region = span;
            offset = (uint64_t)(place->data - region_data(span));
        }
        enum rf_code code =
            layout_add(layout, tensor->stream_offset, tensor->bytes, region, offset, err);
        if (code != RF_OK)
            return code;
    }
    return layout_finish(layout, rank->stream_bytes, err);
}

static enum rf_code add_regions(struct rf_seed *seed, struct store *store, struct region *span,
                                struct rf_error *err)
{
    enum rf_code code = span != NULL ? store_add_region(store, span, err) : RF_OK;

    for (uint32_t i = 0; code == RF_OK && i < seed->alloc_count; i++) {
        code = region_seal(seed->allocs[i], err);
        if (code == RF_OK)
            code = store_add_region(store, seed->allocs[i], err);
    }
    return code;
}

static enum rf_code make_store(struct rf_seed *seed, struct store **ret_store, struct rf_error *err)
{
    struct manifest *manifest = NULL;
    struct store *store = NULL;
    struct region *span = NULL;
    enum rf_code code = manifest_build(rf_take(seed->builder, NULL), &manifest, err);

    if (code != RF_OK)
        return code;
    code = store_create(manifest, &store, err);
    if (code == RF_OK)
        code = borrow_span(seed, &span, err);
    if (code == RF_OK)
        code = add_regions(seed, store, span, err);
    if (code == RF_OK)
        code = lay_out(seed, store, span, err);
    region_unref(span);
    manifest_unref(manifest);
    if (code != RF_OK) {
        store_destroy(store);
        return code;
    }
    for (uint32_t i = 0; i < seed->file_count; i++) {
        uint8_t *data = rf_take(seed->files[i].data, NULL);

        store->files[i] = (struct store_file){.data = data, .bytes = seed->files[i].bytes};
    }
    *ret_store = store;
    return RF_OK;
}

enum rf_code rf_seed_publish(struct rf_seed *seed, struct rf_error *err)
{
    struct seed_options options = {.host = seed->host, .max_readers = seed->max_readers};
    struct server_options server_options = {.host = seed->host, .port = seed->port};
    struct store *store = NULL;
    enum rf_code code = check_open(seed, err);

    if (code != RF_OK)
        return code;
    if (seed->tensor_count == 0)
        return rf_fail(err, RF_E_INVAL, "the seed has no tensor: add some before publishing it");
    code = make_store(seed, &store, err);
    if (code != RF_OK)
        return code;
    code = seed_create(&options, &seed->seed, err);
    if (code != RF_OK) {
        store_destroy(store);
        return code;
    }
    code = seed_publish(seed->seed, store, err);
    if (code == RF_OK)
        code = server_start(&server_options, seed->seed, &seed->server, err);
    return code;
}

/* ---- while it serves ---- */

const char *rf_seed_url(const struct rf_seed *seed)
{
    return seed->server != NULL ? server_url(seed->server) : NULL;
}

void rf_seed_get_stats(struct rf_seed *seed, struct rf_seed_stats *ret_stats)
{
    struct seed_stats stats;
    uint32_t count;

    *ret_stats = (struct rf_seed_stats){.readers_now = 0};
    if (seed->server == NULL)
        return;
    seed_stats(seed->seed, &stats);
    const struct endpoint *endpoints = seed_endpoints(seed->seed, &count);
    ret_stats->readers_now = stats.leases_now;
    ret_stats->readers_total = stats.leases_opened;
    for (uint32_t i = 0; i < count; i++) {
        const struct transport *transport;

        /* What was mapped was not sent. */
        if (transport_find(endpoints[i].transport, &transport, NULL) == RF_OK &&
            transport->map == NULL)
            ret_stats->bytes_sent += stats.bytes_sent[i];
    }
    ret_stats->stream_bytes = manifest_total_bytes(seed_store(seed->seed)->manifest);
    ret_stats->digests_complete = stats.digest_chunks_known == stats.digest_chunks_total;
}

enum rf_code rf_seed_wait_digests(struct rf_seed *seed, uint64_t timeout_ms, struct rf_error *err)
{
    if (seed->server == NULL)
        return rf_fail(err, RF_E_INVAL, "the seed has not been published: it has no digests");
    return seed_wait_digests(seed->seed, clock_deadline_ns(timeout_ms), err);
}

uint32_t rf_seed_drain(struct rf_seed *seed, uint64_t timeout_ms)
{
    return seed->seed != NULL ? seed_drain(seed->seed, timeout_ms) : 0;
}

void rf_seed_destroy(struct rf_seed *seed)
{
    if (seed == NULL)
        return;
    server_stop(seed->server);
    seed_destroy(seed->seed);
    manifest_builder_destroy(seed->builder);
    for (uint32_t i = 0; i < seed->file_count; i++)
        free(seed->files[i].data);
    for (uint32_t i = 0; i < seed->alloc_count; i++)
        region_unref(seed->allocs[i]);
    strmap_destroy(seed->names);
    strmap_destroy(seed->tied);
    arena_free(&seed->arena);
    free(seed->files);
    free(seed->places);
    free(seed->place_names);
    free(seed->host);
    free(seed);
}
