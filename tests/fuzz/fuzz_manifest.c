/* The binary manifest. The check at its end would keep a fuzzer out, so it is made to fit here:
 * inputs are manifests without it. What is accepted must be the one encoding of what it says, and
 * the whole checkpoint must be had from it, or not, in bounds. */
#include "model/reshard.h"
#include "model/shard.h"
#include "must.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What users of a manifest rely on without looking. */
static void check_rank(const struct manifest *manifest, uint32_t index)
{
    const struct manifest_rank *rank = &manifest->ranks[index];
    uint64_t offset = 0;

    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];

        must(strlen(tensor->name) == tensor->name_bytes);
        must(manifest_find(rank, tensor->name) == tensor);
        if (tensor->alias_of != MANIFEST_NONE) {
            must(rank->tensors[tensor->alias_of].stream_offset == tensor->stream_offset);
            continue;
        }
        must(tensor->stream_offset == offset);
        offset += tensor->bytes;
        if (tensor->bytes > 0)
            must(manifest_tensor_at(rank, offset - 1) == i);
    }
    must(offset == rank->stream_bytes);
    must(manifest_tensor_at(rank, offset) == MANIFEST_NONE);
    must(manifest_chunk_count(manifest, index) <= MANIFEST_MAX_CHUNKS);
}

static void check_moves(const struct manifest *seed, const struct manifest *wanted,
                        const struct reshard *plan)
{
    const struct reshard_rank *rank = &plan->ranks[0];
    uint64_t written = rank->fill_bytes;

    for (uint32_t g = 0; g < rank->group_count; g++) {
        const struct reshard_group *group = &rank->groups[g];
        const struct reshard_holder *holder = &plan->holders[group->holder];

        for (uint64_t m = 0; m < group->move_count; m++) {
            const struct reshard_move *move = &group->moves[m];
            uint64_t bytes = 0;
            uint64_t unit = rf_dtype_bits((enum rf_dtype)move->from);

            must(stream_ranges_check(&move->read, 1, seed->ranks[holder->rank].stream_bytes, &bytes,
                                     NULL) == RF_OK);
            written += move->from == move->to
                           ? bytes
                           : bytes / (unit / 8) * (rf_dtype_bits((enum rf_dtype)move->to) / 8);
        }
    }
    must(written == wanted->ranks[0].stream_bytes);
}

/* A seed may say what it likes of its ranks. */
static void check_reshard(struct manifest *seed)
{
    const struct manifest *const seeds[] = {seed};
    struct manifest *whole = NULL;
    struct reshard *plan = NULL;
    struct rf_error err = {0};

    if (shard_whole(seed, &whole, NULL) != RF_OK)
        return;
    if (reshard_plan(seeds, 1, whole, &plan, &err) == RF_OK)
        check_moves(seed, whole, plan);
    else
        must(err.text[0] != '\0');
    reshard_destroy(plan);
    manifest_unref(whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct manifest *manifest = NULL;
    uint8_t check[HASH_MAX_BYTES];
    struct buf sealed = {0};
    struct buf again = {0};

    hash_once(HASH_XXH3_128, data, size, check);
    buf_append(&sealed, data, size);
    buf_append(&sealed, check, MANIFEST_CHECK_BYTES);
    if (!sealed.failed && manifest_decode(sealed.data, sealed.bytes, &manifest, NULL) == RF_OK) {
        must(manifest_encode(manifest, &again, NULL) == RF_OK);
        must(again.bytes == sealed.bytes && memcmp(again.data, sealed.data, again.bytes) == 0);
        for (uint32_t i = 0; i < manifest->rank_count; i++)
            check_rank(manifest, i);
        check_reshard(manifest);
        again.bytes = 0;
        manifest_json(manifest, MANIFEST_NONE, &again);
        manifest_unref(manifest);
    }
    buf_free(&again);
    buf_free(&sealed);
    return 0;
}
