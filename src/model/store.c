#include "model/store.h"

#include "base/cleanup.h"
#include "format/safetensors.h"
#include "model/store_internal.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- life ---- */

enum rf_code store_create(struct manifest *manifest, struct store **ret_store, struct rf_error *err)
{
    struct store_box *box = calloc(1, sizeof *box);
    enum rf_code code = RF_E_NOMEM;

    if (box == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a store");
    struct store *store = &box->store;
    store->manifest = manifest_ref(manifest);
    store->ranks = calloc(manifest->rank_count + (size_t)1, sizeof *store->ranks);
    store->files = calloc(manifest->file_count + (size_t)1, sizeof *store->files);
    if (store->ranks == NULL || store->files == NULL)
        goto fail_memory;
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        store->ranks[i].digests =
            digest_table_create(manifest->algorithm, manifest_chunk_count(manifest, i));
        if (store->ranks[i].digests == NULL)
            goto fail_memory;
    }
    code = file_index_create(manifest, &box->index, err);
    if (code == RF_OK)
        code = source_index_create(manifest, &box->sources, err);
    if (code != RF_OK)
        goto fail;
    *ret_store = store;
    return RF_OK;

fail_memory:
    rf_fail(err, code, "no memory for the digests of %" PRIu64 " bytes of tensors",
            manifest_total_bytes(manifest));
fail:
    store_destroy(store);
    return code;
}

void store_destroy(struct store *store)
{
    if (store == NULL)
        return;

    struct store_box *box = store_box_of(store);
    const struct manifest *manifest = store->manifest;
    for (uint32_t i = 0; store->ranks != NULL && i < manifest->rank_count; i++) {
        layout_free(&store->ranks[i].layout);
        digest_table_destroy(store->ranks[i].digests);
    }
    for (uint32_t i = 0; store->files != NULL && i < manifest->file_count; i++)
        free(store->files[i].data);
    for (uint32_t i = 0; i < store->region_count; i++)
        region_unref(store->regions[i]);
    free(store->ranks);
    free(store->files);
    free(store->regions);
    free(box->region_slots);
    file_index_free(&box->index);
    source_index_free(&box->sources);
    manifest_unref(store->manifest);
    free(box);
}

/* ---- regions ---- */

/* The slot that holds the region, or the free one where it belongs. An engine may have as many
 * regions as tensors: searching them one by one for each would take seconds. */
static uint32_t *region_slot(struct store_box *box, const struct region *region)
{
    uint64_t mixed = (uint64_t)(uintptr_t)region * UINT64_C(0x9e3779b97f4a7c15);
    uint32_t mask = box->slot_count - 1;

    for (uint32_t at = (uint32_t)(mixed >> 32) & mask;; at = (at + 1) & mask) {
        uint32_t *slot = &box->region_slots[at];
        if (*slot == 0 || box->store.regions[*slot - 1] == region)
            return slot;
    }
}

static bool regions_grow(struct store_box *box)
{
    struct store *store = &box->store;
    uint32_t room = box->region_room == 0 ? 16 : box->region_room * 2;

    if (box->region_room > UINT32_MAX / 8)
        return false;
    struct region **regions = reallocarray(store->regions, room, sizeof(struct region *));
    if (regions == NULL)
        return false;
    store->regions = regions;
    uint32_t *slots = calloc((size_t)room * 2, sizeof *slots);
    if (slots == NULL)
        return false;
    free(box->region_slots);
    box->region_slots = slots;
    box->slot_count = room * 2;
    box->region_room = room;
    for (uint32_t i = 0; i < store->region_count; i++)
        *region_slot(box, store->regions[i]) = i + 1;
    return true;
}

enum rf_code store_add_region(struct store *store, struct region *region, struct rf_error *err)
{
    struct store_box *box = store_box_of(store);

    if (store->region_count == box->region_room && !regions_grow(box))
        return rf_fail(err, RF_E_NOMEM, "no memory for more than %" PRIu32 " regions",
                       store->region_count);
    uint32_t *slot = region_slot(box, region);
    if (*slot != 0)
        return RF_OK;
    store->regions[store->region_count++] = region_ref(region);
    *slot = store->region_count;
    return RF_OK;
}

enum rf_code store_check(const struct store *store, struct rf_error *err)
{
    for (uint32_t i = 0; i < store->region_count; i++) {
        enum rf_code code = region_check(store->regions[i], err);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

/* ---- root ---- */

enum rf_code store_root(const struct store *store, uint8_t ret_root[HASH_MAX_BYTES],
                        struct rf_error *err)
{
    const struct manifest *manifest = store->manifest;

    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        const struct digest_table *table = store->ranks[i].digests;
        if (digest_table_known(table) != digest_table_count(table))
            return RF_AGAIN;
    }
    rf_autofree uint8_t(*roots)[HASH_MAX_BYTES] =
        calloc(manifest->rank_count + (size_t)1, sizeof(*roots));
    if (roots == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " roots", manifest->rank_count);
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        enum rf_code code = digest_rank_root(manifest, i, store->ranks[i].digests, roots[i], err);
        if (code != RF_OK)
            return code;
    }
    return digest_model_root(manifest, (const uint8_t(*)[HASH_MAX_BYTES])roots, ret_root, err);
}

/* ---- one rank as a file ---- */

enum rf_code store_rank_header(const struct store *store, uint32_t rank, struct buf *out,
                               struct rf_error *err)
{
    const struct manifest_rank *of = &store->manifest->ranks[rank];
    rf_autofree struct st_tensor *tensors = calloc(of->tensor_count + (size_t)1, sizeof *tensors);
    rf_autofree struct st_metadata *metadata =
        calloc(of->tensor_count + (size_t)1, sizeof *metadata);
    struct arena keys = {0};
    uint32_t tensor_count = 0;
    uint32_t metadata_count = 0;
    bool ok = tensors != NULL && metadata != NULL;

    if (ok)
        metadata[metadata_count++] = (struct st_metadata){.key = "format", .value = "pt"};
    for (uint32_t i = 0; i < of->tensor_count && ok; i++) {
        const struct tensor *tensor = &of->tensors[i];

        if (tensor->alias_of != MANIFEST_NONE)
            ok = st_alias_entry(&keys, tensor->name, tensor->name_bytes,
                                of->tensors[tensor->alias_of].name, &metadata[metadata_count++]);
        else
            tensors[tensor_count++] = (struct st_tensor){
                .name = tensor->name,
                .name_bytes = tensor->name_bytes,
                .dtype = tensor->dtype,
                .ndim = tensor->ndim,
                .shape = tensor->shape,
                .bytes = tensor->bytes,
            };
    }
    enum rf_code code =
        ok ? st_header_write(tensors, tensor_count, metadata, metadata_count, out, err)
           : rf_fail(err, RF_E_NOMEM, "no memory for the header of %" PRIu32 " tensors",
                     of->tensor_count);
    arena_free(&keys);
    return code;
}
