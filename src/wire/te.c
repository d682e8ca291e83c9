#include "wire/te.h"

#include "base/json_scan.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* ---- handshake frames ---- */

enum rf_code te_frame_length(const uint8_t head[TE_FRAME_HEAD_BYTES], uint64_t max_bytes,
                             uint64_t *ret_bytes, struct rf_error *err)
{
    struct wire_in in = wire_in_over(head, TE_FRAME_HEAD_BYTES);
    uint64_t bytes = wire_get_u64(&in);

    if (bytes == 0 || bytes > max_bytes)
        return rf_fail(err, RF_E_PROTO,
                       "handshake: a frame of %" PRIu64 " bytes, allowed are 1 to %" PRIu64
                       ": another protocol? check the port",
                       bytes, max_bytes);
    *ret_bytes = bytes;
    return RF_OK;
}

enum te_type te_frame_type(uint8_t first)
{
    return first <= TE_PROBE ? (enum te_type)first : TE_OLD_FORM;
}

/* The head of a frame whose JSON, of so many bytes, the caller appends. */
static void put_frame_head(enum te_type type, size_t bytes, struct buf *out)
{
    wire_put_u64(out, (uint64_t)bytes + (type != TE_OLD_FORM ? 1 : 0));
    if (type != TE_OLD_FORM)
        wire_put_u8(out, (uint8_t)type);
}

void te_frame_encode(enum te_type type, const void *json, size_t bytes, struct buf *out)
{
    put_frame_head(type, bytes, out);
    buf_append(out, json, bytes);
}

void te_answer_encode(enum te_type type, struct buf *out)
{
    /* An engine that wants queue pairs is told why it gets none. */
    static const char connection[] =
        "{\"local_gid\":\"\",\"local_lid\":0,\"local_nic_path\":\"\",\"peer_nic_path\":\"\","
        "\"qp_num\":[],\"reply_msg\":\"this engine speaks tcp alone\"}\n";
    static const char notify[] = "{\"name\":\"\",\"notify_msg\":\"success\"}\n";
    static const char probe[] = "{\"status\":\"success\"}\n";

    switch (type) {
    case TE_CONNECTION:
    case TE_OLD_FORM:
        te_frame_encode(type, connection, sizeof connection - 1, out);
        break;
    case TE_NOTIFY:
        te_frame_encode(type, notify, sizeof notify - 1, out);
        break;
    case TE_PROBE:
        te_frame_encode(type, probe, sizeof probe - 1, out);
        break;
    case TE_METADATA:
        assert(!"its answer is a descriptor");
        break;
    }
}

/* ---- descriptor: encoding ---- */

static void put_text(struct buf *out, const char *before, const char *text)
{
    buf_append(out, before, strlen(before));
    buf_json_string(out, text, strlen(text));
}

static void put_time(const char *timestamp, struct buf *out)
{
    struct timespec now = {0};
    struct tm parts = {0};
    char text[64] = "";

    if (timestamp == NULL) {
        (void)clock_gettime(CLOCK_REALTIME, &now);
        (void)localtime_r(&now.tv_sec, &parts);
        size_t bytes = strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
        (void)snprintf(text + bytes, sizeof text - bytes, ".%06ld", now.tv_nsec / 1000);
        timestamp = text;
    }
    put_text(out, ",\"timestamp\":", timestamp);
}

