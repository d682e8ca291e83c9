/* Raw sockets: what a plain program gets out of this machine and this path. No protocol, no
 * verification. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "cli/bench/bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

enum {
    RAW_CALL_BYTES = 1 << 20,
    RAW_MAX_CONNECTIONS = 8,
    RAW_TIMEOUT_S = 30,
};

struct raw_request {
    uint64_t offset;
    uint64_t bytes;
};

struct raw_server {
    int listen_fd;
    int stop_fds[2];
    pthread_t thread;
    const uint8_t *data;
    uint64_t bytes;
};

static void raw_socket_timeouts(int fd)
{
    struct timeval limit = {.tv_sec = RAW_TIMEOUT_S};

    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

static bool raw_recv(int fd, uint8_t *dst, uint64_t bytes)
{
    while (bytes > 0) {
        size_t want = bytes < RAW_CALL_BYTES ? bytes : RAW_CALL_BYTES;
        ssize_t got = recv(fd, dst, want, 0);

        if (got <= 0)
            return false;
        dst += got;
        bytes -= (uint64_t)got;
    }
    return true;
}

static bool raw_send(int fd, const uint8_t *src, uint64_t bytes)
{
    while (bytes > 0) {
        size_t want = bytes < RAW_CALL_BYTES ? bytes : RAW_CALL_BYTES;
        ssize_t put = send(fd, src, want, MSG_NOSIGNAL);

        if (put <= 0)
            return false;
        src += put;
        bytes -= (uint64_t)put;
    }
    return true;
}

/* Its own copy of what it needs: it may outlive the server by the time of one failed send. */
struct raw_answer {
    const uint8_t *data;
    uint64_t bytes;
    int fd;
};

static void *raw_answer_main(void *arg)
{
    struct raw_answer *answer = arg;
    struct raw_request request;

    raw_socket_timeouts(answer->fd);
    if (raw_recv(answer->fd, (uint8_t *)&request, sizeof(request)) &&
        request.offset <= answer->bytes && request.bytes <= answer->bytes - request.offset)
        (void)raw_send(answer->fd, answer->data + request.offset, request.bytes);
    close(answer->fd);
    free(answer);
    return NULL;
}

static void *raw_server_main(void *arg)
{
    struct raw_server *server = arg;
    struct pollfd polls[2] = {{.fd = server->listen_fd, .events = POLLIN},
                              {.fd = server->stop_fds[0], .events = POLLIN}};

    while (poll(polls, 2, -1) >= 0 && polls[1].revents == 0) {
        // cppcheck-suppress nullPointer ; both may be NULL: nobody asks who it is
        int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        struct raw_answer *answer = fd >= 0 ? malloc(sizeof(*answer)) : NULL;
        pthread_t thread;

        if (answer == NULL)
            continue;
        *answer = (struct raw_answer){.data = server->data, .bytes = server->bytes, .fd = fd};
        if (thread_start(&thread, "raw-send", raw_answer_main, answer, NULL) != RF_OK) {
            close(fd);
            free(answer);
            continue;
        }
        pthread_detach(thread);
    }
    return NULL;
}

static enum rf_code raw_address(const char *host, uint16_t port, struct sockaddr_in *ret_address,
                                struct rf_error *err)
{
    *ret_address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &ret_address->sin_addr) != 1)
        return rf_fail(err, RF_E_INVAL, "%s: not an IPv4 address", host);
    return RF_OK;
}

enum rf_code raw_start(const char *host, const uint8_t *data, uint64_t bytes,
                       struct raw_server **ret_server, uint16_t *ret_port, struct rf_error *err)
{
    struct sockaddr_in address;
    socklen_t address_bytes = sizeof(address);
    struct raw_server *server = calloc(1, sizeof(*server));
    enum rf_code code = raw_address(host, 0, &address, err);

    if (server == NULL || code != RF_OK) {
        free(server);
        return code != RF_OK ? code : rf_fail(err, RF_E_NOMEM, "no memory");
    }
    *server = (struct raw_server){.data = data, .bytes = bytes, .stop_fds = {-1, -1}};
    server->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server->listen_fd < 0 || pipe(server->stop_fds) != 0 ||
        bind(server->listen_fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(server->listen_fd, RAW_MAX_CONNECTIONS) != 0 ||
        getsockname(server->listen_fd, (struct sockaddr *)&address, &address_bytes) != 0)
        code = rf_fail_sys(err, "listen on %s", host);
    if (code == RF_OK)
        code = thread_start(&server->thread, "raw-accept", raw_server_main, server, err);
    if (code != RF_OK) {
        close(server->listen_fd);
        close(server->stop_fds[0]);
        close(server->stop_fds[1]);
        free(server);
        return code;
    }
    *ret_server = server;
    *ret_port = ntohs(address.sin_port);
    return RF_OK;
}

void raw_stop(struct raw_server *server)
{
    if (server == NULL)
        return;
    close(server->stop_fds[1]); /* the other end becomes readable */
    pthread_join(server->thread, NULL);
    close(server->stop_fds[0]);
    close(server->listen_fd);
    free(server);
}

struct raw_part {
    struct sockaddr_in address;
    uint64_t offset;
    uint64_t bytes;
    uint8_t *dst;
};

static enum rf_code raw_take_part(void *ctx, uint64_t item, struct rf_error *err)
{
    const struct raw_part *part = &((const struct raw_part *)ctx)[item];
    const struct raw_request request = {.offset = part->offset, .bytes = part->bytes};
    rf_autoclose int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return rf_fail_sys(err, "socket");
    raw_socket_timeouts(fd);
    if (connect(fd, (const struct sockaddr *)&part->address, sizeof(part->address)) != 0)
        return rf_fail_sys(err, "connect to the raw sender");
    if (!raw_send(fd, (const uint8_t *)&request, sizeof(request)) ||
        !raw_recv(fd, part->dst, part->bytes))
        return rf_fail_sys(err, "raw transfer of %" PRIu64 " bytes", part->bytes);
    return RF_OK;
}

enum rf_code raw_take(const char *host, uint16_t port, uint8_t *dst, uint64_t bytes,
                      unsigned connections, double *ret_seconds, struct rf_error *err)
{
    struct raw_part parts[RAW_MAX_CONNECTIONS];
    uint64_t start_ns = clock_now_ns();

    if (connections > RAW_MAX_CONNECTIONS)
        connections = RAW_MAX_CONNECTIONS;
    for (unsigned i = 0; i < connections; i++) {
        uint64_t from = bytes / connections * i;
        uint64_t to = i + 1 == connections ? bytes : bytes / connections * (i + 1);

        parts[i] = (struct raw_part){.offset = from, .bytes = to - from, .dst = dst + from};
        enum rf_code code = raw_address(host, port, &parts[i].address, err);
        if (code != RF_OK)
            return code;
    }
    enum rf_code code = thread_parallel(connections, connections, raw_take_part, parts, err);
    if (code == RF_OK)
        *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    return code;
}
