#include "format/safetensors.h"

#include "base/dtype.h"
#include "base/json_scan.h"
#include "format/safetensors_check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    ST_TENSOR_JSON_BYTES = 96, /* a guess at one tensor's share of a header: the first room */
    ST_DTYPE_BYTES = 16,
    /* Brackets that are open around the value of a field of a tensor. */
    ST_FIELD_DEPTH = 2,
};

enum st_field { ST_DTYPE = 1, ST_SHAPE = 2, ST_OFFSETS = 4, ST_ALL_FIELDS = 7, ST_UNKNOWN = 8 };

struct st_parse {
    struct json_scan scan;
    const char *name; /* the file's */
    struct st_header header;
    size_t tensor_room;
    size_t metadata_room;
    bool metadata_seen;
    struct strmap *metadata_keys;
    struct st_tensor *tensor; /* being read, for error lines; NULL: none */
    /* The spelling of the last dtype: nearly always that of the next. */
    char dtype_text[ST_DTYPE_BYTES];
    size_t dtype_bytes;
    enum rf_dtype dtype;
    struct rf_error *err;
};

/* "<file>: tensor "x": <problem> (byte N of the header)". */
static enum rf_code fail_parse(struct st_parse *parse)
{
    const struct json_scan *scan = &parse->scan;
    size_t at = (size_t)(scan->at - scan->start);

    if (scan->no_memory)
        return rf_fail(parse->err, RF_E_NOMEM, "%s: out of memory for a header of %zu bytes",
                       parse->name, (size_t)(scan->end - scan->start));
    if (parse->tensor != NULL)
        return rf_fail(parse->err, RF_E_FORMAT,
                       "%s: tensor \"" ST_NAME_FMT "\": %s (byte %zu of the header); the file is "
                       "damaged or not safetensors: copy or download it again",
                       parse->name, parse->tensor->name, scan->problem, at);
    return rf_fail(parse->err, RF_E_FORMAT,
                   "%s: header: %s (byte %zu of it); the file is damaged or not safetensors: copy "
                   "or download it again",
                   parse->name, scan->problem, at);
}

static enum rf_code fail_memory(struct st_parse *parse)
{
    parse->scan.no_memory = true;
    return fail_parse(parse);
}

/* Makes room for one more item; NULL when out of memory. */
static void *grown(void *items, size_t count, size_t item_bytes, size_t *room)
{
    size_t bytes;

    if (count < *room)
        return items;
    size_t wanted = *room * 2 + 16;
    if (__builtin_mul_overflow(wanted, item_bytes, &bytes))
        return NULL;
    void *at = realloc(items, bytes);
    if (at != NULL)
        *room = wanted;
    return at;
}

/* ---- the fields of one tensor ---- */

static enum rf_code keep_dtype(struct st_parse *parse, const struct json_text *text)
{
    if (text->bytes != parse->dtype_bytes ||
        memcmp(text->at, parse->dtype_text, text->bytes) != 0) {
        if (text->bytes > ST_DTYPE_BYTES || !dtype_parse(text->at, text->bytes, &parse->dtype)) {
            return rf_fail(parse->err, RF_E_FORMAT,
                           "%s: tensor \"" ST_NAME_FMT "\": unknown dtype \"%.*s\"; a newer rfork "
                           "may know it",
                           parse->name, parse->tensor->name,
                           text->bytes < 40 ? (int)text->bytes : 40, text->at);
        }
        memcpy(parse->dtype_text, text->at, text->bytes);
        parse->dtype_bytes = text->bytes;
    }
    parse->tensor->dtype = parse->dtype;
    return RF_OK;
}

/* A string, or what serde also takes for an enumeration without values: {"F32": null}. */
static enum rf_code take_dtype(struct st_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    struct json_text text;
    bool first = true;

    if (json_next(scan) != '{')
        return json_string(scan, &text) ? keep_dtype(parse, &text) : fail_parse(parse);
    scan->at++;
    if (!json_item(scan, '}', &first) || !json_key(scan, &text) || !json_null(scan) ||
        !json_take(scan, '}', "expected '}'")) {
        json_problem(scan, "expected the name of a dtype");
        return fail_parse(parse);
    }
    return keep_dtype(parse, &text);
}

static enum rf_code take_shape(struct st_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    uint64_t shape[RF_MAX_DIMS];
    uint32_t ndim = 0;
    bool first = true;

    if (!json_take(scan, '[', "expected a list of dimensions"))
        return fail_parse(parse);
    while (json_item(scan, ']', &first)) {
        uint64_t dim;

        if (!json_u64(scan, &dim))
            return fail_parse(parse);
        if (ndim == RF_MAX_DIMS) {
            return rf_fail(parse->err, RF_E_FORMAT,
                           "%s: tensor \"" ST_NAME_FMT "\": more than %d dimensions", parse->name,
                           parse->tensor->name, RF_MAX_DIMS);
        }
        shape[ndim++] = dim;
    }
    if (scan->problem != NULL)
        return fail_parse(parse);
    uint64_t *kept = arena_alloc(&parse->header.arena, ndim * sizeof(*kept));
    if (kept == NULL)
        return fail_memory(parse);
    memcpy(kept, shape, ndim * sizeof(*kept));
    parse->tensor->shape = kept;
    parse->tensor->ndim = ndim;
    return RF_OK;
}

