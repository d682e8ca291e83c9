#include "wire/weight_map.h"

#include "base/json_scan.h"
#include "base/strmap.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char info_key[] = "remote_instance_transfer_engine_info";

enum { WEIGHT_MAP_FIRST_ROOM = 256, WEIGHT_MAP_SHOWN_BYTES = 300 };

struct decode {
    struct json_scan scan;
    struct weight_map map;
    uint32_t room;
    struct strmap *names; /* that were there already */
    bool has_rank;
    bool has_info;
    struct rf_error *err;
};

/* ---- what is shared with those who take such texts without reading from them ---- */

static bool port_ok(const char *text, size_t bytes)
{
    uint32_t port = 0;

    if (bytes == 0 || bytes > 5)
        return false;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        port = port * 10 + (uint32_t)(text[i] - '0');
    }
    return port > 0 && port <= UINT16_MAX;
}

bool weight_map_session_ok(const char *text, size_t bytes)
{
    const char *colon = bytes > 0 ? memrchr(text, ':', bytes) : NULL;

    if (colon == NULL || colon == text || (size_t)(colon - text) >= WEIGHT_MAP_HOST_BYTES)
        return false;
    for (const char *at = text; at < colon; at++) {
        if (*at <= ' ' || *at > '~' || *at == '"' || *at == '\\' || *at == '/' || *at == ',')
            return false;
    }
    return port_ok(colon + 1, bytes - (size_t)(colon + 1 - text));
}

/* [address, elements, bytes of an element] */
static bool scan_place(struct json_scan *scan, struct weight_item *item)
{
    uint64_t *const numbers[] = {&item->address, &item->elements, &item->element_bytes};
    bool first = true;

    if (!json_take(scan, '[', "a tensor's place is not [address, elements, element size]"))
        return false;
    for (int i = 0; i < 3; i++) {
        if (!json_item(scan, ']', &first))
            return json_problem(scan, "a tensor's place has fewer than 3 numbers");
        if (!json_u64(scan, numbers[i]))
            return false;
    }
    if (json_item(scan, ']', &first))
        return json_problem(scan, "a tensor's place has more than 3 numbers");
    return scan->problem == NULL;
}

bool weight_map_item(struct json_scan *scan, bool *first, struct weight_item *ret_item)
{
    struct json_text name;

    *ret_item = (struct weight_item){.name = NULL};
    if (!json_item(scan, '}', first) || !json_key(scan, &name))
        return false;
    ret_item->name = name.at;
    ret_item->name_bytes = name.bytes;
    return scan_place(scan, ret_item);
}

const char *weight_item_bytes(const struct weight_item *item, uint64_t *ret_bytes)
{
    uint64_t end;

    if (__builtin_mul_overflow(item->elements, item->element_bytes, ret_bytes))
        return "more bytes than there are";
    return __builtin_add_overflow(item->address, *ret_bytes, &end) ? "its end wraps around" : NULL;
}

/* ---- one tensor ---- */

/* Not JSON, or JSON that should be something else; item: that it is in, or NULL. */
static enum rf_code malformed(struct decode *decode, const struct weight_item *item)
{
    const struct json_scan *scan = &decode->scan;
    bool named = item != NULL && item->name != NULL;
    size_t shown = named ? item->name_bytes : 0;

    if (shown > WEIGHT_MAP_SHOWN_BYTES)
        shown = WEIGHT_MAP_SHOWN_BYTES;
    if (scan->no_memory)
        return rf_fail(decode->err, RF_E_NOMEM, "no memory for a map of weights");
    return rf_fail(decode->err, RF_E_PROTO, "%s%.*s%s%s, at byte %zu", named ? "tensor " : "",
                   (int)shown, named ? item->name : "", named ? ": " : "",
                   scan->problem != NULL ? scan->problem : "not what was expected",
                   (size_t)(scan->at - scan->start));
}

static enum rf_code check_item(struct decode *decode, const struct weight_item *item,
                               struct weight_entry *entry)
{
    const char *problem = weight_item_bytes(item, &entry->bytes);

