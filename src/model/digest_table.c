#include "base/clock.h"
#include "base/thread.h"
#include "model/digest.h"
#include "wire/wire.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Setting a digest takes the lock, once per chunk; getting one takes none.
 *
 * A digest's bytes are written under the lock before its flag is stored with release order; a
 * reader loads the flag with acquire order before it looks at the bytes, which never change
 * again. `known` is counted up, with release order too, after the flag: who has loaded it with
 * acquire order sees the flags of all that it counts. */
struct digest_table {
    enum hash_algorithm algorithm;
    unsigned digest_bytes;
    uint64_t chunk_count;
    uint8_t *digests;    /* [chunk_count][digest_bytes] */
    atomic_uchar *flags; /* [chunk_count] 1: known */
    atomic_uint_least64_t known;
    struct mutex lock; /* of writers of all the above, and of waiters */
    struct cond grown;
};

struct digest_table *digest_table_create(enum hash_algorithm algorithm, uint64_t chunk_count)
{
    struct digest_table *table = calloc(1, sizeof *table);

    if (table == NULL)
        return NULL;
    table->algorithm = algorithm;
    table->digest_bytes = hash_bytes(algorithm);
    table->chunk_count = chunk_count;
    mutex_init(&table->lock);
    cond_init(&table->grown);
    /* calloc() of large arrays costs nothing until they are written */
    table->digests = calloc(chunk_count + 1, table->digest_bytes);
    table->flags = calloc(chunk_count + 1, sizeof *table->flags);
    if (table->digests == NULL || table->flags == NULL) {
        digest_table_destroy(table);
        return NULL;
    }
    return table;
}

void digest_table_destroy(struct digest_table *table)
{
    if (table == NULL)
        return;
    cond_destroy(&table->grown);
    mutex_destroy(&table->lock);
    free(table->digests);
    free(table->flags);
    free(table);
}

uint64_t digest_table_count(const struct digest_table *table)
{
    return table->chunk_count;
}

static uint8_t *digest_at(const struct digest_table *table, uint64_t chunk)
{
    return table->digests + chunk * table->digest_bytes;
}

static bool is_known(const struct digest_table *table, uint64_t chunk)
{
    /* acquire: pairs with the release in set_locked() */
    return atomic_load_explicit(&table->flags[chunk], memory_order_acquire) != 0;
}

static bool set_locked(struct digest_table *table, uint64_t chunk, const uint8_t *digest)
    RF_REQUIRES(table->lock);

static bool set_locked(struct digest_table *table, uint64_t chunk, const uint8_t *digest)
{
    uint8_t *at = digest_at(table, chunk);

    if (is_known(table, chunk))
        return memcmp(at, digest, table->digest_bytes) == 0;
    memcpy(at, digest, table->digest_bytes);
    /* release: pairs with the acquire in is_known() */
    atomic_store_explicit(&table->flags[chunk], 1, memory_order_release);
    /* release: pairs with the acquire in digest_table_known() */
    atomic_fetch_add_explicit(&table->known, 1, memory_order_release);
    return true;
}

bool digest_table_set(struct digest_table *table, uint64_t chunk, const uint8_t *digest)
{
    assert(chunk < table->chunk_count);
    mutex_lock(&table->lock);
    bool ok = set_locked(table, chunk, digest);
    cond_broadcast(&table->grown);
    mutex_unlock(&table->lock);
    return ok;
}

bool digest_table_get(const struct digest_table *table, uint64_t chunk,
                      uint8_t ret_digest[HASH_MAX_BYTES])
{
    if (chunk >= table->chunk_count || !is_known(table, chunk))
        return false;
    memcpy(ret_digest, digest_at(table, chunk), table->digest_bytes);
    memset(ret_digest + table->digest_bytes, 0, HASH_MAX_BYTES - table->digest_bytes);
    return true;
}

uint64_t digest_table_known(const struct digest_table *table)
{
    /* acquire: pairs with the release in set_locked() */
    return atomic_load_explicit(&table->known, memory_order_acquire);
}

