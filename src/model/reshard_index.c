/* Who has what: the tensors of the checkpoint, as both sides know them, and where holders have
 * them. */
#include "base/cleanup.h"
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
    rs->names = strmap_create(count);
    if (rs->sources == NULL || rs->names == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to plan %" PRIu32 " tensors", count);
    for (uint32_t i = 0; i < count; i++) {
        struct rs_source *source = &rs->sources[i];

        *source = of_tensors ? source_of_tensor(&wanted->ranks[0].tensors[i])
                             : source_of(&wanted->sources[i]);
        if (strmap_add(rs->names, source->name, source->name_bytes, i, NULL) != RF_OK)
            return rf_fail(err, RF_E_NOMEM, "no memory to plan %" PRIu32 " tensors", count);
    }
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

/* The wanted side's number of a source; both usually count alike. */
static enum rf_code source_find(const struct rs *rs, const struct rs_source *have, uint32_t guess,
                                uint32_t *ret_number, struct rf_error *err)
{
    uint32_t number = MANIFEST_NONE;

    if (guess < rs->source_count && rs->sources[guess].name_bytes == have->name_bytes &&
        memcmp(rs->sources[guess].name, have->name, have->name_bytes) == 0)
        number = guess;
    else
        strmap_find(rs->names, have->name, have->name_bytes, &number);
    *ret_number = number;
    return number == MANIFEST_NONE ? RF_OK : source_same(&rs->sources[number], have, err);
}

static enum rf_code map_make(struct rs *rs, uint32_t seed, struct rf_error *err)
{
    const struct manifest *manifest = rs->seeds[seed];
    enum rf_code code = RF_OK;

    rs->maps[seed] = calloc(manifest->source_count + (size_t)1, sizeof *rs->maps[seed]);
    if (rs->maps[seed] == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " tensors of a seed",
                       manifest->source_count);
    for (uint32_t i = 0; i < manifest->source_count && code == RF_OK; i++) {
        struct rs_source have = source_of(&manifest->sources[i]);
        code = source_find(rs, &have, i, &rs->maps[seed][i], err);
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

/* ---- holders ---- */

static enum rf_code ref_add(struct rs_holder *holder, uint32_t source, struct rs_ref ref,
                            struct rf_error *err)
{
    if (holder->first[source].tensor == MANIFEST_NONE) {
        holder->first[source] = ref;
        return RF_OK;
    }
    if (holder->extra_count == holder->extra_room) {
        uint32_t wanted = holder->extra_room == 0 ? 64 : holder->extra_room * 2;
        struct rs_extra *grown = reallocarray(holder->extras, wanted, sizeof *grown);

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory to index a rank");
        holder->extras = grown;
        holder->extra_room = wanted;
    }
    holder->extras[holder->extra_count++] = (struct rs_extra){source, ref};
    return RF_OK;
}

static enum rf_code tensor_index(struct rs *rs, struct rs_holder *holder, uint32_t index,
                                 struct rf_error *err)
{
    const struct tensor *tensor = &holder->rank->tensors[index];
    uint32_t source = MANIFEST_NONE;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < tensor->part_count && code == RF_OK; i++) {
        const struct part *part = &tensor->parts[i];

        if (part->source == MANIFEST_NONE || part->bytes == 0 ||
            holder->map[part->source] == MANIFEST_NONE)
            continue;
        source = holder->map[part->source];
        code = ref_add(holder, source, (struct rs_ref){index, i}, err);
    }
    if (code != RF_OK || tensor->part_count > 0 || tensor->bytes == 0 ||
        !rs_whole_tensors(holder->manifest))
        return code;
    struct rs_source have = source_of_tensor(tensor);
    code = source_find(rs, &have, index, &source, err);
    if (code == RF_OK && source != MANIFEST_NONE)
        code = ref_add(holder, source, (struct rs_ref){index, RS_WHOLE_TENSOR}, err);
    return code;
}

static int compare_extras(const void *a, const void *b)
{
    uint32_t x = ((const struct rs_extra *)a)->source;
    uint32_t y = ((const struct rs_extra *)b)->source;

    return x < y ? -1 : x > y;
}

static enum rf_code extras_check(const struct rs *rs, const struct rs_holder *holder,
                                 struct rf_error *err)
{
    char text[64];

    for (uint32_t i = RS_MAX_SAME - 1; i < holder->extra_count; i++) {
        uint32_t source = holder->extras[i].source;

        if (holder->extras[i - (RS_MAX_SAME - 1)].source == source)
            return rf_fail(err, RF_E_UNSUPPORTED, "rank %s: has %.*s in more than %d places",
                           rank_id_text(&holder->rank->id, text), RS_SHOWN_NAME,
                           rs->sources[source].name, RS_MAX_SAME);
    }
    return RF_OK;
}

enum rf_code rs_index(struct rs *rs, uint32_t index, struct rf_error *err)
{
    struct rs_holder *holder = &rs->holders[index];
    enum rf_code code = RF_OK;

    holder->first = malloc((rs->source_count + (size_t)1) * sizeof *holder->first);
    if (holder->first == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to index %" PRIu32 " tensors", rs->source_count);
    memset(holder->first, 0xff, rs->source_count * sizeof *holder->first); /* MANIFEST_NONE */
    for (uint32_t i = 0; i < holder->rank->tensor_count && code == RF_OK; i++) {
        if (holder->rank->tensors[i].alias_of == MANIFEST_NONE)
            code = tensor_index(rs, holder, i, err);
    }
    if (code == RF_OK && holder->extra_count > 0) {
        qsort(holder->extras, holder->extra_count, sizeof *holder->extras, compare_extras);
        code = extras_check(rs, holder, err);
    }
    return code;
}

/* ---- looking ---- */

static struct rs_piece piece_of(const struct rs *rs, uint32_t index, uint32_t source,
                                struct rs_ref ref)
{
    const struct rs_holder *holder = &rs->holders[index];
    const struct tensor *tensor = &holder->rank->tensors[ref.tensor];
    struct rs_piece piece = {.holder = index,
                             .whole = true,
                             .count = rs_length(rs_like(rs, source), 0),
                             .dtype = tensor->dtype,
                             .at = tensor->stream_offset};

    if (ref.part == RS_WHOLE_TENSOR)
        return piece;
    const struct part *part = &tensor->parts[ref.part];
    piece.axis = part->axis;
    piece.start = part->start;
    piece.count = part->count;
    piece.whole = part->start == 0 && part->count == rs_length(rs_like(rs, source), part->axis);
    piece.at += part->offset;
    return piece;
}

unsigned rs_pieces(const struct rs *rs, uint32_t index, uint32_t source,
                   struct rs_piece out[RS_MAX_SAME])
{
    const struct rs_holder *holder = &rs->holders[index];
    unsigned count = 0;

    if (holder->first[source].tensor == MANIFEST_NONE)
        return 0;
    out[count++] = piece_of(rs, index, source, holder->first[source]);
    if (holder->extra_count == 0)
        return count;
    uint32_t low = 0;
    uint32_t high = holder->extra_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (holder->extras[middle].source < source)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < holder->extra_count && holder->extras[low].source == source; low++)
        out[count++] = piece_of(rs, index, source, holder->extras[low].ref);
    return count;
}
