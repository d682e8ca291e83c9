/* Making answers. Each response object belongs to one answer; what several share are the bytes
 * below it. */
#include "base/log.h"
#include "control/internal.h"
#include "control/range.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REPLY_BLOCK_BYTES = 128 << 10, /* of a streamed body; one such buffer per answer under way */
    REPLY_STREAMED_BYTES =
        64 << 10, /* blobs larger than this are streamed, so that their progress is seen */
};

/* ---- blobs ---- */

struct blob *blob_create(struct buf *bytes, struct rf_error *err)
{
    struct blob *blob = bytes->failed ? NULL : malloc(sizeof *blob);

    if (blob == NULL) {
        buf_free(bytes);
        rf_fail(err, RF_E_NOMEM, "no memory for the answer");
        return NULL;
    }
    atomic_init(&blob->refs, 1);
    blob->bytes = *bytes;
    *bytes = (struct buf){0};
    return blob;
}

struct blob *blob_ref(struct blob *blob)
{
    atomic_fetch_add_explicit(&blob->refs, 1, memory_order_relaxed);
    return blob;
}

void blob_unref(struct blob *blob)
{
    /* Pairs with itself: the last one sees what the others did before they let go. */
    if (blob == NULL || atomic_fetch_sub_explicit(&blob->refs, 1, memory_order_acq_rel) > 1)
        return;
    buf_free(&blob->bytes);
    free(blob);
}

/* ---- headers ---- */

void reply_header(struct reply *reply, const char *name, const char *value)
{
    if (reply->response != NULL)
        MHD_add_response_header(reply->response, name, value);
}

