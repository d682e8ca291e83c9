/* What the files of the loader share: load.c describes the folder, load_parts.c finds out where
 * each byte is to come from, load_place.c puts them there, load_make.c makes those that are
 * nowhere. */
#ifndef SEED_LOAD_INTERNAL_H
#define SEED_LOAD_INTERNAL_H

#include "seed/load.h"

enum {
    LOAD_PAGE_BYTES = 4096,     /* spans begin at multiples, so that O_DIRECT can read them */
    LOAD_MADE_ALIGN_BYTES = 64, /* no two made parts share a cache line */
};

/* Where a run of a rank's stream comes from. */
enum load_kind { LOAD_VIEW, LOAD_MADE, LOAD_CONSTANT };

struct load_place {
    uint32_t rank;
    enum load_kind kind;
    uint64_t stream_offset;
    uint64_t bytes;
    uint32_t index; /* LOAD_VIEW: of the file; else in load_parts.makes or .constants */
    uint64_t at;    /* LOAD_VIEW: in the file */
};

/* A run of a file that ranks show; spans are ordered and do not touch. */
struct load_span {
    uint32_t file;
    uint64_t file_offset;
    uint64_t bytes;
    uint64_t at; /* in memory, with LOAD_MEMFD */
};

/* A part that is made, once, however many ranks have it. */
struct load_make {
    uint32_t file;
    uint64_t source_at;        /* of its source in the file */
    struct stream_range range; /* in the source; part_range() */
    enum rf_dtype from;
    enum rf_dtype to;
    uint64_t bytes;     /* when it is made */
    uint64_t at;        /* in the made memory */
    uint64_t row_bytes; /* of each of range.count rows when it is made */
    uint64_t place;     /* only while the parts are planned */
};

/* An element that is repeated: zeros, mostly. Whoever has some of it shows the same memory. */
struct load_constant {
    const struct part *part; /* the longest of it */
    uint64_t at;             /* in the made memory */
};

struct load_parts {
    struct load_place *places;
    uint64_t place_count;
    uint64_t place_room;
    struct load_span *spans;
    uint64_t span_count;
    struct load_make *makes; /* by source, then by where they begin in it */
    uint64_t make_count;
    struct load_constant *constants;
    uint32_t constant_count;
    uint64_t span_bytes;   /* of memory for the spans */
    uint64_t made_bytes;   /* of memory for what is made, constants included */
    uint64_t viewed_bytes; /* of the spans, without what they have too much */
};

/* Plans a manifest whose tensors and sources all lie in files. RF_E_NOMEM; RF_E_FAILED for one that
 * has tensors elsewhere. */
enum rf_code load_parts_plan(const struct manifest *manifest, struct load_parts *ret_parts,
                             struct rf_error *err);
void load_parts_free(struct load_parts *parts);
/* The span that holds this byte of a file, of which there is one. */
const struct load_span *load_parts_span(const struct load_parts *parts, uint32_t file, uint64_t at);

/* One job of load_make_all(): rows [row, row + rows) of makes that are read together. */
struct load_make_job {
    const struct model_folder *folder;
    const struct load_parts *parts;
    struct region *region; /* writable, parts->made_bytes */
    unsigned threads;
    region_progress_fn progress;
    void *progress_ctx;
};
/* Makes all that is to be made. RF_E_CHANGED (short file), RF_E_NOMEM, RF_E_SYS. */
enum rf_code load_make_all(const struct load_make_job *job, struct rf_error *err);

/* Adds ranks to a builder that has files and sources. */
typedef enum rf_code (*load_ranks_fn)(const struct load *load, struct manifest_builder *builder,
                                      struct rf_error *err);

struct load {
    const struct model_folder *folder;
    load_ranks_fn add_ranks; /* NULL: one rank, the tensors as they are in the files */
    struct load_options options;
    struct store_file *files;    /* [folder->file_count], moved into the store */
    struct model_config *config; /* NULL: none that is understood */
    struct manifest *manifest;
    struct load_parts parts;
};

/* load_open() with ranks of the caller's making. */
enum rf_code load_open_ranks(const struct model_folder *folder, const struct load_options *options,
                             load_ranks_fn add_ranks, struct load **ret_load, struct rf_error *err);

/* Fills the store's layouts. Errors as of load_run(). */
enum rf_code load_place_all(const struct load *load, struct store *store, struct rf_error *err);

#endif
