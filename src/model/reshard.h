/* From where each byte of a new instance's ranks comes when they are cut differently from the
 * seed's. Pure: a plan over two manifests. */
#ifndef MODEL_RESHARD_H
#define MODEL_RESHARD_H

#include "model/manifest.h"
#include "wire/chunk.h"

enum { RESHARD_MAX_SEEDS = 4096, RESHARD_MAX_MOVES = 1 << 26 };

/* Somebody's rank that can be read. */
struct reshard_holder {
    uint32_t seed;       /* index in the seeds given to reshard_plan() */
    uint32_t rank;       /* index in that seed's manifest */
    uint64_t read_bytes; /* what the plan reads there, for all wanted ranks together */
};

/* Read `read` (a range for a READ: read.count pieces of read.bytes, read.stride apart) of the
 * holder's stream; its i-th piece goes to write_offset + i * write_stride of the wanted rank's
 * stream. write_stride is at least a piece's bytes there; 0 when read.count is 1. When from and to
 * differ, every element is converted on arrival (convert_elements()), and a piece has
 * convert_bytes(from, read.bytes, to) bytes there. When they are equal, bytes are copied as they
 * are, of tensors of whatever dtypes. A move may be larger than one READ may be. */
struct reshard_move {
    struct stream_range read;
    uint64_t write_offset;
    uint64_t write_stride;
    uint8_t from; /* enum rf_dtype */
    uint8_t to;
};

/* What one wanted rank reads from one holder. */
struct reshard_group {
    uint32_t holder;
    struct reshard_move *moves; /* by read.offset: reads are sequential */
    uint64_t move_count;
    uint64_t read_bytes;
};

/* Bytes of the wanted rank's stream that are a constant: part_fill() at offset in the stream. */
struct reshard_fill {
    uint64_t offset;
    const struct part *constant; /* of the wanted manifest; constant->bytes of it */
};

/* What fills one rank of the wanted manifest: every byte of its stream is written by exactly one
 * piece of a move or one fill. */
struct reshard_rank {
    struct reshard_group *groups; /* those from which something is read, by holder */
    uint32_t group_count;
    struct reshard_fill *fills; /* by offset */
    uint32_t fill_count;
    uint64_t move_count; /* of all groups */
    uint64_t read_bytes; /* of all groups; more than the stream has only when dtypes narrow */
    uint64_t fill_bytes;
};

struct reshard {
    struct reshard_holder *holders; /* every rank of every seed, in their order */
    uint32_t holder_count;
    struct reshard_rank *ranks; /* [wanted->rank_count] */
    uint32_t rank_count;
};

/* Plans all ranks of `wanted` from the ranks of the seeds: several seeds may hold different ranks
 * of one model, or the same. Pieces that several holders have are taken from the one from which
 * least is read so far. Pieces that follow each other on both sides are one move.
 *
 * Streams are matched by what they are made of: parts of sources, or whole tensors by name (shape
 * and dtype equal) where a side has no sources. Layout and order may differ. Uses several threads;
 * the result does not depend on how many. The manifests are borrowed until reshard_destroy().
 * RF_E_MISMATCH: another model, architecture, quantisation, weight version or stage (processed
 * tensors only fit a rank of the same id, whose tensors are equal), a source of another shape or
 * dtype; a byte that no holder has: names tensor, slice and the rank that would have it.
 * RF_E_UNSUPPORTED: the two cut a tensor so differently that it would take more than
 * RESHARD_MAX_MOVES. RF_E_NOMEM. Free with reshard_destroy(). */
enum rf_code reshard_plan(const struct manifest *const *seeds, uint32_t seed_count,
                          const struct manifest *wanted, struct reshard **ret_plan,
                          struct rf_error *err);
void reshard_destroy(struct reshard *plan);

#endif
