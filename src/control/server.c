#include "control/server.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/internal.h"
#include "control/sglang_http.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

enum {
    SERVER_DEFAULT_CONNECTIONS = 1024,
    SERVER_DEFAULT_REQUEST_MS = 10000,
    SERVER_DEFAULT_IDLE_MS = 30000,
    SERVER_CONNECTION_MEMORY = 32 << 10, /* a request line and headers must fit in it */
    SERVER_MIN_THREADS = 2,              /* of a pool: libmicrohttpd wants more than one */
    SERVER_MAX_THREADS = 4,
    SERVER_STOP_MS = 500, /* answers under way when the server stops */
    SERVER_END_MS = 5000, /* libmicrohttpd's threads notice that connections are closed */
};

/* ---- the paths ---- */

static const struct route routes[] = {
    {"/", METHOD_GET, NULL, route_status_page, 0},
    {"/healthz", METHOD_GET, NULL, route_health, 0},
    {"/metrics", METHOD_GET, NULL, route_metrics, 0},
    {"/v1/instance", METHOD_GET, "", route_instance, 0},
    {"/v1/manifest", METHOD_GET, "format rank", route_manifest, 0},
    {"/v1/digests", METHOD_GET, "rank from known wait_ms", route_digests, 0},
    {"/v1/tensor-digests", METHOD_GET, "rank from wait_ms", route_tensor_digests, 0},
    {"/v1/lease", METHOD_POST | METHOD_PUT | METHOD_DELETE, "", route_lease, 0},
    {"/v1/files", METHOD_GET, "", route_file_list, 0},
    {"/v1/files/", METHOD_GET, "", route_file, 0},
    {"/v1/tensors/", METHOD_GET, "rank", route_tensor, 0},
    {"/v1/ranks/", METHOD_GET, "", route_rank, 0},
    /* SGLang's, which pass over arguments that they do not know. */
    {"/remote_instance_transfer_engine_info", METHOD_GET, NULL, route_engine_info, 0},
    {"/get_remote_instance_transfer_engine_info", METHOD_GET, NULL, route_engine_info, 0},
    {"/server_info", METHOD_GET, NULL, route_server_info, 0},
    {"/get_server_info", METHOD_GET, NULL, route_server_info, 0},
    {"/health", METHOD_GET, NULL, route_sglang_health, 0},
};

const struct route_table instance_routes = {
    .routes = routes,
    .count = sizeof routes / sizeof routes[0],
    .paths = "GET / /healthz /metrics /v1/instance /v1/manifest /v1/digests /v1/tensor-digests "
             "/v1/files /v1/files/NAME /v1/tensors/NAME /v1/ranks/R.safetensors; POST, PUT, DELETE "
             "/v1/lease; GET /health /server_info /remote_instance_transfer_engine_info",
};

static const struct route *find_route(const struct route_table *table, const char *path)
{
    for (unsigned i = 0; i < table->count; i++) {
        const struct route *route = &table->routes[i];
        size_t bytes = strlen(route->path);
        bool below = bytes > 1 && route->path[bytes - 1] == '/';
        if (below ? strncmp(path, route->path, bytes) == 0 : strcmp(path, route->path) == 0)
            return route;
    }
    return NULL;
}

static const struct {
    const char *name;
    enum server_method method;
} methods[] = {
    {"GET", METHOD_GET}, {"HEAD", METHOD_HEAD},     {"POST", METHOD_POST},
    {"PUT", METHOD_PUT}, {"DELETE", METHOD_DELETE},
};
enum { METHOD_COUNT = sizeof methods / sizeof methods[0] };

static enum server_method method_of(const char *name)
{
    for (unsigned i = 0; i < METHOD_COUNT; i++) {
        if (strcmp(name, methods[i].name) == 0)
            return methods[i].method;
    }
    return METHOD_OTHER;
}

static void reply_no_path(struct request *request, struct reply *reply)
{
    if (request->server->table->as_fastapi)
        sglang_reply_detail(request, reply, MHD_HTTP_NOT_FOUND, "Not Found");
    else
        reply_status(request, reply, MHD_HTTP_NOT_FOUND, RF_E_INVAL, "no path %.100s: there are %s",
                     request->target.path, request->server->table->paths);
}

/* What a route must allow. There HEAD is a method of its own, which no route has. */
static enum server_method method_asked(const struct request *request)
{
    bool is_get = request->method == METHOD_HEAD && !request->server->table->as_fastapi;

    return is_get ? METHOD_GET : request->method;
}

