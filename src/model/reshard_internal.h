/* What the files of reshard share. */
#ifndef MODEL_RESHARD_INTERNAL_H
#define MODEL_RESHARD_INTERNAL_H

#include "model/manifest_internal.h"
#include "model/reshard.h"

#include <stdatomic.h>

enum {
    RS_MAX_SAME = 16,         /* pieces of one source in one holder's rank */
    RS_MAX_ENTRIES = 1 << 26, /* of the index: holders times sources */
    RS_MAX_LOOKS = 1 << 28,   /* at pieces, for one wanted rank */
    RS_MAX_ROWS = 1 << 20,    /* moves for one piece cut along two axes */
    RS_CLASS_NEAR = 3,
    RS_CUTS_NEAR = 32,
    RS_SHOWN_NAME = 120,
};

/* A tensor of the checkpoint, as the wanted side counts them. */
struct rs_source {
    const char *name;
    uint32_t name_bytes;
    enum rf_dtype dtype;
    uint32_t ndim;
    const uint64_t *shape;
    uint64_t bytes;
};

/* How a holder has a source: which slice of it, in what dtype. */
struct rs_cut {
    uint64_t start;
    uint64_t count;
    uint32_t class; /* of the source */
    uint8_t axis;
    uint8_t dtype; /* enum rf_dtype */
    bool whole;
};

/* Where: in the holder's stream. */
struct rs_place {
    uint64_t at;
    uint32_t cut; /* number of it in the holder's; RS_NOWHERE */
};

#define RS_NOWHERE  UINT32_MAX
#define RS_NO_CLASS UINT32_MAX

/* A second and further place of the same source. */
struct rs_extra {
    uint32_t source;
    struct rs_place place;
};

struct rs_holder {
    const struct manifest *manifest;
    const struct manifest_rank *rank;
    const uint32_t *map;     /* the seed's sources as the wanted side counts them */
    struct rs_place *places; /* [source_count]; the first holder's, unless `own` */
    bool own;
    uint32_t place_count; /* that are somewhere */
    struct rs_cut *cuts;
    uint32_t cut_count;
    uint32_t cut_room;
    uint32_t cut_last;
    struct rs_extra *extras; /* by source */
    uint32_t extra_count;
    uint32_t extra_room;
};

/* What is at a place. Elements [start, start + count) along the axis; `whole`: all, along any. */
struct rs_piece {
    uint32_t holder;
    uint32_t cut;
    uint32_t axis;
    uint64_t start;
    uint64_t count;
    bool whole;
    enum rf_dtype dtype;
    uint64_t at; /* of its first byte in the holder's stream */
};

/* A slice that a wanted rank needs. */
struct rs_need {
    uint32_t source;
    uint32_t tensor; /* of the wanted rank */
    uint32_t axis;
    uint64_t start;
    uint64_t count;
    bool whole;
    enum rf_dtype dtype;
    uint64_t at; /* in the wanted rank's stream */
};

/* What a need came to. Thousands of sources are cut alike, expert by expert: the next one of the
 * same class that is needed in the same way, and that holders have in the same way, comes to the
 * same moves at other offsets. */
enum { RS_MAX_SHARES = 4, RS_TEMPLATES = 64, RS_TEMPLATE_PROBES = 8 };

struct rs_share {
    uint32_t holder;
    uint32_t cut;
    struct reshard_move move; /* offsets from the beginnings of the piece and of the need */
};

struct rs_template {
    bool used;
    bool shared;         /* several holders have it: decided later */
    struct rs_need need; /* source, tensor and at: not looked at */
    uint32_t class;
    unsigned share_count; /* 0: too many, each need is looked at anew */
    bool apart;           /* no two shares are of one holder */
    struct rs_share shares[RS_MAX_SHARES];
};

/* Moves at equal distances. */
struct rs_steps {
    uint64_t count; /* of the moves */
    uint64_t read;  /* from the beginning of one to that of the next; may wrap */
    uint64_t write;
};

struct rs_list {
    struct reshard_move *moves;
    uint64_t count;
    uint64_t room;
    uint64_t read_bytes;
    uint32_t holder;
    uint32_t tensor;  /* of the wanted rank: what the last move is of */
    uint64_t planned; /* moves before those of what several holders have */
};

/* One wanted rank while it is planned. */
struct rs_rank {
    uint32_t index;
    struct rs_list *lists;
    uint32_t list_count;
    uint32_t list_room;
    uint32_t *slot;         /* [holder_count] of each holder in lists, plus 1; 0: none */
    struct rs_need *shared; /* that several holders have */
    uint32_t shared_count;
    uint32_t shared_room;
    struct reshard_fill *fills;
    uint32_t fill_count;
    uint32_t fill_room;
    uint64_t fill_bytes;
    uint32_t tensor;               /* that is being planned */
    uint32_t cursor;               /* in the sources, for tensors without parts */
    uint32_t hint;                 /* the holder that had what was needed last */
    uint32_t base;                 /* and the first one of those that had the last need */
    uint64_t looks;                /* at pieces so far */
    struct rs_template *templates; /* [RS_TEMPLATES] */
    struct rs_template *recording; /* or NULL */
    unsigned turn;                 /* which template gives way next */
    bool sharing;                  /* what is added counts for the choice between holders at once */
    bool same; /* holders have this very rank: a whole stream is read from one of them */
};

