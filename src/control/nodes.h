/* What an instance tells SGLang about its ranks, and about those of the other nodes of the same
 * model: nodes.c keeps what is known of which rank, the routes answer from it.
 *
 * The first node (node_rank 0) has the bootstrap server, where others register their ranks, and
 * asks the nodes that did not, by ZeroMQ. The other nodes register there and answer such
 * questions.
 *
 * The order of calls: create, start, server_start() with it, seed_publish(), publish, await, open;
 * server_stop(), destroy, seed_destroy(). */
#ifndef CONTROL_NODES_H
#define CONTROL_NODES_H

#include "control/node_hosts.h"
#include "seed/seed.h"

struct nodes_options {
    const char *host;               /* that we listen on; NULL: 127.0.0.1 */
    uint32_t node_count;            /* 0: 1 */
    uint32_t node_rank;             /* of this node */
    uint32_t tp_size;               /* 0: not known beforehand; more than one node need it */
    const struct node_hosts *hosts; /* of all nodes; NULL: nobody can be asked */
    /* Of the ZeroMQ info service of all nodes. 0: nobody is asked; who has hosts and is not the first
     * answers on any free port. */
    uint16_t info_port;
    /* On the first node: listen there for registrations (0: any free one). On the others: where
     * the first node does. */
    uint16_t bootstrap_port;
    const char *bootstrap_host; /* of the first node; NULL: hosts[0]; neither: no registration */
    uint64_t timeout_ms;        /* of a question, and of a registration; 0: 5 s */
};

struct nodes;

/* Everything is copied. The seed must outlive it. RF_E_INVAL: node_rank is not below node_count,
 * tp_size is not a multiple of it. */
enum rf_code nodes_create(const struct nodes_options *options, struct seed *seed,
                          struct nodes **ret_nodes, struct rf_error *err);
/* Listens. RF_E_SYS names the address, the port and the argument that is for it. */
enum rf_code nodes_start(struct nodes *nodes, struct rf_error *err);
/* The seed is published: makes what is said of its ranks, so that it is complete before anybody
 * is told that the instance is ready; and on a node that is not the first, registers them there:
 * waits for it timeout_ms at most, then goes on trying in the background and warns. Errors: of
 * our own ranks (te is not offered, no memory). */
enum rf_code nodes_publish(struct nodes *nodes, struct rf_error *err);
/* After it, on the first of several nodes: waits until the ranks of all the others are known, because
 * they registered or because they were asked; a timeout of 0 only looks. The other nodes wait for
 * nobody. RF_E_TIMEOUT: err names the nodes and ranks that are missing, no more; RF_E_CHANGED: the
 * seed has failed meanwhile. */
enum rf_code nodes_await(struct nodes *nodes, uint64_t timeout_ms, struct rf_error *err);
/* After them: from now on the instance may be called ready. */
void nodes_open(struct nodes *nodes);
/* Why nobody should be told "ready" yet; NULL: nothing is left to wait for. Static. */
const char *nodes_not_ready(struct nodes *nodes);
/* No server may use it any more. NULL is fine. */
void nodes_destroy(struct nodes *nodes);

/* "http://HOST:PORT" of our bootstrap server, "" if we have none; valid as long as nodes. */
const char *nodes_bootstrap_url(const struct nodes *nodes);
uint16_t nodes_bootstrap_port(const struct nodes *nodes);
/* The port of our info service; 0: we have none. */
uint16_t nodes_info_port(const struct nodes *nodes);

#endif