static void reply_wrong_method(struct request *request, struct reply *reply,
                               const struct route *route)
{
    char allow[64] = "";

    for (unsigned i = 0; i < METHOD_COUNT; i++) {
        enum server_method asks = methods[i].method == METHOD_HEAD ? METHOD_GET : methods[i].method;
        if ((route->methods & (unsigned)asks) == 0 ||
            (methods[i].method == METHOD_HEAD && request->server->table->as_fastapi))
            continue;
        size_t used = strlen(allow);
        snprintf(allow + used, sizeof allow - used, "%s%s", used > 0 ? ", " : "", methods[i].name);
    }
    if (request->server->table->as_fastapi)
        sglang_reply_detail(request, reply, MHD_HTTP_METHOD_NOT_ALLOWED, "Method Not Allowed");
    else
        reply_status(request, reply, MHD_HTTP_METHOD_NOT_ALLOWED, RF_E_INVAL, "%s allows %s",
                     request->target.path, allow);
    reply_header(reply, MHD_HTTP_HEADER_ALLOW, allow);
}

/* Decides the answer. */
static void dispatch(struct request *request, struct reply *reply)
{
    struct rf_error err = {.code = RF_OK};
    enum server_method asks = method_asked(request);
    const struct route *route = request->route;

    if (request->too_large) {
        reply_status(request, reply, MHD_HTTP_CONTENT_TOO_LARGE, RF_E_INVAL,
                     "the body has more than %" PRIu64 " bytes", request->max_body_bytes);
    } else if (request->no_room) {
        reply_status(request, reply, MHD_HTTP_SERVICE_UNAVAILABLE, RF_E_NOMEM,
                     "too many large bodies at a time: try again");
    } else if (request->target_error.code != RF_OK) {
        reply_error(request, reply, &request->target_error);
    } else if (route == NULL) {
        reply_no_path(request, reply);
    } else if ((route->methods & (unsigned)asks) == 0) {
        reply_wrong_method(request, reply, route);
    } else if (route->args != NULL && target_only(&request->target, route->args, &err) != RF_OK) {
        reply_error(request, reply, &err);
    } else {
        route->fn(request, reply);
    }
}

/* ---- one request ---- */

static enum MHD_Result send_reply(struct request *request, struct reply *reply)
{
    if (reply->response == NULL)
        return MHD_NO;
    enum MHD_Result result = MHD_queue_response(request->mhd, reply->status, reply->response);
    MHD_destroy_response(reply->response);
    if (reply->status < SERVER_MAX_STATUS)
        atomic_fetch_add_explicit(&request->server->by_status[reply->status], 1,
                                  memory_order_relaxed);
    log_debug("http", "method=%d path=\"%s\" status=%u", (int)request->method,
              request->target.path != NULL ? request->target.path : "?", reply->status);
    return result;
}

static enum MHD_Result answer(struct request *request)
{
    struct reply reply = {.status = 0};

    dispatch(request, &reply);
    if (reply.wait) {
        request->waited = true;
        if (conns_wait(request->server->conns, request->conn, reply.wait_ready, request,
                       reply.wait_deadline_ns) == RF_OK)
            return MHD_YES;
        /* There will be no wait: answer with what there is. */
        reply = (struct reply){.status = 0};
        dispatch(request, &reply);
    }
    return send_reply(request, &reply);
}

/* Bytes of the body that the headers announce; 0 if they do not say. */
static uint64_t announced_bytes(const struct request *request)
{
    const char *text =
        MHD_lookup_connection_value(request->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    uint64_t bytes = 0;

    if (text != NULL)
        target_digits(text, strlen(text), UINT64_MAX, &bytes);
    return bytes;
}

/* Which route it is for, and how large a body that takes. */
static void find_target(struct request *request)
{
    request->max_body_bytes = SERVER_MAX_BODY_BYTES;
    if (target_parse(request->text, &request->target, &request->target_error) != RF_OK) {
        request->target.path = NULL;
        return;
    }
    request->route = find_route(request->server->table, request->target.path);
    if (request->route != NULL && request->route->max_body_bytes != 0)
        request->max_body_bytes = request->route->max_body_bytes;
}

/* Bodies up to so many bytes are read to their end. */
static uint64_t swallowed_bytes(const struct request *request)
{
    return request->max_body_bytes > SERVER_MAX_SWALLOWED_BYTES ? request->max_body_bytes
                                                                : SERVER_MAX_SWALLOWED_BYTES;
}

/* The headers are complete. A huge body is refused before it comes; a moderately large one is
 * read to its end, since most clients look for an answer only then. */
static enum MHD_Result begin(struct request *request, struct MHD_Connection *mhd,
                             const char *method)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    uint64_t announced;

    request->begun = true;
    request->mhd = mhd;
    request->conn = info != NULL ? info->socket_context : NULL;
    request->method = method_of(method);
    find_target(request);
    announced = announced_bytes(request);
    bool chunked = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND,
                                               MHD_HTTP_HEADER_TRANSFER_ENCODING) != NULL;
    request->body_to_come = announced > 0 || chunked;
    conns_request(request->server->conns, request->conn, request->body_to_come);
    if (announced > swallowed_bytes(request)) {
        request->too_large = true;
        return answer(request);
    }
    return MHD_YES;
}

