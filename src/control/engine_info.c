#include "control/engine_info.h"

#include "base/cleanup.h"
#include "base/json_scan.h"
#include "wire/weight_map.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { ENGINE_INFO_ENTRY_BYTES = 96 };

static_assert(ENGINE_INFO_SESSION_BYTES >= WEIGHT_MAP_HOST_BYTES + sizeof(":65535"),
              "a session id fits");

/* ---- making it ---- */

struct place {
    uint32_t order;
    uint32_t index;
};

static int compare_places(const void *a, const void *b)
{
    const struct place *x = a;
    const struct place *y = b;

    if (x->order != y->order)
        return x->order < y->order ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static char *put_digits(char *at, uint64_t number)
{
    char digits[20];
    unsigned count = 0;

    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

/* A model may have 100,000 of these: printf() would take longest of all that publishing takes. */
static void put_tensor(const struct tensor *tensor, uint64_t base, struct buf *out)
{
    unsigned element_bytes = rf_dtype_bits(tensor->dtype) / 8;
    uint64_t elements = 1;

    for (uint32_t i = 0; i < tensor->ndim; i++)
        elements *= tensor->shape[i]; /* checked with the manifest */
    /* Elements of less than a byte are counted in bytes: there is no fraction in this form. */
    if (element_bytes == 0) {
        element_bytes = 1;
        elements = tensor->bytes;
    }
    buf_json_string(out, tensor->name, tensor->name_bytes);
    char *start = (char *)buf_reserve(out, ENGINE_INFO_ENTRY_BYTES);
    if (start == NULL)
        return;
    char *at = start;
    *at++ = ':';
    *at++ = '[';
    at = put_digits(at, base + tensor->stream_offset);
    *at++ = ',';
    at = put_digits(at, elements);
    *at++ = ',';
    at = put_digits(at, element_bytes);
    *at++ = ']';
    *at++ = ',';
    out->bytes += (size_t)(at - start);
}

void engine_info_tensors(const struct manifest_rank *rank, uint64_t base, struct buf *out)
{
    uint32_t count = rank->tensor_count;
    rf_autofree struct place *places = malloc((count + (size_t)1) * sizeof *places);

    if (places == NULL) {
        out->failed = true;
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        places[i] = (struct place){.order = rank->tensors[i].order, .index = i};
    qsort(places, count, sizeof *places, compare_places);
    buf_append(out, "{", 1);
    for (uint32_t i = 0; i < count; i++)
        put_tensor(&rank->tensors[places[i].index], base, out);
    if (count > 0 && !out->failed)
        out->bytes--; /* the last comma */
    buf_append(out, "}", 1);
}

void engine_info_begin(uint64_t rank, const char *session, struct buf *out)
{
    buf_printf(out, "\"rank\":%" PRIu64 ",\"remote_instance_transfer_engine_info\":[", rank);
    buf_json_string(out, session, strlen(session));
    buf_append(out, ",", 1);
}

uint32_t engine_info_find_rank(const struct manifest *manifest, uint64_t tp_rank)
{
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        const struct rank_id *id = &manifest->ranks[i].id;
        if (id->role == ROLE_TARGET && id->pp == 0 && id->tp == tp_rank)
            return i;
    }
    return MANIFEST_NONE;
}

void engine_info_put(uint64_t rank, const char *session, const void *tensors, size_t bytes,
                     struct buf *out)
{
    buf_printf(out, "{\"tp_rank\":%" PRIu64 ",\"transfer_engine_info\":{\"session_id\":", rank);
    buf_json_string(out, session, strlen(session));
    buf_printf(out, ",\"weights_info_dict\":");
    buf_append(out, tensors, bytes);
    buf_printf(out, "}}");
}

void engine_question_make(uint64_t rank, struct buf *out)
{
    buf_printf(out, "{\"action\":\"get_transfer_engine_info\",\"rank\":%" PRIu64 "}", rank);
}

void engine_answer_refuse(const char *reason, struct buf *out)
{
    buf_printf(out, "{\"success\":false,\"error\":");
    buf_json_string(out, reason, strlen(reason));
    buf_printf(out, "}");
}

/* ---- reading it ---- */

static bool scan_session(struct json_scan *scan, struct engine_info *info)
{
    struct json_text text;

    if (!json_string(scan, &text))
        return false;
    if (!weight_map_session_ok(text.at, text.bytes))
        return json_problem(scan, "the session id is not HOST:PORT");
    memcpy(info->session, text.at, text.bytes);
    info->session[text.bytes] = '\0';
    return true;
}

static bool scan_tensors(struct json_scan *scan, struct engine_info *info)
{
    struct weight_item item;
    bool first = true;
    uint64_t bytes;

    json_next(scan); /* to its bracket */
    info->tensors = (const char *)scan->at;
    if (!json_take(scan, '{', "an object of tensors was expected"))
        return false;
    while (weight_map_item(scan, &first, &item)) {
        if (weight_item_bytes(&item, &bytes) != NULL)
            return json_problem(scan, "the tensor ends beyond 2^64");
        info->tensor_count++;
    }
    info->tensors_bytes = (size_t)((const char *)scan->at - info->tensors);
    return scan->problem == NULL;
}

static bool once(struct json_scan *scan, bool *seen, const char *problem)
{
    if (*seen)
        return json_problem(scan, problem);
    *seen = true;
    return true;
}

struct put_seen {
    bool rank;
    bool tp_rank;
    bool info;
    bool session;
    bool tensors;
};

static bool scan_put_info(struct json_scan *scan, struct engine_info *info, struct put_seen *seen)
{
    struct json_text key;
    bool first = true;

    if (!once(scan, &seen->info, "\"transfer_engine_info\" is there twice") ||
        !json_take(scan, '{', "\"transfer_engine_info\" is no object"))
        return false;
    while (json_item(scan, '}', &first)) {
        bool good;
        if (!json_key(scan, &key))
            return false;
        if (JSON_TEXT_IS(&key, "session_id"))
            good = once(scan, &seen->session, "\"session_id\" is there twice") &&
                   scan_session(scan, info);
        else if (JSON_TEXT_IS(&key, "weights_info_dict"))
            good = once(scan, &seen->tensors, "\"weights_info_dict\" is there twice") &&
                   scan_tensors(scan, info);
        else
            good = json_skip(scan, 2);
        if (!good)
            return false;
    }
    return scan->problem == NULL;
}

static bool scan_rank(struct json_scan *scan, uint64_t *ret_rank)
{
    if (!json_u64(scan, ret_rank))
        return false;
    return *ret_rank <= ENGINE_INFO_MAX_RANK || json_problem(scan, "a rank is at most 4095");
}

static bool scan_put(struct json_scan *scan, struct engine_info *info, struct put_seen *seen)
{
    struct json_text key;
    uint64_t rank = 0;
    uint64_t tp_rank = 0;
    bool first = true;

    if (!json_take(scan, '{', "an object was expected"))
        return false;
    while (json_item(scan, '}', &first)) {
        bool good;
        if (!json_key(scan, &key))
            return false;
        if (JSON_TEXT_IS(&key, "rank"))
            good = once(scan, &seen->rank, "\"rank\" is there twice") && scan_rank(scan, &rank);
        else if (JSON_TEXT_IS(&key, "tp_rank"))
            good = once(scan, &seen->tp_rank, "\"tp_rank\" is there twice") &&
                   scan_rank(scan, &tp_rank);
        else if (JSON_TEXT_IS(&key, "transfer_engine_info"))
            good = scan_put_info(scan, info, seen);
        else
            good = json_skip(scan, 1);
        if (!good)
            return false;
    }
    info->rank = (uint32_t)(seen->rank ? rank : tp_rank);
    return scan->problem == NULL && json_end(scan);
}

/* What kept a scan from its end. */
static enum rf_code scan_failed(const struct json_scan *scan, const char *what, enum rf_code code,
                                struct rf_error *err)
{
    if (scan->no_memory)
        return rf_fail(err, RF_E_NOMEM, "%s: no memory to read it", what);
    return rf_fail(err, code, "%s: %s (byte %zu)", what, scan->problem,
                   (size_t)(scan->at - scan->start));
}

static const char *put_missing(const struct put_seen *seen)
{
    if (!seen->rank && !seen->tp_rank)
        return "tp_rank";
    if (!seen->info)
        return "transfer_engine_info";
    if (!seen->session)
        return "session_id";
    return seen->tensors ? NULL : "weights_info_dict";
}

enum rf_code engine_info_parse_put(const void *text, size_t bytes, struct engine_info *ret_info,
                                   struct rf_error *err)
{
    struct engine_info info = {.rank = 0};
    struct put_seen seen = {.rank = false};
    struct arena arena = {0};
    struct json_scan scan;

    json_scan_init(&scan, text != NULL ? text : "", bytes, &arena);
    bool good = scan_put(&scan, &info, &seen);
    arena_free(&arena);
    if (!good)
        return scan_failed(&scan, "registration", RF_E_INVAL, err);
    const char *missing = put_missing(&seen);
    if (missing != NULL)
        return rf_fail(err, RF_E_INVAL, "registration: \"%s\" is missing", missing);
    *ret_info = info;
    return RF_OK;
}

/* ---- between nodes ---- */

static void keep_text(const struct json_text *text, char *out, size_t room)
{
    size_t bytes = text->bytes < room ? text->bytes : room - 1;

    memcpy(out, text->at, bytes);
    out[bytes] = '\0';
    rf_text_sanitise(out);
}

static bool scan_question(struct json_scan *scan, struct engine_question *question)
{
    struct json_text key;
    struct json_text text;
    bool has_action = false;
    bool first = true;

    if (!json_take(scan, '{', "an object was expected"))
        return false;
    while (json_item(scan, '}', &first)) {
        bool good;
        if (!json_key(scan, &key))
            return false;
        if (JSON_TEXT_IS(&key, "action")) {
            good = once(scan, &has_action, "\"action\" is there twice") && json_string(scan, &text);
            if (good) {
                keep_text(&text, question->action, sizeof question->action);
                question->knows_action = JSON_TEXT_IS(&text, "get_transfer_engine_info");
            }
        } else if (JSON_TEXT_IS(&key, "rank") && json_next(scan) != 'n') {
            good = once(scan, &question->has_rank, "\"rank\" is there twice") &&
                   json_u64(scan, &question->rank);
        } else {
            good = json_skip(scan, 1);
        }
        if (!good)
            return false;
    }
    return scan->problem == NULL && json_end(scan);
}

enum rf_code engine_question_parse(const void *text, size_t bytes,
                                   struct engine_question *ret_question, struct rf_error *err)
{
    struct engine_question question = {.rank = 0};
    struct arena arena = {0};
    struct json_scan scan;

    json_scan_init(&scan, text != NULL ? text : "", bytes, &arena);
    bool good = scan_question(&scan, &question);
    arena_free(&arena);
    if (!good)
        return scan_failed(&scan, "question", RF_E_INVAL, err);
    *ret_question = question;
    return RF_OK;
}

struct answer_seen {
    bool success; /* the key */
    bool is_success;
    bool rank;
    bool info;
    bool error;
    uint64_t said_rank;
    char reason[ENGINE_INFO_REASON_BYTES];
};

/* [SESSION,{...}] */
static bool scan_pair(struct json_scan *scan, struct engine_info *info)
{
    bool first = true;

    if (!json_take(scan, '[', "[session id, tensors] was expected") ||
        !json_item(scan, ']', &first) || !scan_session(scan, info) ||
        !json_item(scan, ']', &first) || !scan_tensors(scan, info))
        return json_problem(scan, "[session id, tensors] was expected");
    return !json_item(scan, ']', &first) ? scan->problem == NULL
                                         : json_problem(scan, "more than [session id, tensors]");
}

static bool scan_answer_value(struct json_scan *scan, const struct json_text *key,
                              struct engine_info *info, struct answer_seen *seen)
{
    struct json_text text;

    if (JSON_TEXT_IS(key, "success")) {
        uint8_t next = json_next(scan);
        seen->is_success = next == 't';
        return once(scan, &seen->success, "\"success\" is there twice") &&
               (next == 't' || next == 'f' || json_problem(scan, "true or false was expected")) &&
               json_skip(scan, 1);
    }
    if (JSON_TEXT_IS(key, "rank"))
        return once(scan, &seen->rank, "\"rank\" is there twice") &&
               json_u64(scan, &seen->said_rank);
    if (JSON_TEXT_IS(key, "remote_instance_transfer_engine_info") && json_next(scan) != 'n')
        return once(scan, &seen->info, "the info is there twice") && scan_pair(scan, info);
    if (JSON_TEXT_IS(key, "error") && json_next(scan) == '"') {
        if (!once(scan, &seen->error, "\"error\" is there twice") || !json_string(scan, &text))
            return false;
        keep_text(&text, seen->reason, sizeof seen->reason);
        return true;
    }
    return json_skip(scan, 1);
}

static bool scan_answer(struct json_scan *scan, struct engine_info *info, struct answer_seen *seen)
{
    struct json_text key;
    bool first = true;

    if (!json_take(scan, '{', "an object was expected"))
        return false;
    while (json_item(scan, '}', &first)) {
        if (!json_key(scan, &key) || !scan_answer_value(scan, &key, info, seen))
            return false;
    }
    return scan->problem == NULL && json_end(scan);
}

enum rf_code engine_answer_parse(const void *text, size_t bytes, uint64_t rank,
                                 struct engine_info *ret_info, struct rf_error *err)
{
    struct engine_info info = {.rank = (uint32_t)rank};
    struct answer_seen seen = {.success = false};
    struct arena arena = {0};
    struct json_scan scan;

    json_scan_init(&scan, text != NULL ? text : "", bytes, &arena);
    bool good = scan_answer(&scan, &info, &seen);
    arena_free(&arena);
    if (!good)
        return scan_failed(&scan, "its answer makes no sense", RF_E_PROTO, err);
    if (!seen.success)
        return rf_fail(err, RF_E_PROTO, "its answer makes no sense: \"success\" is missing");
    if (!seen.is_success)
        return rf_fail(err, RF_E_UNREACHABLE, "it refused: %s",
                       seen.error ? seen.reason : "no reason given");
    if (!seen.info || !seen.rank)
        return rf_fail(err, RF_E_PROTO, "its answer makes no sense: success, but no %s",
                       seen.rank ? "info" : "rank");
    if (seen.said_rank != rank)
        return rf_fail(err, RF_E_PROTO, "its answer is about rank %" PRIu64, seen.said_rank);
    *ret_info = info;
    return RF_OK;
}
