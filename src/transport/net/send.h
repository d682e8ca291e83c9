/* Sending what a protocol has to say over one socket, without copying where that can be. For the
 * server, and nobody else. */
#ifndef TRANSPORT_NET_SEND_H
#define TRANSPORT_NET_SEND_H

#include "transport/net/server.h"
#include "transport/net/socket.h"

/* A connection: its protocol's state, and its socket. */
struct net_link {
    const struct net_protocol *protocol;
    void *conn;
    int fd;
};

/* Who is at the other end, for messages; returns out. */
const char *net_link_name(const struct net_link *link, char out[NET_ADDRESS_TEXT_BYTES]);

/* What a thread sends with. */
struct net_sender {
    int pipe_fds[2]; /* through which pages go to sockets; empty between two steps */
    int null_fd;     /* where those go that a socket did not take */
    struct net_out out;
};

void net_sender_init(struct net_sender *sender);
/* name: in messages. RF_E_SYS. */
enum rf_code net_sender_open(struct net_sender *sender, const char *name, struct rf_error *err);
/* Of an initialised one. */
void net_sender_close(struct net_sender *sender);

/* How a step went. */
enum net_step {
    NET_STEP_ON,     /* go on */
    NET_STEP_WAIT,   /* nothing to send, or the socket is full */
    NET_STEP_BROKEN, /* close */
};

/* What errno says after a call on the socket. */
enum net_step net_step_of_errno(const struct net_link *link, const char *call);
/* Sends once what is next; adds to *sent. */
enum net_step net_send_next(struct net_sender *sender, const struct net_link *link, uint64_t *sent);

#endif
