/* Building a manifest: what it lays out, what it finds, what it refuses. */
#include "base/rand.h"
#include "model/manifest.h"
#include "model/name_sort.h"
#include "util/bytes.h"
#include "util/manifests.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- the stream ---- */

static void tensors_lie_in_the_order_of_their_names(void **state)
{
    (void)state;
    const struct tensor_spec specs[] = {
        {.name = "b", .dtype = RF_DTYPE_F32, .ndim = 1, .shape = {3}},
        {.name = "a.10", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {5}},
        {.name = "a", .dtype = RF_DTYPE_BF16, .ndim = 2, .shape = {2, 2}},
        {.name = "a.9", .dtype = RF_DTYPE_U8},
        {.name = "a\xc3\xa9", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {7}},
    };
    static const char *const names[] = {"a", "a.10", "a.9", "a\xc3\xa9", "b"};
    static const uint64_t offsets[] = {0, 8, 13, 14, 21};
    static const uint32_t orders[] = {2, 1, 3, 4, 0};
    struct manifest *manifest = manifest_of(specs, 5, 0);
    const struct manifest_rank *rank = &manifest->ranks[0];

    for (uint32_t i = 0; i < 5; i++) {
        assert_string_equal(rank->tensors[i].name, names[i]);
        assert_int_equal(rank->tensors[i].stream_offset, offsets[i]);
        assert_int_equal(rank->tensors[i].order, orders[i]);
    }
    assert_int_equal(rank->stream_bytes, 33);
    assert_int_equal(manifest_total_bytes(manifest), 33);
    manifest_unref(manifest);
}

static void alias_takes_no_bytes_of_the_stream(void **state)
{
    (void)state;
    const struct tensor_spec specs[] = {
        {.name = "early", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {6}, .alias_of = "main"},
        {.name = "main", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {2, 3}},
        {.name = "other", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {10}},
        {.name = "zlate", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {2, 3}, .alias_of = "main"},
        {.name = "ahead", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {4}},
    };
    struct manifest *manifest = manifest_of(specs, 5, 0);
    const struct manifest_rank *rank = &manifest->ranks[0];
    const struct tensor *main_tensor = manifest_find(rank, "main");

    assert_int_equal(rank->stream_bytes, 20);
    assert_int_equal(main_tensor->stream_offset, 4);
    assert_int_equal(main_tensor->alias_of, MANIFEST_NONE);
    assert_int_equal(manifest_find(rank, "early")->stream_offset, 4);
    assert_int_equal(manifest_find(rank, "zlate")->stream_offset, 4);
    assert_ptr_equal(&rank->tensors[manifest_find(rank, "early")->alias_of], main_tensor);
    assert_int_equal(rank->placed_count, 3);
    manifest_unref(manifest);
}

static void every_stream_offset_leads_to_its_tensor(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);
    struct rand_seq seq = {1};

    add_rank(builder, &whole_rank);
    for (unsigned i = 0; i < 200; i++) {
        char name[16];
        struct tensor_spec spec = {.name = name, .dtype = RF_DTYPE_U8, .ndim = 1};

        snprintf(name, sizeof name, "t%u", i);
        spec.shape[0] = rand_below(&seq, 4); /* some are empty */
        add_tensor(builder, &spec);
        if (i % 7 == 0) { /* and some have aliases before and behind them */
            struct tensor_spec alias = spec;
            char alias_name[24];
            alias.name = alias_name;
            alias.alias_of = name;
            snprintf(alias_name, sizeof alias_name, "%c%s", i % 2 == 0 ? 'a' : 'z', name);
            add_tensor(builder, &alias);
        }
    }
    struct manifest *manifest = built(builder);
    const struct manifest_rank *rank = &manifest->ranks[0];
    for (uint64_t at = 0; at < rank->stream_bytes; at++) {
        const struct tensor *tensor = &rank->tensors[manifest_tensor_at(rank, at)];
        assert_int_equal(tensor->alias_of, MANIFEST_NONE);
        assert_true(tensor->stream_offset <= at && at < tensor->stream_offset + tensor->bytes);
    }
    assert_int_equal(manifest_tensor_at(rank, rank->stream_bytes), MANIFEST_NONE);
    assert_int_equal(manifest_tensor_at(rank, UINT64_MAX), MANIFEST_NONE);
    manifest_unref(manifest);
}