/* What every answer carries; the instance's id tells clients that it is a seed who answers. */
static void common_headers(const struct request *request, struct reply *reply, const char *type)
{
    reply_header(reply, MHD_HTTP_HEADER_SERVER, "rfork/" RFORK_VERSION);
    reply_header(reply, "X-Rfork-Instance", seed_instance_id(request->server->seed));
    reply_header(reply, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (type != NULL)
        reply_header(reply, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    if (reply->status == MHD_HTTP_TOO_MANY_REQUESTS ||
        reply->status == MHD_HTTP_SERVICE_UNAVAILABLE)
        reply_header(reply, MHD_HTTP_HEADER_RETRY_AFTER, "1");
    if (reply->status == MHD_HTTP_UNAUTHORIZED)
        reply_header(reply, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (conn_hurried(request->conn))
        reply_header(reply, MHD_HTTP_HEADER_CONNECTION, "close");
}

/* ---- texts ---- */

void reply_exact(struct request *request, struct reply *reply, unsigned status, const char *type,
                 struct buf *text)
{
    reply->status = status;
    reply->response = text->failed ? NULL
                                   : MHD_create_response_from_buffer(text->bytes, text->data,
                                                                     MHD_RESPMEM_MUST_FREE);
    if (reply->response != NULL)
        *text = (struct buf){0}; /* libmicrohttpd frees it */
    buf_free(text);
    common_headers(request, reply, type);
}

void reply_text(struct request *request, struct reply *reply, unsigned status, const char *type,
                struct buf *text)
{
    buf_append(text, "\n", 1);
    reply_exact(request, reply, status, type, text);
}

void reply_json(struct request *request, struct reply *reply, unsigned status, struct buf *json)
{
    reply_text(request, reply, status, "application/json", json);
}

void reply_empty(struct request *request, struct reply *reply, unsigned status)
{
    static char nothing[1];

    reply->status = status;
    reply->response = MHD_create_response_from_buffer(0, nothing, MHD_RESPMEM_PERSISTENT);
    common_headers(request, reply, NULL);
}

/* ---- errors ---- */

static unsigned status_of(enum rf_code code)
{
    switch (code) {
    case RF_E_INVAL:
        return MHD_HTTP_BAD_REQUEST;
    case RF_E_DENIED:
        return MHD_HTTP_FORBIDDEN;
    case RF_E_MISMATCH:
        return MHD_HTTP_CONFLICT;
    case RF_E_UNSUPPORTED: /* of what is held here */
        return MHD_HTTP_NOT_FOUND;
    case RF_E_UNREACHABLE: /* loading, draining */
    case RF_E_NOMEM:
    case RF_E_TIMEOUT:
    case RF_E_CHANGED:
    case RF_E_CANCELLED:
        return MHD_HTTP_SERVICE_UNAVAILABLE;
    default:
        return MHD_HTTP_INTERNAL_SERVER_ERROR;
    }
}

static void put_error(struct request *request, struct reply *reply, unsigned status,
                      enum rf_code code, const char *text)
{
    struct buf json = {0};

    buf_printf(&json, "{\"error\":{\"code\":\"%s\",\"message\":", rf_code_name(code));
    buf_json_string(&json, text, strlen(text));
    buf_printf(&json, "}}");
    reply_json(request, reply, status, &json);
}

void reply_error(struct request *request, struct reply *reply, const struct rf_error *err)
{
    put_error(request, reply, status_of(err->code), err->code, err->text);
}

void reply_status(struct request *request, struct reply *reply, unsigned status, enum rf_code code,
                  const char *fmt, ...)
{
    struct rf_error err = {.code = code};
    char text[RF_ERROR_TEXT_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    rf_fail(&err, code, "%s", text);
    put_error(request, reply, status, code, err.text);
}

/* ---- bodies that are made piece by piece ---- */

struct stream {
    struct server *server;
    struct conn *conn;
    struct body_source source;
    bool has_source; /* false: all bytes are in blobs */
    uint64_t from;   /* in the source */
    uint64_t bytes;
};

static void stream_free(void *cls)
{
    struct stream *stream = cls;

    blob_unref(stream->source.head);
    blob_unref(stream->source.tail);
    free(stream);
}

/* Bytes of the source; no more than is left of it is asked for. */
static enum rf_code stream_read(const struct stream *stream, uint64_t at, char *out, size_t bytes,
                                struct rf_error *err)
{
    const struct body_source *source = &stream->source;
    uint64_t head_bytes = source->head != NULL ? source->head->bytes.bytes : 0;
    uint64_t offset = source->offset + (at - head_bytes);

    if (source->kind == BODY_BLOB) {
        memcpy(out, source->tail->bytes.data + offset, bytes);
        return RF_OK;
    }
    const struct store *store = seed_store(stream->server->seed);
    if (source->kind == BODY_FILE)
        return store_read_file(store, source->index, offset, out, bytes, err);
    return store_read_stream(store, source->index, offset, out, bytes, err);
}

/* Nothing may go out once what is served has changed; and the last piece goes out only if it has
 * not until then, since an overwritten file can be read without any error. */
static enum rf_code stream_may_send(const struct stream *stream, uint64_t end, struct rf_error *err)
{
    char reason[SERVER_REASON_BYTES];
    struct seed *seed = stream->server->seed;

    if (seed_state(seed, reason) == SEED_FAILED)
        return rf_fail(err, RF_E_CHANGED, "%s", reason);
    return end == stream->bytes ? store_check(seed_store(seed), err) : RF_OK;
}

static ssize_t stream_next(void *cls, uint64_t pos, char *out, size_t max)
{
    struct stream *stream = cls;
    struct rf_error err = {.code = RF_OK};
    const struct blob *head = stream->source.head;
    uint64_t at = stream->from + pos;
    size_t bytes = max;

    conn_progress(stream->conn);
    if (pos >= stream->bytes)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (bytes > stream->bytes - pos)
        bytes = (size_t)(stream->bytes - pos);
    if (head != NULL && at < head->bytes.bytes) {
        if (bytes > head->bytes.bytes - at)
            bytes = (size_t)(head->bytes.bytes - at);
        memcpy(out, head->bytes.data + at, bytes);
    } else if (stream_read(stream, at, out, bytes, &err) != RF_OK) {
        bytes = 0;
    }
    if (err.code == RF_OK && stream->has_source)
        stream_may_send(stream, pos + bytes, &err);
    if (err.code != RF_OK) {
        log_warn("answer cut off", "reason=\"%s\"", err.text);
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    atomic_fetch_add_explicit(&stream->server->body_bytes, bytes, memory_order_relaxed);
    return (ssize_t)bytes;
}

/* Takes source->head and ->tail over. */
static void reply_stream(struct request *request, struct reply *reply,
                         const struct body_source *source, bool has_source,
                         const struct byte_range *range)
{
    struct stream *stream = malloc(sizeof *stream);

    if (stream == NULL) {
        blob_unref(source->head);
        blob_unref(source->tail);
        return;
    }
    *stream = (struct stream){.server = request->server,
                              .conn = request->conn,
                              .source = *source,
                              .has_source = has_source,
                              .from = range->from,
                              .bytes = range->bytes};
    size_t block = REPLY_BLOCK_BYTES;
    if (range->bytes < block)
        block = range->bytes > 0 ? (size_t)range->bytes : 1;
    reply->response =
        MHD_create_response_from_callback(range->bytes, block, stream_next, stream, stream_free);
    if (reply->response == NULL)
        stream_free(stream);
}

static void blob_release(void *cls)
{
    blob_unref(cls);
}

void reply_blob(struct request *request, struct reply *reply, unsigned status, const char *type,
                struct blob *blob)
{
    struct body_source source = {.head = blob};
    struct byte_range all = {.bytes = blob->bytes.bytes};

    reply->status = status;
    if (blob->bytes.bytes > REPLY_STREAMED_BYTES) {
        reply_stream(request, reply, &source, false, &all);
    } else {
        reply->response = MHD_create_response_from_buffer_with_free_callback_cls(
            blob->bytes.bytes, blob->bytes.data, blob_release, blob);
        if (reply->response == NULL)
            blob_unref(blob);
    }
    common_headers(request, reply, type);
}

void reply_blobs(struct request *request, struct reply *reply, unsigned status, const char *type,
                 struct blob *head, struct blob *tail)
{
    struct body_source source = {.head = head, .tail = tail, .kind = BODY_BLOB};
    struct byte_range all = {.bytes = head->bytes.bytes + tail->bytes.bytes};

    reply->status = status;
    reply_stream(request, reply, &source, false, &all);
    common_headers(request, reply, type);
}

static const char *request_header(const struct request *request, const char *name)
{
    return MHD_lookup_connection_value(request->mhd, MHD_HEADER_KIND, name);
}

/* Whether If-None-Match names the tag, "*", or not (RFC 9110, 13.1.2: weak comparison). */
static bool not_modified(const struct request *request, const char *etag)
{
    const char *wanted = request_header(request, MHD_HTTP_HEADER_IF_NONE_MATCH);

    if (wanted == NULL || etag == NULL)
        return false;
    return strcmp(wanted, "*") == 0 || strstr(wanted, etag) != NULL;
}

static enum range_kind wanted_range(const struct request *request, const struct body_source *source,
                                    struct byte_range *ret_range)
{
    const char *if_range = request_header(request, MHD_HTTP_HEADER_IF_RANGE);

    /* Only GET has ranges (RFC 9110, 14.2). */
    if (request->method != METHOD_GET)
        return RANGE_WHOLE;
    if (if_range != NULL && (source->etag == NULL || strcmp(if_range, source->etag) != 0))
        return RANGE_WHOLE;
    return range_parse(request_header(request, MHD_HTTP_HEADER_RANGE), source->bytes, ret_range);
}

static void reply_unsatisfiable(struct request *request, struct reply *reply,
                                const struct body_source *source)
{
    char text[64];

    reply_status(request, reply, MHD_HTTP_RANGE_NOT_SATISFIABLE, RF_E_INVAL,
                 "the range begins beyond the end: there are %" PRIu64 " bytes", source->bytes);
    snprintf(text, sizeof text, "bytes */%" PRIu64, source->bytes);
    reply_header(reply, MHD_HTTP_HEADER_CONTENT_RANGE, text);
    blob_unref(source->head);
}

/* A weight file can be asked of ranks that do not hold all of it between them: said before the
 * first byte, not by breaking off. */
static bool is_here(struct request *request, struct reply *reply, const struct body_source *source,
                    const struct byte_range *range)
{
    struct rf_error err = {.code = RF_OK};

    if (source->kind != BODY_FILE ||
        store_check_file(seed_store(request->server->seed), source->index, range->from,
                         range->bytes, &err) == RF_OK)
        return true;
    reply_error(request, reply, &err);
    return false;
}

void reply_body(struct request *request, struct reply *reply, const struct body_source *source)
{
    struct byte_range range = {.from = 0, .bytes = source->bytes};
    enum range_kind kind = wanted_range(request, source, &range);
    char text[96];

    if (kind == RANGE_UNSATISFIABLE) {
        reply_unsatisfiable(request, reply, source);
        return;
    }
    if (not_modified(request, source->etag)) {
        blob_unref(source->head);
        reply_empty(request, reply, MHD_HTTP_NOT_MODIFIED);
    } else if (!is_here(request, reply, source, &range)) {
        return;
    } else {
        reply->status = kind == RANGE_PART ? MHD_HTTP_PARTIAL_CONTENT : MHD_HTTP_OK;
        reply_stream(request, reply, source, true, &range);
        common_headers(request, reply, source->type);
        reply_header(reply, MHD_HTTP_HEADER_ACCEPT_RANGES, "bytes");
    }
    if (kind == RANGE_PART && reply->status == MHD_HTTP_PARTIAL_CONTENT) {
        snprintf(text, sizeof text, "bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64, range.from,
                 range.from + range.bytes - 1, source->bytes);
        reply_header(reply, MHD_HTTP_HEADER_CONTENT_RANGE, text);
    }
    if (source->etag != NULL)
        reply_header(reply, MHD_HTTP_HEADER_ETAG, source->etag);
}
