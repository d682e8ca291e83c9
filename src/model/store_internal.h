/* What the files of the store share. */
#ifndef MODEL_STORE_INTERNAL_H
#define MODEL_STORE_INTERNAL_H

#include "model/store.h"

/* Where the tensors of the weight files lie in them: for each file a run of places, by offset. */
struct file_place {
    uint64_t file_offset;
    uint32_t rank;   /* MANIFEST_NONE: it is a source */
    uint32_t tensor; /* or source */
};

struct file_index {
    struct file_place *places;
    uint64_t *begin; /* [file_count + 1] first place of each file */
};

/* RF_E_INVAL: two tensors overlap in a file. */
enum rf_code file_index_create(const struct manifest *manifest, struct file_index *ret_index,
                               struct rf_error *err);
void file_index_free(struct file_index *index);

/* Which parts of which ranks' tensors hold the bytes of the sources, unconverted: for each source a
 * run of holders. */
struct source_holder {
    uint32_t rank;
    uint32_t tensor;
    uint32_t part;
};

struct source_index {
    struct source_holder *holders;
    uint64_t *begin;  /* [source_count + 1] first holder of each source */
    uint64_t *counts; /* [source_count] how many it has */
    bool *whole;      /* [source_count] known to be held completely */
};

enum rf_code source_index_create(const struct manifest *manifest, struct source_index *ret_index,
                                 struct rf_error *err);
void source_index_free(struct source_index *index);

/* The public part is handed out; the rest stays here. */
struct store_box {
    struct store store;
    struct file_index index;
    struct source_index sources;
    uint32_t region_room;
    uint32_t *region_slots; /* open-addressing set of indices in regions, plus 1; 0: free */
    uint32_t slot_count;    /* a power of two, or 0 */
};

static inline struct store_box *store_box_of(struct store *store)
{
    return (struct store_box *)((char *)store - offsetof(struct store_box, store));
}

static inline const struct file_index *store_index(const struct store *store)
{
    return &((const struct store_box *)((const char *)store - offsetof(struct store_box, store)))
                ->index;
}

static inline const struct source_index *store_sources(const struct store *store)
{
    return &((const struct store_box *)((const char *)store - offsetof(struct store_box, store)))
                ->sources;
}

/* Copies [offset, offset + bytes), which lies inside the source, out of the ranks that have it.
 * RF_E_UNSUPPORTED: none has. */
enum rf_code source_read(const struct store *store, uint32_t source, uint64_t offset, uint8_t *to,
                         uint64_t bytes, struct rf_error *err);
/* Whether it could. */
enum rf_code source_check_held(const struct store *store, uint32_t source, uint64_t offset,
                               uint64_t bytes, struct rf_error *err);

#endif
