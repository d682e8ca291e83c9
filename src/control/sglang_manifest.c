#include "control/sglang_manifest.h"

#include "base/cleanup.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SGLANG_SHOWN_DIFFERENCES = 4,
    SGLANG_SHOWN_BYTES = 260, /* of these, in a line that says more */
    SGLANG_SHOWN_NAME = 100,  /* bytes of a name in a line of several */
};

/* ---- from the map alone ---- */

/* A guess: all that is known is how large an element is. */
static enum rf_dtype guess_dtype(const struct sglang_facts *facts, uint32_t element_bytes,
                                 uint64_t *elements)
{
    enum rf_dtype said = RF_DTYPE_BF16;
    const char *quantisation =
        facts->config != NULL ? model_config_quantisation(facts->config) : "none";

    switch (element_bytes) {
    case 1:
        return strcmp(quantisation, "fp8") == 0 ? RF_DTYPE_F8_E4M3 : RF_DTYPE_U8;
    case 2:
        if (facts->config == NULL || !model_config_dtype(facts->config, &said) ||
            rf_dtype_bits(said) != 16)
            return RF_DTYPE_BF16;
        return said;
    case 4:
        return RF_DTYPE_F32;
    case 8:
        return RF_DTYPE_I64;
    case 16:
        *elements *= 2; /* cannot overflow: that times 8 is the tensor's bytes */
        return RF_DTYPE_I64;
    default:
        *elements *= element_bytes;
        return RF_DTYPE_U8;
    }
}

static int compare_places(const void *a, const void *b)
{
    const struct weight_entry *x = *(const struct weight_entry *const *)a;
    const struct weight_entry *y = *(const struct weight_entry *const *)b;

    if (x->address != y->address)
        return x->address < y->address ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    if (x->element_bytes != y->element_bytes)
        return x->element_bytes < y->element_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static bool same_place(const struct weight_entry *a, const struct weight_entry *b)
{
    return a->bytes > 0 && a->address == b->address && a->bytes == b->bytes &&
           a->element_bytes == b->element_bytes;
}

static enum rf_code add_tensors(const struct sglang_facts *facts, const struct weight_map *map,
                                struct manifest_builder *builder, struct rf_error *err)
{
    rf_autofree const struct weight_entry **places =
        calloc((size_t)map->count + 1, sizeof(const struct weight_entry *));
    const struct weight_entry *first = NULL;

    if (places == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " tensors", map->count);
    for (uint32_t i = 0; i < map->count; i++)
        places[i] = &map->entries[i];
    qsort(places, map->count, sizeof(const struct weight_entry *), compare_places);
    for (uint32_t i = 0; i < map->count; i++) {
        const struct weight_entry *entry = places[i];
        bool alias = first != NULL && same_place(first, entry);
        uint64_t elements = entry->elements;
        struct tensor tensor = {
            .name = entry->name,
            .dtype = guess_dtype(facts, entry->element_bytes, &elements),
            .ndim = 1,
            .shape = &elements,
            .order = i,
            .file = MANIFEST_NONE,
            .alias_of = MANIFEST_NONE,
        };
        enum rf_code code = manifest_add_tensor(builder, &tensor, alias ? first->name : NULL, err);

        if (code != RF_OK)
            return code;
        first = alias ? first : entry;
    }
    return RF_OK;
}

static enum rf_code add_ranks(const struct sglang_facts *facts, const struct weight_map *maps,
                              uint32_t count, struct manifest_builder *builder,
                              struct rf_error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct rank_id id = {
            .tp = i, .tp_size = count, .pp_size = 1, .ep_size = 1, .dp_size = 1};

        if (maps[i].count == 0)
            return rf_fail(err, RF_E_MISMATCH, "rank %" PRIu32 ": its map names no tensor at all",
                           i);
        enum rf_code code = manifest_add_rank(builder, &id, err);
        if (code == RF_OK)
            code = add_tensors(facts, &maps[i], builder, err);
        if (code != RF_OK)
            return rf_error_wrap(err, code, "rank %" PRIu32, i);
    }
    return RF_OK;
}

