#include "model/digest.h"

#include "model/manifest_internal.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- one chunk ---- */

enum { MAX_LEAVES = MANIFEST_MAX_CHUNK_BYTES / MANIFEST_LEAF_BYTES };

struct chunk_hasher {
    enum hash_algorithm algorithm;
    unsigned digest_bytes;
    struct hash_state *leaf;   /* of a leaf that comes in several pieces */
    uint32_t leaf_bytes;       /* how much of it came */
    struct hash_state *leaves; /* over the leaf digests, once there are more than a chunk has */
    bool long_input;           /* leaves is in use */
    uint32_t leaf_count;       /* in digests[] */
    uint8_t digests[MAX_LEAVES * HASH_MAX_BYTES + HASH_MAX_BYTES]; /* room to write a whole one */
};

struct chunk_hasher *chunk_hasher_create(enum hash_algorithm algorithm)
{
    struct chunk_hasher *hasher = malloc(sizeof *hasher);

    if (hasher == NULL)
        return NULL;
    hasher->algorithm = algorithm;
    hasher->digest_bytes = hash_bytes(algorithm);
    hasher->leaf = hash_state_create(algorithm);
    hasher->leaves = hash_state_create(algorithm);
    if (hasher->leaf == NULL || hasher->leaves == NULL) {
        chunk_hasher_destroy(hasher);
        return NULL;
    }
    chunk_hasher_begin(hasher);
    return hasher;
}

void chunk_hasher_destroy(struct chunk_hasher *hasher)
{
    if (hasher == NULL)
        return;
    hash_state_destroy(hasher->leaf);
    hash_state_destroy(hasher->leaves);
    free(hasher);
}

void chunk_hasher_begin(struct chunk_hasher *hasher)
{
    hasher->leaf_bytes = 0;
    hasher->leaf_count = 0;
    hasher->long_input = false;
}

/* Where the next leaf's digest goes. */
static uint8_t *next_digest(struct chunk_hasher *hasher)
{
    if (hasher->leaf_count == MAX_LEAVES) {
        if (!hasher->long_input)
            hash_reset(hasher->leaves);
        hasher->long_input = true;
        hash_update(hasher->leaves, hasher->digests, (size_t)MAX_LEAVES * hasher->digest_bytes);
        hasher->leaf_count = 0;
    }
    return hasher->digests + (size_t)hasher->leaf_count++ * hasher->digest_bytes;
}

void chunk_hasher_update(struct chunk_hasher *hasher, const void *data, size_t bytes)
{
    const uint8_t *at = data;

    while (bytes > 0) {
        size_t piece = MANIFEST_LEAF_BYTES - hasher->leaf_bytes;

        if (bytes >= MANIFEST_LEAF_BYTES && hasher->leaf_bytes == 0) {
            hash_once(hasher->algorithm, at, piece, next_digest(hasher));
        } else {
            if (piece > bytes)
                piece = bytes;
            if (hasher->leaf_bytes == 0)
                hash_reset(hasher->leaf);
            hash_update(hasher->leaf, at, piece);
            hasher->leaf_bytes += (uint32_t)piece;
            if (hasher->leaf_bytes == MANIFEST_LEAF_BYTES) {
                hash_final(hasher->leaf, next_digest(hasher));
                hasher->leaf_bytes = 0;
            }
        }
        at += piece;
        bytes -= piece;
    }
}

void chunk_hasher_final(struct chunk_hasher *hasher, uint8_t ret_digest[HASH_MAX_BYTES])
{
    if (hasher->leaf_bytes > 0)
        hash_final(hasher->leaf, next_digest(hasher));

    size_t bytes = (size_t)hasher->leaf_count * hasher->digest_bytes;
    if (hasher->long_input) {
        hash_update(hasher->leaves, hasher->digests, bytes);
        hash_final(hasher->leaves, ret_digest);
    } else {
        hash_once(hasher->algorithm, hasher->digests, bytes, ret_digest);
    }
    chunk_hasher_begin(hasher);
}

/* ---- roots ---- */

/* Hashes small things through a buffer of a few thousand tensors' facts. */
struct root_hasher {
    struct hash_state *state;
    struct buf pending;
};

enum { ROOT_PENDING_BYTES = 256 << 10 };

static void root_flush(struct root_hasher *root)
{
    hash_update(root->state, root->pending.data, root->pending.bytes);
    root->pending.bytes = 0;
}

/* Room for `bytes` more, which the caller fills; NULL when out of memory. */
static uint8_t *root_room(struct root_hasher *root, size_t bytes)
{
    if (root->pending.bytes >= ROOT_PENDING_BYTES)
        root_flush(root);
    uint8_t *at = buf_reserve(&root->pending, bytes);
    if (at != NULL)
        root->pending.bytes += bytes;
    return at;
}

