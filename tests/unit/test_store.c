/* One instance's model: its digests, its streams, and its files rebuilt from them. */
#include "base/rand.h"
#include "format/safetensors.h"
#include "model/store.h"
#include "util/bytes.h"
#include "util/manifests.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { LEAF = MANIFEST_LEAF_BYTES, HEADER_BYTES = 200, SIDE_BYTES = 777, FILES = 2 };

/* A model of two weight files, whose tensors lie there in another order than in the stream, and
 * a side file; its images are what the files on disk hold. */
struct world {
    uint8_t *images[FILES];
    uint64_t image_bytes[FILES];
    uint8_t side[SIDE_BYTES];
    FILE *disk[FILES];
    struct manifest *manifest;
    struct store *store;
};

static const struct {
    const char *name;
    uint64_t bytes;
    unsigned file;
} world_tensors[] = {
    {"m", 70000, 1}, {"b", 5, 0},      {"z", 200001, 0}, {"a", 65536, 0},
    {"k", 0, 1},     {"c", 131072, 1}, {"y.long", 1, 1}, {"x", 99999, 1},
};

enum { TENSORS = sizeof world_tensors / sizeof world_tensors[0] };

static void world_manifest(struct world *world)
{
    struct manifest_builder *builder = builder_new(2 * LEAF);
    uint64_t used[FILES] = {HEADER_BYTES, HEADER_BYTES};

    for (unsigned i = 0; i < TENSORS; i++)
        world->image_bytes[world_tensors[i].file] += world_tensors[i].bytes;
    for (unsigned i = 0; i < FILES; i++)
        world->image_bytes[i] += HEADER_BYTES;
    add_file(builder, "one.safetensors", FILE_WEIGHTS, world->image_bytes[0], HEADER_BYTES);
    add_file(builder, "two.safetensors", FILE_WEIGHTS, world->image_bytes[1], HEADER_BYTES);
    add_file(builder, "config.json", FILE_SIDE, SIDE_BYTES, 0);
    add_rank(builder, &whole_rank);
    for (unsigned i = 0; i < TENSORS; i++) {
        unsigned file = world_tensors[i].file;
        add_tensor(builder, &(struct tensor_spec){.name = world_tensors[i].name,
                                                  .dtype = RF_DTYPE_U8,
                                                  .ndim = 1,
                                                  .shape = {world_tensors[i].bytes},
                                                  .in_file = true,
                                                  .file = file,
                                                  .file_offset = used[file]});
        used[file] += world_tensors[i].bytes;
    }
    add_tensor(
        builder,
        &(struct tensor_spec){
            .name = "tied", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {1, 5}, .alias_of = "b"});
    world->manifest = built(builder);
}

static void world_bytes(struct world *world, uint64_t seed)
{
    struct rand_seq seq = {seed};

    for (unsigned i = 0; i < FILES; i++) {
        world->images[i] = malloc(world->image_bytes[i]);
        for (uint64_t at = 0; at < world->image_bytes[i]; at++)
            world->images[i][at] = (uint8_t)rand_next(&seq);
        world->disk[i] = tmpfile();
        assert_non_null(world->disk[i]);
        assert_int_equal(fwrite(world->images[i], 1, world->image_bytes[i], world->disk[i]),
                         world->image_bytes[i]);
        assert_int_equal(fflush(world->disk[i]), 0);
    }
    memset(world->side, 's', sizeof world->side);
}

/* What a loader does: regions over memory or files, a layout, headers and side files. */
static void world_fill(struct world *world, bool from_disk)
{
    const struct manifest_rank *rank = &world->manifest->ranks[0];
    struct layout *layout = &world->store->ranks[0].layout;
    struct region *regions[FILES];

    for (unsigned i = 0; i < FILES; i++) {
        if (from_disk)
            assert_int_equal(
                region_create_file("weights", fileno(world->disk[i]), &regions[i], NULL), RF_OK);
        else
            assert_int_equal(
                region_create_borrowed(world->images[i], world->image_bytes[i], &regions[i], NULL),
                RF_OK);
        assert_int_equal(store_add_region(world->store, regions[i], NULL), RF_OK);
        world->store->files[i] =
            (struct store_file){exact_copy(world->images[i], HEADER_BYTES), HEADER_BYTES};
    }
    world->store->files[FILES] =
        (struct store_file){exact_copy(world->side, SIDE_BYTES), SIDE_BYTES};
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];
        if (tensor->alias_of == MANIFEST_NONE)
            assert_int_equal(layout_add(layout, tensor->stream_offset, tensor->bytes,
                                        regions[tensor->file], tensor->file_offset, NULL),
                             RF_OK);
    }
    assert_int_equal(layout_finish(layout, rank->stream_bytes, NULL), RF_OK);
    for (unsigned i = 0; i < FILES; i++)
        region_unref(regions[i]);
}