enum rf_code sglang_manifest_make(const struct sglang_facts *facts, const struct weight_map *maps,
                                  uint32_t count, struct manifest **ret_manifest,
                                  struct rf_error *err)
{
    const struct manifest *side = facts->side;
    const struct manifest_identity identity = {
        .model = facts->model,
        .architecture = side != NULL ? side->architecture : "",
        .quantisation = side != NULL ? side->quantisation : "unknown",
        .layout = "sglang",
        .stage = STAGE_PROCESSED,
        .algorithm = HASH_XXH3_128,
    };
    struct rf_error why = {.code = RF_E_NOMEM};
    struct manifest_builder *builder = manifest_builder_create(&identity, &why);

    if (builder == NULL) {
        if (err != NULL)
            *err = why;
        return why.code;
    }
    enum rf_code code = RF_OK;
    for (uint32_t i = 0; side != NULL && code == RF_OK && i < side->file_count; i++)
        code = manifest_add_file(builder, &side->files[i], err);
    if (code == RF_OK)
        code = add_ranks(facts, maps, count, builder, err);
    if (code == RF_OK)
        code = manifest_build(builder, ret_manifest, err);
    else
        manifest_builder_destroy(builder);
    /* What a builder takes for its caller's mistake is the seed's here. */
    if (code == RF_E_INVAL && err != NULL)
        err->code = RF_E_PROTO;
    return code == RF_E_INVAL ? RF_E_PROTO : code;
}

/* ---- against a model's files ---- */

struct check {
    struct buf text;
    uint64_t differences;
    uint64_t shown;
};

/* The first few, while there is room for whole ones. */
static void show(struct check *check, uint32_t rank, const char *name, const char *words)
{
    char line[SGLANG_SHOWN_BYTES + 1];

    if (check->shown >= SGLANG_SHOWN_DIFFERENCES || check->shown + 1 < check->differences)
        return;
    int bytes = snprintf(line, sizeof(line), "%srank %" PRIu32 ", %.*s: %s",
                         check->shown > 0 ? "; " : "", rank, SGLANG_SHOWN_NAME, name, words);
    if (bytes < 0 || check->text.bytes + (size_t)bytes > SGLANG_SHOWN_BYTES)
        return;
    buf_printf(&check->text, "%s", line);
    check->shown++;
}

