/* `te`: Mooncake's TransferEngine over TCP, both roles (wire/te.h). As a seed it is read by real
 * engines, by addresses that mean nothing outside the protocol: a random base for each rank, plus
 * the offset in its stream. As a reader it reads from our seeds, and from real engines, of which
 * somebody must know where each byte of a rank's stream lies: a directory. */
#ifndef TRANSPORT_TE_TE_H
#define TRANSPORT_TE_TE_H

#include "transport/transport.h"
#include "wire/te.h"

/* ---- what a reader knows of an engine that is not ours ---- */

struct te_reach {
    uint64_t timeout_ms;       /* of the handshake; 0: 10 s */
    const atomic_bool *cancel; /* may be NULL */
    int cancel_fd;             /* -1 or an eventfd */
    /* An engine says itself where its data plane is. Another host than the one that was dialled is
     * taken for an attack unless it is here: addresses with commas between them, or "any"; NULL:
     * none. */
    const char *allowed_hosts;
};

/* Asks the engine at "HOST:PORT" (a session id; IPv6 in brackets) what it has registered. HOST may be
 * a name. Errors: RF_E_INVAL (no session id), RF_E_UNREACHABLE, RF_E_TIMEOUT, RF_E_PROTO, RF_E_DENIED
 * (its data host is another), RF_E_UNSUPPORTED (it does not speak TCP: says what it speaks),
 * RF_E_CANCELLED. */
enum rf_code te_directory_open(const char *session, const struct te_reach *reach,
                               struct transport_directory **ret_directory, struct rf_error *err);
void te_directory_close(struct transport_directory *directory); /* NULL is fine */
/* The address that answered, as an endpoint has it: HOST of a session id may be a name. */
void te_directory_address(const struct transport_directory *directory,
                          char ret_text[TRANSPORT_ADDRESS_BYTES]);
/* As it came; lives as long as the directory. */
const struct te_descriptor *te_directory_descriptor(const struct transport_directory *directory);

/* A run of a rank's stream in the engine's memory. */
struct te_segment {
    uint64_t stream_offset;
    uint64_t bytes;
    uint64_t address;
};
/* Says where a rank's stream lies: segments by offset that cover [0, stream_bytes) exactly. Copied;
 * neighbours that continue each other in one buffer are merged. Each must lie in one registered
 * buffer: RF_E_MISMATCH with the first that does not, how many do not, and what is registered.
 * RF_E_INVAL: holes, overlaps. Not while sessions use the directory. */
enum rf_code te_directory_set_rank(struct transport_directory *directory, uint32_t rank,
                                   const struct te_segment *segments, uint64_t count,
                                   uint64_t stream_bytes, struct rf_error *err);

/* ---- the table's functions ---- */

enum {
    TE_BACKLOG = 4096, /* of both listeners: readers open a connection for each tensor */
    TE_MAX_CONNECTIONS = 32 << 10, /* of the data plane, unless the options say otherwise */
    TE_MAX_HANDSHAKES = 4096,      /* at a time */
    TE_HANDSHAKE_MS = 10 * 1000,   /* for a question to come whole */
    TE_IDLE_MS = 60 * 1000,
    TE_TIMEOUT_MS = 10 * 1000, /* of a reader, unless the options say otherwise */
};

enum rf_code te_seed_start(const struct exporter *exporter,
                           const struct transport_seed_options *options,
                           struct transport_seed **ret_seed, struct endpoint *ret_endpoint,
                           struct rf_error *err);
uint32_t te_seed_drain(struct transport_seed *seed, uint64_t deadline_ns);
void te_seed_stop(struct transport_seed *seed);
uint64_t te_seed_base(const struct transport_seed *seed, uint32_t rank);

enum rf_code te_session_open(const struct endpoint *endpoint,
                             const struct transport_open_options *options,
                             struct transport_session **ret_session, struct rf_error *err);
enum rf_code te_session_submit(struct transport_session *session, struct read *read,
                               struct rf_error *err);
enum rf_code te_session_progress(struct transport_session *session, uint64_t deadline_ns,
                                 struct read **ret_done, struct rf_error *err);
void te_session_close(struct transport_session *session);

#endif
