/* The binary manifest. The check at its end would keep a fuzzer out, so it is made to fit here:
 * inputs are manifests without it. What is accepted must be the one encoding of what it says. */
#include "model/manifest.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void must(bool ok)
{
    if (!ok)
        abort();
}

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
        again.bytes = 0;
        manifest_json(manifest, MANIFEST_NONE, &again);
        manifest_unref(manifest);
    }
    buf_free(&again);
    buf_free(&sealed);
    return 0;
}