static void rank_without_bytes_has_no_chunks(void **state)
{
    (void)state;
    const struct tensor_spec spec = {.name = "e", .dtype = RF_DTYPE_F32, .ndim = 1, .shape = {0}};
    struct manifest *none = manifest_of(NULL, 0, 0);
    struct manifest *empty = manifest_of(&spec, 1, 0);

    assert_int_equal(manifest_chunk_count(none, 0), 0);
    assert_int_equal(manifest_chunk_count(empty, 0), 0);
    assert_int_equal(manifest_tensor_at(&empty->ranks[0], 0), MANIFEST_NONE);
    assert_null(manifest_find(&none->ranks[0], "e"));
    manifest_unref(none);
    manifest_unref(empty);
}

static void last_chunk_holds_what_is_left(void **state)
{
    (void)state;
    struct tensor_spec spec = {.name = "t", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {65536 * 2}};
    struct manifest *even = manifest_of(&spec, 1, 65536);

    assert_int_equal(manifest_chunk_count(even, 0), 2);
    assert_int_equal(manifest_chunk_size(even, 0, 1), 65536);
    manifest_unref(even);
    spec.shape[0]++;
    struct manifest *odd = manifest_of(&spec, 1, 65536);
    assert_int_equal(manifest_chunk_count(odd, 0), 3);
    assert_int_equal(manifest_chunk_size(odd, 0, 2), 1);
    manifest_unref(odd);
}

/* ---- names ---- */

static void every_name_is_found_and_no_other(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);
    char name[16];

    add_rank(builder, &whole_rank);
    for (unsigned i = 0; i < 300; i += 2) {
        snprintf(name, sizeof name, "t.%u", i);
        add_tensor(builder, &(struct tensor_spec){.name = name, .dtype = RF_DTYPE_U8});
    }
    struct manifest *manifest = built(builder);
    for (unsigned i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "t.%u", i);
        const struct tensor *found = manifest_find(&manifest->ranks[0], name);
        assert_int_equal(found != NULL, i % 2 == 0);
        if (found != NULL)
            assert_string_equal(found->name, name);
    }
    assert_null(manifest_find(&manifest->ranks[0], ""));
    assert_null(manifest_find(&manifest->ranks[0], "t."));
    assert_null(manifest_find(&manifest->ranks[0], "t.00"));
    manifest_unref(manifest);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names of a few letters over a small alphabet have long common beginnings, prefixes of each
 * other, and duplicates; lengths go over several words. */
static void names_are_sorted_as_strcmp_would(void **state)
{
    (void)state;
    enum { COUNT = 3000 };
    static char names[COUNT][40];
    static const char *expected[COUNT];
    static struct name_item items[COUNT];
    struct rand_seq seq = {2};

    for (unsigned round = 1; round <= 8; round++) {
        for (unsigned i = 0; i < COUNT; i++) {
            size_t bytes = rand_below(&seq, round * 4 + 1);
            for (size_t j = 0; j < bytes; j++)
                names[i][j] = rand_below(&seq, 8) == 0 ? (char)0xc3 : 'a';
            names[i][bytes] = '\0';
            expected[i] = names[i];
            items[i] = (struct name_item){.name = names[i], .bytes = (uint32_t)bytes, .index = i};
        }
        qsort(expected, COUNT, sizeof expected[0], compare_names);
        assert_true(name_sort(items, COUNT));
        for (unsigned i = 0; i < COUNT; i++) {
            assert_string_equal(items[i].name, expected[i]);
            assert_ptr_equal(items[i].name, names[items[i].index]);
        }
    }
}