void te_descriptor_encode(const struct te_descriptor *descriptor, const char *timestamp,
                          struct buf *out)
{
    buf_printf(out, "{\"buffers\":[");
    for (uint64_t i = 0; i < descriptor->buffer_count; i++) {
        const struct te_buffer *buffer = &descriptor->buffers[i];
        buf_printf(out, "%s{\"addr\":%" PRIu64 ",\"length\":%" PRIu64, i > 0 ? "," : "",
                   buffer->address, buffer->bytes);
        put_text(out, ",\"name\":", buffer->name);
        buf_append(out, "}", 1);
    }
    put_text(out, "],\"name\":", descriptor->name);
    put_text(out, ",\"protocol\":", descriptor->protocol);
    if (descriptor->rdma_server[0] != '\0')
        put_text(out, ",\"rdma_server_name\":", descriptor->rdma_server);
    if (descriptor->rfork != 0)
        buf_printf(out, ",\"rfork\":%" PRIu32, descriptor->rfork);
    if (descriptor->data_host[0] != '\0')
        put_text(out, ",\"tcp_data_host\":", descriptor->data_host);
    buf_printf(out, ",\"tcp_data_port\":%u", descriptor->data_port);
    if (descriptor->version > 1)
        buf_printf(out, ",\"tcp_proto_version\":%" PRIu32, descriptor->version);
    put_time(timestamp, out);
    buf_append(out, "}\n", 2);
}

/* ---- descriptor: decoding ---- */

enum { TE_FIELD_DEPTH = 3 }; /* brackets open around the value of a buffer's member */

struct te_parse {
    struct json_scan scan;
    struct te_descriptor descriptor;
    struct te_buffer *buffers; /* as many as there is room for; by malloc() while it grows */
    uint64_t room;
    const char *last_name; /* of the buffer before: most have the same */
    size_t last_name_bytes;
};

static enum rf_code fail_parse(const struct te_parse *parse, struct rf_error *err)
{
    const struct json_scan *scan = &parse->scan;

    if (scan->no_memory)
        return rf_fail(err, RF_E_NOMEM, "descriptor: no memory for %" PRIu64 " buffers",
                       parse->descriptor.buffer_count);
    return rf_fail(err, RF_E_PROTO, "descriptor: %s, at byte %zu of %zu", scan->problem,
                   (size_t)(scan->at - scan->start), (size_t)(scan->end - scan->start));
}

static bool no_memory(struct te_parse *parse)
{
    parse->scan.no_memory = true;
    return json_problem(&parse->scan, "out of memory");
}

static bool take_text(struct te_parse *parse, const char **ret_text)
{
    struct json_text text;

    if (!json_string(&parse->scan, &text))
        return false;
    if (text.bytes > TE_MAX_NAME_BYTES)
        return json_problem(&parse->scan, "a name of more than 256 bytes");
    if (memchr(text.at, 0, text.bytes) != NULL)
        return json_problem(&parse->scan, "a name that holds a NUL");
    const char *copy = arena_strndup(&parse->descriptor.arena, text.at, text.bytes);
    if (copy == NULL)
        return no_memory(parse);
    *ret_text = copy;
    return true;
}

static bool take_number(struct te_parse *parse, uint64_t max, const char *problem,
                        uint64_t *ret_number)
{
    if (!json_u64(&parse->scan, ret_number))
        return false;
    return *ret_number <= max || json_problem(&parse->scan, problem);
}

/* Marks a member as seen; false if it was before. */
static bool see(struct te_parse *parse, uint32_t *seen, unsigned field)
{
    if ((*seen & 1U << field) != 0)
        return json_problem(&parse->scan, "a member is there twice");
    *seen |= 1U << field;
    return true;
}

static bool take_buffer_name(struct te_parse *parse, const char **ret_name)
{
    struct json_scan before = parse->scan;
    struct json_text text;

    if (!json_string(&parse->scan, &text))
        return false;
    if (parse->last_name == NULL || text.bytes != parse->last_name_bytes ||
        memcmp(text.at, parse->last_name, text.bytes) != 0) {
        parse->scan = before;
        if (!take_text(parse, &parse->last_name))
            return false;
        parse->last_name_bytes = strlen(parse->last_name);
    }
    *ret_name = parse->last_name;
    return true;
}

