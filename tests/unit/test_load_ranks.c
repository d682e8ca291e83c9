/* Ranks that are cut from files: every byte against a slow reading of what manifest.h says about
 * parts, views where there can be views, and nothing held twice. */
#include "base/log.h"
#include "model/convert.h"
#include "seed/load_internal.h"
#include "util/bytes.h"
#include "util/folder.h"

#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { TP = 4, MAX_PARTS = 8 };

/* ---- a model ---- */

struct spec {
    const char *name;
    enum rf_dtype dtype;
    uint32_t ndim;
    uint64_t shape[3];
    unsigned file;
};

static const struct spec specs[] = {
    {"big", RF_DTYPE_U8, 2, {700, 16384}, 0},      /* rows that are read to where they belong */
    {"embed", RF_DTYPE_BF16, 2, {10, 96}, 0},      /* does not divide: padded */
    {"experts", RF_DTYPE_F32, 3, {5, 8, 700}, 0},  /* the middle axis */
    {"odd", RF_DTYPE_U8, 2, {7, 13}, 0},           /* nothing is aligned after it */
    {"row", RF_DTYPE_BF16, 2, {64, 256}, 0},       /* short rows */
    {"norm", RF_DTYPE_BF16, 1, {333}, 1},          /* replicated */
    {"gate", RF_DTYPE_BF16, 2, {40, 512}, 1},      /* becomes F32 */
    {"half", RF_DTYPE_F16, 1, {200000}, 1},        /* becomes F32, more than a buffer */
    {"longrow", RF_DTYPE_BF16, 2, {3, 600000}, 1}, /* a row more than a buffer, and converted */
    {"scalar", RF_DTYPE_F32, 0, {0}, 1},           {"none", RF_DTYPE_F32, 2, {0, 4}, 1},
};
enum { SPECS = sizeof specs / sizeof specs[0] };
enum { BIG, EMBED, EXPERTS, ODD, ROW, NORM, GATE, HALF, LONGROW, SCALAR, NONE };

struct bed {
    char *path;
    uint8_t *content[SPECS];
    uint64_t bytes[SPECS];
    struct model_folder folder;
    bool open;
    struct load *load;
    struct store *store;
};

static uint64_t spec_bytes(const struct spec *spec)
{
    uint64_t bytes = rf_dtype_bits(spec->dtype) / 8;

    for (uint32_t i = 0; i < spec->ndim; i++)
        bytes *= spec->shape[i];
    return bytes;
}

static void put_file(struct bed *bed, unsigned file, const char *name)
{
    char header[2048] = "{";
    uint8_t *data;
    uint64_t at = 0;
    size_t used = 1;

    for (unsigned i = 0; i < SPECS; i++) {
        if (specs[i].file != file)
            continue;
        used += (size_t)snprintf(header + used, sizeof header - used,
                                 "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", used > 1 ? "," : "",
                                 specs[i].name, rf_dtype_name(specs[i].dtype));
        for (uint32_t d = 0; d < specs[i].ndim; d++)
            used += (size_t)snprintf(header + used, sizeof header - used, "%s%" PRIu64,
                                     d > 0 ? "," : "", specs[i].shape[d]);
        used += (size_t)snprintf(header + used, sizeof header - used,
                                 "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at,
                                 at + bed->bytes[i]);
        at += bed->bytes[i];
    }
    used += (size_t)snprintf(header + used, sizeof header - used, "}");
    data = malloc(8 + used + at);
    assert_non_null(data);
    memset(data, 0, 8);
    data[0] = (uint8_t)used;
    data[1] = (uint8_t)(used >> 8);
    memcpy(data + 8, header, used);
    at = 8 + used;
    for (unsigned i = 0; i < SPECS; i++) {
        if (specs[i].file != file)
            continue;
        memcpy(data + at, bed->content[i], bed->bytes[i]);
        at += bed->bytes[i];
    }
    folder_put(bed->path, name, data, at);
    free(data);
}

