/* What is what: the tensors of the checkpoint, as both sides know them. */
#include "base/cleanup.h"
#include "base/strmap.h"
#include "model/reshard_internal.h"

#include <inttypes.h>
#include <stdlib.h>

bool rs_whole_tensors(const struct manifest *manifest)
{
    const struct rank_id *id = &manifest->ranks[0].id;

    if (manifest->stage == STAGE_PROCESSED)
        return false;
    return manifest->source_count > 0 || (manifest->rank_count == 1 && id->tp_size == 1 &&
                                          id->pp_size == 1 && id->ep_size == 1 && id->dp_size == 1);
}

/* ---- sources ---- */

static struct rs_source source_of_tensor(const struct tensor *tensor)
{
    return (struct rs_source){.name = tensor->name,
                              .name_bytes = tensor->name_bytes,
                              .dtype = tensor->dtype,
                              .ndim = tensor->ndim,
                              .shape = tensor->shape,
                              .bytes = tensor->bytes};
}

static struct rs_source source_of(const struct manifest_source *source)
{
    return (struct rs_source){.name = source->name,
                              .name_bytes = source->name_bytes,
                              .dtype = source->dtype,
                              .ndim = source->ndim,
                              .shape = source->shape,
                              .bytes = source->bytes};
}

/* The class of a source if one of those just before is like it, as in a row of experts. */
static bool class_near(const struct rs *rs, uint32_t index, uint32_t *ret_class)
{
    const struct rs_source *source = &rs->sources[index];

    for (uint32_t back = 1; back <= RS_CLASS_NEAR && back <= index; back++) {
        const struct rs_source *other = &rs->sources[index - back];

        if (source->dtype == other->dtype && source->ndim == other->ndim &&
            (source->ndim == 0 ||
             memcmp(source->shape, other->shape, source->ndim * sizeof *source->shape) == 0)) {
            *ret_class = rs->classes[index - back];
            return true;
        }
    }
    return false;
}

/* Numbers the forms of sources: as many as there are different dtypes and shapes. */
static enum rf_code classes_number(struct rs *rs, struct rf_error *err)
{
    struct strmap *forms = strmap_create(64);
    uint64_t *keys = calloc(rs->source_count + (size_t)1, sizeof *keys * (RF_MAX_DIMS + 1));
    enum rf_code code = forms != NULL && keys != NULL ? RF_OK : RF_E_NOMEM;
    uint32_t count = 0;

    rs->classes = calloc(rs->source_count + (size_t)1, sizeof *rs->classes);
    rs->models = calloc(rs->source_count + (size_t)1, sizeof *rs->models);
    if (rs->classes == NULL || rs->models == NULL)
        code = RF_E_NOMEM;
    for (uint32_t i = 0; i < rs->source_count && code == RF_OK; i++) {
        const struct rs_source *source = &rs->sources[i];
        uint64_t *key = &keys[(size_t)count * (RF_MAX_DIMS + 1)]; /* kept if it is a new one */
        size_t dims = source->ndim * sizeof *key;

        if (class_near(rs, i, &rs->classes[i]))
            continue;
        key[0] = source->dtype;
        if (dims > 0)
            memcpy(key + 1, source->shape, dims);
        rs->classes[i] = count;
        rs->models[count] = i;
        code = strmap_add(forms, (const char *)key, sizeof *key + dims, count, &rs->classes[i]);
        if (code == RF_OK)
            count++;
        else if (code == RF_E_INVAL)
            code = RF_OK;
    }
    strmap_destroy(forms);
    free(keys);
    return code == RF_OK
               ? code
               : rf_fail(err, code, "no memory to plan %" PRIu32 " tensors", rs->source_count);
}

static enum rf_code sources_list(struct rs *rs, struct rf_error *err)
{
    const struct manifest *wanted = rs->wanted;
    bool of_tensors = wanted->source_count == 0 && rs_whole_tensors(wanted);
    uint32_t count = of_tensors ? wanted->ranks[0].tensor_count : wanted->source_count;