/* Counts so many more bytes of a large body; false: there are too many at a time. */
static bool reserve_large(struct request *request, size_t bytes)
{
    struct server *server = request->server;

    if (request->body_seen <= SERVER_MAX_BODY_BYTES)
        return true;
    uint64_t held =
        atomic_fetch_add_explicit(&server->large_bytes, bytes, memory_order_relaxed) + bytes;
    request->large_bytes += bytes;
    return held <= SERVER_MAX_LARGE_BYTES;
}

static void drop_body(struct request *request)
{
    buf_free(&request->body);
    atomic_fetch_sub_explicit(&request->server->large_bytes, request->large_bytes,
                              memory_order_relaxed);
    request->large_bytes = 0;
}

static enum MHD_Result take_body(struct request *request, const char *data, size_t *bytes)
{
    request->body_seen += *bytes;
    request->too_large = request->too_large || request->body_seen > request->max_body_bytes;
    if (!request->too_large && !request->no_room && !reserve_large(request, *bytes))
        request->no_room = true;
    if (request->too_large || request->no_room)
        drop_body(request);
    else
        buf_append(&request->body, data, *bytes);
    *bytes = 0;
    return request->body_seen <= swallowed_bytes(request) ? MHD_YES : MHD_NO;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *mhd, const char *url,
                                 const char *method, const char *version, const char *upload_data,
                                 size_t *upload_data_size, void **con_cls)
{
    struct request *request = *con_cls;

    (void)cls;
    (void)url;
    (void)version;
    if (request == NULL)
        return MHD_NO; /* there was no memory for it */
    if (!request->begun)
        return begin(request, mhd, method);
    if (*upload_data_size > 0)
        return take_body(request, upload_data, upload_data_size);
    if (request->body_to_come)
        conns_request(request->server->conns, request->conn, false);
    request->body_to_come = false;
    return answer(request);
}

/* The request line has come; its target as it was sent, before anything is decoded. */
static void *on_request_line(void *cls, const char *target, struct MHD_Connection *mhd)
{
    struct request *request = calloc(1, sizeof *request);

    (void)mhd;
    if (request == NULL)
        return NULL;
    request->server = cls;
    request->text = strdup(target != NULL ? target : "");
    request->wait_known = UINT64_MAX;
    if (request->text == NULL) {
        free(request);
        return NULL;
    }
    return request;
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                         enum MHD_RequestTerminationCode why)
{
    struct request *request = *con_cls;

    (void)cls;
    (void)mhd;
    (void)why;
    if (request == NULL)
        return;
    if (request->begun)
        conns_idle(request->server->conns, request->conn);
    drop_body(request);
    free(request->text);
    free(request);
    *con_cls = NULL;
}

/* ---- connections ---- */

static enum MHD_Result on_accept(void *cls, const struct sockaddr *address, socklen_t bytes)
{
    const struct server *server = cls;

    (void)address;
    (void)bytes;
    return conns_admit(server->conns) ? MHD_YES : MHD_NO;
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode what)
{
    const struct server *server = cls;

    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        conns_close(server->conns, *socket_context);
        *socket_context = NULL;
        return;
    }
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    *socket_context = info != NULL ? conns_open(server->conns, info->connect_fd, mhd) : NULL;
}

/* We decode targets ourselves: libmicrohttpd would end them at "%00". */
static size_t on_unescape(void *cls, struct MHD_Connection *mhd, char *text)
{
    (void)cls;
    (void)mhd;
    return strlen(text);
}

__attribute__((format(printf, 2, 0))) static void on_log(void *cls, const char *fmt, va_list args)
{
    char line[512];

    (void)cls;
    if (!log_enabled(LOG_DEBUG))
        return;
    vsnprintf(line, sizeof line, fmt, args);
    line[strcspn(line, "\r\n")] = '\0';
    log_debug("libmicrohttpd", "line=\"%s\"", line);
}

/* ---- start and stop ---- */

static struct server_options with_defaults(const struct server_options *options)
{
    struct server_options full = *options;
    struct rlimit files = {.rlim_cur = 0};

