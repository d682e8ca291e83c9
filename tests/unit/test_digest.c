/* Digests: equal however the bytes arrive and lie, different when anything that counts differs. */
#include "base/clock.h"
#include "base/rand.h"
#include "base/thread.h"
#include "model/digest.h"
#include "util/bytes.h"
#include "util/golden.h"
#include "util/manifests.h"
#include "wire/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LEAF = MANIFEST_LEAF_BYTES };

static const enum hash_algorithm algorithms[] = {HASH_XXH3_128, HASH_SHA256};

static uint8_t *random_bytes(size_t bytes, struct rand_seq *seq)
{
    uint8_t *data = malloc(bytes + 8);

    assert_non_null(data);
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = rand_next(seq);
        memcpy(data + i, &word, 8);
    }
    return data;
}

/* ---- chunks ---- */

/* The definition, word for word. */
static void digest_by_definition(enum hash_algorithm algorithm, const uint8_t *data, size_t bytes,
                                 uint8_t ret_digest[HASH_MAX_BYTES])
{
    BUF_AUTO struct buf leaves = {0};
    uint8_t leaf[HASH_MAX_BYTES];

    for (size_t at = 0; at < bytes; at += LEAF) {
        hash_once(algorithm, data + at, bytes - at < LEAF ? bytes - at : LEAF, leaf);
        buf_append(&leaves, leaf, hash_bytes(algorithm));
    }
    hash_once(algorithm, leaves.data != NULL ? leaves.data : leaf, leaves.bytes, ret_digest);
}

static void chunk_digest_is_a_hash_over_hashes_of_leaves(void **state)
{
    (void)state;
    static const size_t sizes[] = {
        0, 1, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF - 1, 2 * LEAF + 5, 9 * LEAF + 77};
    struct rand_seq seq = {1};
    uint8_t *data = random_bytes(10 * LEAF, &seq);
    uint8_t expected[HASH_MAX_BYTES];
    uint8_t got[HASH_MAX_BYTES];

    for (unsigned a = 0; a < 2; a++) {
        struct chunk_hasher *hasher = chunk_hasher_create(algorithms[a]);
        for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            digest_by_definition(algorithms[a], data, sizes[i], expected);
            chunk_hasher_begin(hasher);
            chunk_hasher_update(hasher, data, sizes[i]);
            chunk_hasher_final(hasher, got);
            assert_memory_equal(got, expected, HASH_MAX_BYTES);
        }
        chunk_hasher_destroy(hasher);
    }
    free(data);
}

static void digest_is_equal_for_all_splits(void **state)
{
    (void)state;
    enum { BYTES = 5 * LEAF + 1234 };
    struct rand_seq seq = {2};
    uint8_t *data = random_bytes(BYTES, &seq);
    uint8_t expected[HASH_MAX_BYTES];
    uint8_t got[HASH_MAX_BYTES];

    for (unsigned a = 0; a < 2; a++) {
        struct chunk_hasher *hasher = chunk_hasher_create(algorithms[a]);
        digest_by_definition(algorithms[a], data, BYTES, expected);
        for (unsigned round = 0; round < 60; round++) {
            uint64_t largest = UINT64_C(1) << rand_below(&seq, 19);
            chunk_hasher_begin(hasher);
            for (size_t at = 0; at < BYTES;) {
                size_t piece = rand_below(&seq, largest + 1);
                if (rand_below(&seq, 8) == 0)
                    piece = LEAF - at % LEAF; /* up to a leaf's end exactly */
                if (piece > BYTES - at)
                    piece = BYTES - at;
                chunk_hasher_update(hasher, data + at, piece);
                at += piece;
            }
            chunk_hasher_final(hasher, got);
            assert_memory_equal(got, expected, HASH_MAX_BYTES);
        }
        chunk_hasher_destroy(hasher);
    }
    free(data);
}

static void hasher_forgets_what_came_before_begin(void **state)
{
    (void)state;
    struct chunk_hasher *hasher = chunk_hasher_create(HASH_XXH3_128);
    uint8_t first[HASH_MAX_BYTES];
    uint8_t second[HASH_MAX_BYTES];

    chunk_hasher_update(hasher, "abc", 3);
    chunk_hasher_final(hasher, first);
    chunk_hasher_update(hasher, "leftover", 8);
    chunk_hasher_begin(hasher);
    chunk_hasher_update(hasher, "abc", 3);
    chunk_hasher_final(hasher, second);
    assert_memory_equal(first, second, HASH_MAX_BYTES);
    chunk_hasher_destroy(hasher);
    chunk_hasher_destroy(NULL);
}

