#include "util/manifests.h"

#include "util/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

const struct rank_id whole_rank = {0, 1, 0, 1, 0, 1, 0, 1, ROLE_TARGET};

struct manifest_builder *builder_new(uint32_t chunk_bytes)
{
    const struct manifest_identity identity = {
        .model = "tiny",
        .architecture = "LlamaForCausalLM",
        .quantisation = "none",
        .layout = "checkpoint",
        .stage = STAGE_CHECKPOINT,
        .weight_version = 7,
        .algorithm = HASH_XXH3_128,
        .chunk_bytes = chunk_bytes,
    };
    struct rf_error err = {0};
    struct manifest_builder *builder = manifest_builder_create(&identity, &err);

    if (builder == NULL)
        fail_msg("%s", err.text);
    return builder;
}

void add_rank(struct manifest_builder *builder, const struct rank_id *id)
{
    assert_int_equal(manifest_add_rank(builder, id, NULL), RF_OK);
}

void add_file(struct manifest_builder *builder, const char *name, enum manifest_file_kind kind,
              uint64_t bytes, uint64_t header_bytes)
{
    struct manifest_file file = {
        .name = name, .kind = kind, .bytes = bytes, .header_bytes = header_bytes};
    struct rf_error err = {0};

    memset(file.digest, 0x11, sizeof file.digest);
    if (manifest_add_file(builder, &file, &err) != RF_OK)
        fail_msg("%s", err.text);
}

uint32_t add_source(struct manifest_builder *builder, const char *name, enum rf_dtype dtype,
                    uint32_t ndim, const uint64_t *shape)
{
    const struct manifest_source source = {
        .name = name, .dtype = dtype, .ndim = ndim, .shape = shape, .file = MANIFEST_NONE};
    struct rf_error err = {0};
    uint32_t index = MANIFEST_NONE;

    if (manifest_add_source(builder, &source, &index, &err) != RF_OK)
        fail_msg("%s", err.text);
    return index;
}

enum rf_code try_tensor(struct manifest_builder *builder, const struct tensor_spec *spec,
                        struct rf_error *err)
{
    static const uint64_t none[SPEC_DIMS];
    bool sharded = memcmp(spec->global_shape, none, sizeof none) != 0;
    struct tensor tensor = {
        .name = spec->name,
        .dtype = spec->dtype,
        .ndim = spec->ndim,
        .shape = spec->shape,
        .global_shape = sharded ? spec->global_shape : NULL,
        .slice_start = sharded ? spec->slice_start : NULL,
        .file = spec->in_file ? spec->file : MANIFEST_NONE,
        .file_offset = spec->file_offset,
        .parts = spec->parts,
        .part_count = spec->part_count,
    };

    return manifest_add_tensor(builder, &tensor, spec->alias_of, err);
}

void add_tensor(struct manifest_builder *builder, const struct tensor_spec *spec)
{
    struct rf_error err = {0};

    if (try_tensor(builder, spec, &err) != RF_OK)
        fail_msg("%s", err.text);
}

struct manifest *built(struct manifest_builder *builder)
{
    struct manifest *manifest = NULL;
    struct rf_error err = {0};

    if (manifest_build(builder, &manifest, &err) != RF_OK)
        fail_msg("%s", err.text);
    return manifest;
}

void assert_build_fails(struct manifest_builder *builder, const char *words)
{
    struct manifest *manifest = NULL;
    struct rf_error err = {0};

    assert_int_equal(manifest_build(builder, &manifest, &err), RF_E_INVAL);
    assert_null(manifest);
    assert_says(&err, words);
}

struct manifest *manifest_of(const struct tensor_spec *specs, uint32_t count, uint32_t chunk_bytes)
{
    struct manifest_builder *builder = builder_new(chunk_bytes);

    add_rank(builder, &whole_rank);
    for (uint32_t i = 0; i < count; i++)
        add_tensor(builder, &specs[i]);
    return built(builder);
}

/* Rank i of two with every kind of tensor there is. */
static void add_every_tensor(struct manifest_builder *builder, uint64_t i, uint32_t bias)
{
    const struct part fused[] = {
        {.source = 0, .axis = 1, .start = 5 * i, .count = 5},
        {.source = MANIFEST_NONE, .count = 10},
        {.source = bias, .start = 5 * i, .count = 5},
    };
    const struct tensor_spec specs[] = {
        {.name = "norm",
         .dtype = RF_DTYPE_F32,
         .ndim = 1,
         .shape = {8},
         .in_file = true,
         .file = 0,
         .file_offset = 232},
        {.name = "wq",
         .dtype = RF_DTYPE_BF16,
         .ndim = 2,
         .shape = {4, 8},
         .global_shape = {8, 8},
         .slice_start = {4 * i, 0}},
        {.name = "head",
         .dtype = RF_DTYPE_BF16,
         .ndim = 2,
         .shape = {16, 4},
         .global_shape = {16, 8},
         .slice_start = {0, 4 * i},
         .alias_of = "embed"},
        {.name = "embed",
         .dtype = RF_DTYPE_BF16,
         .ndim = 2,
         .shape = {16, 4},
         .global_shape = {16, 8},
         .slice_start = {0, 4 * i}},
        {.name = "empty", .dtype = RF_DTYPE_I64, .ndim = 2, .shape = {0, 5}},
        {.name = "fused",
         .dtype = RF_DTYPE_BF16,
         .ndim = 2,
         .shape = {6, 5},
         .parts = fused,
         .part_count = 3},
        {.name = "wide bias",
         .dtype = RF_DTYPE_F32,
         .ndim = 1,
         .shape = {5},
         .global_shape = {10},
         .slice_start = {5 * i},
         .parts = &fused[2],
         .part_count = 1},
        {.name = "scale", .dtype = RF_DTYPE_F32},
        {.name = "", .dtype = RF_DTYPE_U8},
        {.name = "\xce\xb1.\xe9\x87\x8d", .dtype = RF_DTYPE_F4, .ndim = 1, .shape = {6}},
    };

    for (unsigned j = 0; j < sizeof specs / sizeof specs[0]; j++)
        add_tensor(builder, &specs[j]);
}