static int bed_setup(void **state)
{
    struct bed *bed = calloc(1, sizeof *bed);
    uint32_t random = 12345;

    log_set_level(LOG_ERROR);
    bed->path = folder_make();
    for (unsigned i = 0; i < SPECS; i++) {
        bed->bytes[i] = spec_bytes(&specs[i]);
        bed->content[i] = malloc(bed->bytes[i] + 1);
        assert_non_null(bed->content[i]);
        for (uint64_t b = 0; b < bed->bytes[i]; b++) {
            random = random * 1664525 + 1013904223;
            bed->content[i][b] = (uint8_t)(random >> 24);
        }
    }
    put_file(bed, 0, "model-1.safetensors");
    put_file(bed, 1, "model-2.safetensors");
    folder_put_text(bed->path, "model.safetensors.index.json",
                    "{\"weight_map\":{\"big\":\"model-1.safetensors\","
                    "\"embed\":\"model-1.safetensors\",\"experts\":\"model-1.safetensors\","
                    "\"odd\":\"model-1.safetensors\",\"row\":\"model-1.safetensors\","
                    "\"norm\":\"model-2.safetensors\",\"gate\":\"model-2.safetensors\","
                    "\"half\":\"model-2.safetensors\",\"longrow\":\"model-2.safetensors\","
                    "\"scalar\":\"model-2.safetensors\",\"none\":\"model-2.safetensors\"}}");
    *state = bed;
    return 0;
}

static int bed_teardown(void **state)
{
    struct bed *bed = *state;

    load_close(bed->load);
    store_destroy(bed->store);
    if (bed->open)
        model_folder_close(&bed->folder);
    for (unsigned i = 0; i < SPECS; i++)
        free(bed->content[i]);
    folder_remove(bed->path);
    free(bed);
    return 0;
}

/* ---- ranks ---- */

static uint32_t source_index(struct manifest_builder *builder, const char *name)
{
    uint32_t count;
    const struct manifest_source *sources = manifest_builder_sources(builder, &count);

    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(sources[i].name, name) == 0)
            return i;
    }
    return MANIFEST_NONE;
}

static void add(struct manifest_builder *builder, const char *name, enum rf_dtype dtype,
                uint64_t elements, const struct part *parts, uint32_t part_count)
{
    const uint64_t shape[] = {elements};
    const struct tensor tensor = {.name = name,
                                  .dtype = dtype,
                                  .ndim = 1,
                                  .shape = shape,
                                  .file = MANIFEST_NONE,
                                  .alias_of = MANIFEST_NONE,
                                  .parts = parts,
                                  .part_count = part_count};
    struct rf_error err = {.code = RF_OK};

    if (manifest_add_tensor(builder, &tensor, NULL, &err) != RF_OK)
        fail_msg("%s", err.text);
}

/* One slice as a tensor of its own. */
static void add_slice(struct manifest_builder *builder, const char *name, unsigned spec,
                      enum rf_dtype dtype, uint32_t axis, uint64_t start, uint64_t count)
{
    const struct part part = {.source = source_index(builder, specs[spec].name),
                              .axis = axis,
                              .start = start,
                              .count = count};
    uint64_t n = specs[spec].ndim > 0 ? specs[spec].shape[axis] : 1;
    uint64_t elements = spec_bytes(&specs[spec]) / (rf_dtype_bits(specs[spec].dtype) / 8);

    add(builder, name, dtype, n > 0 ? elements / n * count : 0, &part, 1);
}