static void world_make(struct world *world, bool from_disk, uint64_t seed)
{
    struct rf_error err = {0};

    *world = (struct world){0};
    world_manifest(world);
    world_bytes(world, seed);
    if (store_create(world->manifest, &world->store, &err) != RF_OK)
        fail_msg("%s", err.text);
    world_fill(world, from_disk);
}

static void world_free(struct world *world)
{
    store_destroy(world->store);
    manifest_unref(world->manifest);
    for (unsigned i = 0; i < FILES; i++) {
        free(world->images[i]);
        fclose(world->disk[i]);
    }
}

/* The stream as the tensors' names order it. */
static uint8_t *world_stream(const struct world *world)
{
    const struct manifest_rank *rank = &world->manifest->ranks[0];
    uint8_t *stream = malloc(rank->stream_bytes);

    assert_non_null(stream);
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];
        if (tensor->alias_of == MANIFEST_NONE && tensor->bytes > 0)
            memcpy(stream + tensor->stream_offset,
                   world->images[tensor->file] + tensor->file_offset, tensor->bytes);
    }
    return stream;
}

/* ---- reading ---- */

static void stream_is_the_tensors_end_to_end(void **state)
{
    (void)state;
    for (unsigned from_disk = 0; from_disk < 2; from_disk++) {
        struct world world;
        struct rand_seq seq = {7};
        world_make(&world, from_disk != 0, 1);
        uint8_t *stream = world_stream(&world);
        uint64_t all = world.manifest->ranks[0].stream_bytes;
        uint8_t *got = malloc(all);

        assert_int_equal(store_read_stream(world.store, 0, 0, got, all, NULL), RF_OK);
        assert_memory_equal(got, stream, all);
        for (unsigned i = 0; i < 300; i++) {
            uint64_t offset = rand_below(&seq, all + 1);
            uint64_t bytes = rand_below(&seq, all - offset + 1);
            assert_int_equal(store_read_stream(world.store, 0, offset, got, bytes, NULL), RF_OK);
            assert_memory_equal(got, stream + offset, bytes);
        }
        free(got);
        free(stream);
        world_free(&world);
    }
}

static void files_are_rebuilt_byte_by_byte(void **state)
{
    (void)state;
    for (unsigned from_disk = 0; from_disk < 2; from_disk++) {
        struct world world;
        struct rand_seq seq = {8};
        world_make(&world, from_disk != 0, 2);
        for (uint32_t file = 0; file < FILES; file++) {
            uint64_t all = world.image_bytes[file];
            uint8_t *got = malloc(all);

            assert_int_equal(store_read_file(world.store, file, 0, got, all, NULL), RF_OK);
            assert_memory_equal(got, world.images[file], all);
            for (unsigned i = 0; i < 300; i++) {
                uint64_t offset = rand_below(&seq, all + 1);
                uint64_t bytes = rand_below(&seq, all - offset + 1);
                assert_int_equal(store_read_file(world.store, file, offset, got, bytes, NULL),
                                 RF_OK);
                assert_memory_equal(got, world.images[file] + offset, bytes);
            }
            free(got);
        }
        uint8_t side[SIDE_BYTES];
        assert_int_equal(store_read_file(world.store, FILES, 0, side, SIDE_BYTES, NULL), RF_OK);
        assert_memory_equal(side, world.side, SIDE_BYTES);
        world_free(&world);
    }
}