static enum rf_code take_offsets(struct st_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    struct st_tensor *tensor = parse->tensor;
    uint64_t begin = 0;
    uint64_t end = 0;

    if (!json_take(scan, '[', "expected two data offsets") || !json_u64(scan, &begin) ||
        !json_take(scan, ',', "expected two data offsets") || !json_u64(scan, &end) ||
        !json_take(scan, ']', "expected two data offsets"))
        return fail_parse(parse);
    if (end < begin) {
        return rf_fail(parse->err, RF_E_FORMAT,
                       "%s: tensor \"" ST_NAME_FMT "\": ends at byte %" PRIu64
                       " of the data, before it starts at %" PRIu64
                       "; the file is damaged: copy or download it again",
                       parse->name, tensor->name, end, begin);
    }
    tensor->offset = begin;
    tensor->bytes = end - begin;
    return RF_OK;
}

static enum rf_code take_field(struct st_parse *parse, enum st_field field)
{
    switch (field) {
    case ST_DTYPE:
        return take_dtype(parse);
    case ST_SHAPE:
        return take_shape(parse);
    case ST_OFFSETS:
        return take_offsets(parse);
    default:
        return json_skip(&parse->scan, ST_FIELD_DEPTH) ? RF_OK : fail_parse(parse);
    }
}

static enum st_field field_named(const struct json_text *key)
{
    if (JSON_TEXT_IS(key, "dtype"))
        return ST_DTYPE;
    if (JSON_TEXT_IS(key, "shape"))
        return ST_SHAPE;
    if (JSON_TEXT_IS(key, "data_offsets"))
        return ST_OFFSETS;
    return ST_UNKNOWN;
}

static enum rf_code take_fields(struct st_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    unsigned seen = 0;
    bool first = true;

    while (json_item(scan, '}', &first)) {
        struct json_text key;

        if (!json_key(scan, &key))
            return fail_parse(parse);
        enum st_field field = field_named(&key);
        if (field != ST_UNKNOWN && (seen & field) != 0) {
            json_problem(scan, "a field is there twice");
            return fail_parse(parse);
        }
        seen |= field;
        enum rf_code code = take_field(parse, field);
        if (code != RF_OK)
            return code;
    }
    if ((seen & ST_ALL_FIELDS) != ST_ALL_FIELDS)
        json_problem(scan, "needs dtype, shape and data_offsets");
    return scan->problem == NULL ? RF_OK : fail_parse(parse);
}

/* serde reads a struct from a list of its fields' values, too. */
static enum rf_code take_field_list(struct st_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    static const enum st_field order[] = {ST_DTYPE, ST_SHAPE, ST_OFFSETS};

    for (unsigned i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        if (i > 0 && !json_take(scan, ',', "needs dtype, shape and data_offsets"))
            return fail_parse(parse);
        enum rf_code code = take_field(parse, order[i]);
        if (code != RF_OK)
            return code;
    }
    return json_take(scan, ']', "expected ']' after data_offsets") ? RF_OK : fail_parse(parse);
}

/* ---- the header ---- */

static enum rf_code check_name(struct st_parse *parse, const struct json_text *key)
{
    if (key->bytes > RF_MAX_NAME_BYTES) {
        return rf_fail(parse->err, RF_E_FORMAT,
                       "%s: a tensor's name is %zu bytes long, more than %d: \"%.60s...\"",
                       parse->name, key->bytes, RF_MAX_NAME_BYTES, key->at);
    }
    if (memchr(key->at, '\0', key->bytes) != NULL) {
        return rf_fail(parse->err, RF_E_FORMAT, "%s: tensor \"%.60s\": a NUL byte in its name",
                       parse->name, key->at);
    }
    return RF_OK;
}

static enum rf_code take_tensor(struct st_parse *parse, const struct json_text *key)
{
    struct st_header *header = &parse->header;
    struct json_scan *scan = &parse->scan;
    enum rf_code code = check_name(parse, key);

    if (code != RF_OK)
        return code;
    if (header->tensor_count == ST_MAX_TENSORS) {
        return rf_fail(parse->err, RF_E_FORMAT, "%s: more than %d tensors", parse->name,
                       ST_MAX_TENSORS);
    }
    struct st_tensor *tensors =
        grown(header->tensors, header->tensor_count, sizeof(*tensors), &parse->tensor_room);
    char *name = arena_strndup(&header->arena, key->at, key->bytes);
    if (tensors != NULL)
        header->tensors = tensors;
    if (tensors == NULL || name == NULL)
        return fail_memory(parse);
    struct st_tensor *tensor = &tensors[header->tensor_count++];
    *tensor = (struct st_tensor){.name = name, .name_bytes = (uint32_t)key->bytes};
    parse->tensor = tensor;
    uint8_t open = json_next(scan);
    if (open != '{' && open != '[') {
        json_problem(scan, "expected an object with dtype, shape and data_offsets");
        return fail_parse(parse);
    }
    scan->at++;
    code = open == '{' ? take_fields(parse) : take_field_list(parse);
    parse->tensor = NULL;
    return code;
}

