/* A small model, a seed that serves it over HTTP, and a plain-socket client that shows every
 * byte, for tests of the control plane. All abort on failure, saying why. */
#ifndef TESTS_UTIL_WEB_H
#define TESTS_UTIL_WEB_H

#include "base/buf.h"
#include "control/nodes.h"
#include "control/server.h"

enum {
    WEB_BIG_BYTES = 3 << 20,
    WEB_CHUNK_BYTES = 64 << 10, /* the least there is: many chunks in little memory */
    WEB_TIMEOUT_MS = 20000,     /* of every wait here: machines may be busy */
};

/* Two ranks. Rank 0: "a.weight" F32 [2,3], "alias.weight" (the same bytes), "big" U8
 * [WEB_BIG_BYTES], "empty" F16 [0,4], "sub/\xc3\xbc n&" I16 [5]; rank 1: "a.weight" F32 [2,3],
 * "only.one" U8 [7]. Files: "model.safetensors" (header and rank 0's tensors), "config.json",
 * "sub/vocab list.txt", "empty.txt". */
struct web {
    struct seed *seed;
    struct server *server;
    struct nodes *nodes; /* NULL unless asked for */
    struct store *store; /* the seed's once published */
    uint8_t *memory[2];  /* the streams of the ranks */
    uint64_t stream_bytes[2];
    uint16_t port;
};

struct web_options {
    struct server_options server;
    uint32_t max_readers;
    uint64_t lease_ttl_ms;
    bool unpublished;   /* the seed stays in loading: call web_publish() */
    uint64_t big_bytes; /* of rank 0's tensor "big"; 0: WEB_BIG_BYTES */
    /* NULL: rank 0 lies in memory; else it is written there and served from the file. */
    const char *weights_path;
    /* Not NULL: the seed offers te, and the ranks are published for TransferEngine. */
    const struct nodes_options *nodes;
    uint32_t first_tp; /* of rank 0 */
    uint32_t tp_size;  /* 0: 2 */
};

void web_start(struct web *web, const struct web_options *options);
void web_publish(struct web *web);
void web_stop(struct web *web);

/* ---- a plain client ---- */

struct web_answer {
    int status;      /* 0: the connection ended before an answer */
    struct buf head; /* status line and headers */
    struct buf body;
    bool whole; /* as many bytes as Content-Length says */
};

/* A connection to 127.0.0.1. */
int web_connect(uint16_t port);
/* As much as can be sent; false once the peer has closed. */
bool web_send(int fd, const void *data, size_t bytes);
/* Reads one answer; without_body for HEAD. */
void web_receive(int fd, bool without_body, struct web_answer *ret_answer);
/* Waits until the peer closes the connection, dropping what it sends; false after timeout_ms. */
bool web_wait_closed(int fd, uint64_t timeout_ms);
/* One request on a connection of its own; head ends without the empty line: "GET /
 * HTTP/1.1\r\nRange: bytes=0-1\r\n". Host is added. */
void web_ask(uint16_t port, const char *head, const void *body, size_t body_bytes,
             struct web_answer *ret_answer);
void web_get(uint16_t port, const char *path, struct web_answer *ret_answer);
/* The value of a header, "" if it is not there; valid until the next call on this thread. */
const char *web_header(const struct web_answer *answer, const char *name);
void web_answer_free(struct web_answer *answer);
#define WEB_ANSWER_AUTO __attribute__((cleanup(web_answer_free)))

#endif