static void reads_outside_are_refused(void **state)
{
    (void)state;
    struct world world;
    uint8_t out[16];
    struct rf_error err = {0};

    world_make(&world, false, 3);
    const struct store *store = world.store;
    uint64_t stream = world.manifest->ranks[0].stream_bytes;
    uint64_t file = world.image_bytes[0];
    const uint64_t max = UINT64_MAX;
    assert_int_equal(store_read_stream(store, 0, stream - 15, out, 16, &err), RF_E_INVAL);
    assert_int_equal(store_read_stream(store, 0, max, out, 16, &err), RF_E_INVAL);
    assert_int_equal(store_read_stream(store, 0, 16, out, max, &err), RF_E_INVAL);
    assert_int_equal(store_read_stream(store, 1, 0, out, 1, &err), RF_E_INVAL);
    assert_int_equal(store_read_stream(store, 0, stream, out, 0, &err), RF_OK);
    assert_int_equal(store_read_file(store, 0, file - 15, out, 16, &err), RF_E_INVAL);
    assert_int_equal(store_read_file(store, 0, max, out, 16, &err), RF_E_INVAL);
    assert_int_equal(store_read_file(store, 0, 16, out, max, &err), RF_E_INVAL);
    assert_int_equal(store_read_file(store, FILES + 1, 0, out, 1, &err), RF_E_INVAL);
    assert_int_equal(store_read_file(store, FILES, SIDE_BYTES, out, 1, &err), RF_E_INVAL);
    assert_int_equal(store_read_file(store, 0, file, out, 0, &err), RF_OK);
    world_free(&world);
}

static void empty_store_says_that_it_is_empty(void **state)
{
    (void)state;
    struct world world = {.manifest = NULL};
    uint8_t out[HASH_MAX_BYTES];
    struct rf_error err = {0};

    world_manifest(&world);
    assert_int_equal(store_create(world.manifest, &world.store, NULL), RF_OK);
    assert_int_equal(store_read_stream(world.store, 0, 0, out, 1, &err), RF_E_INVAL);
    assert_int_equal(store_read_file(world.store, 0, 0, out, 1, &err), RF_E_INVAL);
    assert_says(&err, "not filled yet");
    assert_int_equal(store_digest(world.store, 1, NULL, &err), RF_E_INVAL);
    assert_int_equal(store_verify(world.store, 1, &err), RF_E_INVAL);
    assert_int_equal(store_root(world.store, out, &err), RF_AGAIN);
    store_destroy(world.store);
    store_destroy(NULL);
    manifest_unref(world.manifest);
}

/* ---- files that do not fit ---- */

static struct manifest *two_in_file(uint64_t at_a, uint64_t at_b, uint64_t bytes_b)
{
    struct manifest_builder *builder = builder_new(0);

    add_file(builder, "w.safetensors", FILE_WEIGHTS, 1000, 100);
    add_rank(builder, &whole_rank);
    add_tensor(builder, &(struct tensor_spec){.name = "a",
                                              .dtype = RF_DTYPE_U8,
                                              .ndim = 1,
                                              .shape = {100},
                                              .in_file = true,
                                              .file_offset = at_a});
    add_tensor(builder, &(struct tensor_spec){.name = "b",
                                              .dtype = RF_DTYPE_U8,
                                              .ndim = 1,
                                              .shape = {bytes_b},
                                              .in_file = true,
                                              .file_offset = at_b});
    return built(builder);
}

static void overlapping_tensors_in_a_file_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint64_t at_a;
        uint64_t at_b;
        uint64_t bytes_b;
        enum rf_code code;
    } cases[] = {
        {100, 200, 10, RF_OK},  {100, 199, 10, RF_E_INVAL}, {150, 100, 51, RF_E_INVAL},
        {150, 100, 50, RF_OK},  {100, 100, 99, RF_E_INVAL}, {100, 100, 101, RF_E_INVAL},
        {100, 100, 100, RF_OK}, {100, 150, 0, RF_OK},
    };

    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct manifest *manifest = two_in_file(cases[i].at_a, cases[i].at_b, cases[i].bytes_b);
        struct store *store = NULL;
        assert_int_equal(store_create(manifest, &store, NULL), cases[i].code);
        store_destroy(store);
        manifest_unref(manifest);
    }
}

