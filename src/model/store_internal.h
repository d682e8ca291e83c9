/* What the files of the store share. */
#ifndef MODEL_STORE_INTERNAL_H
#define MODEL_STORE_INTERNAL_H

#include "model/store.h"

/* Where the tensors of the weight files lie in them: for each file a run of places, by offset. */
struct file_place {
    uint64_t file_offset;
    uint32_t rank;
    uint32_t tensor;
};

struct file_index {
    struct file_place *places;
    uint64_t *begin; /* [file_count + 1] first place of each file */
};

/* RF_E_INVAL: two tensors overlap in a file. */
enum rf_code file_index_create(const struct manifest *manifest, struct file_index *ret_index,
                               struct rf_error *err);
void file_index_free(struct file_index *index);

/* The public part is handed out; the rest stays here. */
struct store_box {
    struct store store;
    struct file_index index;
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

#endif