uint64_t digest_table_wait(struct digest_table *table, uint64_t known, uint64_t deadline_ns)
{
    mutex_lock(&table->lock);
    while (digest_table_known(table) <= known && digest_table_known(table) < table->chunk_count &&
           cond_wait_until(&table->grown, &table->lock, deadline_ns)) {
    }
    uint64_t now_known = digest_table_known(table);
    mutex_unlock(&table->lock);
    return now_known;
}

/* ---- binary form ---- */

static const uint8_t digest_magic[4] = {'R', 'F', 'D', 'G'};

enum { DIGEST_VERSION = 1 };

void digest_table_encode(const struct digest_table *table, uint64_t from, struct buf *out)
{
    uint64_t begin = from < table->chunk_count ? from : table->chunk_count;
    uint64_t count = table->chunk_count - begin;
    size_t at = out->bytes;
    uint8_t check[HASH_MAX_BYTES];

    if (count > DIGEST_MAX_PIECE_CHUNKS)
        count = DIGEST_MAX_PIECE_CHUNKS;
    size_t bitmap_bytes = (count + 7) / 8;
    buf_append(out, digest_magic, sizeof digest_magic);
    wire_put_u16(out, DIGEST_VERSION);
    wire_put_u8(out, (uint8_t)table->algorithm);
    wire_put_u8(out, 0);
    wire_put_u64(out, table->chunk_count);
    wire_put_u64(out, begin);
    wire_put_u64(out, count);

    /* Room for all, so that the bitmap can be filled while digests are appended behind it: a
     * chunk is asked once whether it is known, or the two could disagree. */
    uint8_t *bitmap = buf_reserve(out, bitmap_bytes + count * table->digest_bytes);
    if (bitmap == NULL)
        return;
    memset(bitmap, 0, bitmap_bytes);
    struct wire_out digests = {.at = bitmap + bitmap_bytes};
    for (uint64_t i = 0; i < count; i++) {
        if (!is_known(table, begin + i))
            continue;
        bitmap[i / 8] |= (uint8_t)(1u << (i % 8));
        wire_set_bytes(&digests, digest_at(table, begin + i), table->digest_bytes);
    }
    out->bytes += (size_t)(digests.at - bitmap);
    hash_once(HASH_XXH3_128, out->data + at, out->bytes - at, check);
    buf_append(out, check, DIGEST_CHECK_BYTES);
}

/* A decoded piece; borrows the bytes. */
struct digest_piece {
    uint64_t from;
    uint64_t count;
    const uint8_t *bitmap;
    const uint8_t *digests;
};

static bool has_digest(const struct digest_piece *piece, uint64_t i)
{
    return (piece->bitmap[i / 8] >> (i % 8) & 1) != 0;
}

/* Bits set in the bitmap; UINT64_MAX if one is set beyond count. */
static uint64_t bitmap_count(const struct digest_piece *piece)
{
    uint64_t set = 0;

    for (uint64_t i = 0; i < piece->count; i++)
        set += has_digest(piece, i);
    for (uint64_t i = piece->count; i % 8 != 0; i++) {
        if (has_digest(piece, i))
            return UINT64_MAX;
    }
    return set;
}

/* Whether these bytes are digests of a table like ours, and arrived whole. */
static enum rf_code head_get(const struct digest_table *table, struct wire_in *in, size_t bytes,
                             struct digest_piece *piece, struct rf_error *err)
{
    const uint8_t *magic = wire_get_bytes(in, sizeof digest_magic);
    unsigned version = wire_get_u16(in);
    unsigned algorithm = wire_get_u8(in);
    unsigned zero = wire_get_u8(in);
    uint64_t chunk_count = wire_get_u64(in);

