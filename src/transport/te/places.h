/* Where the bytes of ranks' streams lie in an engine's memory. No I/O. */
#ifndef TRANSPORT_TE_PLACES_H
#define TRANSPORT_TE_PLACES_H

#include "transport/te/te.h"

struct te_rank_places {
    uint32_t rank;
    uint64_t stream_bytes;
    uint64_t count;
    struct te_segment *segments; /* by offset, covering the stream */
};

/* Zero-initialise. */
struct te_places {
    struct te_rank_places *ranks; /* by rank */
    uint32_t count;
};

/* What te_directory_set_rank() does. */
enum rf_code te_places_set(struct te_places *places, const struct te_descriptor *descriptor,
                           uint32_t rank, const struct te_segment *segments, uint64_t count,
                           uint64_t stream_bytes, struct rf_error *err);
/* Of a seed of ours: rank R is the buffer "rank:R". RF_E_PROTO, RF_E_NOMEM. */
enum rf_code te_places_of_seed(struct te_places *places, const struct te_descriptor *descriptor,
                               struct rf_error *err);
/* NULL: nothing is known of this rank. */
const struct te_rank_places *te_places_find(const struct te_places *places, uint32_t rank);
void te_places_free(struct te_places *places);

/* Index of the segment that holds an offset inside the stream; `hint` is looked at first. */
uint64_t te_places_segment(const struct te_rank_places *rank, uint64_t offset, uint64_t hint);

#endif
