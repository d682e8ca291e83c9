#include "transport/net/socket.h"

#include "base/cleanup.h"

#include <arpa/inet.h>
#include <limits.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

enum { NET_NEAR_US = 1000 };

/* ---- addresses ---- */

static void address_set(const struct addrinfo *found, struct net_address *ret_address)
{
    *ret_address = (struct net_address){.bytes = found->ai_addrlen};
    memcpy(&ret_address->any, found->ai_addr, found->ai_addrlen);
}

/* 1 to 65535 in decimal digits. getaddrinfo() would take 99999 for 34463. */
static bool port_ok(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    uint32_t port = 0;

    if (digits == 0 || digits > 5 || text[digits] != '\0')
        return false;
    for (size_t i = 0; i < digits; i++)
        port = port * 10 + (uint32_t)(text[i] - '0');
    return port > 0 && port <= UINT16_MAX;
}

enum rf_code net_address_parse(const char *text, struct net_address *ret_address,
                               struct rf_error *err)
{
    char host[NET_ADDRESS_TEXT_BYTES];
    const char *colon = strrchr(text, ':');
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
    };
    struct addrinfo *found = NULL;

    size_t bytes = colon != NULL ? (size_t)(colon - text) : 0;
    bool bracketed = bytes > 2 && text[0] == '[' && text[bytes - 1] == ']';
    size_t skip = bracketed ? 1 : 0;
    size_t host_bytes = bytes > 2 * skip ? bytes - 2 * skip : 0;
    bool ok = host_bytes > 0 && host_bytes < sizeof host && port_ok(colon + 1);
    if (ok) {
        memcpy(host, text + skip, host_bytes);
        host[host_bytes] = '\0';
        ok = (strchr(host, ':') != NULL) == bracketed &&
             getaddrinfo(host, colon + 1, &hints, &found) == 0;
    }
    if (!ok)
        return rf_fail(err, RF_E_INVAL, "\"%s\" is not IP:PORT or [IP6]:PORT", text);
    address_set(found, ret_address);
    freeaddrinfo(found);
    return RF_OK;
}

const char *net_address_text(const struct net_address *address, char out[NET_ADDRESS_TEXT_BYTES])
{
    char host[INET6_ADDRSTRLEN + 1 + IF_NAMESIZE] = "?";
    char port[8] = "?";
    bool v6 = address->any.sa_family == AF_INET6;

    /* What cannot be told stays "?:?". */
    (void)getnameinfo(&address->any, address->bytes, host, sizeof host, port, sizeof port,
                      NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(out, NET_ADDRESS_TEXT_BYTES, "%s%s%s:%s", v6 ? "[" : "", host, v6 ? "]" : "", port);
    return out;
}

/* ---- listening ---- */

static enum rf_code resolve(const char *host, uint16_t port, struct net_address *ret_address,
                            struct rf_error *err)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
    };
    char port_text[8];
    struct addrinfo *found = NULL;

    snprintf(port_text, sizeof port_text, "%u", port);
    const char *name = host != NULL && host[0] != '\0' ? host : "0.0.0.0";
    int rc = getaddrinfo(name, port_text, &hints, &found);
    if (rc != 0)
        return rf_fail(err, RF_E_INVAL, "cannot listen on host \"%s\": %s", name, gai_strerror(rc));
    address_set(found, ret_address);
    freeaddrinfo(found);
    return RF_OK;
}

enum rf_code net_listen(const char *host, uint16_t port, int backlog, int *ret_fd,
                        struct net_address *ret_address, struct rf_error *err)
{
    struct net_address address = {.bytes = 0};
    char text[NET_ADDRESS_TEXT_BYTES];
    const int on = 1;
    const int off = 0;

    enum rf_code code = resolve(host, port, &address, err);
    if (code != RF_OK)
        return code;
    net_address_text(&address, text);
    rf_autoclose int fd =
        socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return rf_fail_sys(err, "socket for %s", text);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address.any.sa_family == AF_INET6) /* "::" means everyone, whatever the system's default */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, &address.any, address.bytes) != 0)
        return rf_fail_sys(err, "bind to %s", text);
    if (listen(fd, backlog) != 0)
        return rf_fail_sys(err, "listen on %s", text);
    address.bytes = sizeof address.v6;
    if (getsockname(fd, &address.any, &address.bytes) != 0)
        return rf_fail_sys(err, "getsockname of %s", text);
    *ret_address = address;
    *ret_fd = rf_take(fd, -1);
    return RF_OK;
}

bool net_address_is_any(const struct net_address *address)
{
    return address->any.sa_family == AF_INET ? address->v4.sin_addr.s_addr == htonl(INADDR_ANY)
                                             : IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr);
}

/* ---- options ---- */

void net_tune(int fd, uint64_t silent_ms)
{
    const int on = 1;
    const int ms = silent_ms < INT_MAX ? (int)silent_ms : INT_MAX;
    const int interval_s = ms / 4000 > 0 ? ms / 4000 : 1;
    const int probes = 3;

    /* Each is a wish: without it things work, only later or slower. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &interval_s, sizeof interval_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

/* Whether both ends have the same address. */
static bool is_own_host(int fd)
{
    struct net_address here = {.bytes = sizeof here.v6};
    struct net_address there = {.bytes = sizeof there.v6};

    if (getsockname(fd, &here.any, &here.bytes) != 0 ||
        getpeername(fd, &there.any, &there.bytes) != 0 || here.any.sa_family != there.any.sa_family)
        return false;
    if (here.any.sa_family == AF_INET)
        return here.v4.sin_addr.s_addr == there.v4.sin_addr.s_addr;
    return memcmp(&here.v6.sin6_addr, &there.v6.sin6_addr, sizeof here.v6.sin6_addr) == 0;
}

/* Whether the peer is as near as a machine of the same network is: the handshake took no longer. */
static bool is_near(int fd)
{
    struct tcp_info info = {0};
    socklen_t bytes = sizeof info;

    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0 && info.tcpi_rtt > 0 &&
           info.tcpi_rtt < NET_NEAR_US;
}

void net_tune_listener(int fd, char ret_far[NET_CONGESTION_BYTES])
{
    static const char cubic[] = "cubic";
    char name[NET_CONGESTION_BYTES] = "";
    socklen_t bytes = sizeof name - 1;

    ret_far[0] = '\0';
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes) == 0 &&
        strncmp(name, "bbr", 3) == 0 &&
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, cubic, sizeof cubic - 1) == 0)
        memcpy(ret_far, name, sizeof name);
}

void net_tune_accepted(int fd, const char *far)
{
    if (far[0] != '\0' && !is_near(fd) && !is_own_host(fd))
        (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, far, (socklen_t)strlen(far));
}