/* Tensors may be longer than the largest chunk, whose leaves are what the hasher has room for. */
static void longer_than_any_chunk_is_hashed_too(void **state)
{
    (void)state;
    const size_t sizes[] = {MANIFEST_MAX_CHUNK_BYTES, MANIFEST_MAX_CHUNK_BYTES + 1,
                            2 * (size_t)MANIFEST_MAX_CHUNK_BYTES + 3 * LEAF};
    uint8_t *data = calloc(1, sizes[2]);
    struct chunk_hasher *hasher = chunk_hasher_create(HASH_XXH3_128);
    uint8_t expected[HASH_MAX_BYTES];
    uint8_t got[HASH_MAX_BYTES];

    assert_non_null(data);
    for (size_t i = 0; i < sizes[2]; i += 4096)
        data[i] = (uint8_t)(i >> 12);
    for (unsigned i = 0; i < 3; i++) {
        digest_by_definition(HASH_XXH3_128, data, sizes[i], expected);
        chunk_hasher_begin(hasher);
        chunk_hasher_update(hasher, data, sizes[i]);
        chunk_hasher_final(hasher, got);
        assert_memory_equal(got, expected, HASH_MAX_BYTES);
    }
    chunk_hasher_destroy(hasher);
    free(data);
}

/* ---- tables ---- */

static void digest_of(uint64_t chunk, uint8_t ret_digest[HASH_MAX_BYTES])
{
    hash_once(HASH_XXH3_128, &chunk, sizeof chunk, ret_digest);
}

static void set_digest(struct digest_table *table, uint64_t chunk)
{
    uint8_t digest[HASH_MAX_BYTES];

    digest_of(chunk, digest);
    assert_true(digest_table_set(table, chunk, digest));
}

static void assert_digest(const struct digest_table *table, uint64_t chunk, bool known)
{
    uint8_t expected[HASH_MAX_BYTES];
    uint8_t got[HASH_MAX_BYTES];

    digest_of(chunk, expected);
    assert_int_equal(digest_table_get(table, chunk, got), known);
    if (known)
        assert_memory_equal(got, expected, HASH_MAX_BYTES);
}

static void digest_is_known_once_it_is_set(void **state)
{
    (void)state;
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 10);

    assert_int_equal(digest_table_count(table), 10);
    assert_int_equal(digest_table_known(table), 0);
    assert_digest(table, 3, false);
    set_digest(table, 3);
    set_digest(table, 3); /* the same again is fine and counts once */
    assert_digest(table, 3, true);
    assert_digest(table, 4, false);
    assert_digest(table, 10, false);
    assert_digest(table, UINT64_MAX, false);
    assert_int_equal(digest_table_known(table), 1);
    digest_table_destroy(table);
    digest_table_destroy(NULL);
}

static void known_digest_never_changes(void **state)
{
    (void)state;
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 2);
    uint8_t other[HASH_MAX_BYTES] = {0};

    set_digest(table, 1);
    assert_false(digest_table_set(table, 1, other));
    assert_digest(table, 1, true);
    digest_table_destroy(table);
}

static void wait_ends_at_its_deadline(void **state)
{
    (void)state;
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 2);

    assert_int_equal(digest_table_wait(table, 0, clock_deadline_ns(5)), 0);
    set_digest(table, 0);
    assert_int_equal(digest_table_wait(table, 0, clock_deadline_ns(600000)), 1);
    set_digest(table, 1);
    /* all are known: nothing is left to wait for */
    assert_int_equal(digest_table_wait(table, 2, clock_deadline_ns(600000)), 2);
    digest_table_destroy(table);
}

enum { RACE_CHUNKS = 2000 };

static void *set_all(void *arg)
{
    struct digest_table *table = arg;

    for (uint64_t i = 0; i < RACE_CHUNKS; i++)
        set_digest(table, i);
    return NULL;
}

static void *read_all(void *arg)
{
    struct digest_table *table = arg;
    uint64_t known = 0;

    while (known < RACE_CHUNKS) {
        known = digest_table_wait(table, known, clock_deadline_ns(60000));
        /* set_all() goes in order: what is counted is there */
        for (uint64_t i = known > 3 ? known - 3 : 0; i < known; i++)
            assert_digest(table, i, true);
    }
    return NULL;
}

