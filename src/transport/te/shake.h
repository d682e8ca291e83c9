/* A seed's half of a handshake connection, without I/O: one question, its answer, the end. Of the
 * question nothing is kept but its type: what it says is of no use here. Used by one thread. */
#ifndef TRANSPORT_TE_SHAKE_H
#define TRANSPORT_TE_SHAKE_H

#include "transport/net/out.h"
#include "transport/te/policy.h"

struct te_shake;

/* policy and share are borrowed. host: this end of the connection, for a policy without; copied.
 * NULL when out of memory. */
struct te_shake *te_shake_create(const struct te_policy *policy, struct te_share *share,
                                 const char *host);
void te_shake_destroy(struct te_shake *shake); /* NULL is fine */

/* Each as net_protocol (net/server.h) says. */
uint8_t *te_shake_space(struct te_shake *shake, size_t *ret_bytes);
void te_shake_arrived(struct te_shake *shake, size_t bytes);
bool te_shake_out(struct te_shake *shake, struct net_out *ret_out);
void te_shake_sent(struct te_shake *shake, uint64_t bytes);
void te_shake_drain(struct te_shake *shake);
bool te_shake_is_finished(const struct te_shake *shake);
bool te_shake_has_output(const struct te_shake *shake);

#endif
