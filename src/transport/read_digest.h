/* The digest of what one read brings, made by the seed from its memory and by the reader from what
 * arrived: whole chunks have digests in the seed's table, slices of them have not. */
#ifndef TRANSPORT_READ_DIGEST_H
#define TRANSPORT_READ_DIGEST_H

#include "model/digest.h"
#include "model/layout.h"
#include "wire/chunk.h"

/* Zero-initialise. For one read at a time; one thread. */
struct read_digest {
    struct chunk_hasher *hasher; /* kept from read to read */
    enum hash_algorithm of;      /* the hasher's */
    bool on;                     /* this read has one */
    uint8_t *room;               /* once files were hashed */
};

/* algorithm 0: this read has none, and the calls below do nothing. RF_E_NOMEM. */
enum rf_code read_digest_begin(struct read_digest *digest, enum hash_algorithm algorithm,
                               struct rf_error *err);
/* The read's bytes, in their order, in pieces of any size. */
void read_digest_update(struct read_digest *digest, const void *data, uint64_t bytes);
/* The same for a piece of a layout; one in a file is read once more: it is in the page cache, which it
 * was sent from. RF_E_NOMEM, RF_E_CHANGED, RF_E_SYS. */
enum rf_code read_digest_update_piece(struct read_digest *digest, const struct segment *piece,
                                      struct rf_error *err);
/* As of a chunk, over the bytes and, behind them, the READ's body as it travels: bytes of another
 * place than was asked for have another digest even if they are sound. */
void read_digest_final(struct read_digest *digest, uint32_t rank, const struct stream_range *ranges,
                       uint32_t range_count, uint8_t ret_digest[HASH_MAX_BYTES]);
void read_digest_free(struct read_digest *digest);

#endif
