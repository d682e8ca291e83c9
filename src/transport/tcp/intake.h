/* A reader's half of one connection after the welcome, without I/O: it says where bytes that arrive
 * are to go, and takes them. Everything a seed can do wrong is found here;
 * tests/fuzz/fuzz_tcp_reader.c calls nothing else. */
#ifndef TRANSPORT_TCP_INTAKE_H
#define TRANSPORT_TCP_INTAKE_H

#include "transport/transport.h"

enum {
    TCP_IN_IOV = 64,
    /* Received by one call. The sink hashes what has just arrived, so it should still be in a
     * core's second-level cache, together with the socket's pages it was copied from. */
    TCP_PIECE_BYTES = 256 << 10,
    TCP_SCRATCH_BYTES = 64 << 10,
};

struct tcp_intake {
    struct read *first; /* in flight, in their order */
    struct read **last;
    uint32_t in_flight;
    uint64_t read_left; /* bytes of the first that have not come */
    bool begun;         /* read_left is the first one's */
    bool discard;       /* its sink failed: the rest of it goes nowhere */
    bool goodbye;       /* the seed takes no more reads */

    uint8_t head[CHUNK_HDR_BYTES];
    uint32_t head_bytes;
    struct chunk_hdr frame; /* while head is complete */
    uint32_t body_left;
    uint64_t offered; /* of the sink's or the scratch memory, by the last where() */
    uint8_t small_body[CHUNK_MAX_ERROR_BODY]; /* of an ERROR or a DIGEST */
    uint8_t *scratch;                         /* the owner's, TCP_SCRATCH_BYTES */
};

void tcp_intake_init(struct tcp_intake *intake, uint8_t *scratch);
/* The request is on its way. */
void tcp_intake_add(struct tcp_intake *intake, struct read *read);
/* Takes the first read out, NULL if there is none. */
struct read *tcp_intake_take(struct tcp_intake *intake);

/* Where the next bytes go: iov[TCP_IN_IOV]; returns how many entries. Never 0, except when the sink
 * of a read offers nothing: that read then fails, call again. */
int tcp_intake_where(struct tcp_intake *intake, struct iovec *iov);
/* Bytes that the frame under way still needs, before anything else can arrive; 1 between frames. */
uint32_t tcp_intake_need(const struct tcp_intake *intake);
/* So many have arrived there (at most what where() offered). *ret_done is the read that this ended,
 * or NULL. Not RF_OK: the seed broke the protocol, or says why it ends the connection. */
enum rf_code tcp_intake_arrived(struct tcp_intake *intake, uint64_t bytes, struct read **ret_done,
                                struct rf_error *err);

#endif
