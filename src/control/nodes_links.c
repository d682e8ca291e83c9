#include "control/nodes_links.h"

#include "base/log.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/socket.h>
/* glibc's netinet/tcp.h does not know how much a connection has received, and excludes this one. */
#include <linux/tcp.h>

bool links_init(struct links *links, uint32_t max)
{
    *links = (struct links){.links = calloc((size_t)max + 1, sizeof(struct link)), .max = max};
    return links->links != NULL;
}

void links_free(struct links *links)
{
    free(links->links);
    *links = (struct links){.links = NULL};
}

static struct link *find(struct links *links, int fd)
{
    for (uint32_t i = 0; i < links->count; i++) {
        if (links->links[i].fd == fd)
            return &links->links[i];
    }
    return NULL;
}

void links_opened(struct links *links, int fd)
{
    struct link *link = find(links, fd);

    if (link == NULL && links->count <= links->max)
        link = &links->links[links->count++];
    if (link != NULL)
        *link = (struct link){.fd = fd};
    links->too_many = links->too_many || link == NULL || links->count > links->max;
}

void links_closed(struct links *links, int fd)
{
    struct link *link = find(links, fd);

    if (link != NULL)
        *link = links->links[--links->count];
}

void links_clear(struct links *links)
{
    links->count = 0;
    links->too_many = false;
}

/* What has come in all; 0 for a descriptor that is none any more. */
static uint64_t received(int fd)
{
    struct tcp_info info = {.tcpi_bytes_received = 0};
    socklen_t bytes = sizeof info;

    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0)
        return 0;
    return info.tcpi_bytes_received;
}

void links_asked(struct links *links, int fd)
{
    struct link *link = find(links, fd);

    if (link != NULL)
        link->asked_bytes = received(fd);
}

/* The descriptor is libzmq's, which may have closed it a moment ago: whatever has its number now
 * shall not suffer for it. */
static bool is_of_port(int fd, uint16_t port)
{
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t bytes = sizeof address;

    if (getsockname(fd, (struct sockaddr *)&address, &bytes) != 0)
        return false;
    if (address.ss_family == AF_INET6)
        return ((const struct sockaddr_in6 *)&address)->sin6_port == htons(port);
    return address.ss_family == AF_INET &&
           ((const struct sockaddr_in *)&address)->sin_port == htons(port);
}

void links_look(struct links *links, uint16_t port)
{
    uint64_t share = LINKS_ALL_MAX_BYTES / LINKS_ONE_MAX_BYTES >= links->count
                         ? LINKS_ONE_MAX_BYTES
                         : LINKS_ALL_MAX_BYTES / links->count;

    for (uint32_t i = 0; i < links->count; i++) {
        const struct link *link = &links->links[i];
        uint64_t bytes = received(link->fd);
        if (bytes <= link->asked_bytes || bytes - link->asked_bytes <= share ||
            !is_of_port(link->fd, port))
            continue;
        log_warn("info service ends a connection",
                 "reason=\"%" PRIu64 " bytes and no whole question\" max=%" PRIu64,
                 bytes - link->asked_bytes, share);
        (void)shutdown(link->fd, SHUT_RDWR);
    }
}