struct rs {
    const struct manifest *const *seeds;
    uint32_t seed_count;
    const struct manifest *wanted;
    struct rs_source *sources; /* by name */
    uint32_t source_count;
    /* Sources of equal dtype and shape are of one class. These are looked at for each part of each
     * rank, of which there may be millions, and fit the cache. */
    uint32_t *classes; /* [source_count] */
    uint32_t *models;  /* [of classes] the first source of each */
    uint32_t **maps;   /* [seed_count], or NULL where a seed has no sources */
    struct rs_holder *holders;
    uint32_t holder_count;
    struct rs_rank *ranks; /* [wanted->rank_count] */
    atomic_uint_least64_t move_count;
    struct reshard *plan;
};

/* Whether a tensor without parts is a source itself. */
bool rs_whole_tensors(const struct manifest *manifest);

/* Fills sources, classes, maps: what is what on both sides. RF_E_MISMATCH. */
enum rf_code rs_sources(struct rs *rs, struct rf_error *err);
/* The number of the source with this name; false: there is none. *cursor: 0 at first, then where
 * the last one was found, which makes it quick to ask for names in their order. */
bool rs_source_find(const struct rs *rs, const char *name, uint32_t bytes, uint32_t *cursor,
                    uint32_t *ret_number);
/* The number of the source that a whole tensor is, or MANIFEST_NONE. RF_E_MISMATCH: it is not of
 * that shape and dtype. */
enum rf_code rs_tensor_match(const struct rs *rs, const struct tensor *tensor, uint32_t *cursor,
                             uint32_t *ret_number, struct rf_error *err);

/* Fills places, cuts and extras of holder `index`. The first holder's come first; the others' may
 * then be made at once. */
enum rf_code rs_index(struct rs *rs, uint32_t index, struct rf_error *err);
void rs_holder_free(struct rs_holder *holder);
bool rs_cut_same(const struct rs_cut *a, const struct rs_cut *b);

/* Where holder `index` has the source: RS_MAX_SAME pieces at most. Returns how many. */
unsigned rs_pieces(const struct rs *rs, uint32_t index, uint32_t source,
                   struct rs_piece out[RS_MAX_SAME]);

/* Adds the moves that bring elements [from, to) along the piece's axis (all, if it is whole) to
 * where the need wants them. */
enum rf_code rs_emit(struct rs *rs, struct rs_rank *rank, const struct rs_need *need,
                     const struct rs_piece *piece, uint64_t from, uint64_t to,
                     struct rf_error *err);
/* Makes one move of two, when the second goes on where the first ends on both sides; with rows,
 * also when it goes on at the same distance. false: it does not. */
bool rs_move_join(struct reshard_move *last, const struct reshard_move *next, bool rows);
enum rf_code rs_move_add(struct rs *rs, struct rs_rank *rank, uint32_t holder,
                         const struct reshard_move *move, struct rf_error *err);
/* Adds `count` moves of one tensor, each so many bytes behind the one before. */
enum rf_code rs_moves_add(struct rs *rs, struct rs_rank *rank, uint32_t holder,
                          const struct reshard_move *move, const struct rs_steps *steps,
                          struct rf_error *err);

/* Adds the moves for a need, from whoever has it, or (idle) from those from which least is read. */
enum rf_code rs_cover(struct rs *rs, struct rs_rank *rank, const struct rs_need *need, bool idle,
                      struct rf_error *err);
/* Whether more than one holder has the beginning of a need. */
bool rs_shared(const struct rs *rs, struct rs_rank *rank, const struct rs_need *need);

/* Plans what only one holder has, and puts off the rest. */
enum rf_code rs_rank_plan(struct rs *rs, struct rs_rank *rank, struct rf_error *err);
/* Plans the rest of all ranks: of several holders the one from which least is read. */
enum rf_code rs_ranks_share(struct rs *rs, struct rf_error *err);
/* Sorts, merges, and hands over to the plan. */
enum rf_code rs_rank_finish(struct rs *rs, struct rs_rank *rank, struct rf_error *err);

/* One with the same dtype and shape, that is likely to be in the cache. */
static inline const struct rs_source *rs_like(const struct rs *rs, uint32_t source)
{
    return &rs->sources[rs->models[rs->classes[source]]];
}

/* Elements of a source along an axis; one without dimensions has one. */
static inline uint64_t rs_length(const struct rs_source *source, uint32_t axis)
{
    return source->ndim > 0 ? source->shape[axis] : 1;
}

#endif