/* Adds to the metadata, or replaces the value of a key that is there: the last one counts. */
static enum rf_code keep_metadata(struct st_parse *parse, const struct json_text *key,
                                  const struct json_text *value)
{
    struct st_header *header = &parse->header;
    struct st_metadata *items =
        grown(header->metadata, header->metadata_count, sizeof(*items), &parse->metadata_room);
    uint32_t at = header->metadata_count;

    if (items == NULL)
        return fail_memory(parse);
    header->metadata = items;
    if (at == ST_MAX_METADATA) {
        return rf_fail(parse->err, RF_E_FORMAT, "%s: more than %d entries in __metadata__",
                       parse->name, ST_MAX_METADATA);
    }
    items[at] = (struct st_metadata){
        .key = arena_strndup(&header->arena, key->at, key->bytes),
        .value = arena_strndup(&header->arena, value->at, value->bytes),
        .key_bytes = (uint32_t)key->bytes,
        .value_bytes = (uint32_t)value->bytes,
    };
    if (items[at].key == NULL || items[at].value == NULL)
        return fail_memory(parse);
    if (parse->metadata_keys == NULL)
        parse->metadata_keys = strmap_create(0);
    if (parse->metadata_keys == NULL)
        return fail_memory(parse);
    uint32_t old;
    enum rf_code code = strmap_add(parse->metadata_keys, items[at].key, key->bytes, at, &old);
    if (code == RF_E_NOMEM)
        return fail_memory(parse);
    if (code == RF_OK) {
        header->metadata_count++;
    } else {
        items[old].value = items[at].value;
        items[old].value_bytes = items[at].value_bytes;
    }
    return RF_OK;
}

static enum rf_code take_metadata(struct st_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    bool first = true;

    if (parse->metadata_seen) {
        json_problem(scan, "__metadata__ is there twice");
        return fail_parse(parse);
    }
    parse->metadata_seen = true;
    if (json_next(scan) == 'n')
        return json_null(scan) ? RF_OK : fail_parse(parse);
    if (!json_take(scan, '{', "__metadata__ is not an object"))
        return fail_parse(parse);
    while (json_item(scan, '}', &first)) {
        struct json_text key;
        struct json_text value;

        if (!json_key(scan, &key))
            return fail_parse(parse);
        if (json_next(scan) != '"')
            json_problem(scan, "a value of __metadata__ is not a string");
        if (scan->problem != NULL || !json_string(scan, &value))
            return fail_parse(parse);
        enum rf_code code = keep_metadata(parse, &key, &value);
        if (code != RF_OK)
            return code;
    }
    return scan->problem == NULL ? RF_OK : fail_parse(parse);
}

static enum rf_code take_header(struct st_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    bool first = true;

    if (!json_take(scan, '{', "expected '{'"))
        return fail_parse(parse);
    while (json_item(scan, '}', &first)) {
        struct json_text key;

        if (!json_key(scan, &key))
            return fail_parse(parse);
        enum rf_code code =
            JSON_TEXT_IS(&key, "__metadata__") ? take_metadata(parse) : take_tensor(parse, &key);
        if (code != RF_OK)
            return code;
    }
    return scan->problem == NULL && json_end(scan) ? RF_OK : fail_parse(parse);
}

enum rf_code st_header_parse(const char *name, const uint8_t *json, size_t json_bytes,
                             uint64_t file_bytes, struct st_header *ret_header,
                             struct rf_error *err)
{
    struct st_parse parse = {
        .name = name, .dtype_text = "BOOL", .dtype_bytes = 4, .dtype = RF_DTYPE_BOOL, .err = err};
    struct st_header *header = &parse.header;
    enum rf_code code = st_check_length(name, json_bytes, file_bytes, err);

    if (code != RF_OK)
        return code;
    header->data_offset = ST_LENGTH_BYTES + json_bytes;
    header->data_bytes = file_bytes - header->data_offset;
    parse.tensor_room = json_bytes / ST_TENSOR_JSON_BYTES;
    if (parse.tensor_room > 0) {
        header->tensors = malloc(parse.tensor_room * sizeof(*header->tensors));
        if (header->tensors == NULL)
            return rf_fail(err, RF_E_NOMEM, "%s: out of memory for a header of %zu bytes", name,
                           json_bytes);
    }
    json_scan_init(&parse.scan, json, json_bytes, &header->arena);
    code = take_header(&parse);
    strmap_destroy(parse.metadata_keys);
    if (code == RF_OK)
        code = st_check(name, header, err);
    if (code != RF_OK) {
        st_header_free(header);
        return code;
    }
    *ret_header = *header;
    return RF_OK;
}

void st_header_free(struct st_header *header)
{
    free(header->tensors);
    free(header->metadata);
    arena_free(&header->arena);
    *header = (struct st_header){.data_offset = 0};
}