static void add_rank(struct manifest_builder *builder, uint32_t tp)
{
    const struct rank_id id = {.tp = tp, .tp_size = TP, .pp_size = 1, .ep_size = 1, .dp_size = 1};
    uint32_t big = source_index(builder, "big");
    uint64_t rows = tp < 3 ? 3 : 1; /* of embed: 3 + 3 + 3 + 1 */
    const struct part embed[] = {
        {.source = source_index(builder, "embed"), .start = tp * UINT64_C(3), .count = rows},
        {.source = MANIFEST_NONE, .count = (3 - rows) * 96 * 2},
    };
    const struct part fused[] = {
        {.source = big, .axis = 0, .start = 100 * tp, .count = 25},
        {.source = source_index(builder, "odd"), .axis = 1, .start = tp * UINT64_C(3), .count = 3},
        {.source = MANIFEST_NONE, .count = 5},
        {.source = big, .axis = 0, .start = 500 + 10 * tp, .count = 10},
        {.source = MANIFEST_NONE, .axis = 2, .start = 0x1234, .count = 6},
    };

    assert_int_equal(manifest_add_rank(builder, &id, NULL), RF_OK);
    add_slice(builder, "big.row", BIG, RF_DTYPE_U8, 1, tp * UINT64_C(4096), 4096);
    /* Two ranks have the same; and it lies across what others have of the same rows. */
    add_slice(builder, "big.kv", BIG, RF_DTYPE_U8, 1, 1000 + 5000 * (uint64_t)(tp / 2), 3000);
    add(builder, "embed", RF_DTYPE_BF16, 3 * UINT64_C(96), embed, tp < 3 ? 1 : 2);
    add_slice(builder, "experts", EXPERTS, RF_DTYPE_F32, 1, tp * UINT64_C(2), 2);
    add(builder, "fused", RF_DTYPE_U8, 35 * UINT64_C(16384) + 21 + 5 + 6, fused, 5);
    add_slice(builder, "gate", GATE, RF_DTYPE_F32, 1, tp * UINT64_C(128), 128);
    add_slice(builder, "half", HALF, RF_DTYPE_F32, 0, 0, 200000);
    add_slice(builder, "longrow", LONGROW, RF_DTYPE_F32, 1, tp * UINT64_C(150000), 150000);
    add_slice(builder, "none", NONE, RF_DTYPE_F32, 1, tp, 1);
    add_slice(builder, "norm", NORM, RF_DTYPE_BF16, 0, 0, 333);
    add_slice(builder, "odd", ODD, RF_DTYPE_U8, 0, 0, 7);
    add_slice(builder, "row", ROW, RF_DTYPE_BF16, 1, tp * UINT64_C(64), 64);
    add_slice(builder, "scalar", SCALAR, RF_DTYPE_F32, 0, 0, 1);
}

/* What is made of those, each once: rows of big, the two of big.kv, experts, the rows of odd, gate,
 * half, longrow, row; five zero bytes of the 384 that are the longest; one other constant. */
enum {
    MADE_BYTES = 700 * 16384 + 2 * 700 * 3000 + 5 * 8 * 700 * 4 + 7 * 12 + 40 * 512 * 4 +
                 200000 * 4 + 3 * 600000 * 4 + 64 * 256 * 2 + 384 + 6,
    MADES = 4 + 2 + 4 + 4 + 4 + 1 + 4 + 4 + 2,
};

static enum rf_code all_ranks(const struct load *load, struct manifest_builder *builder,
                              struct rf_error *err)
{
    (void)load;
    (void)err;
    for (uint32_t tp = 0; tp < TP; tp++)
        add_rank(builder, tp);
    return RF_OK;
}

static enum rf_code two_ranks(const struct load *load, struct manifest_builder *builder,
                              struct rf_error *err)
{
    (void)load;
    (void)err;
    add_rank(builder, 1);
    add_rank(builder, 3);
    return RF_OK;
}

static void bed_open(struct bed *bed, const struct load_options *options, load_ranks_fn ranks)
{
    struct rf_error err = {.code = RF_OK};

    load_close(bed->load);
    bed->load = NULL;
    store_destroy(bed->store);
    bed->store = NULL;
    if (bed->open)
        model_folder_close(&bed->folder);
    bed->open = model_folder_open(bed->path, &bed->folder, &err) == RF_OK;
    if (!bed->open || load_open_ranks(&bed->folder, options, ranks, &bed->load, &err) != RF_OK)
        fail_msg("%s", err.text);
}

