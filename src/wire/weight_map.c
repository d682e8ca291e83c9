#include "wire/weight_map.h"

#include "base/json_scan.h"
#include "base/strmap.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char info_key[] = "remote_instance_transfer_engine_info";

enum { WEIGHT_MAP_FIRST_ROOM = 256 };

struct decode {
    struct json_scan scan;
    struct weight_map map;
    uint32_t room;
    struct strmap *names; /* that were there already */
    bool has_rank;
    bool has_info;
    struct rf_error *err;
};

/* ---- one tensor ---- */

static enum rf_code refuse(struct decode *decode, const struct weight_entry *entry,
                           const char *problem)
{
    return rf_fail(decode->err, RF_E_PROTO,
                   "tensor %.300s: %s (address %" PRIu64 ", %" PRIu64 " elements of %" PRIu32
                   " bytes)",
                   entry->name, problem, entry->address, entry->elements, entry->element_bytes);
}

/* Not JSON, or JSON that should be something else. */
static enum rf_code malformed(struct decode *decode, const char *name)
{
    const struct json_scan *scan = &decode->scan;

    if (scan->no_memory)
        return rf_fail(decode->err, RF_E_NOMEM, "no memory for a map of weights");
    return rf_fail(decode->err, RF_E_PROTO, "%s%.300s%s%s, at byte %zu",
                   name != NULL ? "tensor " : "", name != NULL ? name : "",
                   name != NULL ? ": " : "",
                   scan->problem != NULL ? scan->problem : "not what was expected",
                   (size_t)(scan->at - scan->start));
}

/* [address, elements, bytes of an element] */
static bool scan_place(struct json_scan *scan, uint64_t numbers[3])
{
    bool first = true;

    if (!json_take(scan, '[', "a tensor's place is not [address, elements, element size]"))
        return false;
    for (int i = 0; i < 3; i++) {
        if (!json_item(scan, ']', &first))
            return json_problem(scan, "a tensor's place has fewer than 3 numbers");
        if (!json_u64(scan, &numbers[i]))
            return false;
    }
    if (json_item(scan, ']', &first))
        return json_problem(scan, "a tensor's place has more than 3 numbers");
    return scan->problem == NULL;
}

static enum rf_code check_place(struct decode *decode, struct weight_entry *entry,
                                const uint64_t numbers[3])
{
    uint64_t end;

    entry->address = numbers[0];
    entry->elements = numbers[1];
    entry->element_bytes = (uint32_t)(numbers[2] < UINT32_MAX ? numbers[2] : UINT32_MAX);
    if (numbers[2] == 0 || numbers[2] > WEIGHT_MAP_MAX_ELEMENT_BYTES)
        return refuse(decode, entry, "elements of no dtype's size");
    if (__builtin_mul_overflow(numbers[1], numbers[2], &entry->bytes))
        return refuse(decode, entry, "more bytes than there are");
    if (entry->bytes > 0 && entry->address == 0)
        return refuse(decode, entry, "at address 0");
    if (__builtin_add_overflow(entry->address, entry->bytes, &end))
        return refuse(decode, entry, "its end wraps around");
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

static enum rf_code add_tensor(struct decode *decode)
{
    struct weight_map *map = &decode->map;
    struct weight_entry entry = {.name = ""};
    struct json_text key;
    uint64_t numbers[3] = {0};

    if (!json_key(&decode->scan, &key))
        return malformed(decode, NULL);
    if (memchr(key.at, '\0', key.bytes) != NULL)
        return rf_fail(decode->err, RF_E_PROTO, "a tensor's name has a NUL in it");
    if (map->count == WEIGHT_MAP_MAX_TENSORS)
        return rf_fail(decode->err, RF_E_PROTO, "more than %d tensors", WEIGHT_MAP_MAX_TENSORS);
    entry.name = arena_strndup(&map->arena, key.at, key.bytes);
    entry.name_bytes = (uint32_t)key.bytes;
    if (entry.name == NULL)
        return rf_fail(decode->err, RF_E_NOMEM, "no memory for a tensor's name");
    if (!scan_place(&decode->scan, numbers))
        return malformed(decode, entry.name);
    enum rf_code code = strmap_add(decode->names, entry.name, entry.name_bytes, map->count, NULL);
    if (code != RF_OK)
        return code == RF_E_INVAL
                   ? rf_fail(decode->err, RF_E_PROTO, "tensor %.300s is there twice", entry.name)
                   : rf_fail(decode->err, code, "no memory for a tensor's name");
    code = check_place(decode, &entry, numbers);
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
    for (size_t i = 0; i < text.bytes; i++) {
        if ((unsigned char)text.at[i] <= ' ' || text.at[i] == 0x7f)
            return rf_fail(decode->err, RF_E_PROTO, "a session id with blanks or control bytes");
    }
    decode->map.session = arena_strndup(&decode->map.arena, text.at, text.bytes);
    return decode->map.session != NULL
               ? RF_OK
               : rf_fail(decode->err, RF_E_NOMEM, "no memory for a session id");
}

static enum rf_code scan_tensors(struct decode *decode)
{
    bool first = true;

    if (!json_take(&decode->scan, '{', "the tensors are no object"))
        return malformed(decode, NULL);
    while (json_item(&decode->scan, '}', &first)) {
        enum rf_code code = add_tensor(decode);

        if (code != RF_OK)
            return code;
    }
    return decode->scan.problem == NULL ? RF_OK : malformed(decode, NULL);
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
