/* A seed's half of one connection, without I/O: bytes of the reader go in, and what is to be sent
 * comes out. Everything a reader can do wrong is decided here; tests/fuzz/fuzz_tcp_seed.c calls
 * nothing else. Used by one thread. */
#ifndef TRANSPORT_TCP_CONN_H
#define TRANSPORT_TCP_CONN_H

#include "transport/net/out.h"
#include "transport/transport.h"

/* What the connections of one seed share. */
struct tcp_policy {
    struct exporter exporter;
    uint32_t max_readers;
    atomic_uint readers; /* let in; relaxed: a count that guards no data */
};

struct tcp_conn;

/* policy is borrowed. NULL when out of memory: half a megabyte of addresses, few of which are ever
 * touched. */
struct tcp_conn *tcp_conn_create(struct tcp_policy *policy);
/* Gives the lease back. NULL is fine. */
void tcp_conn_destroy(struct tcp_conn *conn);

/* Where bytes that arrive go; *ret_bytes is 0 while the conn has enough to do and takes none. After
 * the reader broke the protocol bytes still go in, and are forgotten. */
uint8_t *tcp_conn_space(struct tcp_conn *conn, size_t *ret_bytes);
/* So many have arrived there. */
void tcp_conn_arrived(struct tcp_conn *conn, size_t bytes);

/* Fills *ret_out with what is to be sent now, at most one frame; false if there is nothing. Not
 * RF_OK in *ret_code: a frame that has begun cannot be ended, close the connection. */
bool tcp_conn_out(struct tcp_conn *conn, struct net_out *ret_out, enum rf_code *ret_code,
                  struct rf_error *err);
/* So many bytes of it, in its order, are gone. Returns how many of them were the model's. */
uint64_t tcp_conn_sent(struct tcp_conn *conn, uint64_t bytes);
/* The system cannot send that way: such pieces are copied from now on. */
void tcp_conn_no_bulk(struct tcp_conn *conn, enum net_bulk bulk);

/* Takes no more requests: says GOODBYE and ends those it has. */
void tcp_conn_drain(struct tcp_conn *conn);

bool tcp_conn_is_open(const struct tcp_conn *conn); /* the hello was good, requests may come */
bool tcp_conn_is_finished(
    const struct tcp_conn *conn); /* all is said, close when the peer has heard it */
bool tcp_conn_has_output(const struct tcp_conn *conn);
uint32_t tcp_conn_reads(const struct tcp_conn *conn); /* not answered completely */

#endif
