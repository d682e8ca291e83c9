#include "transport/read_digest.h"

enum rf_code read_digest_begin(struct read_digest *digest, enum hash_algorithm algorithm,
                               struct rf_error *err)
{
    digest->on = false;
    if (algorithm == 0)
        return RF_OK;
    if (digest->hasher == NULL || digest->of != algorithm) {
        chunk_hasher_destroy(digest->hasher);
        digest->hasher = chunk_hasher_create(algorithm);
        digest->of = algorithm;
    }
    if (digest->hasher == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to make a digest");
    chunk_hasher_begin(digest->hasher);
    digest->on = true;
    return RF_OK;
}

void read_digest_update(struct read_digest *digest, const void *data, uint64_t bytes)
{
    if (digest->on)
        chunk_hasher_update(digest->hasher, data, bytes);
}

void read_digest_final(struct read_digest *digest, uint32_t rank, const struct stream_range *ranges,
                       uint32_t range_count, uint8_t ret_digest[HASH_MAX_BYTES])
{
    uint8_t raw[CHUNK_RANGE_BYTES];
    struct wire_out head = {.at = raw};

    if (!digest->on)
        return;
    wire_set_u32(&head, rank);
    wire_set_u32(&head, range_count);
    chunk_hasher_update(digest->hasher, raw, CHUNK_READ_BYTES);
    for (uint32_t i = 0; i < range_count; i++) {
        chunk_range_encode(&ranges[i], raw);
        chunk_hasher_update(digest->hasher, raw, CHUNK_RANGE_BYTES);
    }
    chunk_hasher_final(digest->hasher, ret_digest);
    digest->on = false;
}

void read_digest_free(struct read_digest *digest)
{
    chunk_hasher_destroy(digest->hasher);
    *digest = (struct read_digest){.hasher = NULL};
}