static void waiters_see_all_that_was_counted(void **state)
{
    (void)state;
    struct digest_table *table = digest_table_create(HASH_XXH3_128, RACE_CHUNKS);
    pthread_t threads[4];

    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(thread_start(&threads[i], "test", i < 2 ? read_all : set_all, table, NULL),
                         RF_OK);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(digest_table_known(table), RACE_CHUNKS);
    digest_table_destroy(table);
}

/* ---- tables on the wire ---- */

static struct digest_table *some_table(uint64_t chunks)
{
    struct digest_table *table = digest_table_create(HASH_XXH3_128, chunks);

    for (uint64_t i = 0; i < chunks; i++) {
        if (i % 3 != 1)
            set_digest(table, i);
    }
    return table;
}

static void table_survives_the_wire(void **state)
{
    (void)state;
    struct digest_table *sent = some_table(21);
    struct digest_table *got = digest_table_create(HASH_XXH3_128, 21);
    struct rf_error err = {0};
    BUF_AUTO struct buf raw = {0};

    digest_table_encode(sent, 0, &raw);
    golden_check("digest_table_v1.bin", raw.data, raw.bytes);
    for (unsigned round = 0; round < 2; round++) { /* again is fine */
        if (digest_table_merge(got, raw.data, raw.bytes, &err) != RF_OK)
            fail_msg("%s", err.text);
        assert_int_equal(digest_table_known(got), 14);
        for (uint64_t i = 0; i < 21; i++)
            assert_digest(got, i, i % 3 != 1);
    }
    digest_table_destroy(sent);
    digest_table_destroy(got);
}

static void parts_add_up_to_the_table(void **state)
{
    (void)state;
    enum { CHUNKS = DIGEST_MAX_PIECE_CHUNKS + 12 };
    struct digest_table *sent = digest_table_create(HASH_XXH3_128, CHUNKS);
    struct digest_table *got = digest_table_create(HASH_XXH3_128, CHUNKS);
    BUF_AUTO struct buf raw = {0};

    for (uint64_t i = 0; i < CHUNKS; i += 1000)
        set_digest(sent, i);
    set_digest(sent, CHUNKS - 1);
    digest_table_encode(sent, 0, &raw); /* all that fits into one piece */
    assert_int_equal(digest_table_merge(got, raw.data, raw.bytes, NULL), RF_OK);
    assert_digest(got, CHUNKS - 1, false);
    raw.bytes = 0;
    digest_table_encode(sent, DIGEST_MAX_PIECE_CHUNKS, &raw);
    assert_int_equal(digest_table_merge(got, raw.data, raw.bytes, NULL), RF_OK);
    assert_digest(got, CHUNKS - 1, true);
    assert_int_equal(digest_table_known(got), digest_table_known(sent));
    raw.bytes = 0;
    digest_table_encode(sent, UINT64_MAX, &raw); /* beyond the end: nothing, and well-formed */
    assert_int_equal(raw.bytes, DIGEST_HEAD_BYTES + DIGEST_CHECK_BYTES);
    assert_int_equal(digest_table_merge(got, raw.data, raw.bytes, NULL), RF_OK);
    digest_table_destroy(sent);
    digest_table_destroy(got);
}

