/* Sorting names bytewise, faster than comparing them whole: tensor names share long beginnings. */
#ifndef MODEL_NAME_SORT_H
#define MODEL_NAME_SORT_H

#include <stdbool.h>
#include <stdint.h>

struct name_item {
    uint64_t key; /* the sort's own */
    const char *name;
    uint32_t bytes;
    uint32_t index; /* the caller's */
};

/* Names hold no NUL. Equal ones end up side by side. false: out of memory, nothing was sorted. */
bool name_sort(struct name_item *items, uint32_t count);

#endif
