/* The two halves of `map`: what transport.h promises, implemented in seed.c and session.c. */
#ifndef TRANSPORT_MAP_MAP_H
#define TRANSPORT_MAP_MAP_H

#include "transport/transport.h"

enum {
    MAP_HANDSHAKE_MS =
        10 * 1000, /* from connecting, or the first byte of a hello, to the end of the grant */
    MAP_MAX_CONNECTIONS = 1024,       /* readers at a time, unless the options say otherwise */
    MAP_WINDOW = CHUNK_MAX_IN_FLIGHT, /* reads submitted at a time */
};

enum rf_code map_seed_start(const struct exporter *exporter,
                            const struct transport_seed_options *options,
                            struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                            struct rf_error *err);
uint32_t map_seed_drain(struct transport_seed *seed, uint64_t deadline_ns);
void map_seed_stop(struct transport_seed *seed);

enum rf_code map_session_open(const struct endpoint *endpoint,
                              const struct transport_open_options *options,
                              struct transport_session **ret_session, struct rf_error *err);
enum rf_code map_session_submit(struct transport_session *session, struct read *read,
                                struct rf_error *err);
enum rf_code map_session_progress(struct transport_session *session, uint64_t deadline_ns,
                                  struct read **ret_done, struct rf_error *err);
void map_session_close(struct transport_session *session);
enum rf_code map_session_map(struct transport_session *session, uint32_t rank,
                             uint64_t stream_bytes, struct transport_mapping *ret_mapping,
                             struct rf_error *err);

#endif