static void truncated_or_damaged_table_is_refused(void **state)
{
    (void)state;
    struct digest_table *sent = some_table(21);
    struct digest_table *got = digest_table_create(HASH_XXH3_128, 21);
    BUF_AUTO struct buf raw = {0};

    digest_table_encode(sent, 0, &raw);
    for (size_t bytes = 0; bytes < raw.bytes; bytes++) {
        uint8_t *cut = exact_copy(raw.data, bytes);
        assert_int_equal(digest_table_merge(got, cut, bytes, NULL), RF_E_PROTO);
        free(cut);
    }
    for (size_t bit = 0; bit < raw.bytes * 8; bit++) {
        raw.data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        assert_int_equal(digest_table_merge(got, raw.data, raw.bytes, NULL), RF_E_PROTO);
        raw.data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    assert_int_equal(digest_table_known(got), 0);
    digest_table_destroy(sent);
    digest_table_destroy(got);
}

/* Writes a field of an encoded table and makes its check fit again. */
static void forge(struct buf *raw, size_t at, uint64_t value, unsigned bytes)
{
    uint8_t check[HASH_MAX_BYTES];

    wire_put_uint(raw->data + at, value, bytes);
    hash_once(HASH_XXH3_128, raw->data, raw->bytes - DIGEST_CHECK_BYTES, check);
    memcpy(raw->data + raw->bytes - DIGEST_CHECK_BYTES, check, DIGEST_CHECK_BYTES);
}

static void table_of_another_shape_is_refused(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint64_t value;
        unsigned bytes;
    } lies[] = {
        {4, 2, 2},           /* version */
        {6, HASH_SHA256, 1}, /* algorithm */
        {7, 1, 1},           /* reserved */
        {8, 22, 8},          /* chunk count */
        {16, 22, 8},         /* from */
        {16, 1, 8},          /* from: the piece then ends beyond the table */
        {16, UINT64_MAX, 8}, /* from */
        {24, 22, 8},         /* piece count */
        {24, 20, 8},         /* piece count: bits are set beyond it or digests left over */
        {24, UINT64_MAX, 8}, /* piece count */
        {34, 0x3f, 1},       /* bitmap: a spare bit */
        {32, 0x6f, 1},       /* bitmap: one more digest than there is */
        {32, 0x6c, 1},       /* bitmap: one fewer */
    };
    struct digest_table *sent = some_table(21);
    struct digest_table *got = digest_table_create(HASH_XXH3_128, 21);

    for (unsigned i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        BUF_AUTO struct buf raw = {0};
        digest_table_encode(sent, 0, &raw);
        forge(&raw, lies[i].at, lies[i].value, lies[i].bytes);
        assert_int_equal(digest_table_merge(got, raw.data, raw.bytes, NULL), RF_E_PROTO);
        assert_int_equal(digest_table_known(got), 0);
    }
    digest_table_destroy(sent);
    digest_table_destroy(got);
}

static void contradiction_is_corruption_and_changes_nothing(void **state)
{
    (void)state;
    struct digest_table *sent = some_table(21);
    struct digest_table *got = digest_table_create(HASH_XXH3_128, 21);
    struct rf_error err = {0};
    uint8_t other[HASH_MAX_BYTES] = {1};
    BUF_AUTO struct buf raw = {0};

    assert_true(digest_table_set(got, 18, other));
    digest_table_encode(sent, 0, &raw);
    assert_int_equal(digest_table_merge(got, raw.data, raw.bytes, &err), RF_E_CORRUPT);
    assert_says(&err, "chunk 18");
    assert_int_equal(digest_table_known(got), 1);
    digest_table_destroy(sent);
    digest_table_destroy(got);
}

/* ---- roots ---- */

static void fill_table(struct digest_table *table)
{
    for (uint64_t i = 0; i < digest_table_count(table); i++)
        set_digest(table, i);
}

/* Root of a rank whose chunks have the digests that digest_of() makes. */
static void root_of(const struct manifest *manifest, uint32_t rank,
                    uint8_t ret_root[HASH_MAX_BYTES])
{
    struct digest_table *table =
        digest_table_create(manifest->algorithm, manifest_chunk_count(manifest, rank));

    fill_table(table);
    assert_int_equal(digest_rank_root(manifest, rank, table, ret_root, NULL), RF_OK);
    digest_table_destroy(table);
}

static void roots_are_those_released(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    uint8_t roots[3][HASH_MAX_BYTES] = {{0}};

    root_of(manifest, 0, roots[0]);
    root_of(manifest, 1, roots[1]);
    assert_int_equal(
        digest_model_root(manifest, (const uint8_t(*)[HASH_MAX_BYTES])roots, roots[2], NULL),
        RF_OK);
    golden_check("roots_v1.bin", roots, sizeof roots);
    manifest_unref(manifest);
}

static void root_needs_all_digests_of_its_own_table(void **state)
{
    (void)state;
    const struct tensor_spec spec = {
        .name = "t", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {LEAF + 1}};
    struct manifest *manifest = manifest_of(&spec, 1, LEAF);
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 2);
    struct digest_table *other = digest_table_create(HASH_XXH3_128, 3);
    uint8_t root[HASH_MAX_BYTES];
    struct rf_error err = {0};

    set_digest(table, 1);
    assert_int_equal(digest_rank_root(manifest, 0, table, root, &err), RF_E_INVAL);
    assert_says(&err, "1 of 2");
    fill_table(other);
    assert_int_equal(digest_rank_root(manifest, 0, other, root, &err), RF_E_INVAL);
    set_digest(table, 0);
    assert_int_equal(digest_rank_root(manifest, 0, table, root, &err), RF_OK);
    digest_table_destroy(table);
    digest_table_destroy(other);
    manifest_unref(manifest);
}