static enum rf_code root_begin(struct root_hasher *root, enum hash_algorithm algorithm,
                               const char *domain, struct rf_error *err)
{
    *root = (struct root_hasher){.state = hash_state_create(algorithm)};
    if (root->state == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to hash a root");
    hash_reset(root->state);
    buf_append(&root->pending, domain, strlen(domain));
    return RF_OK;
}

static enum rf_code root_end(struct root_hasher *root, uint8_t ret_root[HASH_MAX_BYTES],
                             struct rf_error *err)
{
    bool failed = root->pending.failed;

    if (!failed) {
        root_flush(root);
        hash_final(root->state, ret_root);
    }
    buf_free(&root->pending);
    hash_state_destroy(root->state);
    return failed ? rf_fail(err, RF_E_NOMEM, "no memory to hash a root") : RF_OK;
}

enum rf_code digest_rank_root(const struct manifest *manifest, uint32_t rank,
                              const struct digest_table *table, uint8_t ret_root[HASH_MAX_BYTES],
                              struct rf_error *err)
{
    const struct manifest_rank *of = &manifest->ranks[rank];
    uint64_t chunks = manifest_chunk_count(manifest, rank);
    struct root_hasher root;
    char text[64];

    if (digest_table_count(table) != chunks)
        return rf_fail(err, RF_E_INVAL,
                       "rank %s: a table of %" PRIu64 " digests for %" PRIu64 " chunks",
                       rank_id_text(&of->id, text), digest_table_count(table), chunks);
    if (digest_table_known(table) != chunks)
        return rf_fail(err, RF_E_INVAL,
                       "rank %s: %" PRIu64 " of %" PRIu64 " digests are known, the root needs all",
                       rank_id_text(&of->id, text), digest_table_known(table), chunks);
    enum rf_code code = root_begin(&root, manifest->algorithm, "rfork rank 1\n", err);
    if (code != RF_OK)
        return code;
    wire_put_u32(&root.pending, manifest->source_count);
    for (uint32_t i = 0; i < manifest->source_count; i++) {
        struct wire_out out = {.at = root_room(&root, source_facts_bytes(&manifest->sources[i]))};
        if (out.at != NULL)
            source_facts_set(&out, &manifest->sources[i]);
    }
    wire_put_u32(&root.pending, of->tensor_count);
    for (uint32_t i = 0; i < of->tensor_count; i++) {
        struct wire_out out = {.at = root_room(&root, tensor_facts_bytes(&of->tensors[i]))};
        if (out.at != NULL)
            tensor_facts_set(&out, &of->tensors[i]);
    }
    wire_put_u32(&root.pending, manifest->chunk_bytes);
    wire_put_u64(&root.pending, of->stream_bytes);
    for (uint64_t i = 0; i < chunks; i++) {
        uint8_t digest[HASH_MAX_BYTES];
        uint8_t *at = root_room(&root, hash_bytes(manifest->algorithm));

        if (at != NULL && digest_table_get(table, i, digest))
            memcpy(at, digest, hash_bytes(manifest->algorithm));
    }
    return root_end(&root, ret_root, err);
}

static int compare_ranks(const void *a, const void *b, void *ctx)
{
    const struct manifest *manifest = ctx;

    return rank_id_compare(&manifest->ranks[*(const uint16_t *)a].id,
                           &manifest->ranks[*(const uint16_t *)b].id);
}

enum rf_code digest_model_root(const struct manifest *manifest,
                               const uint8_t (*roots)[HASH_MAX_BYTES],
                               uint8_t ret_root[HASH_MAX_BYTES], struct rf_error *err)
{
    uint16_t order[MANIFEST_MAX_RANKS];
    struct root_hasher root;
    enum rf_code code = root_begin(&root, manifest->algorithm, "rfork model 1\n", err);

    if (code != RF_OK)
        return code;
    for (uint32_t i = 0; i < manifest->rank_count; i++)
        order[i] = (uint16_t)i;
    union {
        const struct manifest *in;
        void *out;
    } ctx = {
        .in = manifest}; /* qsort_r() takes no pointer to const; compare_ranks() writes nothing */
    qsort_r(order, manifest->rank_count, sizeof order[0], compare_ranks, ctx.out);
    wire_put_u32(&root.pending, manifest->rank_count);
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        uint32_t words[RANK_ID_WORDS];

        rank_id_words(&manifest->ranks[order[i]].id, words);
        for (unsigned j = 0; j < RANK_ID_WORDS; j++)
            wire_put_u32(&root.pending, words[j]);
        buf_append(&root.pending, roots[order[i]], hash_bytes(manifest->algorithm));
    }
    return root_end(&root, ret_root, err);
}
