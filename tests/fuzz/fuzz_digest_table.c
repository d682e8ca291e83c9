/* Digests from a peer. Inputs lack the check at the end, which is made to fit here. What is
 * merged into an empty table must come out of it again. */
#include "model/digest.h"
#include "must.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNKS = 21 };

/* The table's own encoding holds all chunks from `from` on; the piece may end earlier. If it
 * does not, the bytes must be the same. */
static void check_again(const struct digest_table *table, const struct buf *sealed)
{
    struct buf again = {0};
    uint64_t from = sealed->data[16];
    uint64_t count = sealed->data[24];

    digest_table_encode(table, from, &again);
    if (from + count == CHUNKS)
        must(again.bytes == sealed->bytes && memcmp(again.data, sealed->data, again.bytes) == 0);
    buf_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct digest_table *table = digest_table_create(HASH_XXH3_128, CHUNKS);
    uint8_t check[HASH_MAX_BYTES];
    struct buf sealed = {0};

    hash_once(HASH_XXH3_128, data, size, check);
    buf_append(&sealed, data, size);
    buf_append(&sealed, check, DIGEST_CHECK_BYTES);
    if (table != NULL && !sealed.failed) {
        if (digest_table_merge(table, sealed.data, sealed.bytes, NULL) == RF_OK) {
            check_again(table, &sealed);
            /* once more changes nothing */
            uint64_t known = digest_table_known(table);
            must(digest_table_merge(table, sealed.data, sealed.bytes, NULL) == RF_OK);
            must(digest_table_known(table) == known);
        } else {
            must(digest_table_known(table) == 0);
        }
    }
    digest_table_destroy(table);
    buf_free(&sealed);
    return 0;
}
