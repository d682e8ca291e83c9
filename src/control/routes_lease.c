/* Leases: the right to read over the data plane. */
#include "control/instance_json.h"
#include "control/internal.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

static bool address_text(const struct sockaddr *address, char out[ROUTE_ADDRESS_BYTES],
                         uint16_t *ret_port)
{
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;
        *ret_port = ntohs(in->sin_port);
        return inet_ntop(AF_INET, &in->sin_addr, out, ROUTE_ADDRESS_BYTES) != NULL;
    }
    if (address->sa_family != AF_INET6)
        return false;
    const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)(const void *)address;
    *ret_port = ntohs(in->sin6_port);
    if (IN6_IS_ADDR_V4MAPPED(&in->sin6_addr))
        return inet_ntop(AF_INET, in->sin6_addr.s6_addr + 12, out, ROUTE_ADDRESS_BYTES) != NULL;
    return inet_ntop(AF_INET6, &in->sin6_addr, out, ROUTE_ADDRESS_BYTES) != NULL;
}

bool route_local_host(const struct request *request, char out[ROUTE_ADDRESS_BYTES],
                      uint16_t *ret_port)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(request->mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct sockaddr_storage local = {.ss_family = AF_UNSPEC};
    socklen_t bytes = sizeof local;

    return info != NULL && getsockname(info->connect_fd, (struct sockaddr *)&local, &bytes) == 0 &&
           address_text((const struct sockaddr *)&local, out, ret_port);
}

/* Under which URL the client reached us: with a wildcard host only its connection knows. */
static void own_url(const struct request *request, char out[LISTEN_URL_BYTES])
{
    char host[ROUTE_ADDRESS_BYTES];
    uint16_t port = 0;

    snprintf(out, LISTEN_URL_BYTES, "%s", request->server->url);
    if (request->server->host_is_wildcard && route_local_host(request, host, &port))
        snprintf(out, LISTEN_URL_BYTES,
                 strchr(host, ':') != NULL ? "http://[%s]:%u" : "http://%s:%u", host, port);
}

/* A line for people: address, and what the client calls itself. */
static void client_line(const struct request *request, const char *name,
                        char out[SEED_CLIENT_TEXT_BYTES])
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(request->mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    char host[ROUTE_ADDRESS_BYTES] = "?";
    uint16_t port = 0;

    if (info == NULL || !address_text(info->client_addr, host, &port))
        snprintf(host, sizeof host, "?");
    snprintf(out, SEED_CLIENT_TEXT_BYTES, "%s%s%s", host, name[0] != '\0' ? " " : "", name);
}

static void reply_lease(struct request *request, struct reply *reply, const struct store *store,
                        const uint8_t token[CHUNK_TOKEN_BYTES], uint64_t ttl_ms)
{
    char url[LISTEN_URL_BYTES];
    char id[HASH_TEXT_BYTES];
    char text[2 * CHUNK_TOKEN_BYTES + 1];
    struct buf json = {0};
    uint32_t count = 0;

    own_url(request, url);
    route_manifest_id(store->manifest, id);
    lease_token_text(token, text);
    const struct endpoint *endpoints = seed_endpoints(request->server->seed, &count);
    buf_printf(&json,
               "{\"token\":\"%s\",\"ttl_ms\":%" PRIu64 ",\"manifest_id\":\"%s\",\"endpoints\":",
               text, ttl_ms, id);
    endpoints_json(endpoints, count, &json);
    buf_printf(&json, ",\"sources\":[{\"url\":");
    buf_json_string(&json, url, strlen(url));
    buf_printf(&json, "}]}");
    reply_json(request, reply, MHD_HTTP_CREATED, &json);
}

static void open_lease(struct request *request, struct reply *reply)
{
    struct store *store = route_store(request, reply);
    struct lease_request wanted = {.client = ""};
    struct rf_error err = {.code = RF_OK};
    uint8_t token[CHUNK_TOKEN_BYTES];
    char client[SEED_CLIENT_TEXT_BYTES];
    char id[HASH_TEXT_BYTES];
    uint64_t ttl_ms = 0;

    if (store == NULL)
        return;
    if (lease_request_parse(request->body.data, request->body.bytes, &wanted, &err) != RF_OK) {
        reply_error(request, reply, &err);
        return;
    }
    route_manifest_id(store->manifest, id);
    if (wanted.manifest_id[0] != '\0' && strcasecmp(wanted.manifest_id, id) != 0) {
        reply_status(request, reply, MHD_HTTP_CONFLICT, RF_E_MISMATCH,
                     "this seed serves manifest %s, not %s: fetch /v1/manifest again", id,
                     wanted.manifest_id);
        return;
    }
    client_line(request, wanted.client, client);
    enum rf_code code = seed_lease_open(request->server->seed, client, token, &ttl_ms, &err);
    if (code == RF_E_NOMEM)
        reply_status(request, reply, MHD_HTTP_TOO_MANY_REQUESTS, code, "%s", err.text);
    else if (code != RF_OK)
        reply_error(request, reply, &err);
    else
        reply_lease(request, reply, store, token, ttl_ms);
}

/* "Bearer HEX"; false: the answer says what is missing. */
static bool bearer_token(struct request *request, struct reply *reply,
                         uint8_t ret_token[CHUNK_TOKEN_BYTES])
{
    const char *text =
        MHD_lookup_connection_value(request->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);

    if (text != NULL && strncasecmp(text, "Bearer ", 7) == 0 &&
        lease_token_parse(text + 7, ret_token))
        return true;
    reply_status(request, reply, MHD_HTTP_UNAUTHORIZED, RF_E_DENIED,
                 "%s: send \"Authorization: Bearer TOKEN\" with the %d hex digits of the lease",
                 text == NULL ? "no token" : "not a token", 2 * CHUNK_TOKEN_BYTES);
    return false;
}

void route_lease(struct request *request, struct reply *reply)
{
    uint8_t token[CHUNK_TOKEN_BYTES];
    struct rf_error err = {.code = RF_OK};
    enum rf_code code = RF_OK;

    if (request->method == METHOD_POST) {
        open_lease(request, reply);
        return;
    }
    if (!bearer_token(request, reply, token))
        return;
    if (request->method == METHOD_PUT)
        code = seed_lease_renew(request->server->seed, token, &err);
    else
        code = seed_lease_close(request->server->seed, token, &err);
    if (code != RF_OK)
        reply_error(request, reply, &err);
    else
        reply_empty(request, reply, MHD_HTTP_NO_CONTENT);
}