static bool keep_buffer(struct te_parse *parse, const struct te_buffer *buffer)
{
    uint64_t count = parse->descriptor.buffer_count;

    if (count == TE_MAX_BUFFERS)
        return json_problem(&parse->scan, "more than 4,000,000 buffers");
    if (count == parse->room) {
        uint64_t room = parse->room > 0 ? parse->room * 2 : 64;
        struct te_buffer *more = realloc(parse->buffers, room * sizeof *more);

        if (more == NULL)
            return no_memory(parse);
        parse->buffers = more;
        parse->room = room;
    }
    parse->buffers[count] = *buffer;
    parse->descriptor.buffer_count++;
    return true;
}

static bool take_buffer(struct te_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    struct te_buffer buffer = {.name = ""};
    uint32_t seen = 0;
    bool first = true;

    if (!json_take(scan, '{', "expected an object in \"buffers\""))
        return false;
    while (json_item(scan, '}', &first)) {
        struct json_text key;
        bool ok;

        if (!json_key(scan, &key))
            return false;
        if (JSON_TEXT_IS(&key, "addr"))
            ok = see(parse, &seen, 0) && json_u64(scan, &buffer.address);
        else if (JSON_TEXT_IS(&key, "length"))
            ok = see(parse, &seen, 1) && json_u64(scan, &buffer.bytes);
        else if (JSON_TEXT_IS(&key, "name"))
            ok = see(parse, &seen, 2) && take_buffer_name(parse, &buffer.name);
        else
            ok = json_skip(scan, TE_FIELD_DEPTH);
        if (!ok)
            return false;
    }
    return scan->problem == NULL && keep_buffer(parse, &buffer);
}

static bool take_buffers(struct te_parse *parse)
{
    bool first = true;

    if (json_next(&parse->scan) == 'n')
        return json_null(&parse->scan);
    if (!json_take(&parse->scan, '[', "expected a list of buffers"))
        return false;
    while (json_item(&parse->scan, ']', &first)) {
        if (!take_buffer(parse))
            return false;
    }
    return parse->scan.problem == NULL;
}

/* One, or a list of which the first counts, or "tcp" wherever it stands. */
static bool take_protocol(struct te_parse *parse)
{
    struct te_descriptor *descriptor = &parse->descriptor;
    bool first = true;

    if (json_next(&parse->scan) != '[')
        return take_text(parse, &descriptor->protocol);
    parse->scan.at++;
    while (json_item(&parse->scan, ']', &first)) {
        const char *one = "";

        if (!take_text(parse, &one))
            return false;
        if (descriptor->protocol[0] == '\0' || strcmp(one, "tcp") == 0)
            descriptor->protocol = one;
    }
    return parse->scan.problem == NULL;
}

enum te_field {
    FIELD_NAME,
    FIELD_PROTOCOL,
    FIELD_DATA_HOST,
    FIELD_RDMA_SERVER,
    FIELD_DATA_PORT,
    FIELD_VERSION,
    FIELD_RFORK,
    FIELD_BUFFERS,
    FIELD_COUNT,
};

static enum te_field field_named(const struct json_text *key)
{
    static const char *const names[FIELD_COUNT] = {
        [FIELD_NAME] = "name",
        [FIELD_PROTOCOL] = "protocol",
        [FIELD_DATA_HOST] = "tcp_data_host",
        [FIELD_RDMA_SERVER] = "rdma_server_name",
        [FIELD_DATA_PORT] = "tcp_data_port",
        [FIELD_VERSION] = "tcp_proto_version",
        [FIELD_RFORK] = "rfork",
        [FIELD_BUFFERS] = "buffers",
    };
    unsigned field = 0;

    while (field < FIELD_COUNT && !json_text_is(key, names[field], strlen(names[field])))
        field++;
    return (enum te_field)field;
}