static void bed_run(struct bed *bed)
{
    struct rf_error err = {.code = RF_OK};

    if (load_run(bed->load, &bed->store, &err) != RF_OK)
        fail_msg("%s", err.text);
}

/* ---- what the ranks must hold ---- */

/* A part element by element, as manifest.h has it. */
static void slow_part(const struct bed *bed, const struct manifest *manifest,
                      const struct tensor *tensor, const struct part *part, uint8_t *out)
{
    unsigned spec = 0;

    if (part->source == MANIFEST_NONE) {
        for (uint64_t b = 0; b < part->count; b++)
            out[b] = part->axis > 0 ? (uint8_t)(part->start >> (b % part->axis * 8)) : 0;
        return;
    }
    const struct manifest_source *source = &manifest->sources[part->source];
    while (strcmp(specs[spec].name, source->name) != 0)
        spec++;
    uint64_t outer = 1;
    uint64_t inner = rf_dtype_bits(source->dtype) / 8;
    uint64_t n = source->ndim > 0 ? source->shape[part->axis] : 1;
    for (uint32_t d = 0; d < part->axis; d++)
        outer *= source->shape[d];
    for (uint32_t d = part->axis + 1; d < source->ndim; d++)
        inner *= source->shape[d];
    uint8_t *plain = malloc(outer * part->count * inner + 1);
    assert_non_null(plain);
    for (uint64_t o = 0; o < outer; o++) {
        for (uint64_t i = 0; i < part->count; i++)
            memcpy(plain + (o * part->count + i) * inner,
                   bed->content[spec] + (o * n + part->start + i) * inner, inner);
    }
    if (source->dtype == tensor->dtype)
        memcpy(out, plain, part->bytes);
    else
        assert_int_equal(convert_elements(source->dtype, plain, outer * part->count * inner,
                                          tensor->dtype, out, NULL),
                         RF_OK);
    free(plain);
}

static void check_streams(const struct bed *bed)
{
    const struct manifest *manifest = bed->store->manifest;

    for (uint32_t r = 0; r < manifest->rank_count; r++) {
        const struct manifest_rank *rank = &manifest->ranks[r];
        uint8_t *wanted = malloc(rank->stream_bytes);
        uint8_t *got = malloc(rank->stream_bytes);

        assert_non_null(wanted);
        assert_non_null(got);
        for (uint32_t t = 0; t < rank->tensor_count; t++) {
            const struct tensor *tensor = &rank->tensors[t];

            for (uint32_t p = 0; tensor->bytes > 0 && p < tensor->part_count; p++)
                slow_part(bed, manifest, tensor, &tensor->parts[p],
                          wanted + tensor->stream_offset + tensor->parts[p].offset);
        }
        assert_int_equal(store_read_stream(bed->store, r, 0, got, rank->stream_bytes, NULL), RF_OK);
        for (uint32_t t = 0; t < rank->tensor_count; t++) {
            const struct tensor *tensor = &rank->tensors[t];

            if (memcmp(got + tensor->stream_offset, wanted + tensor->stream_offset,
                       tensor->bytes) != 0)
                fail_msg("rank %u: %s is not what it should be", r, tensor->name);
        }
        free(wanted);
        free(got);
    }
}

static void add_up(void *ctx, uint64_t added_bytes)
{
    atomic_fetch_add((atomic_uint_fast64_t *)ctx, added_bytes);
}

