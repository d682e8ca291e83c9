#include "transport/te/pieces.h"

static void note(struct te_pieces *pieces, uint64_t value)
{
    pieces->print = (pieces->print ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    pieces->print ^= pieces->print >> 32;
}

void te_pieces_add(struct te_pieces *pieces, uint64_t offset, uint64_t bytes)
{
    pieces->bytes += bytes;
    if (pieces->end == offset && pieces->end != 0) {
        pieces->end += bytes;
        return;
    }
    if (pieces->end != 0) {
        note(pieces, pieces->begin);
        note(pieces, pieces->end);
        pieces->runs++;
    }
    pieces->begin = offset;
    pieces->end = offset + bytes;
}

bool te_pieces_are(const struct te_pieces *pieces, const struct stream_range *ranges,
                   uint32_t count)
{
    struct te_pieces theirs = {.end = 0};

    for (uint32_t i = 0; i < count; i++) {
        const struct stream_range *range = &ranges[i];
        bool whole = range->stride == range->bytes; /* one run, however many pieces */
        uint64_t times = whole ? 1 : range->count;
        uint64_t bytes = whole ? range->bytes * range->count : range->bytes;
        for (uint64_t k = 0; k < times && theirs.runs <= pieces->runs; k++)
            te_pieces_add(&theirs, range->offset + k * range->stride, bytes);
    }
    return theirs.runs == pieces->runs && theirs.print == pieces->print &&
           theirs.begin == pieces->begin && theirs.end == pieces->end &&
           theirs.bytes == pieces->bytes;
}