    piece->from = wire_get_u64(in);
    piece->count = wire_get_u64(in);
    if (!in->ok || memcmp(magic, digest_magic, sizeof digest_magic) != 0)
        return rf_fail(
            err, RF_E_PROTO,
            "these %zu bytes are no digests: they do not begin with RFDG and a head of %d bytes",
            bytes, DIGEST_HEAD_BYTES);
    if (version != DIGEST_VERSION || zero != 0)
        return rf_fail(
            err, RF_E_PROTO,
            "digests: version %u with %#x in a reserved field, this rfork reads %d with 0", version,
            zero, DIGEST_VERSION);
    if (algorithm != (unsigned)table->algorithm || chunk_count != table->chunk_count)
        return rf_fail(err, RF_E_PROTO,
                       "digests: algorithm %u for %" PRIu64 " chunks, ours are %u for %" PRIu64
                       ": of another manifest",
                       algorithm, chunk_count, (unsigned)table->algorithm, table->chunk_count);
    if (piece->from > chunk_count || piece->count > chunk_count - piece->from ||
        piece->count > DIGEST_MAX_PIECE_CHUNKS)
        return rf_fail(err, RF_E_PROTO,
                       "digests: chunks %" PRIu64 "+%" PRIu64 " of %" PRIu64 ", at most %d at once",
                       piece->from, piece->count, chunk_count, DIGEST_MAX_PIECE_CHUNKS);
    return RF_OK;
}

static enum rf_code piece_decode(const struct digest_table *table, const uint8_t *data,
                                 size_t bytes, struct digest_piece *ret_piece, struct rf_error *err)
{
    struct wire_in in = wire_in_over(data, bytes);
    struct digest_piece piece = {.count = 0};
    uint8_t check[HASH_MAX_BYTES];
    enum rf_code code = head_get(table, &in, bytes, &piece, err);

    if (code != RF_OK)
        return code;
    piece.bitmap = wire_get_bytes(&in, (piece.count + 7) / 8);
    uint64_t set = piece.bitmap != NULL ? bitmap_count(&piece) : 0;
    if (set == UINT64_MAX)
        return rf_fail(err, RF_E_PROTO,
                       "digests: the bitmap has bits beyond its %" PRIu64 " chunks", piece.count);
    piece.digests = wire_get_bytes(&in, set * table->digest_bytes); /* at most 2^20 of 32 */
    if (piece.bitmap == NULL || piece.digests == NULL || wire_left(&in) != DIGEST_CHECK_BYTES)
        return rf_fail(err, RF_E_PROTO,
                       "digests: %zu bytes are not what %" PRIu64 " digests of %" PRIu64
                       " chunks take",
                       bytes, set, piece.count);
    hash_once(HASH_XXH3_128, data, bytes - DIGEST_CHECK_BYTES, check);
    if (memcmp(check, in.at, DIGEST_CHECK_BYTES) != 0)
        return rf_fail(
            err, RF_E_PROTO,
            "digests: the %zu bytes do not match the check at their end: damaged on the way; "
            "fetch them again",
            bytes);
    *ret_piece = piece;
    return RF_OK;
}

/* The first chunk whose known digest differs from the piece's; chunk_count if none does. */
static uint64_t find_conflict(const struct digest_table *table, const struct digest_piece *piece)
{
    const uint8_t *digest = piece->digests;

    for (uint64_t i = 0; i < piece->count; i++) {
        if (!has_digest(piece, i))
            continue;
        if (is_known(table, piece->from + i) &&
            memcmp(digest_at(table, piece->from + i), digest, table->digest_bytes) != 0)
            return piece->from + i;
        digest += table->digest_bytes;
    }
    return table->chunk_count;
}

enum rf_code digest_table_merge(struct digest_table *table, const uint8_t *data, size_t bytes,
                                struct rf_error *err)
{
    struct digest_piece piece = {.bitmap = data, .digests = data}; /* until it is decoded */
    char ours[HASH_TEXT_BYTES];
    enum rf_code code = piece_decode(table, data, bytes, &piece, err);

    if (code != RF_OK)
        return code;
    mutex_lock(&table->lock);
    uint64_t conflict = find_conflict(table, &piece);
    const uint8_t *digest = piece.digests;
    for (uint64_t i = 0; i < piece.count && conflict == table->chunk_count; i++) {
        if (!has_digest(&piece, i))
            continue;
        set_locked(table, piece.from + i, digest);
        digest += table->digest_bytes;
    }
    cond_broadcast(&table->grown);
    mutex_unlock(&table->lock);
    if (conflict != table->chunk_count)
        return rf_fail(err, RF_E_CORRUPT,
                       "digests: the peer's digest of chunk %" PRIu64 " is not the known one, %s",
                       conflict, hash_text(table->algorithm, digest_at(table, conflict), ours));
    return RF_OK;
}