static void every_byte_of_every_rank_is_where_it_belongs(void **state)
{
    struct bed *bed = *state;

    for (unsigned variant = 0; variant < 6; variant++) {
        atomic_uint_fast64_t progress = 0;
        const struct load_options options = {
            .memory = variant >= 4 ? LOAD_FILES : LOAD_MEMFD,
            .threads = variant % 2 == 0 ? 1 : 3,
            .direct = variant / 2 == 1,
            .chunk_bytes = 64 << 10,
            .progress = add_up,
            .progress_ctx = &progress,
        };
        struct load_needs needs;

        bed_open(bed, &options, all_ranks);
        load_needs(bed->load, &needs);
        assert_int_equal(load_manifest(bed->load)->rank_count, TP);
        bed_run(bed);
        check_streams(bed);
        assert_int_equal(store_digest(bed->store, 2, NULL, NULL), RF_OK);
        assert_int_equal(store_verify(bed->store, 2, NULL), RF_OK);
        assert_int_equal(store_check(bed->store, NULL), RF_OK);
        /* All but constants and what keeps parts apart. */
        assert_true(progress <= needs.load_bytes && progress + 65536 > needs.load_bytes);
    }
}

static void some_of_the_ranks_are_the_same_ranks(void **state)
{
    const struct load_options options = {.memory = LOAD_MEMFD, .chunk_bytes = 64 << 10};
    struct bed *bed = *state;
    struct load_needs all;
    struct load_needs some;

    bed_open(bed, &options, all_ranks);
    load_needs(bed->load, &all);
    bed_open(bed, &options, two_ranks);
    load_needs(bed->load, &some);
    bed_run(bed);
    assert_int_equal(bed->store->manifest->ranks[0].id.tp, 1);
    assert_int_equal(bed->store->manifest->ranks[1].id.tp, 3);
    check_streams(bed);
    assert_true(some.made_bytes < all.made_bytes);
    assert_true(some.viewed_bytes < all.viewed_bytes);
}

/* ---- views ---- */

/* Bytes of the stream's segments in regions of a kind. */
static uint64_t segment_bytes(const struct store *store, enum region_kind kind)
{
    uint64_t bytes = 0;

    for (uint32_t r = 0; r < store->manifest->rank_count; r++) {
        const struct layout *layout = &store->ranks[r].layout;

        for (uint32_t i = 0; i < layout->count; i++)
            bytes +=
                region_kind(layout->segments[i].region) == kind ? layout->segments[i].bytes : 0;
    }
    return bytes;
}

/* Where a tensor's first byte lies. */
static struct segment where(const struct store *store, uint32_t rank, const char *name)
{
    const struct tensor *tensor = manifest_find(&store->manifest->ranks[rank], name);
    const struct layout *layout = &store->ranks[rank].layout;
    struct segment found = layout->segments[layout_find(layout, tensor->stream_offset)];

    found.region_offset += tensor->stream_offset - found.stream_offset;
    return found;
}

static void what_is_in_one_piece_is_a_view_of_its_file(void **state)
{
    const struct load_options options = {.memory = LOAD_FILES, .chunk_bytes = 64 << 10};
    const uint64_t viewed_by_rank = 35 * UINT64_C(16384) + 7 * 13 + 333 * 2 + 4;
    struct bed *bed = *state;
    struct load_needs needs;

    bed_open(bed, &options, all_ranks);
    load_needs(bed->load, &needs);
    bed_run(bed);
    assert_int_equal(segment_bytes(bed->store, REGION_FILE), 4 * viewed_by_rank + 10 * 96 * 2);
    assert_int_equal(needs.viewed_bytes,
                     4 * 35 * UINT64_C(16384) + 10 * 96 * 2 + 7 * 13 + 333 * 2 + 4);
    assert_true(needs.made_bytes >= MADE_BYTES);
    assert_true(needs.made_bytes < MADE_BYTES + MADES * LOAD_MADE_ALIGN_BYTES);
    /* Headers and side files, and what is made: no weights. */
    assert_true(needs.memory_bytes < needs.made_bytes + 8192);
    for (uint32_t i = 0; i < bed->store->region_count; i++) {
        const struct region *region = bed->store->regions[i];

        if (region_kind(region) == REGION_MEMFD) {
            assert_true(region_is_sealed(region));
            assert_int_equal(region_bytes(region), needs.made_bytes);
        }
    }
    assert_int_equal(bed->store->region_count, 3);
}

