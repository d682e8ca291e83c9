#include "control/listen.h"

#include "base/cleanup.h"

#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { LISTEN_BACKLOG = 4096, LISTEN_HOST_BYTES = 256 };

/* Takes the brackets off "[::1]". */
static enum rf_code plain_host(const char *host, char out[LISTEN_HOST_BYTES], struct rf_error *err)
{
    size_t bytes = strlen(host);
    bool bracketed = bytes >= 2 && host[0] == '[' && host[bytes - 1] == ']';

    if (bracketed) {
        host++;
        bytes -= 2;
    }
    if (strcmp(host, "*") == 0)
        return rf_fail(err, RF_E_INVAL,
                       "host \"*\": to listen on all addresses give 0.0.0.0, or :: for those of "
                       "IPv6 too");
    if (bytes == 0 || bytes >= LISTEN_HOST_BYTES || strpbrk(host, " \t\r\n/") != NULL)
        return rf_fail(err, RF_E_INVAL, "host \"%.256s\": not a name or address to listen on",
                       host);
    memcpy(out, host, bytes);
    out[bytes] = '\0';
    return RF_OK;
}

static enum rf_code bind_failed(const char *host, uint16_t port, struct rf_error *err)
{
    int number = errno;

    if (number == EADDRINUSE) {
        enum rf_code code = rf_fail(
            err, RF_E_SYS, "port %u on %s is taken: pass --port 0 for a free one", port, host);
        if (err != NULL)
            err->sys_errno = number;
        return code;
    }
    errno = number;
    return rf_fail_sys(err, "cannot listen on %.64s, port %u%s", host, port,
                       number == EACCES && port < 1024 ? " (below 1024 it needs privileges)" : "");
}

static enum rf_code open_address(const struct addrinfo *at, const char *host, uint16_t port,
                                 int *ret_fd, struct rf_error *err)
{
    rf_autoclose int fd =
        socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    int on = 1;

    if (fd < 0)
        return rf_fail_sys(err, "cannot make a socket for %s", host);
    /* Without it a restarted seed could not have its port back for a minute. */
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (at->ai_family == AF_INET6) {
        int off = 0; /* "::" means all addresses, those of IPv4 too */
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    }
    if (bind(fd, at->ai_addr, at->ai_addrlen) != 0 || listen(fd, LISTEN_BACKLOG) != 0)
        return bind_failed(host, port, err);
    *ret_fd = rf_take(fd, -1);
    return RF_OK;
}

static uint16_t port_of(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in ipv4;
        struct sockaddr_in6 ipv6;
    } address = {.ipv6 = {.sin6_family = AF_UNSPEC}};
    socklen_t bytes = sizeof address;

    if (getsockname(fd, &address.any, &bytes) != 0)
        return 0;
    return ntohs(address.any.sa_family == AF_INET6 ? address.ipv6.sin6_port
                                                   : address.ipv4.sin_port);
}

enum rf_code listen_open(const char *host, uint16_t port, int *ret_fd, uint16_t *ret_port,
                         char url_out[LISTEN_URL_BYTES], struct rf_error *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char name[LISTEN_HOST_BYTES];
    char service[8];
    int fd = -1;

    enum rf_code code = plain_host(host, name, err);
    if (code != RF_OK)
        return code;
    snprintf(service, sizeof service, "%u", port);
    int rc = getaddrinfo(name, service, &hints, &found);
    if (rc != 0)
        return rf_fail(err, RF_E_INVAL, "host %s: cannot be listened on: %s", name,
                       gai_strerror(rc));
    /* The first address that works; the error of the first, since later ones are second choices. */
    code = open_address(found, name, port, &fd, err);
    for (const struct addrinfo *at = found->ai_next; at != NULL && code != RF_OK;
         at = at->ai_next) {
        if (open_address(at, name, port, &fd, NULL) == RF_OK)
            code = RF_OK;
    }
    freeaddrinfo(found);
    if (code != RF_OK)
        return code;
    *ret_port = port_of(fd);
    snprintf(url_out, LISTEN_URL_BYTES,
             strchr(name, ':') != NULL ? "http://[%s]:%u" : "http://%s:%u", name, *ret_port);
    *ret_fd = fd;
    return RF_OK;
}