static void byte_of_no_tensor_is_named(void **state)
{
    (void)state;
    struct manifest *manifest = two_in_file(100, 300, 100);
    struct store *store = NULL;
    struct region *region = NULL;
    struct rf_error err = {0};
    uint8_t memory[200];
    uint8_t out[1000];

    memset(memory, 'm', sizeof memory);
    assert_int_equal(store_create(manifest, &store, NULL), RF_OK);
    assert_int_equal(region_create_borrowed(memory, sizeof memory, &region, NULL), RF_OK);
    assert_int_equal(layout_add(&store->ranks[0].layout, 0, 200, region, 0, NULL), RF_OK);
    assert_int_equal(layout_finish(&store->ranks[0].layout, 200, NULL), RF_OK);
    store->files[0] = (struct store_file){exact_copy(out, 100), 100};
    assert_int_equal(store_read_file(store, 0, 150, out, 50, &err), RF_OK);
    assert_int_equal(store_read_file(store, 0, 150, out, 51, &err), RF_E_FORMAT);
    assert_says(&err, "byte 200 ");
    assert_int_equal(store_read_file(store, 0, 250, out, 1, &err), RF_E_FORMAT);
    assert_says(&err, "byte 250 ");
    assert_int_equal(store_read_file(store, 0, 300, out, 101, &err), RF_E_FORMAT);
    assert_says(&err, "byte 400 ");
    region_unref(region);
    store_destroy(store);
    manifest_unref(manifest);
}

static void replicated_ranks_share_their_places_in_a_file(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);
    struct store *store = NULL;

    add_file(builder, "w.safetensors", FILE_WEIGHTS, 110, 10);
    for (uint32_t i = 0; i < 2; i++) {
        add_rank(builder, &(struct rank_id){0, 1, 0, 1, 0, 1, i, 2, ROLE_TARGET});
        add_tensor(builder, &(struct tensor_spec){.name = "a",
                                                  .dtype = RF_DTYPE_U8,
                                                  .ndim = 1,
                                                  .shape = {100},
                                                  .in_file = true,
                                                  .file_offset = 10});
    }
    struct manifest *manifest = built(builder);
    assert_int_equal(store_create(manifest, &store, NULL), RF_OK);
    store_destroy(store);
    manifest_unref(manifest);
}

/* ---- digests ---- */

static void digests_are_equal_from_memory_and_from_disk(void **state)
{
    (void)state;
    static const unsigned threads[] = {1, 4, 0, 1};
    uint8_t roots[4][HASH_MAX_BYTES];

    for (unsigned i = 0; i < 4; i++) {
        struct world world;
        struct rf_error err = {0};

        world_make(&world, i >= 2, 4);
        assert_int_equal(store_root(world.store, roots[i], NULL), RF_AGAIN);
        if (store_digest(world.store, threads[i], NULL, &err) != RF_OK)
            fail_msg("%s", err.text);
        assert_int_equal(digest_table_known(world.store->ranks[0].digests),
                         manifest_chunk_count(world.manifest, 0));
        assert_int_equal(store_root(world.store, roots[i], NULL), RF_OK);
        assert_int_equal(store_verify(world.store, threads[i], NULL), RF_OK);
        assert_memory_equal(roots[i], roots[0], HASH_MAX_BYTES);
        world_free(&world);
    }
    struct world other;
    world_make(&other, false, 5);
    assert_int_equal(store_digest(other.store, 1, NULL, NULL), RF_OK);
    assert_int_equal(store_root(other.store, roots[1], NULL), RF_OK);
    assert_memory_not_equal(roots[0], roots[1], HASH_MAX_BYTES);
    world_free(&other);
}

static void chunk_digests_are_those_of_the_stream(void **state)
{
    (void)state;
    struct world world;
    struct chunk_hasher *hasher = chunk_hasher_create(HASH_XXH3_128);

    world_make(&world, true, 6);
    uint8_t *stream = world_stream(&world);
    assert_int_equal(store_digest(world.store, 2, NULL, NULL), RF_OK);
    for (uint64_t i = 0; i < manifest_chunk_count(world.manifest, 0); i++) {
        uint8_t expected[HASH_MAX_BYTES];
        uint8_t got[HASH_MAX_BYTES];

        chunk_hasher_begin(hasher);
        chunk_hasher_update(hasher, stream + i * 2 * LEAF,
                            manifest_chunk_size(world.manifest, 0, i));
        chunk_hasher_final(hasher, expected);
        assert_true(digest_table_get(world.store->ranks[0].digests, i, got));
        assert_memory_equal(got, expected, HASH_MAX_BYTES);
    }
    free(stream);
    chunk_hasher_destroy(hasher);
    world_free(&world);
}

