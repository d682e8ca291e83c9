#include "control/instance_json.h"

#include "control/json_read.h"
#include "control/seed_url.h"

#include <stdio.h>
#include <string.h>

enum { INSTANCE_MAX_TEXT_BYTES = 4096 };

static bool name_ok(const char *name)
{
    if (name[0] == '\0')
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_:-") == strlen(name);
}

static enum rf_code parse_endpoint(const json_t *item, const char *dialled,
                                   struct endpoint *ret_endpoint, struct rf_error *err)
{
    struct endpoint endpoint = {.transport = ""};
    const char *transport = "";
    const char *address = "";
    const char *host_id = "";

    if (!json_is_object(item))
        return rf_fail(err, RF_E_PROTO, "\"endpoints\" holds something that is no object");
    enum rf_code code = json_read_text(item, "transport", JSON_REQUIRED,
                                       sizeof endpoint.transport - 1, &transport, err);
    if (code == RF_OK)
        code = json_read_text(item, "address", JSON_REQUIRED, sizeof endpoint.address - 1, &address,
                              err);
    if (code == RF_OK)
        code = json_read_text(item, "host_id", JSON_OPTIONAL, sizeof endpoint.host_id - 1, &host_id,
                              err);
    if (code != RF_OK)
        return code;
    if (!name_ok(transport))
        return rf_fail(err, RF_E_PROTO, "\"%s\" is not the name of a transport", transport);
    if (address[0] == '\0')
        return rf_fail(err, RF_E_PROTO, "the address of transport %s is empty", transport);
    snprintf(endpoint.transport, sizeof endpoint.transport, "%s", transport);
    snprintf(endpoint.host_id, sizeof endpoint.host_id, "%s", host_id);
    if (!seed_url_replace_wildcard(address, dialled, endpoint.address, sizeof endpoint.address))
        return rf_fail(err, RF_E_PROTO, "the address of transport %s is too long", transport);
    *ret_endpoint = endpoint;
    return RF_OK;
}

static enum rf_code parse_endpoints(const json_t *object, const char *dialled,
                                    struct endpoint endpoints[TRANSPORT_MAX_ENDPOINTS],
                                    uint32_t *ret_count, struct rf_error *err)
{
    const json_t *array = NULL;
    enum rf_code code =
        json_read_array(object, "endpoints", JSON_REQUIRED, TRANSPORT_MAX_ENDPOINTS, &array, err);

    if (code != RF_OK)
        return code;
    uint32_t count = (uint32_t)json_array_size(array);
    for (uint32_t i = 0; i < count; i++) {
        code = parse_endpoint(json_array_get(array, i), dialled, &endpoints[i], err);
        if (code != RF_OK)
            return code;
    }
    *ret_count = count;
    return RF_OK;
}

/* Copies a text of the object into the info's arena. */
static enum rf_code keep_text(const json_t *object, const char *key, enum json_need need,
                              struct instance_info *info, const char **ret_text,
                              struct rf_error *err)
{
    const char *text = "";
    enum rf_code code = json_read_text(object, key, need, INSTANCE_MAX_TEXT_BYTES, &text, err);

    if (code != RF_OK)
        return code;
    *ret_text = arena_strndup(&info->arena, text, strlen(text));
    if (*ret_text == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for what a seed says of itself");
    return RF_OK;
}

static enum rf_code read_texts(const json_t *object, struct instance_info *info,
                               struct rf_error *err)
{
    const struct {
        const char *key;
        enum json_need need;
        const char **ret_text;
    } fields[] = {
        {"instance_id", JSON_REQUIRED, &info->instance_id},
        {"version", JSON_REQUIRED, &info->version},
        {"state", JSON_REQUIRED, &info->state},
        {"state_reason", JSON_OPTIONAL, &info->state_reason},
        {"model", JSON_OPTIONAL, &info->model},
        {"architecture", JSON_OPTIONAL, &info->architecture},
        {"quantisation", JSON_OPTIONAL, &info->quantisation},
        {"layout", JSON_OPTIONAL, &info->layout},
        {"stage", JSON_OPTIONAL, &info->stage},
        {"host_id", JSON_OPTIONAL, &info->host_id},
        {"manifest_id", JSON_OPTIONAL, &info->manifest_id},
        {"root_digest", JSON_OPTIONAL, &info->root_digest},
        {"refused_transports", JSON_OPTIONAL, &info->refused_transports},
    };
    enum rf_code code = RF_OK;

    for (unsigned i = 0; i < sizeof fields / sizeof fields[0] && code == RF_OK; i++)
        code = keep_text(object, fields[i].key, fields[i].need, info, fields[i].ret_text, err);
    return code;
}

static enum rf_code read_numbers(const json_t *object, struct instance_info *info,
                                 struct rf_error *err)
{
    uint64_t rank_count = 0;
    const struct {
        const char *key;
        uint64_t max;
        uint64_t *ret_number;
    } fields[] = {
        {"bytes", INT64_MAX, &info->bytes},
        {"tensor_count", MANIFEST_MAX_TENSORS, &info->tensor_count},
        {"rank_count", MANIFEST_MAX_RANKS, &rank_count},
        {"digest_chunks_known", INT64_MAX, &info->digest_chunks_known},
        {"digest_chunks_total", INT64_MAX, &info->digest_chunks_total},
    };
    enum rf_code code = RF_OK;