static void assert_tensor_fails(const struct tensor_spec *spec, const char *words)
{
    struct manifest_builder *builder = builder_new(0);
    struct rf_error err = {0};

    add_file(builder, "model.safetensors", FILE_WEIGHTS, 1000, 200);
    add_file(builder, "config.json", FILE_SIDE, 1000, 0);
    add_rank(builder, &whole_rank);
    assert_int_equal(try_tensor(builder, spec, &err), RF_E_INVAL);
    assert_says(&err, words);
    manifest_builder_destroy(builder);
}

static void names_that_are_no_text_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"\xff", "cut \xe2\x82", "\xc0\x80", "\xed\xa0\x80"};
    char long_name[RF_MAX_NAME_BYTES + 2];

    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_tensor_fails(&(struct tensor_spec){.name = bad[i], .dtype = RF_DTYPE_U8},
                            "not UTF-8");
    memset(long_name, 'n', sizeof long_name);
    long_name[RF_MAX_NAME_BYTES + 1] = '\0';
    assert_tensor_fails(&(struct tensor_spec){.name = long_name, .dtype = RF_DTYPE_U8}, "4097");
    static const char fine[] = "gr\xc3\xb6\xc3\x9f"
                               "e \xf0\x9f\xa6\x99 of seven words";
    assert_true(manifest_text_ok(fine, strlen(fine)));
    assert_true(manifest_name_ok(fine, strlen(fine)));
    assert_false(manifest_name_ok("nul\0here", 8));
}

/* Whatever the safetensors package accepts as a name can be served. */
static void any_text_can_name_a_tensor(void **state)
{
    (void)state;
    static const char *const odd[] = {
        "", "new\nline", "\x7f", "escape\x1b[2J", "c1 \xc2\x85", "twelve bytes\x01",
    };
    struct manifest_builder *builder = builder_new(0);

    add_rank(builder, &whole_rank);
    for (unsigned i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        add_tensor(builder, &(struct tensor_spec){.name = odd[i], .dtype = RF_DTYPE_U8});
        assert_int_equal(manifest_text_ok(odd[i], strlen(odd[i])), i == 0);
    }
    struct manifest *manifest = built(builder);
    for (unsigned i = 0; i < sizeof odd / sizeof odd[0]; i++)
        assert_non_null(manifest_find(&manifest->ranks[0], odd[i]));
    manifest_unref(manifest);
}

static void name_in_a_message_is_one_line(void **state)
{
    (void)state;
    const struct tensor_spec odd = {.name = "new\nline\x1b[2J", .dtype = RF_DTYPE_U8};
    struct manifest_builder *builder = builder_new(0);
    struct manifest *manifest = NULL;
    struct rf_error err = {0};

    add_rank(builder, &whole_rank);
    add_tensor(builder, &odd);
    add_tensor(builder, &odd);
    assert_int_equal(manifest_build(builder, &manifest, &err), RF_E_INVAL);
    assert_says(&err, "new?line?[2J: twice");
}

/* ---- parts ---- */

static void parts_fill_their_tensor_and_say_where_they_lie(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    const struct manifest_rank *rank = &manifest->ranks[1];
    const struct tensor *fused = manifest_find(rank, "fused");
    const struct tensor *wide = manifest_find(rank, "wide bias");

    /* Sources are sorted: "bias" was added second and comes first. */
    assert_int_equal(fused->parts[0].source, 1);
    assert_int_equal(fused->parts[2].source, 0);
    assert_int_equal(fused->parts[1].offset, 40);
    assert_int_equal(fused->parts[2].offset, 50);
    assert_int_equal(fused->parts[2].bytes, 10);
    struct stream_range range = part_range(manifest, &fused->parts[0]);
    assert_int_equal(range.offset, 10);
    assert_int_equal(range.bytes, 10);
    assert_int_equal(range.stride, 20);
    assert_int_equal(range.count, 4);
    range = part_range(manifest, &fused->parts[2]);
    assert_int_equal(range.offset, 10);
    assert_int_equal(range.stride, 0);
    assert_int_equal(range.count, 1);
    assert_false(part_converts(manifest, fused, &fused->parts[0]));
    assert_false(part_converts(manifest, fused, &fused->parts[1]));
    assert_true(part_converts(manifest, wide, &wide->parts[0]));
    assert_int_equal(wide->parts[0].bytes, 20);
    manifest_unref(manifest);
}

