#include "transport/map/address.h"

#include "base/cleanup.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum rf_code map_address_parse(const char *text, struct map_address *ret_address,
                               struct rf_error *err)
{
    struct map_address address = {.un = {.sun_family = AF_UNIX}};
    size_t length = strlen(text);
    bool abstract = strncmp(text, MAP_ABSTRACT_PREFIX, strlen(MAP_ABSTRACT_PREFIX)) == 0;

    if (!abstract && text[0] != '/')
        return rf_fail(err, RF_E_INVAL,
                       "\"%s\" is no address of map: an absolute path or %sNAME is", text,
                       MAP_ABSTRACT_PREFIX);
    if (length >= sizeof address.un.sun_path)
        return rf_fail(err, RF_E_INVAL,
                       "%s: %zu bytes, a Unix socket's name may have %zu: use a shorter path", text,
                       length, sizeof address.un.sun_path - 1);
    memcpy(address.un.sun_path, text, length);
    /* A path is passed with its NUL; an abstract name is exactly as long as it says, its '@'
     * standing for a NUL. */
    address.bytes =
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (abstract ? 0 : 1));
    if (abstract)
        address.un.sun_path[0] = '\0';
    *ret_address = address;
    return RF_OK;
}

int map_address_knock(const struct map_address *address)
{
    rf_autoclose int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return errno;
    if (connect(fd, (const struct sockaddr *)&address->un, address->bytes) == 0)
        return 0;
    /* Somebody listens, and has more connections waiting than he took so far. */
    return errno == EAGAIN ? 0 : errno;
}

bool map_address_admits(const struct map_address *address)
{
    rf_autoclose int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct ucred peer = {0};
    socklen_t bytes = sizeof peer;

    if (fd < 0 || connect(fd, (const struct sockaddr *)&address->un, address->bytes) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
        return true;
    return geteuid() == 0 || peer.uid == geteuid();
}

enum rf_code map_peer_check(int fd, bool root_trusts_all, struct rf_error *err)
{
    struct ucred peer = {0};
    socklen_t bytes = sizeof peer;
    uid_t own = geteuid();

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
        return rf_fail_sys(err, "SO_PEERCRED");
    if (peer.uid == own || peer.uid == 0 || (own == 0 && root_trusts_all))
        return RF_OK;
    return rf_fail(err, RF_E_DENIED,
                   "process %d at the other end runs as uid %u, this one as %u: weights are shared "
                   "between processes of the same user, or with root",
                   (int)peer.pid, (unsigned)peer.uid, (unsigned)own);
}
