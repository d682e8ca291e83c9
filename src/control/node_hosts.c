#include "control/node_hosts.h"

#include "base/cleanup.h"

#include <ctype.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- which ranks are where ---- */

enum rf_code node_span(uint32_t tp_size, uint32_t node_count, uint32_t node,
                       struct node_span *ret_span, struct rf_error *err)
{
    if (node_count == 0 || node_count > NODE_HOSTS_MAX)
        return rf_fail(err, RF_E_INVAL, "%" PRIu32 " nodes: 1 to %d are possible", node_count,
                       NODE_HOSTS_MAX);
    if (node >= node_count)
        return rf_fail(err, RF_E_INVAL,
                       "node %" PRIu32 " does not exist: with %" PRIu32 " there are 0 to %" PRIu32,
                       node, node_count, node_count - 1);
    if (tp_size == 0 || tp_size % node_count != 0)
        return rf_fail(err, RF_E_INVAL,
                       "%" PRIu32 " rank%s cannot be divided equally among %" PRIu32 " nodes",
                       tp_size, tp_size == 1 ? "" : "s", node_count);
    uint32_t count = tp_size / node_count;
    *ret_span = (struct node_span){.first = count * node, .count = count};
    return RF_OK;
}

uint32_t node_of_rank(uint32_t tp_size, uint32_t node_count, uint32_t rank)
{
    return rank / (tp_size / node_count);
}

/* ---- where nodes are ---- */

/* A name or an address, without a port and without brackets: nothing else ends up in a URL. */
static enum rf_code check_host(const char *host, size_t bytes, struct rf_error *err)
{
    if (bytes == 0)
        return rf_fail(err, RF_E_INVAL, "the address is empty");
    if (bytes >= NODE_HOST_BYTES)
        return rf_fail(err, RF_E_INVAL, "an address of %zu bytes: allowed are %d", bytes,
                       NODE_HOST_BYTES - 1);
    for (size_t i = 0; i < bytes; i++) {
        if (!isalnum((unsigned char)host[i]) && strchr("-._:%", host[i]) == NULL)
            return rf_fail(err, RF_E_INVAL, "\"%.*s\" is no address: a host name or an IP address",
                           (int)bytes, host);
    }
    const char *colon = memchr(host, ':', bytes);
    if (colon != NULL && memchr(colon + 1, ':', (size_t)(host + bytes - colon - 1)) == NULL)
        return rf_fail(err, RF_E_INVAL, "\"%.*s\": an address without a port is wanted", (int)bytes,
                       host);
    return RF_OK;
}

static enum rf_code take_host(const char *text, char *ret_host, struct rf_error *err)
{
    size_t bytes = strlen(text);
    bool brackets = bytes > 2 && text[0] == '[' && text[bytes - 1] == ']';
    const char *host = brackets ? text + 1 : text;
    size_t host_bytes = brackets ? bytes - 2 : bytes;
    enum rf_code code = check_host(host, host_bytes, err);

    if (code != RF_OK)
        return code;
    memcpy(ret_host, host, host_bytes);
    ret_host[host_bytes] = '\0';
    return RF_OK;
}

/* Digits as one writes a number, so that no node can be there twice. */
static enum rf_code node_key(const char *key, uint32_t node_count, uint32_t *ret_node,
                             struct rf_error *err)
{
    size_t digits = strspn(key, "0123456789");
    bool plain = digits > 0 && key[digits] == '\0' && (key[0] != '0' || digits == 1);

    if (!plain)
        return rf_fail(err, RF_E_INVAL, "\"%.40s\" is no node: keys are \"0\", \"1\" and so on",
                       key);
    uint32_t node = digits <= 6 ? (uint32_t)strtoul(key, NULL, 10) : UINT32_MAX;
    if (node >= node_count)
        return rf_fail(err, RF_E_INVAL,
                       "node %.40s does not exist: there %s %" PRIu32 " node%s, from 0 on", key,
                       node_count == 1 ? "is" : "are", node_count, node_count == 1 ? "" : "s");
    *ret_node = node;
    return RF_OK;
}