static void assert_parts_fail(const struct tensor_spec *spec, const char *words)
{
    struct manifest_builder *builder = builder_new(0);
    struct rf_error err = {0};

    add_file(builder, "model.safetensors", FILE_WEIGHTS, 1000, 200);
    add_source(builder, "packed", RF_DTYPE_F4, 2, (uint64_t[]){4, 3});
    add_source(builder, "long", RF_DTYPE_I64, 1, (uint64_t[]){4});
    add_source(builder, "scalar", RF_DTYPE_U8, 0, NULL);
    add_rank(builder, &whole_rank);
    assert_int_equal(try_tensor(builder, spec, &err), RF_E_INVAL);
    assert_says(&err, words);
    manifest_builder_destroy(builder);
}

static void parts_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    const struct part row = {.source = 0, .axis = 0, .start = 1, .count = 1};
    const struct part scalar = {.source = 2, .count = 1};
    struct tensor_spec spec = {
        .name = "t", .dtype = RF_DTYPE_F4, .ndim = 1, .shape = {3}, .part_count = 1};

    spec.shape[0] = 4;
    spec.parts = &row;
    assert_parts_fail(&spec, "not whole bytes, of packed");
    spec.dtype = RF_DTYPE_F32;
    spec.parts = &(struct part){.source = 1, .count = 4};
    assert_parts_fail(&spec, "F32 is not made of long, I64");
    spec.dtype = RF_DTYPE_U8;
    spec.parts = &scalar;
    assert_parts_fail(&spec, "only 1 bytes of its 4");
    spec.in_file = true;
    spec.file_offset = 200;
    assert_parts_fail(&spec, "is an alias or in a file");
    spec.in_file = false;
    spec.alias_of = "other";
    assert_parts_fail(&spec, "an alias has no parts");
}

static void source_that_is_there_twice_is_refused(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);
    uint32_t count = 0;

    add_source(builder, "b", RF_DTYPE_U8, 0, NULL);
    add_source(builder, "a", RF_DTYPE_U8, 0, NULL);
    assert_int_equal(add_source(builder, "b", RF_DTYPE_U8, 0, NULL), 2);
    assert_string_equal(manifest_builder_sources(builder, &count)[1].name, "a");
    assert_int_equal(count, 3);
    add_rank(builder, &whole_rank);
    assert_build_fails(builder, "source b: twice");
}

static void name_that_is_there_twice_is_refused(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);

    add_rank(builder, &whole_rank);
    add_tensor(builder, &(struct tensor_spec){.name = "model.w", .dtype = RF_DTYPE_U8});
    add_tensor(builder, &(struct tensor_spec){.name = "model.v", .dtype = RF_DTYPE_U8});
    add_tensor(builder, &(struct tensor_spec){.name = "model.w", .dtype = RF_DTYPE_F32});
    assert_build_fails(builder, "tensor model.w: twice");
}

/* ---- tensors ---- */

static void tensor_before_any_rank_is_refused(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);
    struct rf_error err = {0};

    assert_int_equal(
        try_tensor(builder, &(struct tensor_spec){.name = "t", .dtype = RF_DTYPE_U8}, &err),
        RF_E_INVAL);
    assert_says(&err, "no rank");
    assert_build_fails(builder, "no ranks");
}

static void sizes_that_are_no_sizes_are_refused(void **state)
{
    (void)state;
    const uint64_t max = UINT64_MAX;

    assert_tensor_fails(&(struct tensor_spec){"t", RF_DTYPE_U8, 1, .shape = {max}}, "2^60");
    assert_tensor_fails(&(struct tensor_spec){"t", RF_DTYPE_F32, 2, .shape = {max, max}}, "2^60");
    assert_tensor_fails(&(struct tensor_spec){"t", RF_DTYPE_F32, 1, .shape = {max / 4 + 2}},
                        "2^60");
    assert_tensor_fails(&(struct tensor_spec){"t", RF_DTYPE_F4, 1, .shape = {3}}, "part of a byte");
    assert_tensor_fails(&(struct tensor_spec){"t", RF_DTYPE_COUNT, 1, .shape = {3}}, "dtype");
    assert_tensor_fails(&(struct tensor_spec){"t", RF_DTYPE_U8, RF_MAX_DIMS + 1, .shape = {3}},
                        "33 dimensions");
}