static void differ(struct check *check, uint32_t rank, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static void differ(struct check *check, uint32_t rank, const char *name, const char *fmt, ...)
{
    char words[160];
    va_list args;

    va_start(args, fmt);
    vsnprintf(words, sizeof(words), fmt, args);
    va_end(args);
    check->differences++;
    show(check, rank, name, words);
}

/* Elements as the engine counts them: packed ones lie in whole bytes there. */
static void elements_of(const struct tensor *tensor, uint64_t *ret_elements, uint32_t *ret_bytes)
{
    unsigned bits = rf_dtype_bits(tensor->dtype);

    *ret_bytes = bits >= 8 ? bits / 8 : 1;
    *ret_elements = tensor->bytes / *ret_bytes;
}

static void check_pair(struct check *check, uint32_t rank, const struct tensor *tensor,
                       const struct weight_entry *entry)
{
    uint64_t elements;
    uint32_t element_bytes;

    elements_of(tensor, &elements, &element_bytes);
    if (elements != entry->elements || element_bytes != entry->element_bytes)
        differ(check, rank, tensor->name,
               "%" PRIu64 " elements of %" PRIu32 " bytes at the seed, %" PRIu64 " of %" PRIu32
               " by the files",
               entry->elements, entry->element_bytes, elements, element_bytes);
}

/* Both are sorted by name: one merge pass. */
static void check_rank(struct check *check, uint32_t rank, const struct manifest_rank *want,
                       const struct weight_map *map)
{
    uint32_t i = 0;
    uint32_t j = 0;

    while (i < want->tensor_count || j < map->count) {
        int order = i == want->tensor_count ? 1
                    : j == map->count       ? -1
                                            : strcmp(want->tensors[i].name, map->entries[j].name);

        if (order < 0)
            differ(check, rank, want->tensors[i].name, "not published by the seed");
        else if (order > 0)
            differ(check, rank, map->entries[j].name, "not in the files");
        else
            check_pair(check, rank, &want->tensors[i], &map->entries[j]);
        i += order <= 0;
        j += order >= 0;
    }
}

enum rf_code sglang_manifest_check(const struct manifest *manifest, const struct weight_map *maps,
                                   uint32_t count, uint64_t *ret_differences, struct rf_error *err)
{
    struct check check = {.differences = 0};
    BUF_AUTO struct buf text = {0};

    for (uint32_t i = 0; i < count && i < manifest->rank_count; i++)
        check_rank(&check, i, &manifest->ranks[i], &maps[i]);
    text = check.text; /* freed at the end */
    if (manifest->rank_count != count)
        return rf_fail(err, RF_E_MISMATCH,
                       "%" PRIu32 " ranks at the seed, %" PRIu32 " by the files", count,
                       manifest->rank_count);
    if (ret_differences != NULL)
        *ret_differences = check.differences;
    if (check.differences == 0)
        return RF_OK;
    return rf_fail(err, RF_E_MISMATCH, "%" PRIu64 " difference%s: %s%s", check.differences,
                   check.differences == 1 ? "" : "s",
                   text.data != NULL && !text.failed ? (const char *)text.data : "?",
                   check.differences > check.shown ? "; ..." : "");
}

/* ---- where the bytes are ---- */

enum rf_code sglang_check_registered(const struct weight_map *map,
                                     const struct te_descriptor *descriptor, struct rf_error *err)
{
    const struct weight_entry *first = NULL;
    uint32_t missing = 0;

    for (uint32_t i = 0; i < map->count; i++) {
        const struct weight_entry *entry = &map->entries[i];

        if (entry->bytes == 0 ||
            te_descriptor_find(descriptor, entry->address, entry->bytes) != NULL)
            continue;
        first = missing == 0 ? entry : first;
        missing++;
    }
    if (missing == 0)
        return RF_OK;
    if (descriptor->buffer_count == 0)
        return rf_fail(err, RF_E_MISMATCH,
                       "the engine at %.100s has registered nothing: none of its %" PRIu32
                       " tensors can be read; an SGLang seed on a CPU does that",
                       map->session, map->count);
    return rf_fail(
        err, RF_E_MISMATCH,
        "%" PRIu32 " of %" PRIu32 " tensors lie in none of the %" PRIu64
        " buffers that the engine at %.100s has registered, the first is %.200s (%" PRIu64
        " bytes at 0x%" PRIx64 "): the map is stale, or another engine's",
        missing, map->count, descriptor->buffer_count, map->session, first->name, first->bytes,
        first->address);
}

enum rf_code sglang_segments(const struct manifest_rank *rank, const struct weight_map *map,
                             struct te_segment **ret_segments, uint64_t *ret_count,
                             struct rf_error *err)
{
    rf_autofree struct te_segment *segments =
        calloc((size_t)rank->placed_count + 1, sizeof(*segments));

    if (segments == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " tensors", rank->placed_count);
    for (uint32_t i = 0; i < rank->placed_count; i++) {
        const struct tensor *tensor = &rank->tensors[rank->placed[i]];
        const struct weight_entry *entry = weight_map_find(map, tensor->name);

        if (entry == NULL || entry->bytes != tensor->bytes)
            return rf_fail(err, RF_E_MISMATCH, "tensor %.200s: not as it was", tensor->name);
        segments[i] = (struct te_segment){.stream_offset = tensor->stream_offset,
                                          .bytes = tensor->bytes,
                                          .address = entry->address};
    }
    *ret_segments = rf_take(segments, NULL);
    *ret_count = rank->placed_count;
    return RF_OK;
}