    if (full.host == NULL)
        full.host = "127.0.0.1";
    if (full.max_connections == 0)
        full.max_connections = SERVER_DEFAULT_CONNECTIONS;
    if (full.request_timeout_ms == 0)
        full.request_timeout_ms = SERVER_DEFAULT_REQUEST_MS;
    if (full.idle_timeout_ms == 0)
        full.idle_timeout_ms = SERVER_DEFAULT_IDLE_MS;
    /* Twice as many may be open for a moment; and half of the descriptors are the data plane's
     * and the program's. */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur / 4 < full.max_connections) {
        uint32_t fewer = files.rlim_cur / 4 > 8 ? (uint32_t)(files.rlim_cur / 4) : 8;
        log_warn("fewer http connections",
                 "wanted=%" PRIu32 " max=%" PRIu32 " reason=\"ulimit -n is %ju\"",
                 full.max_connections, fewer, (uintmax_t)files.rlim_cur);
        full.max_connections = fewer;
    }
    return full;
}

static bool is_wildcard(const char *host)
{
    return strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0 || strcmp(host, "[::]") == 0;
}

static enum rf_code start_daemon(struct server *server, int fd, struct rf_error *err)
{
    unsigned threads = thread_cpus();
    unsigned idle_s = (server->options.idle_timeout_ms + 999) / 1000;

    threads = threads < SERVER_MIN_THREADS ? SERVER_MIN_THREADS : threads;
    threads = threads > SERVER_MAX_THREADS ? SERVER_MAX_THREADS : threads;
    /* What comes when so many are open waits in the socket's queue: a thread at its part of the
     * limit accepts nothing. */
    unsigned limit = 2 * server->options.max_connections;
    limit = limit < threads ? threads : limit;
    server->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG,
        0, on_accept, server, on_access, server, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_THREAD_POOL_SIZE, threads,
        MHD_OPTION_CONNECTION_LIMIT, limit, MHD_OPTION_CONNECTION_TIMEOUT, idle_s,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)SERVER_CONNECTION_MEMORY,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_UNESCAPE_CALLBACK, on_unescape, NULL,
        MHD_OPTION_URI_LOG_CALLBACK, on_request_line, server, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, NULL, MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_END);
    if (server->daemon == NULL)
        return rf_fail(
            err, RF_E_FAILED,
            "the HTTP server cannot start on %s: libmicrohttpd refuses (--log-level debug "
            "shows why)",
            server->url);
    return RF_OK;
}

static void server_free(struct server *server)
{
    cache_free(&server->cache);
    free(server->model_path);
    free(server);
}

enum rf_code server_start(const struct server_options *options, struct seed *seed,
                          struct server **ret_server, struct rf_error *err)
{
    struct server *server = calloc(1, sizeof *server);
    rf_autoclose int fd = -1;
    enum rf_code code = RF_OK;

    if (server == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for the HTTP server");
    server->seed = seed;
    server->table = options->kind == SERVER_BOOTSTRAP ? &bootstrap_routes : &instance_routes;
    server->options = with_defaults(options);
    server->host_is_wildcard = is_wildcard(server->options.host);
    server->start_ns = clock_now_ns();
    cache_init(&server->cache);
    const struct conns_options conns = {.max = server->options.max_connections,
                                        .request_timeout_ms = server->options.request_timeout_ms,
                                        .idle_timeout_ms = server->options.idle_timeout_ms};
    server->options.model_path = NULL; /* the caller's */
    if (options->model_path != NULL && (server->model_path = strdup(options->model_path)) == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory for the HTTP server");
    if (code == RF_OK)
        code =
            listen_open(server->options.host, options->port, &fd, &server->port, server->url, err);
    server->options.host = NULL; /* the caller's, for this call only */
    if (code == RF_OK)
        code = conns_create(&conns, &server->conns, err);
    if (code == RF_OK)
        code = start_daemon(server, fd, err);
    if (code != RF_OK) {
        conns_destroy(server->conns);
        server_free(server);
        return code;
    }
    fd = -1; /* libmicrohttpd's now */
    log_info("http server listens", "url=%s kind=%s", server->url,
             options->kind == SERVER_BOOTSTRAP ? "bootstrap" : "instance");
    *ret_server = server;
    return RF_OK;
}

const char *server_url(const struct server *server)
{
    return server->url;
}

uint16_t server_port(const struct server *server)
{
    return server->port;
}

void server_stop(struct server *server)
{
    if (server == NULL)
        return;
    /* Two things of libmicrohttpd 0.9.75 are avoided. MHD_quiesce_daemon() races with its own
     * threads for the descriptor, and the loser aborts. And a thread that is about to refuse
     * what is no HTTP uses a NULL pointer once MHD_stop_daemon() has begun: no connection may be
     * left by then. */
    conns_stop(server->conns);
    conns_quiet(server->conns, clock_deadline_ns(SERVER_STOP_MS));
    conns_end(server->conns, clock_deadline_ns(SERVER_END_MS));
    MHD_stop_daemon(server->daemon);
    conns_destroy(server->conns);
    server_free(server);
}