static void stream_that_grows_too_long_is_refused(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);
    struct tensor_spec spec = {"a", RF_DTYPE_U8, 1, .shape = {UINT64_C(1) << 60}};

    add_rank(builder, &whole_rank);
    add_tensor(builder, &spec);
    spec.name = "b";
    add_tensor(builder, &spec);
    assert_build_fails(builder, "over 2^60");
}

static void table_of_too_many_chunks_is_refused(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(MANIFEST_MIN_CHUNK_BYTES);

    add_rank(builder, &whole_rank);
    add_tensor(builder,
               &(struct tensor_spec){"a", RF_DTYPE_U8, 1, .shape = {(UINT64_C(1) << 44) + 1}});
    assert_build_fails(builder, "make them larger");
}

static void slices_outside_the_global_shape_are_refused(void **state)
{
    (void)state;
    struct tensor_spec spec = {.name = "w",
                               .dtype = RF_DTYPE_U8,
                               .ndim = 2,
                               .shape = {4, 8},
                               .global_shape = {8, 8},
                               .slice_start = {5, 0}};

    assert_tensor_fails(&spec, "dimension 0: 4 elements from 5");
    spec.slice_start[0] = UINT64_MAX - 2;
    assert_tensor_fails(&spec, "dimension 0");
    spec.slice_start[0] = 4;
    spec.slice_start[1] = 1;
    assert_tensor_fails(&spec, "dimension 1");
    spec.slice_start[1] = 0;
    spec.global_shape[1] = UINT64_MAX;
    assert_tensor_fails(&spec, "global shape");
}

static void shard_that_is_the_whole_is_no_shard(void **state)
{
    (void)state;
    const struct tensor_spec specs[] = {
        {.name = "first", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {4}, .global_shape = {8}},
        {.name = "whole", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {8}, .global_shape = {8}},
    };
    struct manifest *manifest = manifest_of(specs, 2, 0);
    const struct tensor *tensors = manifest->ranks[0].tensors;

    assert_ptr_not_equal(tensors[0].global_shape, tensors[0].shape);
    assert_int_equal(tensors[0].global_shape[0], 8);
    assert_null(tensors[0].slice_start);
    assert_ptr_equal(tensors[1].global_shape, tensors[1].shape);
    manifest_unref(manifest);
}

static void tensor_outside_its_file_is_refused(void **state)
{
    (void)state;
    struct tensor_spec spec = {.name = "w",
                               .dtype = RF_DTYPE_U8,
                               .ndim = 1,
                               .shape = {100},
                               .in_file = true,
                               .file = 0,
                               .file_offset = 901};

    assert_tensor_fails(&spec, "100 bytes at 901");
    spec.file_offset = 199; /* in the header */
    assert_tensor_fails(&spec, "at 199");
    spec.file_offset = UINT64_MAX;
    assert_tensor_fails(&spec, "model.safetensors");
    spec.file_offset = 500;
    spec.file = 1;
    assert_tensor_fails(&spec, "config.json");
    spec.file = 2;
    assert_tensor_fails(&spec, "file 2 of 2");
    spec.in_file = false;
    assert_tensor_fails(&spec, "no file");
}

static void alias_must_lead_to_a_tensor_of_its_size(void **state)
{
    (void)state;
    static const struct {
        struct tensor_spec spec;
        const char *words;
    } bad[] = {
        {{"x", RF_DTYPE_U8, 1, .shape = {4}, .alias_of = "nowhere"}, "nowhere, which is not"},
        {{"x", RF_DTYPE_U8, 1, .shape = {5}, .alias_of = "a"}, "5 bytes, but a"},
        {{"x", RF_DTYPE_U8, 1, .shape = {4}, .alias_of = "x"}, "alias itself"},
        {{"x", RF_DTYPE_U8, 1, .shape = {4}, .alias_of = "b"}, "alias itself"},
    };

    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct manifest_builder *builder = builder_new(0);

        add_rank(builder, &whole_rank);
        add_tensor(builder, &(struct tensor_spec){.name = "a", .dtype = RF_DTYPE_F32});
        add_tensor(builder,
                   &(struct tensor_spec){.name = "b", .dtype = RF_DTYPE_F32, .alias_of = "a"});
        add_tensor(builder, &bad[i].spec);
        assert_build_fails(builder, bad[i].words);
    }
}

