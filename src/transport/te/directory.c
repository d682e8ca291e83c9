#include "transport/te/directory.h"

#include "base/clock.h"
#include "transport/te/handshake.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A host and a port, taken apart. */
struct reach_name {
    char host[TE_MAX_NAME_BYTES + 1];
    uint16_t port;
};

/* "HOST:PORT" or "[IP6]:PORT". */
static bool split(const char *text, struct reach_name *ret_name)
{
    const char *colon = strrchr(text, ':');
    size_t bytes = colon != NULL ? (size_t)(colon - text) : 0;
    bool bracketed = bytes > 2 && text[0] == '[' && text[bytes - 1] == ']';
    size_t digits = colon != NULL ? strspn(colon + 1, "0123456789") : 0;
    struct reach_name name = {.port = 0};
    unsigned port = 0;

    if (bracketed) {
        text++;
        bytes -= 2;
    }
    if (bytes == 0 || bytes >= sizeof name.host || digits == 0 || digits > 5 ||
        colon[1 + digits] != '\0')
        return false;
    for (size_t i = 0; i < digits; i++)
        port = port * 10 + (unsigned)(colon[1 + i] - '0');
    memcpy(name.host, text, bytes);
    name.host[bytes] = '\0';
    name.port = (uint16_t)port;
    *ret_name = name;
    return port > 0 && port <= UINT16_MAX && strpbrk(name.host, "[]") == NULL &&
           (strchr(name.host, ':') != NULL) == bracketed;
}

/* ---- who may have the data ---- */

/* What a question to the engine left. */
struct asked {
    const char *session;
    const struct net_peer *peer;
    const struct te_reach *reach;
    uint64_t deadline_ns;
    struct net_address dialled; /* the address that answered */
};

static bool is_among(const struct net_address *address, const struct net_address *others,
                     unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (net_same_host(address, &others[i]))
            return true;
    }
    return false;
}

/* Whether an entry of the list of allowed hosts is this address. */
static bool entry_allows(const struct asked *asked, const char *entry,
                         const struct net_address *address)
{
    struct net_address found[NET_MAX_RESOLVED];
    unsigned count = 0;

    return strcmp(entry, "any") == 0 ||
           (net_resolve(asked->peer, entry, 0, asked->deadline_ns, found, &count, NULL) == RF_OK &&
            is_among(address, found, count));
}

static bool is_allowed(const struct asked *asked, const struct net_address *address)
{
    const char *at = asked->reach->allowed_hosts;

    while (at != NULL && *at != '\0') {
        char entry[TE_MAX_NAME_BYTES + 1];
        size_t bytes = strcspn(at, ",");

        (void)snprintf(entry, sizeof entry, "%.*s",
                       (int)(bytes < sizeof entry ? bytes : sizeof entry - 1), at);
        if (entry_allows(asked, entry, address))
            return true;
        at += bytes;
        at += *at == ',';
    }
    return false;
}

static enum rf_code fail_foreign(const struct asked *asked, const char *host, struct rf_error *err)
{
    char text[NET_ADDRESS_TEXT_BYTES];

    return rf_fail(err, RF_E_DENIED,
                   "engine %s answered at %s but says that its data is at host %s: taken for an "
                   "attack; if that host is right, allow it: --te-data-host %s",
                   asked->session, net_address_text(&asked->dialled, text), host, host);
}

/* Where its data is. Releases from 0.3.13 on say it in a field of its own; before, it is the host by
 * which the engine knows itself. */
static enum rf_code find_data(const struct asked *asked, const struct te_descriptor *descriptor,
                              struct net_address *ret_data, struct rf_error *err)
{
    struct net_address found[NET_MAX_RESOLVED];
    struct net_address data = asked->dialled;
    struct reach_name name = {.port = 0};
    const char *host = descriptor->data_host;
    unsigned count = 0;

    net_set_port(&data, descriptor->data_port);
    if (host[0] == '\0' && split(descriptor->name, &name))
        host = name.host;
    if (host[0] == '\0') {
        *ret_data = data;
        return RF_OK;
    }
    enum rf_code code = net_resolve(asked->peer, host, descriptor->data_port, asked->deadline_ns,
                                    found, &count, err);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "where engine %s has its data", asked->session);
    if (!is_among(&data, found, count) && !net_address_is_any(&found[0])) {
        unsigned i = 0;
        while (i < count && !is_allowed(asked, &found[i]))
            i++;
        if (i == count)
            return fail_foreign(asked, host, err);
        data = found[i];
    }
    *ret_data = data;
    return RF_OK;
}