    if (item->element_bytes == 0 || item->element_bytes > WEIGHT_MAP_MAX_ELEMENT_BYTES)
        problem = "elements of no dtype's size";
    else if (problem == NULL && entry->bytes > 0 && item->address == 0)
        problem = "at address 0";
    if (problem != NULL)
        return rf_fail(decode->err, RF_E_PROTO,
                       "tensor %.300s: %s (address %" PRIu64 ", %" PRIu64 " elements of %" PRIu64
                       " bytes)",
                       entry->name, problem, item->address, item->elements, item->element_bytes);
    entry->address = item->address;
    entry->elements = item->elements;
    entry->element_bytes = (uint32_t)item->element_bytes;
    return RF_OK;
}

static enum rf_code grow(struct decode *decode)
{
    struct weight_map *map = &decode->map;
    uint32_t room = decode->room == 0 ? WEIGHT_MAP_FIRST_ROOM : decode->room * 2;
    struct weight_entry *entries = arena_alloc(&map->arena, (size_t)room * sizeof(*entries));

    if (entries == NULL)
        return rf_fail(decode->err, RF_E_NOMEM, "no memory for %" PRIu32 " tensors", room);
    if (map->count > 0)
        memcpy(entries, map->entries, map->count * sizeof(*entries));
    map->entries = entries;
    decode->room = room;
    return RF_OK;
}

static enum rf_code add_tensor(struct decode *decode, const struct weight_item *item)
{
    struct weight_map *map = &decode->map;
    struct weight_entry entry = {.name_bytes = (uint32_t)item->name_bytes};

    if (memchr(item->name, '\0', item->name_bytes) != NULL)
        return rf_fail(decode->err, RF_E_PROTO, "a tensor's name has a NUL in it");
    if (map->count == WEIGHT_MAP_MAX_TENSORS)
        return rf_fail(decode->err, RF_E_PROTO, "more than %d tensors", WEIGHT_MAP_MAX_TENSORS);
    entry.name = arena_strndup(&map->arena, item->name, item->name_bytes);
    if (entry.name == NULL)
        return rf_fail(decode->err, RF_E_NOMEM, "no memory for a tensor's name");
    enum rf_code code = strmap_add(decode->names, entry.name, entry.name_bytes, map->count, NULL);
    if (code != RF_OK)
        return code == RF_E_INVAL
                   ? rf_fail(decode->err, RF_E_PROTO, "tensor %.300s is there twice", entry.name)
                   : rf_fail(decode->err, code, "no memory for a tensor's name");
    code = check_item(decode, item, &entry);
    if (code == RF_OK && map->count == decode->room)
        code = grow(decode);
    if (code == RF_OK)
        map->entries[map->count++] = entry;
    return code;
}

/* ---- all of it ---- */

static enum rf_code scan_session(struct decode *decode)
{
    struct json_text text;

    if (json_next(&decode->scan) == 'n')
        return rf_fail(decode->err, RF_E_PROTO, "its engine has no session id");
    if (!json_string(&decode->scan, &text))
        return malformed(decode, NULL);
    if (text.bytes == 0 || text.bytes >= WEIGHT_MAP_SESSION_BYTES)
        return rf_fail(decode->err, RF_E_PROTO, "a session id of %zu bytes, not 1 to %d",
                       text.bytes, WEIGHT_MAP_SESSION_BYTES - 1);
    if (!weight_map_session_ok(text.at, text.bytes))
        return rf_fail(decode->err, RF_E_PROTO, "its session id \"%.*s\" is not HOST:PORT",
                       (int)text.bytes, text.at);
    decode->map.session = arena_strndup(&decode->map.arena, text.at, text.bytes);
    return decode->map.session != NULL
               ? RF_OK
               : rf_fail(decode->err, RF_E_NOMEM, "no memory for a session id");
}

static enum rf_code scan_tensors(struct decode *decode)
{
    struct weight_item item;
    bool first = true;

    if (!json_take(&decode->scan, '{', "the tensors are no object"))
        return malformed(decode, NULL);
    while (weight_map_item(&decode->scan, &first, &item)) {
        enum rf_code code = add_tensor(decode, &item);

        if (code != RF_OK)
            return code;
    }
    return decode->scan.problem == NULL ? RF_OK : malformed(decode, &item);
}

