#include "format/folder_index.h"

#include "base/json_scan.h"
#include "format/model_folder.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char suffix[] = ".safetensors";

struct index_parse {
    struct json_scan scan;
    const char *path;
    struct folder_index index;
    size_t file_room;
    size_t tensor_room;
    struct strmap *by_file;
    /* The file of the last tensor: nearly always that of the next. */
    uint32_t last_file;
    struct rf_error *err;
};

static enum rf_code fail_memory(struct index_parse *parse)
{
    return rf_fail(parse->err, RF_E_NOMEM, "%s: out of memory for an index of %zu bytes",
                   parse->path, (size_t)(parse->scan.end - parse->scan.start));
}

static enum rf_code fail_parse(struct index_parse *parse)
{
    const struct json_scan *scan = &parse->scan;

    if (scan->no_memory)
        return fail_memory(parse);
    return rf_fail(parse->err, RF_E_FORMAT,
                   "%s: %s (byte %zu); the file is damaged: copy or download it again", parse->path,
                   scan->problem, (size_t)(scan->at - scan->start));
}

static void *grown(void *items, uint32_t count, size_t item_bytes, size_t *room)
{
    size_t wanted = *room * 2 + 16;

    if (count < *room)
        return items;
    void *at = reallocarray(items, wanted, item_bytes);
    if (at != NULL)
        *room = wanted;
    return at;
}

static enum rf_code add_file(struct index_parse *parse, const struct json_text *file,
                             uint32_t *ret_file)
{
    struct folder_index *index = &parse->index;
    size_t end = sizeof(suffix) - 1;
    char *name = arena_strndup(&index->arena, file->at, file->bytes);
    const char **files = grown(index->files, index->file_count, sizeof(*files), &parse->file_room);

    if (files != NULL)
        index->files = files;
    if (name == NULL || files == NULL)
        return fail_memory(parse);
    if (strlen(name) != file->bytes || !folder_name_ok(name) || file->bytes <= end ||
        strcmp(name + file->bytes - end, suffix) != 0) {
        return rf_fail(parse->err, RF_E_FORMAT,
                       "%s: \"%.120s\" is not the name of a .safetensors file inside the folder",
                       parse->path, name);
    }
    if (index->file_count == FOLDER_MAX_FILES) {
        return rf_fail(parse->err, RF_E_FORMAT, "%s: more than %d files", parse->path,
                       FOLDER_MAX_FILES);
    }
    if (strmap_add(parse->by_file, name, file->bytes, index->file_count, NULL) != RF_OK)
        return fail_memory(parse);
    *ret_file = index->file_count;
    files[index->file_count++] = name;
    return RF_OK;
}

static enum rf_code find_file(struct index_parse *parse, const struct json_text *file,
                              uint32_t *ret_file)
{
    struct folder_index *index = &parse->index;

    if (parse->last_file < index->file_count) {
        const char *last = index->files[parse->last_file];

        if (strlen(last) == file->bytes && memcmp(last, file->at, file->bytes) == 0) {
            *ret_file = parse->last_file;
            return RF_OK;
        }
    }
    if (strmap_find(parse->by_file, file->at, file->bytes, ret_file))
        return RF_OK;
    return add_file(parse, file, ret_file);
}

static enum rf_code add_tensor(struct index_parse *parse, const struct json_text *key,
                               const struct json_text *value)
{
    struct folder_index *index = &parse->index;
    uint32_t file = 0;
    uint32_t old = 0;
    enum rf_code code = find_file(parse, value, &file);

    if (code != RF_OK)
        return code;
    parse->last_file = file;
    if (index->tensor_count == FOLDER_MAX_INDEX_TENSORS) {
        return rf_fail(parse->err, RF_E_FORMAT, "%s: more than %d tensors", parse->path,
                       FOLDER_MAX_INDEX_TENSORS);
    }
    struct index_tensor *tensors =
        grown(index->tensors, index->tensor_count, sizeof(*tensors), &parse->tensor_room);
    char *name = arena_strndup(&index->arena, key->at, key->bytes);
    if (tensors != NULL)
        index->tensors = tensors;
    if (tensors == NULL || name == NULL)
        return fail_memory(parse);
    code = strmap_add(index->by_name, name, key->bytes, index->tensor_count, &old);
    if (code == RF_E_NOMEM)
        return fail_memory(parse);
    if (code != RF_OK) {
        return rf_fail(parse->err, RF_E_FORMAT,
                       "%s: tensor \"%.120s\": is there twice, in %.80s and in %.80s", parse->path,
                       name, index->files[tensors[old].file], index->files[file]);
    }
    tensors[index->tensor_count++] =
        (struct index_tensor){.name = name, .name_bytes = (uint32_t)key->bytes, .file = file};
    return RF_OK;
}