static enum rf_code check_tcp(const struct asked *asked, const struct te_descriptor *descriptor,
                              struct rf_error *err)
{
    if (strcmp(descriptor->protocol, "tcp") != 0)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "engine %s moves data over %s, only tcp is possible here; with "
                       "MC_FORCE_TCP=1 in its environment it does",
                       asked->session, descriptor->protocol);
    if (descriptor->data_port == 0)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "engine %s says no port for its data: releases before 0.3.5 cannot be read",
                       asked->session);
    return RF_OK;
}

/* ---- opening ---- */

/* Asks at each address of the host until one answers. */
static enum rf_code ask_any(struct asked *asked, const struct net_address *found, unsigned count,
                            struct te_descriptor *ret_descriptor, struct rf_error *err)
{
    enum rf_code code = RF_E_UNREACHABLE;

    for (unsigned i = 0; i < count; i++) {
        /* An address that leads nowhere leaves time for the others. */
        uint64_t now_ns = clock_now_ns();
        uint64_t left_ns = asked->deadline_ns > now_ns ? asked->deadline_ns - now_ns : 0;

        code = te_handshake(asked->peer, &found[i], now_ns + left_ns / (count - i), ret_descriptor,
                            err);
        if (code == RF_OK)
            asked->dialled = found[i];
        if (code != RF_E_UNREACHABLE && code != RF_E_TIMEOUT)
            return code;
    }
    return code;
}

static enum rf_code directory_ask(struct asked *asked, const struct reach_name *name,
                                  struct transport_directory *directory, struct rf_error *err)
{
    struct net_address found[NET_MAX_RESOLVED];
    unsigned count = 0;
    enum rf_code code =
        net_resolve(asked->peer, name->host, name->port, asked->deadline_ns, found, &count, err);

    if (code == RF_OK)
        code = ask_any(asked, found, count, &directory->descriptor, err);
    if (code == RF_OK)
        code = check_tcp(asked, &directory->descriptor, err);
    if (code == RF_OK)
        code = find_data(asked, &directory->descriptor, &directory->data, err);
    directory->dialled = asked->dialled;
    return code;
}

enum rf_code te_directory_open(const char *session, const struct te_reach *reach,
                               struct transport_directory **ret_directory, struct rf_error *err)
{
    struct net_peer peer = {
        .kind = "engine",
        .timeout_ms = reach->timeout_ms != 0 ? reach->timeout_ms : TE_TIMEOUT_MS,
        .cancel = reach->cancel,
        .cancel_fd = reach->cancel_fd,
    };
    struct asked asked = {.session = session,
                          .peer = &peer,
                          .reach = reach,
                          .deadline_ns = clock_deadline_ns(peer.timeout_ms)};
    struct reach_name name;

    if (!split(session, &name))
        return rf_fail(err, RF_E_INVAL,
                       "\"%s\" is no session id: HOST:PORT, or [IP6]:PORT, of an engine", session);
    (void)snprintf(peer.text, sizeof peer.text, "%s", session);
    struct transport_directory *directory = calloc(1, sizeof *directory);
    if (directory == NULL)
        return rf_fail(err, RF_E_NOMEM, "engine %s: no memory for its directory", session);
    enum rf_code code = directory_ask(&asked, &name, directory, err);
    if (code != RF_OK) {
        te_directory_close(directory);
        return code;
    }
    *ret_directory = directory;
    return RF_OK;
}

void te_directory_close(struct transport_directory *directory)
{
    if (directory == NULL)
        return;
    te_places_free(&directory->places);
    te_descriptor_free(&directory->descriptor);
    free(directory);
}

void te_directory_address(const struct transport_directory *directory,
                          char ret_text[TRANSPORT_ADDRESS_BYTES])
{
    char text[NET_ADDRESS_TEXT_BYTES];

    (void)snprintf(ret_text, TRANSPORT_ADDRESS_BYTES, "%s",
                   net_address_text(&directory->dialled, text));
}

const struct te_descriptor *te_directory_descriptor(const struct transport_directory *directory)
{
    return &directory->descriptor;
}

enum rf_code te_directory_set_rank(struct transport_directory *directory, uint32_t rank,
                                   const struct te_segment *segments, uint64_t count,
                                   uint64_t stream_bytes, struct rf_error *err)
{
    return te_places_set(&directory->places, &directory->descriptor, rank, segments, count,
                         stream_bytes, err);
}
