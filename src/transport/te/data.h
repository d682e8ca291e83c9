/* A seed's half of a data connection, without I/O: requests go in, answers come out. Small, since
 * readers may open one for each tensor. Everything a reader can do wrong is decided here and in
 * shake.c; tests/fuzz/fuzz_te_seed.c calls nothing else. Used by one thread. */
#ifndef TRANSPORT_TE_DATA_H
#define TRANSPORT_TE_DATA_H

#include "transport/net/out.h"
#include "transport/te/policy.h"

struct te_data;

/* policy and share are borrowed. NULL when out of memory. */
struct te_data *te_data_create(const struct te_policy *policy, struct te_share *share);
/* Gives its lease back. NULL is fine. */
void te_data_destroy(struct te_data *data);

/* Each as net_protocol (net/server.h) says. */
uint8_t *te_data_space(struct te_data *data, size_t *ret_bytes);
void te_data_arrived(struct te_data *data, size_t bytes);
bool te_data_out(struct te_data *data, struct net_out *ret_out, enum rf_code *ret_code,
                 struct rf_error *err);
void te_data_sent(struct te_data *data, uint64_t bytes);
void te_data_no_bulk(struct te_data *data, enum net_bulk bulk);
void te_data_drain(struct te_data *data);
bool te_data_is_finished(const struct te_data *data);
bool te_data_has_output(const struct te_data *data);
uint32_t te_data_reads(const struct te_data *data);

#endif
