/* Instances over several nodes, as SGLang's arguments say it: which node holds which
 * tensor-parallel ranks, where the nodes are, which ports are whose. Pure: text in, numbers out. */
#ifndef CONTROL_NODE_HOSTS_H
#define CONTROL_NODE_HOSTS_H

#include "base/error.h"

enum {
    NODE_HOSTS_MAX = 1024,
    NODE_HOST_BYTES = 256, /* of one address, its end included */
};

/* Tensor-parallel ranks first ... first + count - 1. */
struct node_span {
    uint32_t first;
    uint32_t count;
};

/* The ranks of node number `node`: every node has equally many, in the order of the nodes.
 * RF_E_INVAL: no such node, more nodes than NODE_HOSTS_MAX, or tp_size is not a multiple of
 * node_count. */
enum rf_code node_span(uint32_t tp_size, uint32_t node_count, uint32_t node,
                       struct node_span *ret_span, struct rf_error *err);

/* The node that holds a rank. Only for tp_size and node_count that node_span() takes, and a rank
 * below tp_size. */
uint32_t node_of_rank(uint32_t tp_size, uint32_t node_count, uint32_t rank);

/* The address of each node, without brackets; [i] is node i. */
struct node_hosts {
    char (*hosts)[NODE_HOST_BYTES];
    uint32_t count;
};

/* '{"0":"10.0.0.1","1":"node-1"}': all of 0 ... node_count - 1 and no others. No two nodes behind
 * the first may have the same address, for they answer on the same port; the first answers on
 * others. RF_E_INVAL names what is wrong; RF_E_NOMEM. Free with node_hosts_free(). */
enum rf_code node_hosts_parse(const char *json, uint32_t node_count, struct node_hosts *ret_hosts,
                              struct rf_error *err);
void node_hosts_free(struct node_hosts *hosts);

/* "node-0:5000", "[fe80::1]:5000". RF_E_INVAL. */
struct node_address {
    char host[NODE_HOST_BYTES]; /* without brackets */
    uint16_t port;
};
enum rf_code node_address_parse(const char *text, struct node_address *ret_address,
                                struct rf_error *err);

/* "[50000,50001]": `count` ports, all different. *ret_ports is the caller's: free(). RF_E_INVAL,
 * RF_E_NOMEM. */
enum rf_code node_ports_parse(const char *json, uint32_t count, uint16_t **ret_ports,
                              struct rf_error *err);

#endif
