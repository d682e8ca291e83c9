#include "transport/read_digest.h"

#include <stdlib.h>

enum { ROOM_BYTES = 64 << 10 };

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

enum rf_code read_digest_update_piece(struct read_digest *digest, const struct segment *piece,
                                      struct rf_error *err)
{
    const uint8_t *data = region_data(piece->region);

    if (!digest->on)
        return RF_OK;
    if (data != NULL) {
        read_digest_update(digest, data + piece->region_offset, piece->bytes);
        return RF_OK;
    }
    if (digest->room == NULL)
        digest->room = malloc(ROOM_BYTES);
    if (digest->room == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to make a digest");
    for (uint64_t at = 0; at < piece->bytes;) {
        uint64_t left = piece->bytes - at;
        uint64_t bytes = left < ROOM_BYTES ? left : ROOM_BYTES;
        enum rf_code code =
            region_read(piece->region, piece->region_offset + at, digest->room, bytes, err);

        if (code != RF_OK)
            return code;
        read_digest_update(digest, digest->room, bytes);
        at += bytes;
    }
    return RF_OK;
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
    free(digest->room);
    *digest = (struct read_digest){.hasher = NULL};
}