static bool take_member(struct te_parse *parse, enum te_field field)
{
    struct te_descriptor *descriptor = &parse->descriptor;
    uint64_t number = 0;
    bool ok;

    switch (field) {
    case FIELD_NAME:
        return take_text(parse, &descriptor->name);
    case FIELD_PROTOCOL:
        return take_protocol(parse);
    case FIELD_DATA_HOST:
        return take_text(parse, &descriptor->data_host);
    case FIELD_RDMA_SERVER:
        return take_text(parse, &descriptor->rdma_server);
    case FIELD_DATA_PORT:
        ok = take_number(parse, UINT16_MAX, "a port over 65535", &number);
        descriptor->data_port = (uint16_t)number;
        return ok;
    case FIELD_VERSION:
        ok = take_number(parse, UINT32_MAX, "a version over 2^32 - 1", &number);
        descriptor->version = number > 0 ? (uint32_t)number : 1;
        return ok;
    case FIELD_RFORK:
        ok = take_number(parse, UINT32_MAX, "a version over 2^32 - 1", &number);
        descriptor->rfork = (uint32_t)number;
        return ok;
    case FIELD_BUFFERS:
        return take_buffers(parse);
    case FIELD_COUNT:
        break;
    }
    return json_skip(&parse->scan, 1);
}

static bool take_object(struct te_parse *parse)
{
    struct json_scan *scan = &parse->scan;
    uint32_t seen = 0;
    bool first = true;

    if (!json_take(scan, '{', "expected an object"))
        return false;
    while (json_item(scan, '}', &first)) {
        struct json_text key;

        if (!json_key(scan, &key))
            return false;
        enum te_field field = field_named(&key);
        if ((field != FIELD_COUNT && !see(parse, &seen, field)) || !take_member(parse, field))
            return false;
    }
    if (scan->problem != NULL || !json_end(scan))
        return false;
    if ((seen & 1U << FIELD_NAME) == 0)
        return json_problem(scan, "no \"name\"");
    return parse->descriptor.protocol[0] != '\0' || json_problem(scan, "no \"protocol\"");
}

static int compare_address(const void *a, const void *b)
{
    const struct te_buffer *one = a;
    const struct te_buffer *other = b;

    return one->address < other->address ? -1 : one->address > other->address;
}

/* Engines without TCP describe memory that has no address in other ways: left out. */
static void drop_unaddressed(struct te_parse *parse)
{
    uint64_t kept = 0;

    for (uint64_t i = 0; i < parse->descriptor.buffer_count; i++) {
        if (parse->buffers[i].address != 0 && parse->buffers[i].bytes != 0)
            parse->buffers[kept++] = parse->buffers[i];
    }
    parse->descriptor.buffer_count = kept;
}

static enum rf_code check_buffers(struct te_parse *parse, struct rf_error *err)
{
    uint64_t count = parse->descriptor.buffer_count;
    const struct te_buffer *buffers = parse->buffers;
    uint64_t end = 0;

    for (uint64_t i = 0; i < count; i++) {
        const struct te_buffer *buffer = &buffers[i];
        uint64_t buffer_end;

        if (buffer->address == 0 || buffer->bytes == 0)
            return rf_fail(err, RF_E_PROTO,
                           "descriptor: a buffer of %" PRIu64 " bytes at address %#" PRIx64
                           ": neither may be 0",
                           buffer->bytes, buffer->address);
        if (__builtin_add_overflow(buffer->address, buffer->bytes, &buffer_end))
            return rf_fail(err, RF_E_PROTO,
                           "descriptor: a buffer of %" PRIu64 " bytes at address %#" PRIx64
                           " goes beyond 2^64",
                           buffer->bytes, buffer->address);
        if (buffer->address < end)
            return rf_fail(err, RF_E_PROTO,
                           "descriptor: the buffers of %" PRIu64 " bytes at %#" PRIx64
                           " and %" PRIu64 " bytes at %#" PRIx64 " overlap",
                           buffers[i - 1].bytes, buffers[i - 1].address, buffer->bytes,
                           buffer->address);
        end = buffer_end;
    }
    return RF_OK;
}

/* Brings the buffers in order, and into the arena. */
static enum rf_code settle_buffers(struct te_parse *parse, struct rf_error *err)
{
    struct te_descriptor *descriptor = &parse->descriptor;