/* ---- ranks, files, identity ---- */

static void ranks_must_differ_and_agree(void **state)
{
    (void)state;
    static const struct {
        struct rank_id ids[2];
        const char *words;
    } bad[] = {
        {{{0, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET}, {0, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET}}, "twice"},
        {{{0, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET}, {1, 4, 0, 1, 0, 1, 0, 1, ROLE_TARGET}}, "agree"},
        {{{0, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET}, {2, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET}},
         "tp 2 of 2"},
        {{{0, 0, 0, 1, 0, 1, 0, 1, ROLE_TARGET}, {1, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET}},
         "tp 0 of 0"},
        {{{0, 1, 0, 1, 0, 1, 0, 9999, ROLE_TARGET}, {0, 1, 0, 1, 0, 1, 0, 1, ROLE_TARGET}},
         "dp 0 of 9999"},
    };

    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct manifest_builder *builder = builder_new(0);

        add_rank(builder, &bad[i].ids[0]);
        add_rank(builder, &bad[i].ids[1]);
        assert_build_fails(builder, bad[i].words);
    }
}

static void draft_model_may_be_sharded_otherwise(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);

    add_rank(builder, &(struct rank_id){0, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET});
    add_rank(builder, &(struct rank_id){1, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET});
    add_rank(builder, &(struct rank_id){0, 1, 0, 1, 0, 1, 0, 1, ROLE_DRAFT});
    struct manifest *manifest = built(builder);
    assert_int_equal(manifest->rank_count, 3);
    manifest_unref(manifest);
}

static void rank_text_names_the_axes_that_matter(void **state)
{
    (void)state;
    char text[64];

    assert_string_equal(rank_id_text(&whole_rank, text), "tp0/1");
    assert_string_equal(rank_id_text(&(struct rank_id){3, 8, 0, 1, 0, 1, 0, 1, ROLE_TARGET}, text),
                        "tp3/8");
    assert_string_equal(rank_id_text(&(struct rank_id){3, 8, 1, 2, 0, 1, 5, 6, ROLE_DRAFT}, text),
                        "tp3/8,pp1/2,dp5/6,draft");
    const uint32_t max = UINT32_MAX;
    rank_id_text(&(struct rank_id){max, max, max, max, max, max, max, max, ROLE_DRAFT}, text);
    assert_true(strlen(text) < sizeof text);
}

static void assert_file_fails(struct manifest_file file)
{
    struct manifest_builder *builder = builder_new(0);

    assert_int_equal(manifest_add_file(builder, &file, NULL), RF_E_INVAL);
    manifest_builder_destroy(builder);
}

static void files_that_cannot_be_are_refused(void **state)
{
    (void)state;
    assert_file_fails((struct manifest_file){.name = "../etc/passwd", .kind = FILE_SIDE});
    assert_file_fails((struct manifest_file){.name = "/etc/passwd", .kind = FILE_SIDE});
    assert_file_fails((struct manifest_file){.name = "", .kind = FILE_SIDE});
    assert_file_fails((struct manifest_file){.name = "cut \xe2\x82", .kind = FILE_SIDE});
    assert_file_fails(
        (struct manifest_file){.name = "a", .kind = FILE_SIDE, .bytes = 9, .header_bytes = 9});
    assert_file_fails((struct manifest_file){
        .name = "a", .kind = FILE_SIDE, .bytes = (uint64_t)MANIFEST_MAX_SIDE_BYTES + 1});
    assert_file_fails((struct manifest_file){
        .name = "a", .kind = FILE_WEIGHTS, .bytes = 100, .header_bytes = 101});
    assert_file_fails(
        (struct manifest_file){.name = "a", .kind = FILE_WEIGHTS, .bytes = 100, .header_bytes = 7});
    assert_file_fails((struct manifest_file){
        .name = "a", .kind = FILE_WEIGHTS, .bytes = UINT64_MAX, .header_bytes = 100});
    assert_file_fails((struct manifest_file){.name = "a", .kind = (enum manifest_file_kind)2});
}