static void changed_byte_is_found_and_named(void **state)
{
    (void)state;
    struct world world;
    struct rf_error err = {0};

    world_make(&world, false, 7);
    assert_int_equal(store_digest(world.store, 1, NULL, NULL), RF_OK);
    /* the stream is a (65536), b (5), c (131072), k, m, ...: byte 3 of b is in chunk 0 */
    world.images[0][HEADER_BYTES + 3] ^= 0x10;
    assert_int_equal(store_verify(world.store, 2, &err), RF_E_CORRUPT);
    assert_says(&err, "rank tp0/1 chunk 0, bytes 0 to 131072, tensors a, b, c");
    world.images[0][HEADER_BYTES + 3] ^= 0x10;
    assert_int_equal(store_verify(world.store, 2, &err), RF_OK);
    world_free(&world);
}

static void many_tensors_in_a_chunk_are_counted(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);
    struct store *store = NULL;
    struct region *region = NULL;
    struct rf_error err = {0};
    uint8_t memory[10] = {0};
    uint8_t other[HASH_MAX_BYTES] = {0};

    add_rank(builder, &whole_rank);
    for (unsigned i = 0; i < 10; i++) {
        char name[8];
        snprintf(name, sizeof name, "t%u", i);
        add_tensor(builder, &(struct tensor_spec){.name = name, .dtype = RF_DTYPE_U8});
    }
    struct manifest *manifest = built(builder);
    assert_int_equal(store_create(manifest, &store, NULL), RF_OK);
    assert_int_equal(region_create_borrowed(memory, sizeof memory, &region, NULL), RF_OK);
    assert_int_equal(layout_add(&store->ranks[0].layout, 0, 10, region, 0, NULL), RF_OK);
    assert_int_equal(layout_finish(&store->ranks[0].layout, 10, NULL), RF_OK);
    assert_true(digest_table_set(store->ranks[0].digests, 0, other));
    assert_int_equal(store_digest(store, 1, NULL, &err),
                     RF_OK); /* what is known is not made again */
    assert_int_equal(store_verify(store, 1, &err), RF_E_CORRUPT);
    assert_says(&err, "tensors t0, t1, t2 and 7 more");
    region_unref(region);
    store_destroy(store);
    manifest_unref(manifest);
}

static void digesting_stops_when_asked(void **state)
{
    (void)state;
    struct world world;
    atomic_bool stop = true;
    struct rf_error err = {0};

    world_make(&world, false, 8);
    assert_int_equal(store_digest(world.store, 2, &stop, &err), RF_E_CANCELLED);
    assert_int_equal(digest_table_known(world.store->ranks[0].digests), 0);
    stop = false;
    assert_int_equal(store_digest(world.store, 2, &stop, &err), RF_OK);
    world_free(&world);
}

static void file_that_was_cut_is_noticed(void **state)
{
    (void)state;
    struct world world;
    struct rf_error err = {0};

    world_make(&world, true, 9);
    assert_int_equal(store_check(world.store, &err), RF_OK);
    assert_int_equal(ftruncate(fileno(world.disk[0]), HEADER_BYTES + 10), 0);
    assert_int_equal(store_check(world.store, &err), RF_E_CHANGED);
    assert_int_equal(store_digest(world.store, 2, NULL, &err), RF_E_CHANGED);
    assert_says(&err, "chunk");
    world_free(&world);
}

