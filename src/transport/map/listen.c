#include "transport/map/listen.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/rand.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

enum { LISTEN_LOCK_TRIES = 16, LISTEN_NAME_BYTES = 16 };

static void lock_path(const char *path, char out[300])
{
    snprintf(out, 300, "%s.lock", path);
}

/* Takes PATH.lock for as long as this process listens on PATH. Whether a socket file is stale
 * can be asked, but between the answer and its removal another seed may have put a live one
 * there; the lock leaves no such gap, and the kernel drops it when its holder dies. */
static enum rf_code lock_take(const char *path, int *ret_fd, struct rf_error *err)
{
    char name[300];

    lock_path(path, name);
    for (int i = 0; i < LISTEN_LOCK_TRIES; i++) {
        rf_autoclose int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        struct stat held;
        struct stat there;
        if (fd < 0)
            return rf_fail_sys(err, "open %s", name);
        if (flock(fd, LOCK_EX | LOCK_NB) != 0)
            return errno == EWOULDBLOCK
                       ? rf_fail(err, RF_E_INVAL, "%s: another seed is listening there", path)
                       : rf_fail_sys(err, "flock %s", name);
        if (fstat(fd, &held) != 0)
            return rf_fail_sys(err, "fstat %s", name);
        /* Its last holder may have removed it between our open() and flock(): then we locked a
         * name that is gone. */
        if (stat(name, &there) == 0 && there.st_ino == held.st_ino && there.st_dev == held.st_dev) {
            *ret_fd = rf_take(fd, -1);
            return RF_OK;
        }
    }
    return rf_fail(err, RF_E_FAILED, "%s: removed by others as often as it was made", name);
}

/* Removes a socket file that nobody listens on; leaves everything else alone. Needs the lock. */
static enum rf_code stale_remove(const char *path, const struct map_address *address,
                                 struct rf_error *err)
{
    struct stat st;

    if (lstat(path, &st) != 0)
        return errno == ENOENT ? RF_OK : rf_fail_sys(err, "stat %s", path);
    if (!S_ISSOCK(st.st_mode))
        return rf_fail(err, RF_E_INVAL, "%s: exists and is not a socket; it was not touched", path);
    int why = map_address_knock(address);
    if (why == 0)
        return rf_fail(err, RF_E_INVAL, "%s: another process is listening there", path);
    if (why != ECONNREFUSED) {
        errno = why;
        return rf_fail_sys(err, "%s: whether its owner lives cannot be told", path);
    }
    if (unlink(path) != 0)
        return rf_fail_sys(err, "unlink %s", path);
    log_info("stale socket removed", "path=%s", path);
    return RF_OK;
}

static enum rf_code listen_abstract(struct map_listener *listener, struct map_address *ret_address,
                                    struct rf_error *err)
{
    uint8_t raw[LISTEN_NAME_BYTES];
    enum rf_code code = rand_bytes(raw, sizeof raw, err);
    int at = 0;

    if (code != RF_OK)
        return code;
    at = snprintf(listener->name, sizeof listener->name, "%s", MAP_ABSTRACT_PREFIX);
    for (size_t i = 0; i < sizeof raw; i++)
        at += snprintf(listener->name + at, sizeof listener->name - (size_t)at, "%02x", raw[i]);
    return map_address_parse(listener->name, ret_address, err);
}

static enum rf_code listen_path(const char *path, struct map_listener *listener,
                                struct map_address *ret_address, struct rf_error *err)
{
    rf_autofree char *cwd = path[0] == '/' ? NULL : getcwd(NULL, 0);
    int bytes = 0;

    /* The reader's working directory is not ours. */
    if (path[0] != '/' && cwd == NULL)
        return rf_fail_sys(err, "working directory, for %s", path);
    bytes = snprintf(listener->name, sizeof listener->name, "%s%s%s", cwd != NULL ? cwd : "",
                     cwd != NULL ? "/" : "", path);
    if (bytes < 0 || (size_t)bytes >= sizeof listener->name)
        return rf_fail(err, RF_E_INVAL, "%s: too long for a Unix socket", path);
    enum rf_code code = map_address_parse(listener->name, ret_address, err);
    if (code == RF_OK)
        code = lock_take(listener->name, &listener->lock_fd, err);
    return code == RF_OK ? stale_remove(listener->name, ret_address, err) : code;
}

enum rf_code map_listen(const char *path, struct map_listener *ret_listener, struct rf_error *err)
{
    struct map_listener listener = {.fd = -1, .lock_fd = -1};
    struct map_address address = {0};
    bool bare = path == NULL || path[0] == '@';
    enum rf_code code = RF_OK;
    struct stat st;

    if (path == NULL) {
        code = listen_abstract(&listener, &address, err);
    } else if (bare) {
        snprintf(listener.name, sizeof listener.name, "%s", path);
        code = map_address_parse(path, &address, err);
    } else {
        code = listen_path(path, &listener, &address, err);
    }
    if (code != RF_OK)
        goto fail;
    listener.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener.fd < 0) {
        code = rf_fail_sys(err, "Unix socket");
        goto fail;
    }
    /* bind() makes the file with the mode of the socket itself: so it is never open to others,
     * not even for a moment. */
    if ((!bare && fchmod(listener.fd, 0600) != 0) ||
        bind(listener.fd, (const struct sockaddr *)&address.un, address.bytes) != 0 ||
        (!bare && lstat(listener.name, &st) != 0) || listen(listener.fd, SOMAXCONN) != 0) {
        code = rf_fail_sys(err, "listen on %s", listener.name);
        goto fail;
    }
    if (!bare) {
        listener.dev = st.st_dev;
        listener.ino = st.st_ino;
    }
    *ret_listener = listener;
    return RF_OK;

fail:
    map_listener_close(&listener);
    return code;
}

void map_listener_close(struct map_listener *listener)
{
    char name[300];
    struct stat st;

    if (listener->lock_fd >= 0) {
        if (listener->ino != 0 && lstat(listener->name, &st) == 0 && st.st_ino == listener->ino &&
            st.st_dev == listener->dev)
            unlink(listener->name);
        lock_path(listener->name, name);
        unlink(name); /* while it is held: see lock_take() */
        close(rf_take(listener->lock_fd, -1));
    }
    if (listener->fd >= 0)
        close(rf_take(listener->fd, -1));
}