struct manifest *manifest_of_everything(void)
{
    static const struct rank_id ranks[] = {
        {0, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET},
        {1, 2, 0, 1, 0, 1, 0, 1, ROLE_TARGET},
    };
    struct manifest_builder *builder = builder_new(MANIFEST_MIN_CHUNK_BYTES);

    add_file(builder, "model.safetensors", FILE_WEIGHTS, 1000, 200);
    add_file(builder, "config.json", FILE_SIDE, 321, 0);
    const struct manifest_source weight = {.name = "weight",
                                           .dtype = RF_DTYPE_BF16,
                                           .ndim = 2,
                                           .shape = (uint64_t[]){4, 10},
                                           .file_offset = 240};
    assert_int_equal(manifest_add_source(builder, &weight, NULL, NULL), RF_OK);
    uint32_t bias = add_source(builder, "bias", RF_DTYPE_BF16, 1, (uint64_t[]){10});
    for (uint64_t i = 0; i < 2; i++) {
        add_rank(builder, &ranks[i]);
        add_every_tensor(builder, i, bias);
    }
    return built(builder);
}

static void assert_same_dims(const uint64_t *a, const uint64_t *b, uint32_t ndim)
{
    assert_int_equal(a == NULL, b == NULL);
    if (a != NULL && ndim > 0)
        assert_memory_equal(a, b, ndim * sizeof *a);
}

static void assert_same_tensor(const struct tensor *a, const struct tensor *b)
{
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->name_bytes, b->name_bytes);
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->ndim, b->ndim);
    assert_same_dims(a->shape, b->shape, a->ndim);
    assert_same_dims(a->global_shape, b->global_shape, a->ndim);
    assert_same_dims(a->slice_start, b->slice_start, a->ndim);
    assert_int_equal(a->global_shape == a->shape, b->global_shape == b->shape);
    assert_int_equal(a->bytes, b->bytes);
    assert_int_equal(a->stream_offset, b->stream_offset);
    assert_int_equal(a->alias_of, b->alias_of);
    assert_int_equal(a->order, b->order);
    assert_int_equal(a->file, b->file);
    assert_int_equal(a->file_offset, b->file_offset);
    assert_int_equal(a->part_count, b->part_count);
    for (uint32_t i = 0; i < a->part_count; i++) {
        assert_int_equal(a->parts[i].source, b->parts[i].source);
        assert_int_equal(a->parts[i].axis, b->parts[i].axis);
        assert_int_equal(a->parts[i].start, b->parts[i].start);
        assert_int_equal(a->parts[i].count, b->parts[i].count);
        assert_int_equal(a->parts[i].offset, b->parts[i].offset);
        assert_int_equal(a->parts[i].bytes, b->parts[i].bytes);
    }
}

static void assert_same_source(const struct manifest_source *a, const struct manifest_source *b)
{
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->name_bytes, b->name_bytes);
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->ndim, b->ndim);
    assert_same_dims(a->shape, b->shape, a->ndim);
    assert_int_equal(a->bytes, b->bytes);
    assert_int_equal(a->file, b->file);
    assert_int_equal(a->file_offset, b->file_offset);
}

void assert_same_manifest(const struct manifest *a, const struct manifest *b)
{
    assert_string_equal(a->model, b->model);
    assert_string_equal(a->architecture, b->architecture);
    assert_string_equal(a->quantisation, b->quantisation);
    assert_string_equal(a->layout, b->layout);
    assert_int_equal(a->stage, b->stage);
    assert_int_equal(a->weight_version, b->weight_version);
    assert_int_equal(a->algorithm, b->algorithm);
    assert_int_equal(a->chunk_bytes, b->chunk_bytes);
    assert_memory_equal(a->id, b->id, sizeof a->id);
    assert_int_equal(a->file_count, b->file_count);
    for (uint32_t i = 0; i < a->file_count; i++) {
        assert_string_equal(a->files[i].name, b->files[i].name);
        assert_int_equal(a->files[i].kind, b->files[i].kind);
        assert_int_equal(a->files[i].bytes, b->files[i].bytes);
        assert_int_equal(a->files[i].header_bytes, b->files[i].header_bytes);
        assert_memory_equal(a->files[i].digest, b->files[i].digest, sizeof a->files[i].digest);
    }
    assert_int_equal(a->source_count, b->source_count);
    for (uint32_t i = 0; i < a->source_count; i++)
        assert_same_source(&a->sources[i], &b->sources[i]);
    assert_int_equal(a->rank_count, b->rank_count);
    for (uint32_t i = 0; i < a->rank_count; i++) {
        assert_int_equal(rank_id_compare(&a->ranks[i].id, &b->ranks[i].id), 0);
        assert_int_equal(a->ranks[i].tensor_count, b->ranks[i].tensor_count);
        assert_int_equal(a->ranks[i].stream_bytes, b->ranks[i].stream_bytes);
        for (uint32_t j = 0; j < a->ranks[i].tensor_count; j++)
            assert_same_tensor(&a->ranks[i].tensors[j], &b->ranks[i].tensors[j]);
    }
}