static void root_differs_when_a_tensor_does(void **state)
{
    (void)state;
    static const struct tensor_spec variants[] = {
        {.name = "w", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {2, 6}},
        {.name = "v", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {2, 6}},
        {.name = "w", .dtype = RF_DTYPE_I8, .ndim = 2, .shape = {2, 6}},
        {.name = "w", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {6, 2}},
        {.name = "w", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {12}},
        {.name = "w", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {2, 6}, .global_shape = {4, 6}},
        {.name = "w",
         .dtype = RF_DTYPE_U8,
         .ndim = 2,
         .shape = {2, 6},
         .global_shape = {4, 6},
         .slice_start = {2, 0}},
        {.name = "w", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {2, 6}, .global_shape = {2, 12}},
    };
    enum { COUNT = sizeof variants / sizeof variants[0] };
    uint8_t roots[COUNT + 3][HASH_MAX_BYTES];

    for (unsigned i = 0; i < COUNT; i++) {
        struct manifest *manifest = manifest_of(&variants[i], 1, LEAF);
        root_of(manifest, 0, roots[i]);
        manifest_unref(manifest);
    }
    const struct tensor_spec tied[] = {
        variants[0],
        {.name = "x", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {2, 6}, .alias_of = "w"},
        {.name = "y", .dtype = RF_DTYPE_U8, .ndim = 0, .shape = {0}},
    };
    struct manifest *alias = manifest_of(tied, 2, LEAF);
    root_of(alias, 0, roots[COUNT]);
    manifest_unref(alias);
    struct manifest *larger_chunks = manifest_of(&variants[0], 1, 2 * LEAF);
    root_of(larger_chunks, 0, roots[COUNT + 1]);
    manifest_unref(larger_chunks);
    struct manifest *none = manifest_of(NULL, 0, LEAF);
    root_of(none, 0, roots[COUNT + 2]);
    manifest_unref(none);
    for (unsigned i = 0; i < COUNT + 3; i++) {
        for (unsigned j = 0; j < i; j++)
            assert_memory_not_equal(roots[i], roots[j], HASH_MAX_BYTES);
    }
}

/* Equal names, shapes and bytes, of other slices: another rank. */
static void root_differs_when_a_part_does(void **state)
{
    (void)state;
    const struct part parts[] = {{.source = 0, .count = 4},
                                 {.source = 0, .start = 4, .count = 4},
                                 {.source = 1, .count = 4},
                                 {.source = MANIFEST_NONE, .count = 4}};
    enum { COUNT = sizeof parts / sizeof parts[0] };
    uint8_t roots[COUNT][HASH_MAX_BYTES];

    for (unsigned i = 0; i < COUNT; i++) {
        struct manifest_builder *builder = builder_new(0);

        add_source(builder, "a", RF_DTYPE_U8, 1, (uint64_t[]){8});
        add_source(builder, "b", RF_DTYPE_U8, 1, (uint64_t[]){8});
        add_rank(builder, &whole_rank);
        add_tensor(builder, &(struct tensor_spec){.name = "t",
                                                  .dtype = RF_DTYPE_U8,
                                                  .ndim = 1,
                                                  .shape = {4},
                                                  .parts = &parts[i],
                                                  .part_count = 1});
        struct manifest *manifest = built(builder);
        root_of(manifest, 0, roots[i]);
        for (unsigned j = 0; j < i; j++)
            assert_memory_not_equal(roots[i], roots[j], hash_bytes(HASH_XXH3_128));
        manifest_unref(manifest);
    }
}