static void nothing_is_held_twice(void **state)
{
    struct bed *bed = *state;

    for (unsigned variant = 0; variant < 2; variant++) {
        const struct load_options options = {.memory = variant == 0 ? LOAD_MEMFD : LOAD_FILES,
                                             .chunk_bytes = 64 << 10};
        struct load_needs needs;
        uint64_t held = 0;

        bed_open(bed, &options, all_ranks);
        load_needs(bed->load, &needs);
        bed_run(bed);
        for (uint32_t i = 0; i < bed->store->region_count; i++) {
            if (region_kind(bed->store->regions[i]) == REGION_MEMFD)
                held += region_bytes(bed->store->regions[i]);
        }
        assert_true(held <= needs.memory_bytes);
        assert_true(held <= needs.made_bytes + (variant == 0 ? needs.viewed_bytes : 0) +
                                UINT64_C(20) * LOAD_PAGE_BYTES);
        /* What two ranks have is one, viewed or made. */
        static const char *const same[] = {"norm", "odd", "half", "scalar"};
        for (unsigned i = 0; i < 4; i++) {
            struct segment one = where(bed->store, 0, same[i]);
            struct segment other = where(bed->store, 3, same[i]);

            assert_ptr_equal(one.region, other.region);
            assert_int_equal(one.region_offset, other.region_offset);
        }
        struct segment first = where(bed->store, 0, "big.kv");
        struct segment second = where(bed->store, 1, "big.kv");
        struct segment third = where(bed->store, 2, "big.kv");
        assert_int_equal(first.region_offset, second.region_offset);
        assert_int_not_equal(first.region_offset, third.region_offset);
    }
}

/* ---- the files again ---- */

static void weight_files_are_put_together_from_the_ranks(void **state)
{
    const struct load_options options = {.memory = LOAD_MEMFD, .chunk_bytes = 64 << 10};
    struct bed *bed = *state;
    struct rf_error err = {.code = RF_OK};

    bed_open(bed, &options, all_ranks);
    bed_run(bed);
    const struct manifest_file *file = &bed->store->manifest->files[0];
    uint64_t data = file->bytes - file->header_bytes;
    uint8_t *got = malloc(data);
    assert_non_null(got);
    /* big is whole through big.row, embed through its padded pieces. */
    if (store_check_file(bed->store, 0, 0, file->bytes, &err) != RF_OK)
        fail_msg("%s", err.text);
    assert_int_equal(store_read_file(bed->store, 0, file->header_bytes, got, data, NULL), RF_OK);
    uint64_t at = 0;
    for (unsigned i = 0; i < SPECS; i++) {
        if (specs[i].file != 0)
            continue;
        assert_memory_equal(got + at, bed->content[i], bed->bytes[i]);
        at += bed->bytes[i];
    }
    /* A piece that begins and ends in the middle of rows. */
    assert_int_equal(store_read_file(bed->store, 0, file->header_bytes + 12345, got, 70000, NULL),
                     RF_OK);
    assert_memory_equal(got, bed->content[BIG] + 12345, 70000);
    free(got);
    /* Of the other, gate is there as F32 only. */
    file = &bed->store->manifest->files[1];
    assert_int_equal(store_check_file(bed->store, 1, 0, file->header_bytes, NULL), RF_OK);
    assert_int_equal(store_check_file(bed->store, 1, 0, file->bytes, &err), RF_E_UNSUPPORTED);
    assert_says(&err, "tensor gate");
    assert_int_equal(store_check_file(bed->store, 1, file->header_bytes, 333 * 2, NULL), RF_OK);
}