    rs->sources = calloc(count + (size_t)1, sizeof *rs->sources);
    if (rs->sources == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to plan %" PRIu32 " tensors", count);
    for (uint32_t i = 0; i < count; i++)
        rs->sources[i] = of_tensors ? source_of_tensor(&wanted->ranks[0].tensors[i])
                                    : source_of(&wanted->sources[i]);
    rs->source_count = count;
    return classes_number(rs, err);
}

static void shape_text(const struct rs_source *source, struct buf *out)
{
    buf_printf(out, "%s [", rf_dtype_name(source->dtype));
    for (uint32_t i = 0; i < source->ndim; i++)
        buf_printf(out, "%s%" PRIu64, i > 0 ? ", " : "", source->shape[i]);
    buf_printf(out, "]");
}

static enum rf_code source_same(const struct rs_source *wanted, const struct rs_source *have,
                                struct rf_error *err)
{
    BUF_AUTO struct buf here = {0};
    BUF_AUTO struct buf there = {0};

    if (wanted->dtype == have->dtype && wanted->ndim == have->ndim &&
        (wanted->ndim == 0 ||
         memcmp(wanted->shape, have->shape, wanted->ndim * sizeof *wanted->shape) == 0))
        return RF_OK;
    shape_text(wanted, &here);
    shape_text(have, &there);
    if (here.failed || there.failed)
        return rf_fail(err, RF_E_NOMEM, "no memory");
    return rf_fail(err, RF_E_MISMATCH,
                   "tensor %.*s of the checkpoint: %s wanted, %s at the seed: another model",
                   RS_SHOWN_NAME, wanted->name, (const char *)here.data, (const char *)there.data);
}

/* How a name compares with that of the wanted side's source `number`. */
static int compare_at(const struct rs *rs, uint32_t number, const char *name, uint32_t bytes)
{
    const struct rs_source *source = &rs->sources[number];

    return name_compare(name, bytes, source->name, source->name_bytes);
}

bool rs_source_find(const struct rs *rs, const char *name, uint32_t bytes, uint32_t *cursor,
                    uint32_t *ret_number)
{
    uint32_t low = 0;
    uint32_t high = rs->source_count;

    if (*cursor < high) {
        int order = compare_at(rs, *cursor, name, bytes);

        if (order == 0) {
            *ret_number = (*cursor)++;
            return true;
        }
        if (order > 0)
            low = *cursor + 1;
        else if (*cursor == 0 || compare_at(rs, *cursor - 1, name, bytes) > 0)
            return false;
        else
            high = *cursor;
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = compare_at(rs, middle, name, bytes);

        if (order == 0) {
            *ret_number = middle;
            *cursor = middle + 1;
            return true;
        }
        if (order > 0)
            low = middle + 1;
        else
            high = middle;
    }
    *cursor = low;
    return false;
}

static enum rf_code source_match(const struct rs *rs, const struct rs_source *have,
                                 uint32_t *cursor, uint32_t *ret_number, struct rf_error *err)
{
    *ret_number = MANIFEST_NONE;
    if (!rs_source_find(rs, have->name, have->name_bytes, cursor, ret_number))
        return RF_OK;
    return source_same(&rs->sources[*ret_number], have, err);
}

enum rf_code rs_tensor_match(const struct rs *rs, const struct tensor *tensor, uint32_t *cursor,
                             uint32_t *ret_number, struct rf_error *err)
{
    const struct rs_source have = source_of_tensor(tensor);

    return source_match(rs, &have, cursor, ret_number, err);
}

static enum rf_code map_make(struct rs *rs, uint32_t seed, struct rf_error *err)
{
    const struct manifest *manifest = rs->seeds[seed];
    enum rf_code code = RF_OK;
    uint32_t cursor = 0;

    rs->maps[seed] = calloc(manifest->source_count + (size_t)1, sizeof *rs->maps[seed]);
    if (rs->maps[seed] == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " tensors of a seed",
                       manifest->source_count);
    for (uint32_t i = 0; i < manifest->source_count && code == RF_OK; i++) {
        struct rs_source have = source_of(&manifest->sources[i]);
        code = source_match(rs, &have, &cursor, &rs->maps[seed][i], err);
    }
    return code;
}

enum rf_code rs_sources(struct rs *rs, struct rf_error *err)
{
    enum rf_code code = sources_list(rs, err);

    rs->maps = calloc(rs->seed_count, sizeof *rs->maps);
    if (code == RF_OK && rs->maps == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " seeds", rs->seed_count);
    for (uint32_t i = 0; i < rs->seed_count && code == RF_OK; i++)
        code = map_make(rs, i, err);
    return code;
}