static enum rf_code take_weight_map(struct index_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    bool first = true;

    if (!json_take(scan, '{', "weight_map is not an object"))
        return fail_parse(parse);
    while (json_item(scan, '}', &first)) {
        struct json_text key;
        struct json_text value;

        if (!json_key(scan, &key) || !json_string(scan, &value))
            return fail_parse(parse);
        enum rf_code code = add_tensor(parse, &key, &value);
        if (code != RF_OK)
            return code;
    }
    return scan->problem == NULL ? RF_OK : fail_parse(parse);
}

static enum rf_code take_index(struct index_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    bool first = true;
    bool found = false;

    if (!json_take(scan, '{', "expected '{'"))
        return fail_parse(parse);
    while (json_item(scan, '}', &first)) {
        struct json_text key;
        enum rf_code code = RF_OK;

        if (!json_key(scan, &key))
            return fail_parse(parse);
        bool weights = JSON_TEXT_IS(&key, "weight_map");
        if (weights && found)
            json_problem(scan, "weight_map is there twice");
        if (weights && scan->problem == NULL)
            code = take_weight_map(parse);
        else if (scan->problem != NULL || !json_skip(scan, 1))
            code = fail_parse(parse);
        if (code != RF_OK)
            return code;
        found |= weights;
    }
    if (scan->problem != NULL || !json_end(scan))
        return fail_parse(parse);
    if (parse->index.file_count == 0) {
        return rf_fail(parse->err, RF_E_FORMAT,
                       "%s: has no weight_map, or an empty one; remove it or download it again",
                       parse->path);
    }
    return RF_OK;
}

struct file_place {
    const char *name;
    uint32_t old;
};

static int compare_places(const void *left, const void *right)
{
    const struct file_place *a = left;
    const struct file_place *b = right;

    return strcmp(a->name, b->name);
}

static enum rf_code sort_files(struct index_parse *parse)
{
    struct folder_index *index = &parse->index;
    struct file_place *places = calloc(index->file_count, sizeof(*places));
    uint32_t *place_of = calloc(index->file_count, sizeof(*place_of));

    if (places == NULL || place_of == NULL) {
        free(places);
        free(place_of);
        return fail_memory(parse);
    }
    for (uint32_t i = 0; i < index->file_count; i++)
        places[i] = (struct file_place){.name = index->files[i], .old = i};
    qsort(places, index->file_count, sizeof(*places), compare_places);
    for (uint32_t i = 0; i < index->file_count; i++) {
        index->files[i] = places[i].name;
        place_of[places[i].old] = i;
    }
    for (uint32_t i = 0; i < index->tensor_count; i++)
        index->tensors[i].file = place_of[index->tensors[i].file];
    free(places);
    free(place_of);
    return RF_OK;
}

enum rf_code folder_index_parse(const char *path, const char *text, size_t bytes,
                                struct folder_index *ret_index, struct rf_error *err)
{
    const size_t tensor_text = 96; /* a guess at one tensor's share of the text */
    struct index_parse parse = {.path = path, .err = err};

    parse.by_file = strmap_create(0);
    parse.index.by_name = strmap_create(bytes / tensor_text);
    json_scan_init(&parse.scan, text, bytes, &parse.index.arena);
    enum rf_code code = RF_OK;
    if (parse.by_file == NULL || parse.index.by_name == NULL)
        code = fail_memory(&parse);
    if (code == RF_OK)
        code = take_index(&parse);
    if (code == RF_OK)
        code = sort_files(&parse);
    strmap_destroy(parse.by_file);
    if (code != RF_OK) {
        folder_index_free(&parse.index);
        return code;
    }
    *ret_index = parse.index;
    return RF_OK;
}

void folder_index_free(struct folder_index *index)
{
    free(index->files);
    free(index->tensors);
    strmap_destroy(index->by_name);
    arena_free(&index->arena);
    *index = (struct folder_index){.files = NULL};
}