static void root_differs_when_a_digest_does(void **state)
{
    (void)state;
    const struct tensor_spec spec = {
        .name = "t", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {3 * LEAF}};
    struct manifest *manifest = manifest_of(&spec, 1, LEAF);
    struct digest_table *table = digest_table_create(HASH_XXH3_128, 3);
    uint8_t swapped[HASH_MAX_BYTES];
    uint8_t one[HASH_MAX_BYTES];
    uint8_t two[HASH_MAX_BYTES];

    root_of(manifest, 0, one);
    for (uint64_t i = 0; i < 3; i++) {
        digest_of(2 - i, swapped);
        assert_true(digest_table_set(table, i, swapped));
    }
    assert_int_equal(digest_rank_root(manifest, 0, table, two, NULL), RF_OK);
    assert_memory_not_equal(one, two, HASH_MAX_BYTES);
    digest_table_destroy(table);
    manifest_unref(manifest);
}

static void root_knows_nothing_of_files_and_order(void **state)
{
    (void)state;
    struct tensor_spec specs[] = {
        {.name = "a", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {LEAF}},
        {.name = "b", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {LEAF}},
    };
    struct manifest *plain = manifest_of(specs, 2, LEAF);
    struct manifest_builder *builder = builder_new(LEAF);
    uint8_t one[HASH_MAX_BYTES];
    uint8_t two[HASH_MAX_BYTES];

    add_file(builder, "w.safetensors", FILE_WEIGHTS, 3 * LEAF, 100);
    add_rank(builder, &whole_rank);
    specs[0].in_file = specs[1].in_file = true;
    specs[0].file_offset = 200;
    specs[1].file_offset = 100 + LEAF;
    add_tensor(builder, &specs[1]);
    add_tensor(builder, &specs[0]);
    struct manifest *in_files = built(builder);
    assert_memory_not_equal(plain->id, in_files->id, HASH_MAX_BYTES);
    root_of(plain, 0, one);
    root_of(in_files, 0, two);
    assert_memory_equal(one, two, HASH_MAX_BYTES);
    manifest_unref(plain);
    manifest_unref(in_files);
}

static void model_root_knows_ranks_by_their_ids(void **state)
{
    (void)state;
    static const struct rank_id ids[] = {{0, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET},
                                         {1, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET}};
    uint8_t roots[2][HASH_MAX_BYTES] = {{1}, {2}};
    uint8_t turned[2][HASH_MAX_BYTES] = {{2}, {1}};
    uint8_t got[3][HASH_MAX_BYTES];
    struct manifest_builder *builder = builder_new(0);
    struct manifest_builder *backwards = builder_new(0);

    add_rank(builder, &ids[0]);
    add_rank(builder, &ids[1]);
    add_rank(backwards, &ids[1]);
    add_rank(backwards, &ids[0]);
    struct manifest *one = built(builder);
    struct manifest *two = built(backwards);
    digest_model_root(one, (const uint8_t(*)[HASH_MAX_BYTES])roots, got[0], NULL);
    digest_model_root(two, (const uint8_t(*)[HASH_MAX_BYTES])turned, got[1], NULL);
    digest_model_root(one, (const uint8_t(*)[HASH_MAX_BYTES])turned, got[2], NULL);
    assert_memory_equal(got[0], got[1], HASH_MAX_BYTES);
    assert_memory_not_equal(got[0], got[2], HASH_MAX_BYTES);
    manifest_unref(one);
    manifest_unref(two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunk_digest_is_a_hash_over_hashes_of_leaves),
        cmocka_unit_test(digest_is_equal_for_all_splits),
        cmocka_unit_test(hasher_forgets_what_came_before_begin),
        cmocka_unit_test(longer_than_any_chunk_is_hashed_too),
        cmocka_unit_test(digest_is_known_once_it_is_set),
        cmocka_unit_test(known_digest_never_changes),
        cmocka_unit_test(wait_ends_at_its_deadline),
        cmocka_unit_test(waiters_see_all_that_was_counted),
        cmocka_unit_test(table_survives_the_wire),
        cmocka_unit_test(parts_add_up_to_the_table),
        cmocka_unit_test(truncated_or_damaged_table_is_refused),
        cmocka_unit_test(table_of_another_shape_is_refused),
        cmocka_unit_test(contradiction_is_corruption_and_changes_nothing),
        cmocka_unit_test(roots_are_those_released),
        cmocka_unit_test(root_needs_all_digests_of_its_own_table),
        cmocka_unit_test(root_differs_when_a_tensor_does),
        cmocka_unit_test(root_differs_when_a_part_does),
        cmocka_unit_test(root_differs_when_a_digest_does),
        cmocka_unit_test(root_knows_nothing_of_files_and_order),
        cmocka_unit_test(model_root_knows_ranks_by_their_ids),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