static void tensor_digest_is_over_leaves_too(void **state)
{
    (void)state;
    for (unsigned from_disk = 0; from_disk < 2; from_disk++) {
        struct world world;
        struct chunk_hasher *hasher = chunk_hasher_create(HASH_XXH3_128);

        world_make(&world, from_disk != 0, 10);
        uint8_t *stream = world_stream(&world);
        const struct manifest_rank *rank = &world.manifest->ranks[0];
        for (uint32_t i = 0; i < rank->tensor_count; i++) {
            uint8_t expected[HASH_MAX_BYTES];
            uint8_t got[HASH_MAX_BYTES];

            chunk_hasher_begin(hasher);
            chunk_hasher_update(hasher, stream + rank->tensors[i].stream_offset,
                                rank->tensors[i].bytes);
            chunk_hasher_final(hasher, expected);
            assert_int_equal(store_tensor_digest(world.store, 0, i, got, NULL), RF_OK);
            assert_memory_equal(got, expected, HASH_MAX_BYTES);
        }
        uint8_t got[HASH_MAX_BYTES];
        assert_int_equal(store_tensor_digest(world.store, 1, 0, got, NULL), RF_E_INVAL);
        assert_int_equal(store_tensor_digest(world.store, 0, TENSORS + 1, got, NULL), RF_E_INVAL);
        free(stream);
        chunk_hasher_destroy(hasher);
        world_free(&world);
    }
}

/* ---- the rest ---- */

static void rank_header_and_stream_are_a_safetensors_file(void **state)
{
    (void)state;
    struct world world;
    struct st_header header;
    struct rf_error err = {0};
    BUF_AUTO struct buf raw = {0};

    world_make(&world, false, 11);
    const struct manifest_rank *rank = &world.manifest->ranks[0];
    assert_int_equal(store_rank_header(world.store, 0, &raw, NULL), RF_OK);
    if (st_header_parse("rank", raw.data + 8, raw.bytes - 8, raw.bytes + rank->stream_bytes,
                        &header, &err) != RF_OK)
        fail_msg("%s", err.text);
    assert_int_equal(header.data_offset, raw.bytes);
    assert_int_equal(header.tensor_count, TENSORS);
    for (uint32_t i = 0; i < header.tensor_count; i++) {
        const struct tensor *tensor = manifest_find(rank, header.tensors[i].name);
        assert_non_null(tensor);
        assert_int_equal(header.tensors[i].offset, tensor->stream_offset);
        assert_int_equal(header.tensors[i].bytes, tensor->bytes);
    }
    assert_int_equal(header.metadata_count, 2);
    assert_string_equal(header.metadata[0].key, "format");
    assert_string_equal(header.metadata[0].value, "pt");
    assert_string_equal(header.metadata[1].key, "rfork.alias.tied");
    assert_string_equal(header.metadata[1].value, "b");
    st_header_free(&header);
    world_free(&world);
}

static void region_is_kept_once_however_often_it_is_added(void **state)
{
    (void)state;
    enum { COUNT = 3000 };
    static struct region *regions[COUNT];
    static const uint8_t byte[1];
    struct world world;

    world_make(&world, false, 12);
    uint32_t before = world.store->region_count;
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(region_create_borrowed(byte, 1, &regions[i], NULL), RF_OK);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < COUNT; i++)
            assert_int_equal(store_add_region(world.store, regions[i], NULL), RF_OK);
    }
    assert_int_equal(world.store->region_count, before + COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_ptr_equal(world.store->regions[before + i], regions[i]);
        region_unref(regions[i]);
    }
    world_free(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stream_is_the_tensors_end_to_end),
        cmocka_unit_test(files_are_rebuilt_byte_by_byte),
        cmocka_unit_test(reads_outside_are_refused),
        cmocka_unit_test(empty_store_says_that_it_is_empty),
        cmocka_unit_test(overlapping_tensors_in_a_file_are_refused),
        cmocka_unit_test(byte_of_no_tensor_is_named),
        cmocka_unit_test(replicated_ranks_share_their_places_in_a_file),
        cmocka_unit_test(digests_are_equal_from_memory_and_from_disk),
        cmocka_unit_test(chunk_digests_are_those_of_the_stream),
        cmocka_unit_test(changed_byte_is_found_and_named),
        cmocka_unit_test(many_tensors_in_a_chunk_are_counted),
        cmocka_unit_test(digesting_stops_when_asked),
        cmocka_unit_test(file_that_was_cut_is_noticed),
        cmocka_unit_test(tensor_digest_is_over_leaves_too),
        cmocka_unit_test(rank_header_and_stream_are_a_safetensors_file),
        cmocka_unit_test(region_is_kept_once_however_often_it_is_added),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
