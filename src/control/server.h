/* The HTTP side of a seed: native API (docs/http-api.md), health, metrics, SGLang's info routes; and
 * SGLang's bootstrap server, which nodes.h starts. */
#ifndef CONTROL_SERVER_H
#define CONTROL_SERVER_H

#include "seed/seed.h"

struct nodes;

enum server_kind { SERVER_INSTANCE = 0, SERVER_BOOTSTRAP };

struct server_options {
    const char *host;         /* NULL: 127.0.0.1; a name or address; "0.0.0.0", "::" for all */
    uint16_t port;            /* 0: any free one */
    uint32_t max_connections; /* 0: 1024; fewer where `ulimit -n` is less than four times that */
    /* Of the headers of a connection's first request, from connecting on, and of each body; 0:
     * 10 s. */
    uint32_t request_timeout_ms;
    /* From an answer to the end of the next request's headers; 0: 30 s. */
    uint32_t idle_timeout_ms;
    enum server_kind kind;
    /* NULL: nothing is published for TransferEngine. Must outlive the server. Until
     * nodes_open() nobody is told "ready". */
    struct nodes *nodes;
    const char *model_path; /* for /server_info; NULL: not said there. Copied */
};

struct server;

/* Listens and answers on threads of its own. Errors: RF_E_SYS naming address and port ("port
 * 30000 on 127.0.0.1 is taken: pass --port 0 for a free one"). The seed must outlive the server. */
enum rf_code server_start(const struct server_options *options, struct seed *seed,
                          struct server **ret_server, struct rf_error *err);
/* "http://127.0.0.1:30000"; valid as long as the server. A wildcard host shows as it was given. */
const char *server_url(const struct server *server);
uint16_t server_port(const struct server *server);
/* Stops taking connections at once, ends answers in flight. NULL is fine. */
void server_stop(struct server *server);

#endif
