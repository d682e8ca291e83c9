/* Asking an engine what it has. */
#ifndef TRANSPORT_TE_HANDSHAKE_H
#define TRANSPORT_TE_HANDSHAKE_H

#include "transport/net/dial.h"
#include "wire/te.h"

/* Connects, asks, closes as soon as the answer is there: engines answer one at a time. The peer's
 * timeout is the whole's. RF_E_UNREACHABLE, RF_E_TIMEOUT, RF_E_CANCELLED, RF_E_PROTO, RF_E_NOMEM. */
enum rf_code te_handshake(const struct net_peer *peer, const struct net_address *address,
                          uint64_t deadline_ns, struct te_descriptor *ret_descriptor,
                          struct rf_error *err);

#endif