static void a_file_is_not_read_from_ranks_that_lack_some_of_it(void **state)
{
    const struct load_options options = {.memory = LOAD_FILES, .chunk_bytes = 64 << 10};
    struct bed *bed = *state;
    struct rf_error err = {.code = RF_OK};
    uint8_t row[16384];

    bed_open(bed, &options, two_ranks);
    bed_run(bed);
    const struct manifest_file *file = &bed->store->manifest->files[0];
    assert_int_equal(store_check_file(bed->store, 0, 0, file->header_bytes, NULL), RF_OK);
    assert_int_equal(store_read_file(bed->store, 0, 0, row, file->header_bytes, NULL), RF_OK);
    assert_int_equal(store_check_file(bed->store, 0, 0, file->bytes, &err), RF_E_UNSUPPORTED);
    assert_says(&err, "tensor big");
    assert_int_equal(store_read_file(bed->store, 0, file->header_bytes, row, sizeof row, &err),
                     RF_E_UNSUPPORTED);
    /* Rows of which rank 1 has all; and rank 1's slice of one, on into rank 3's. */
    uint64_t at = file->header_bytes + 110 * UINT64_C(16384);
    assert_int_equal(store_read_file(bed->store, 0, at, row, sizeof row, NULL), RF_OK);
    assert_memory_equal(row, bed->content[BIG] + 110 * UINT64_C(16384), sizeof row);
    at = file->header_bytes + 4096;
    assert_int_equal(store_check_file(bed->store, 0, at, 9000 - 4096, NULL), RF_OK);
    assert_int_equal(store_check_file(bed->store, 0, at, 9001 - 4096, &err), RF_E_UNSUPPORTED);
    assert_says(&err, "byte 9000 ");
}

/* ---- files that change ---- */

