/* What is known of an engine that is not ours, for session.c. */
#ifndef TRANSPORT_TE_DIRECTORY_H
#define TRANSPORT_TE_DIRECTORY_H

#include "transport/net/socket.h"
#include "transport/te/places.h"

struct transport_directory {
    struct te_descriptor descriptor;
    struct net_address dialled; /* the address that answered */
    struct net_address data;    /* where its data plane is */
    struct te_places places;
};

#endif