static void files_are_there_once_and_weights_first(void **state)
{
    (void)state;
    struct manifest_builder *builder = builder_new(0);

    add_rank(builder, &whole_rank);
    add_file(builder, "b", FILE_SIDE, 1, 0);
    add_file(builder, "a", FILE_SIDE, 1, 0);
    add_file(builder, "b", FILE_SIDE, 1, 0);
    assert_build_fails(builder, "file b: twice");
    builder = builder_new(0);
    add_rank(builder, &whole_rank);
    add_file(builder, "a", FILE_SIDE, 1, 0);
    add_file(builder, "w", FILE_WEIGHTS, 8, 8);
    assert_build_fails(builder, "weight files come before");
}

static void identity_is_checked(void **state)
{
    (void)state;
    static const struct manifest_identity bad[] = {
        {.model = "m\n", .algorithm = HASH_XXH3_128},
        {.model = "m", .architecture = "\xff", .algorithm = HASH_XXH3_128},
        {.model = "m", .stage = STAGE_COUNT, .algorithm = HASH_XXH3_128},
        {.model = "m", .algorithm = (enum hash_algorithm)0},
        {.model = "m", .algorithm = HASH_SHA256, .chunk_bytes = 65535},
        {.model = "m", .algorithm = HASH_SHA256, .chunk_bytes = 65537},
        {.model = "m", .algorithm = HASH_SHA256, .chunk_bytes = (64 << 20) + 65536},
    };
    struct rf_error err = {0};

    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_null(manifest_builder_create(&bad[i], &err));
        assert_int_equal(err.code, RF_E_INVAL);
    }
    const struct manifest_identity least = {.algorithm = HASH_SHA256};
    struct manifest_builder *builder = manifest_builder_create(&least, &err);
    add_rank(builder, &whole_rank);
    struct manifest *manifest = built(builder);
    assert_string_equal(manifest->architecture, "");
    assert_int_equal(manifest->chunk_bytes, MANIFEST_DEFAULT_CHUNK_BYTES);
    manifest_unref(manifest);
}

static void id_is_equal_for_equal_manifests_only(void **state)
{
    (void)state;
    struct manifest *one = manifest_of_everything();
    struct manifest *same = manifest_of_everything();
    const struct tensor_spec specs[] = {
        {.name = "a", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {4}},
        {.name = "a", .dtype = RF_DTYPE_I8, .ndim = 1, .shape = {4}},
        {.name = "a", .dtype = RF_DTYPE_U8, .ndim = 2, .shape = {2, 2}},
        {.name = "b", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = {4}},
    };
    struct manifest *others[4];

    assert_memory_equal(one->id, same->id, HASH_MAX_BYTES);
    for (unsigned i = 0; i < 4; i++) {
        others[i] = manifest_of(&specs[i], 1, 0);
        for (unsigned j = 0; j < i; j++)
            assert_memory_not_equal(others[i]->id, others[j]->id, HASH_MAX_BYTES);
    }
    for (unsigned i = 0; i < 4; i++)
        manifest_unref(others[i]);
    manifest_unref(one);
    manifest_unref(same);
}

static void references_keep_a_manifest_alive(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    struct manifest *again = manifest_ref(manifest);

    assert_ptr_equal(again, manifest);
    manifest_unref(manifest);
    assert_string_equal(again->model, "tiny");
    manifest_unref(again);
    manifest_unref(NULL);
}

/* ---- JSON ---- */