    for (unsigned i = 0; i < sizeof fields / sizeof fields[0] && code == RF_OK; i++)
        code = json_read_u64(object, fields[i].key, JSON_REQUIRED, fields[i].max,
                             fields[i].ret_number, err);
    info->rank_count = (uint32_t)rank_count;
    return code;
}

enum rf_code instance_json_parse(const void *text, size_t bytes, const char *dialled,
                                 struct instance_info *ret_info, struct rf_error *err)
{
    struct instance_info info = {.bytes = 0};
    json_t *object = NULL;
    enum rf_code code = json_read_object(text, bytes, "/v1/instance", &object, err);

    if (code != RF_OK)
        return code;
    code = read_texts(object, &info, err);
    if (code == RF_OK)
        code = read_numbers(object, &info, err);
    if (code == RF_OK)
        code = parse_endpoints(object, dialled, info.endpoints, &info.endpoint_count, err);
    json_decref(object);
    if (code != RF_OK) {
        arena_free(&info.arena);
        return rf_error_wrap(err, code, "/v1/instance");
    }
    *ret_info = info;
    return RF_OK;
}

static enum rf_code read_lease(const json_t *object, const char *dialled, struct lease *lease,
                               struct rf_error *err)
{
    const char *token = "";
    const char *manifest_id = "";
    enum rf_code code =
        json_read_text(object, "token", JSON_REQUIRED, (size_t)2 * CHUNK_TOKEN_BYTES, &token, err);

    if (code == RF_OK && !lease_token_parse(token, lease->token))
        code = rf_fail(err, RF_E_PROTO, "\"token\" is not %d hex digits", 2 * CHUNK_TOKEN_BYTES);
    if (code == RF_OK)
        code = json_read_u64(object, "ttl_ms", JSON_REQUIRED, INT64_MAX, &lease->ttl_ms, err);
    if (code == RF_OK)
        code = json_read_text(object, "manifest_id", JSON_REQUIRED, sizeof lease->manifest_id - 1,
                              &manifest_id, err);
    if (code != RF_OK)
        return code;
    snprintf(lease->manifest_id, sizeof lease->manifest_id, "%s", manifest_id);
    return parse_endpoints(object, dialled, lease->endpoints, &lease->endpoint_count, err);
}

enum rf_code lease_json_parse(const void *text, size_t bytes, const char *dialled,
                              struct lease *ret_lease, struct rf_error *err)
{
    struct lease lease = {.ttl_ms = 0};
    json_t *object = NULL;
    enum rf_code code = json_read_object(text, bytes, "/v1/lease", &object, err);

    if (code != RF_OK)
        return code;
    code = read_lease(object, dialled, &lease, err);
    json_decref(object);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "/v1/lease");
    *ret_lease = lease;
    return RF_OK;
}

/* What is wrong in a request is the caller's mistake, not a broken protocol. */
static enum rf_code as_invalid(struct rf_error *err, enum rf_code code)
{
    if (code == RF_E_PROTO && err != NULL)
        err->code = RF_E_INVAL;
    return code == RF_E_PROTO ? RF_E_INVAL : code;
}

enum rf_code lease_request_parse(const void *text, size_t bytes, struct lease_request *ret_request,
                                 struct rf_error *err)
{
    struct lease_request request = {.client = ""};
    const char *client = "";
    const char *manifest_id = "";
    json_t *object = NULL;

    if (bytes == 0) {
        *ret_request = request;
        return RF_OK;
    }
    enum rf_code code = json_read_object(text, bytes, "the body", &object, err);
    if (code != RF_OK)
        return as_invalid(err, code);
    code = json_read_text(object, "client", JSON_OPTIONAL, sizeof request.client - 1, &client, err);
    if (code == RF_OK)
        code = json_read_text(object, "manifest_id", JSON_OPTIONAL, sizeof request.manifest_id - 1,
                              &manifest_id, err);
    if (code == RF_OK) {
        snprintf(request.client, sizeof request.client, "%s", client);
        snprintf(request.manifest_id, sizeof request.manifest_id, "%s", manifest_id);
        *ret_request = request;
    }
    json_decref(object);
    return as_invalid(err, code);
}

bool lease_token_parse(const char *text, uint8_t ret_token[CHUNK_TOKEN_BYTES])
{
    uint8_t token[CHUNK_TOKEN_BYTES] = {0};

    if (strlen(text) != sizeof token * 2)
        return false;
    for (size_t i = 0; i < sizeof token * 2; i++) {
        char c = text[i];
        unsigned digit = 0;
        if (c >= '0' && c <= '9')
            digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (unsigned)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (unsigned)(c - 'A') + 10;
        else
            return false;
        token[i / 2] = (uint8_t)(token[i / 2] << 4 | digit);
    }
    memcpy(ret_token, token, sizeof token);
    return true;
}

void lease_token_text(const uint8_t token[CHUNK_TOKEN_BYTES], char out[2 * CHUNK_TOKEN_BYTES + 1])
{
    for (size_t i = 0; i < CHUNK_TOKEN_BYTES; i++)
        snprintf(out + 2 * i, 3, "%02x", token[i]);
}

void endpoints_json(const struct endpoint *endpoints, uint32_t count, struct buf *out)
{
    buf_append(out, "[", 1);
    for (uint32_t i = 0; i < count; i++) {
        buf_printf(out, "%s{\"transport\":", i > 0 ? "," : "");
        buf_json_string(out, endpoints[i].transport, strlen(endpoints[i].transport));
        buf_printf(out, ",\"address\":");
        buf_json_string(out, endpoints[i].address, strlen(endpoints[i].address));
        buf_printf(out, ",\"host_id\":");
        buf_json_string(out, endpoints[i].host_id, strlen(endpoints[i].host_id));
        buf_append(out, "}", 1);
    }
    buf_append(out, "]", 1);
}