static enum rf_code scan_info(struct decode *decode)
{
    struct json_scan *scan = &decode->scan;
    bool first = true;
    enum rf_code code = RF_OK;

    if (decode->has_info)
        return rf_fail(decode->err, RF_E_PROTO, "\"%s\" is there twice", info_key);
    decode->has_info = true;
    if (json_next(scan) == '{')
        return rf_fail(decode->err, RF_E_UNSUPPORTED,
                       "its info is an object: of another backend than TransferEngine");
    if (!json_take(scan, '[', "the info is not [session id, tensors]") ||
        !json_item(scan, ']', &first))
        return malformed(decode, NULL);
    code = scan_session(decode);
    if (code == RF_OK && !json_item(scan, ']', &first))
        code = malformed(decode, NULL);
    if (code == RF_OK)
        code = scan_tensors(decode);
    while (code == RF_OK && json_item(scan, ']', &first)) { /* what later versions add */
        if (!json_skip(scan, 2))
            break;
    }
    return code == RF_OK && scan->problem != NULL ? malformed(decode, NULL) : code;
}

static enum rf_code scan_member(struct decode *decode)
{
    struct json_scan *scan = &decode->scan;
    struct json_text key;

    if (!json_key(scan, &key))
        return malformed(decode, NULL);
    if (json_text_is(&key, info_key, sizeof(info_key) - 1))
        return scan_info(decode);
    if (!JSON_TEXT_IS(&key, "rank"))
        return json_skip(scan, 1) ? RF_OK : malformed(decode, NULL);
    if (decode->has_rank)
        return rf_fail(decode->err, RF_E_PROTO, "\"rank\" is there twice");
    decode->has_rank = true;
    return json_u64(scan, &decode->map.rank) ? RF_OK : malformed(decode, NULL);
}

static enum rf_code scan_all(struct decode *decode)
{
    bool first = true;

    if (!json_take(&decode->scan, '{', "not a JSON object"))
        return malformed(decode, NULL);
    while (json_item(&decode->scan, '}', &first)) {
        enum rf_code code = scan_member(decode);

        if (code != RF_OK)
            return code;
    }
    if (decode->scan.problem != NULL || !json_end(&decode->scan))
        return malformed(decode, NULL);
    if (!decode->has_info || !decode->has_rank)
        return rf_fail(decode->err, RF_E_PROTO, "\"%s\" is missing",
                       decode->has_info ? "rank" : info_key);
    return RF_OK;
}

static int compare_names(const void *a, const void *b)
{
    const struct weight_entry *x = a;
    const struct weight_entry *y = b;

    return strcmp(x->name, y->name);
}

enum rf_code weight_map_decode(const void *json, size_t bytes, struct weight_map *ret_map,
                               struct rf_error *err)
{
    struct decode decode = {.err = err, .names = strmap_create(0)};

    if (decode.names == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a map of weights");
    json_scan_init(&decode.scan, json, bytes, &decode.map.arena);
    enum rf_code code =
        bytes > WEIGHT_MAP_MAX_BYTES
            ? rf_fail(err, RF_E_PROTO, "%zu bytes, more than %d", bytes, WEIGHT_MAP_MAX_BYTES)
            : scan_all(&decode);
    strmap_destroy(decode.names);
    if (code != RF_OK) {
        weight_map_free(&decode.map);
        return code;
    }
    if (decode.map.count > 0)
        qsort(decode.map.entries, decode.map.count, sizeof(*decode.map.entries), compare_names);
    *ret_map = decode.map;
    return RF_OK;
}

void weight_map_free(struct weight_map *map)
{
    arena_free(&map->arena);
    *map = (struct weight_map){.count = 0};
}

const struct weight_entry *weight_map_find(const struct weight_map *map, const char *name)
{
    const struct weight_entry key = {.name = name};

    if (map->count == 0)
        return NULL;
    return bsearch(&key, map->entries, map->count, sizeof(key), compare_names);
}