static enum rf_code hosts_fill(json_t *object, struct node_hosts *hosts, struct rf_error *err)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value)
    {
        uint32_t node = 0;
        enum rf_code code = node_key(key, hosts->count, &node, err);

        if (code == RF_OK && !json_is_string(value))
            code = rf_fail(err, RF_E_INVAL, "node %s: its address is no string", key);
        if (code == RF_OK)
            code = take_host(json_string_value(value), hosts->hosts[node], err);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

static enum rf_code hosts_check(const struct node_hosts *hosts, struct rf_error *err)
{
    for (uint32_t i = 0; i < hosts->count; i++) {
        if (hosts->hosts[i][0] == '\0')
            return rf_fail(err, RF_E_INVAL, "the address of node %" PRIu32 " is missing", i);
        for (uint32_t j = 1; j < i; j++) {
            if (strcasecmp(hosts->hosts[i], hosts->hosts[j]) == 0)
                return rf_fail(err, RF_E_INVAL,
                               "nodes %" PRIu32 " and %" PRIu32 " have the same address, %s", j, i,
                               hosts->hosts[i]);
        }
    }
    return RF_OK;
}

enum rf_code node_hosts_parse(const char *json, uint32_t node_count, struct node_hosts *ret_hosts,
                              struct rf_error *err)
{
    struct node_hosts hosts = {.count = node_count};
    json_error_t why = {.line = 0};

    if (node_count == 0 || node_count > NODE_HOSTS_MAX)
        return rf_fail(err, RF_E_INVAL, "%" PRIu32 " nodes: 1 to %d are possible", node_count,
                       NODE_HOSTS_MAX);
    json_t *object = json_loads(json, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(object)) {
        json_decref(object);
        return rf_fail(err, RF_E_INVAL, "not a JSON object such as {\"0\":\"10.0.0.1\"}: %s",
                       object == NULL ? why.text : "it is something else");
    }
    hosts.hosts = calloc(node_count, sizeof(*hosts.hosts));
    enum rf_code code = hosts.hosts != NULL ? hosts_fill(object, &hosts, err)
                                            : rf_fail(err, RF_E_NOMEM, "no memory for addresses");
    json_decref(object);
    if (code == RF_OK)
        code = hosts_check(&hosts, err);
    if (code != RF_OK) {
        node_hosts_free(&hosts);
        return code;
    }
    *ret_hosts = hosts;
    return RF_OK;
}

void node_hosts_free(struct node_hosts *hosts)
{
    free(hosts->hosts);
    *hosts = (struct node_hosts){.count = 0};
}

/* ---- ports ---- */

enum rf_code node_address_parse(const char *text, struct node_address *ret_address,
                                struct rf_error *err)
{
    const char *colon = strrchr(text, ':');
    size_t digits = colon != NULL ? strspn(colon + 1, "0123456789") : 0;
    unsigned long port = digits > 0 && digits <= 5 ? strtoul(colon + 1, NULL, 10) : 0;
    struct node_address address = {.port = (uint16_t)port};
    char host[NODE_HOST_BYTES + 2];

    if (colon == NULL || colon[1 + digits] != '\0' || port == 0 || port > UINT16_MAX)
        return rf_fail(err, RF_E_INVAL, "\"%.200s\" is not HOST:PORT with a port of 1 to 65535",
                       text);
    size_t bytes = (size_t)(colon - text);
    if (bytes >= sizeof(host))
        return rf_fail(err, RF_E_INVAL, "an address of %zu bytes: allowed are %d", bytes,
                       NODE_HOST_BYTES - 1);
    memcpy(host, text, bytes);
    host[bytes] = '\0';
    if (host[0] != '[' && strchr(host, ':') != NULL)
        return rf_fail(err, RF_E_INVAL, "\"%.200s\": write an IPv6 address in brackets: [%s]%s",
                       text, host, colon);
    enum rf_code code = take_host(host, address.host, err);
    if (code == RF_OK)
        *ret_address = address;
    return code;
}

static enum rf_code ports_fill(const json_t *array, uint16_t *ports, struct rf_error *err)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *item = json_array_get(array, i);
        json_int_t port = json_is_integer(item) ? json_integer_value(item) : -1;

        if (!json_is_integer(item))
            return rf_fail(err, RF_E_INVAL, "port %zu of the list is no whole number", i);
        if (port < 1 || port > UINT16_MAX)
            return rf_fail(err, RF_E_INVAL, "port %zu of the list: %" PRId64 " is not in 1 ... %d",
                           i, (int64_t)port, UINT16_MAX);
        for (size_t j = 0; j < i; j++) {
            if (ports[j] == port)
                return rf_fail(err, RF_E_INVAL, "port %" PRId64 " is in the list twice",
                               (int64_t)port);
        }
        ports[i] = (uint16_t)port;
    }
    return RF_OK;
}

enum rf_code node_ports_parse(const char *json, uint32_t count, uint16_t **ret_ports,
                              struct rf_error *err)
{
    json_error_t why = {.line = 0};
    json_t *array = json_loads(json, 0, &why);
    rf_autofree uint16_t *ports = calloc(count > 0 ? count : 1, sizeof(*ports));
    enum rf_code code = RF_OK;

    if (!json_is_array(array))
        code = rf_fail(err, RF_E_INVAL, "not a JSON list such as [50000,50001]: %s",
                       array == NULL ? why.text : "it is something else");
    else if (json_array_size(array) != count)
        code = rf_fail(err, RF_E_INVAL, "%zu port%s for %" PRIu32 " rank%s: one for each is needed",
                       json_array_size(array), json_array_size(array) == 1 ? "" : "s", count,
                       count == 1 ? "" : "s");
    else if (ports == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory for ports");
    else
        code = ports_fill(array, ports, err);
    json_decref(array);
    if (code == RF_OK)
        *ret_ports = rf_take(ports, NULL);
    return code;
}