    if (strcmp(descriptor->protocol, "tcp") != 0)
        drop_unaddressed(parse);
    uint64_t count = descriptor->buffer_count;
    if (count == 0)
        return RF_OK;
    qsort(parse->buffers, count, sizeof *parse->buffers, compare_address);
    enum rf_code code = check_buffers(parse, err);
    if (code != RF_OK)
        return code;
    descriptor->buffers = arena_alloc(&descriptor->arena, count * sizeof *descriptor->buffers);
    if (descriptor->buffers == NULL)
        return rf_fail(err, RF_E_NOMEM, "descriptor: no memory for %" PRIu64 " buffers", count);
    memcpy(descriptor->buffers, parse->buffers, count * sizeof *descriptor->buffers);
    return RF_OK;
}

enum rf_code te_descriptor_decode(const uint8_t *json, size_t bytes,
                                  struct te_descriptor *ret_descriptor, struct rf_error *err)
{
    struct te_parse parse = {
        .descriptor = {
            .name = "", .protocol = "", .data_host = "", .rdma_server = "", .version = 1}};

    json_scan_init(&parse.scan, json, bytes, &parse.descriptor.arena);
    enum rf_code code = take_object(&parse) ? settle_buffers(&parse, err) : fail_parse(&parse, err);
    free(parse.buffers);
    if (code != RF_OK) {
        arena_free(&parse.descriptor.arena);
        return code;
    }
    *ret_descriptor = parse.descriptor;
    return RF_OK;
}

void te_descriptor_free(struct te_descriptor *descriptor)
{
    arena_free(&descriptor->arena);
}

const struct te_buffer *te_descriptor_find(const struct te_descriptor *descriptor, uint64_t address,
                                           uint64_t bytes)
{
    uint64_t low = 0;
    uint64_t high = descriptor->buffer_count;

    while (low < high) { /* the first that begins behind the address */
        uint64_t middle = low + (high - low) / 2;

        if (descriptor->buffers[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NULL;
    const struct te_buffer *buffer = &descriptor->buffers[low - 1];
    uint64_t before = address - buffer->address;
    return before <= buffer->bytes && bytes <= buffer->bytes - before ? buffer : NULL;
}

/* ---- data ---- */

void te_hdr_encode(const struct te_hdr *hdr, uint8_t out[TE_HDR_BYTES])
{
    static const uint8_t unused[6] = {0};
    struct wire_out at = {.at = out};

    wire_set_u64(&at, hdr->bytes);
    wire_set_u64(&at, hdr->address);
    wire_set_u8(&at, hdr->op);
    wire_set_u8(&at, hdr->algorithm);
    wire_set_bytes(&at, unused, sizeof unused);
    assert(at.at == out + TE_HDR_BYTES);
}

void te_hdr_decode(const uint8_t in[TE_HDR_BYTES], struct te_hdr *ret_hdr)
{
    struct wire_in at = wire_in_over(in, TE_HDR_BYTES);

    ret_hdr->bytes = wire_get_u64(&at);
    ret_hdr->address = wire_get_u64(&at);
    ret_hdr->op = wire_get_u8(&at);
    ret_hdr->algorithm = wire_get_u8(&at);
}

static const uint32_t status_magic = 0x4d435456; /* the upper half of each status */

void te_status_encode(uint32_t status, uint8_t out[TE_STATUS_BYTES])
{
    struct wire_out at = {.at = out};

    wire_set_u32(&at, status);
    wire_set_u32(&at, status_magic);
}

enum rf_code te_status_decode(const uint8_t in[TE_STATUS_BYTES], uint32_t *ret_status,
                              struct rf_error *err)
{
    struct wire_in at = wire_in_over(in, TE_STATUS_BYTES);
    uint32_t status = wire_get_u32(&at);
    uint32_t magic = wire_get_u32(&at);

    if (magic != status_magic)
        return rf_fail(err, RF_E_PROTO,
                       "0x%08" PRIx32 "%08" PRIx32 " in place of a status, whose upper half is "
                       "0x%08" PRIx32,
                       magic, status, status_magic);
    *ret_status = status;
    return RF_OK;
}