static void change_file(void *ctx, uint64_t added_bytes)
{
    const char *how = ctx;

    (void)added_bytes;
    if (how[0] == 't')
        assert_int_equal(truncate(how + 1, 5000), 0);
    const struct timespec times[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    if (how[0] == 'w')
        assert_int_equal(utimensat(AT_FDCWD, how + 1, times, 0), 0);
}

static void a_file_that_changes_meanwhile_is_noticed(void **state)
{
    struct bed *bed = *state;

    for (unsigned variant = 0; variant < 8; variant++) {
        char how[512];
        struct rf_error err = {.code = RF_OK};
        const struct load_options options = {
            .memory = variant & 1 ? LOAD_FILES : LOAD_MEMFD,
            .threads = 1,
            .chunk_bytes = 64 << 10,
            .progress = change_file,
            .progress_ctx = how,
        };

        put_file(bed, 0, "model-1.safetensors");
        put_file(bed, 1, "model-2.safetensors");
        snprintf(how, sizeof how, "%c%s/model-%u.safetensors", variant & 2 ? 't' : 'w', bed->path,
                 variant & 4 ? 2U : 1U);
        bed_open(bed, &options, all_ranks);
        assert_int_equal(load_run(bed->load, &bed->store, &err), RF_E_CHANGED);
        assert_null(bed->store);
        assert_says(&err, variant & 4 ? "model-2.safetensors" : "model-1.safetensors");
    }
}

static void a_file_that_is_shorter_than_its_header_says_is_refused(void **state)
{
    const struct load_options options = {.memory = LOAD_MEMFD, .chunk_bytes = 64 << 10};
    struct bed *bed = *state;
    struct rf_error err = {.code = RF_OK};
    char *path = folder_path(bed->path, "model-1.safetensors");

    bed_open(bed, &options, all_ranks);
    assert_int_equal(truncate(path, 100000), 0);
    free(path);
    assert_int_equal(load_run(bed->load, &bed->store, &err), RF_E_CHANGED);
    assert_says(&err, "100000");
}

/* ---- what cannot be ---- */

static enum rf_code wide_ranks(const struct load *load, struct manifest_builder *builder,
                               struct rf_error *err)
{
    (void)load;
    (void)err;
    for (uint32_t tp = 0; tp < 2; tp++) {
        const struct rank_id id = {
            .tp = tp, .tp_size = 2, .pp_size = 1, .ep_size = 1, .dp_size = 1};
        const struct part part = {.axis = 1, .start = tp, .count = 1};
        const uint64_t shape[] = {UINT64_C(1) << 41};
        const struct tensor tensor = {.name = "wide",
                                      .dtype = RF_DTYPE_U8,
                                      .ndim = 1,
                                      .shape = shape,
                                      .file = MANIFEST_NONE,
                                      .alias_of = MANIFEST_NONE,
                                      .parts = &part,
                                      .part_count = 1};

        assert_int_equal(manifest_add_rank(builder, &id, NULL), RF_OK);
        assert_int_equal(manifest_add_tensor(builder, &tensor, NULL, NULL), RF_OK);
    }
    return RF_OK;
}

/* Four terabytes of holes. */
static void what_cannot_fit_is_refused_before_it_is_read(void **state)
{
    static const char header[] = "{\"wide\":{\"dtype\":\"U8\",\"shape\":[2199023255552,2],"
                                 "\"data_offsets\":[0,4398046511104]}}";
    struct model_folder folder;
    char *folder_name = folder_make();
    char *path = folder_path(folder_name, "model.safetensors");

    (void)state;
    folder_put_tensors(folder_name, "model.safetensors", header, 0);
    if (truncate(path, (off_t)(8 + sizeof header - 1 + (UINT64_C(1) << 42))) != 0) {
        free(path);
        folder_remove(folder_name);
        skip();
    }
    assert_int_equal(model_folder_open(folder_name, &folder, NULL), RF_OK);
    for (unsigned variant = 0; variant < 2; variant++) {
        const struct load_options options = {.memory = variant == 0 ? LOAD_MEMFD : LOAD_FILES,
                                             .chunk_bytes = 64 << 20};
        struct rf_error err = {.code = RF_OK};
        struct load_needs needs;
        struct store *store = NULL;
        struct load *load = NULL;

        assert_int_equal(load_open_ranks(&folder, &options, wide_ranks, &load, &err), RF_OK);
        load_needs(load, &needs);
        assert_true(needs.memory_bytes >= UINT64_C(1) << 42);
        assert_int_equal(load_run(load, &store, &err), RF_E_NOMEM);
        assert_says(&err, "--ranks");
        assert_int_equal(strstr(err.text, "--mmap") != NULL, variant == 0);
        load_close(load);
    }
    model_folder_close(&folder);
    free(path);
    folder_remove(folder_name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_byte_of_every_rank_is_where_it_belongs, bed_setup,
                                        bed_teardown),
        cmocka_unit_test_setup_teardown(some_of_the_ranks_are_the_same_ranks, bed_setup,
                                        bed_teardown),
        cmocka_unit_test_setup_teardown(what_is_in_one_piece_is_a_view_of_its_file, bed_setup,
                                        bed_teardown),
        cmocka_unit_test_setup_teardown(nothing_is_held_twice, bed_setup, bed_teardown),
        cmocka_unit_test_setup_teardown(weight_files_are_put_together_from_the_ranks, bed_setup,
                                        bed_teardown),
        cmocka_unit_test_setup_teardown(a_file_is_not_read_from_ranks_that_lack_some_of_it,
                                        bed_setup, bed_teardown),
        cmocka_unit_test_setup_teardown(a_file_that_changes_meanwhile_is_noticed, bed_setup,
                                        bed_teardown),
        cmocka_unit_test_setup_teardown(a_file_that_is_shorter_than_its_header_says_is_refused,
                                        bed_setup, bed_teardown),
        cmocka_unit_test(what_cannot_fit_is_refused_before_it_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
