/* Whether the reads of a connection were those that a list of ranges means: both are taken down as
 * runs of a stream, in order, and compared without being kept. For finding mistakes of readers, who
 * have only themselves to deceive. */
#ifndef TRANSPORT_TE_PIECES_H
#define TRANSPORT_TE_PIECES_H

#include "wire/chunk.h"

/* Zero-initialise. */
struct te_pieces {
    uint64_t begin; /* of the run that may still grow */
    uint64_t end;   /* 0: none yet */
    uint64_t bytes;
    uint64_t runs; /* before it */
    uint64_t print;
};

/* [offset, offset + bytes), which does not wrap. */
void te_pieces_add(struct te_pieces *pieces, uint64_t offset, uint64_t bytes);
/* Whether ranges (checked) are these pieces. Takes no longer than the pieces took to come. */
bool te_pieces_are(const struct te_pieces *pieces, const struct stream_range *ranges,
                   uint32_t count);

#endif
