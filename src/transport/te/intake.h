/* A reader's half of what is said over data connections, without I/O: which requests reads become,
 * where the bytes of the answers are to go, and what they mean. Everything an engine can do wrong is
 * found here; tests/fuzz/fuzz_te_reader.c calls nothing else.
 *
 * Requests are answered in their order. With statuses before the bytes, the places of several
 * answers are offered at once: that each status will be "ok" is a bet. When one is not, what came
 * behind it is taken out of the wrong places and looked at again. */
#ifndef TRANSPORT_TE_INTAKE_H
#define TRANSPORT_TE_INTAKE_H

#include "transport/te/places.h"

enum {
    TE_IN_IOV = 256,
    TE_PIECE_BYTES = 256 << 10, /* received by one call, as in tcp/intake.h */
    TE_SCRATCH_BYTES = 64 << 10,
    TE_WINDOW = 1024,           /* requests on their way */
    TE_REQUEST_BYTES = 8 << 20, /* of one at most */
};

struct te_request {
    struct read *read;
    uint64_t offset; /* in the stream, for messages */
    uint64_t address;
    uint64_t bytes; /* of the answer, without its status */
    uint8_t op;
};

/* Reads are in a list by `next`; read->id is how many of a read's requests have no answer yet. A read
 * has ended when all of it has been asked and answered; a read that failed is asked no further. */
struct te_intake {
    const struct te_places *places; /* borrowed */
    struct read *first;
    struct read **last;
    uint32_t in_flight;
    bool statuses;  /* version 2 */
    bool ours;      /* tokens, digests, refusals with a code */
    bool line_over; /* the engine refused a request and will say nothing more here */

    /* Which request comes next: */
    bool asked_digest;
    uint32_t asking_range;
    uint64_t asking_repeat;
    uint64_t asking_done;
    uint64_t asking_segment;
    const struct te_rank_places *asking_rank;
    struct read *asking; /* of this read; NULL: all is asked */

    struct te_request requests[TE_WINDOW]; /* a ring: asked, not answered */
    uint32_t head;
    uint32_t count;
    uint32_t expected; /* the first so many are asked over the connection that is listened to */

    /* Of the first one's answer: */
    uint32_t status_bytes;
    uint8_t status[TE_STATUS_BYTES];
    uint8_t digest[HASH_MAX_BYTES];
    uint64_t got;

    /* What where() said last. */
    struct iovec iov[TE_IN_IOV];
    uint8_t kinds[TE_IN_IOV];
    uint8_t more_statuses[TE_IN_IOV][TE_STATUS_BYTES];
    uint64_t iov_count;

    struct read *taken_read; /* whose sink has not been told of taken_bytes */
    uint64_t taken_bytes;
    struct buf spill; /* what came to wrong places */
    uint64_t spill_at;
    uint8_t *scratch; /* the owner's, TE_SCRATCH_BYTES */
    uint64_t scratch_used;
};

void te_intake_init(struct te_intake *intake, const struct te_places *places, uint8_t *scratch);
void te_intake_free(struct te_intake *intake);

/* Takes a read, which may fail at once: see te_intake_ended(). */
void te_intake_add(struct te_intake *intake, struct read *read);
/* Makes requests of reads, as many as the window has room for. */
void te_intake_ask(struct te_intake *intake);
/* Appends requests [from, from + count) of the ring as they travel. */
void te_intake_encode(const struct te_intake *intake, uint32_t from, uint32_t count,
                      struct buf *out);
/* Takes the first read out if it has ended, well or not; NULL if not. */
struct read *te_intake_ended(struct te_intake *intake);
/* Takes the first read out, ended or not; NULL if there is none. */
struct read *te_intake_take(struct te_intake *intake);

/* Where the next bytes go, while intake->expected > 0: *ret_iov is the intake's. 0 when the sink of
 * a read offers nothing: that read then fails, call again. */
int te_intake_where(struct te_intake *intake, struct iovec **ret_iov);
/* Bytes that are sure to come before anything else can; 1 if none are. */
uint64_t te_intake_need(const struct te_intake *intake);
/* So many have arrived there. Not RF_OK: the engine broke the protocol, or no memory. */
enum rf_code te_intake_arrived(struct te_intake *intake, uint64_t bytes, struct rf_error *err);
/* Whether a part of an answer has come. */
bool te_intake_begun(const struct te_intake *intake);
/* The connection is gone: nothing is expected, requests of reads that failed are dropped, the others
 * can be asked again, the first for what of it has not come. Not with a seed of ours. */
void te_intake_lost(struct te_intake *intake);

#endif