static void json_says_what_the_manifest_says(void **state)
{
    (void)state;
    struct manifest *manifest = manifest_of_everything();
    json_error_t error;
    BUF_AUTO struct buf text = {0};

    manifest_json(manifest, MANIFEST_NONE, &text);
    json_t *json = json_loadb((const char *)text.data, text.bytes, JSON_REJECT_DUPLICATES, &error);
    if (json == NULL)
        fail_msg("%s at %d", error.text, error.position);
    assert_string_equal(json_string_value(json_object_get(json, "model")), "tiny");
    assert_int_equal(json_array_size(json_object_get(json, "files")), 2);
    json_t *ranks = json_object_get(json, "ranks");
    assert_int_equal(json_array_size(ranks), 2);
    json_t *tensors = json_object_get(json_array_get(ranks, 1), "tensors");
    assert_int_equal(json_array_size(tensors), 10);
    json_t *sources = json_object_get(json, "sources");
    assert_int_equal(json_array_size(sources), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(sources, 1), "name")),
                        "weight");
    json_t *parts = json_object_get(json_array_get(tensors, 3), "parts");
    assert_int_equal(json_array_size(parts), 3);
    assert_int_equal(json_integer_value(json_array_get(json_array_get(parts, 0), 2)), 5);
    assert_int_equal(json_integer_value(json_array_get(parts, 1)), 10);
    json_t *head = json_array_get(tensors, 4);
    assert_string_equal(json_string_value(json_object_get(head, "name")), "head");
    assert_string_equal(json_string_value(json_object_get(head, "alias_of")), "embed");
    json_t *start = json_object_get(head, "slice_start");
    assert_int_equal(json_integer_value(json_array_get(start, 1)), 4);
    json_decref(json);

    text.bytes = 0;
    manifest_json(manifest, 1, &text);
    json = json_loadb((const char *)text.data, text.bytes, 0, &error);
    ranks = json_object_get(json, "ranks");
    assert_int_equal(json_array_size(ranks), 1);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(ranks, 0), "rank")), 1);
    json_decref(json);
    manifest_unref(manifest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_lie_in_the_order_of_their_names),
        cmocka_unit_test(alias_takes_no_bytes_of_the_stream),
        cmocka_unit_test(every_stream_offset_leads_to_its_tensor),
        cmocka_unit_test(rank_without_bytes_has_no_chunks),
        cmocka_unit_test(last_chunk_holds_what_is_left),
        cmocka_unit_test(every_name_is_found_and_no_other),
        cmocka_unit_test(names_are_sorted_as_strcmp_would),
        cmocka_unit_test(names_that_are_no_text_are_refused),
        cmocka_unit_test(any_text_can_name_a_tensor),
        cmocka_unit_test(name_in_a_message_is_one_line),
        cmocka_unit_test(parts_fill_their_tensor_and_say_where_they_lie),
        cmocka_unit_test(parts_that_do_not_fit_are_refused),
        cmocka_unit_test(source_that_is_there_twice_is_refused),
        cmocka_unit_test(name_that_is_there_twice_is_refused),
        cmocka_unit_test(tensor_before_any_rank_is_refused),
        cmocka_unit_test(sizes_that_are_no_sizes_are_refused),
        cmocka_unit_test(stream_that_grows_too_long_is_refused),
        cmocka_unit_test(table_of_too_many_chunks_is_refused),
        cmocka_unit_test(slices_outside_the_global_shape_are_refused),
        cmocka_unit_test(shard_that_is_the_whole_is_no_shard),
        cmocka_unit_test(tensor_outside_its_file_is_refused),
        cmocka_unit_test(alias_must_lead_to_a_tensor_of_its_size),
        cmocka_unit_test(ranks_must_differ_and_agree),
        cmocka_unit_test(draft_model_may_be_sharded_otherwise),
        cmocka_unit_test(rank_text_names_the_axes_that_matter),
        cmocka_unit_test(files_that_cannot_be_are_refused),
        cmocka_unit_test(files_are_there_once_and_weights_first),
        cmocka_unit_test(identity_is_checked),
        cmocka_unit_test(id_is_equal_for_equal_manifests_only),
        cmocka_unit_test(references_keep_a_manifest_alive),
        cmocka_unit_test(json_says_what_the_manifest_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
