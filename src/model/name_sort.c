/* Eight bytes of the names at a time: a group of names that are equal so far is sorted by its next
 * eight bytes, read as one big-endian number, and falls into smaller groups. A merge sort within a
 * group keeps the time at n log n whatever the names are; they may come from a file. */
#include "model/name_sort.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = 8, INSERTION_MAX = 12 };

/* items[begin ... begin + count) are equal in their first `depth` bytes. */
struct group {
    uint32_t begin;
    uint32_t count;
    uint32_t depth;
};

/* A name that ends is continued by zeros, which no name holds: the shorter one comes first. */
static uint64_t key_at(const struct name_item *item, uint32_t depth)
{
    uint32_t left = item->bytes - depth;
    uint64_t key = 0;

    if (left >= KEY_BYTES)
        memcpy(&key, item->name + depth, KEY_BYTES);
    else
        memcpy(&key, item->name + depth, left);
    return be64toh(key);
}

static void insertion_sort(struct name_item *items, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        struct name_item item = items[i];
        uint32_t at = i;

        for (; at > 0 && items[at - 1].key > item.key; at--)
            items[at] = items[at - 1];
        items[at] = item;
    }
}

/* Merges the sorted [0, middle) and [middle, count); spare has room for middle. */
static void merge(struct name_item *items, struct name_item *spare, uint32_t middle, uint32_t count)
{
    uint32_t left = 0;
    uint32_t right = middle;
    uint32_t at = 0;

    if (items[middle - 1].key <= items[middle].key)
        return;
    memcpy(spare, items, middle * sizeof *items);
    while (left < middle && right < count) {
        bool take_left = spare[left].key <= items[right].key;
        items[at++] = take_left ? spare[left++] : items[right++];
    }
    memcpy(items + at, spare + left, (middle - left) * sizeof *items);
}

static void sort_by_key(struct name_item *items, struct name_item *spare, uint32_t count)
{
    for (uint32_t at = 0; at < count; at += INSERTION_MAX) {
        uint32_t left = count - at;
        insertion_sort(items + at, left < INSERTION_MAX ? left : INSERTION_MAX);
    }
    for (uint64_t width = INSERTION_MAX; width < count; width *= 2) {
        for (uint64_t at = 0; at + width < count; at += 2 * width) {
            uint64_t left = count - at;
            merge(items + at, spare, (uint32_t)width,
                  (uint32_t)(left < 2 * width ? left : 2 * width));
        }
    }
}

/* Sorts one group by its next eight bytes; the groups it falls into that are not yet sorted go to
 * `pending`. Returns how many there are then. */
static size_t group_split(struct name_item *items, struct name_item *spare, struct group group,
                          struct group *pending, size_t pending_count)
{
    struct name_item *begin = items + group.begin;
    bool sorted = true;

    for (uint32_t i = 0; i < group.count; i++) {
        begin[i].key = key_at(&begin[i], group.depth);
        sorted = sorted && (i == 0 || begin[i - 1].key <= begin[i].key);
    }
    if (!sorted)
        sort_by_key(begin, spare, group.count);
    for (uint32_t i = 0; i < group.count;) {
        uint32_t end = i + 1;

        while (end < group.count && begin[end].key == begin[i].key)
            end++;
        /* A name that ends within the key equals all others of the same key; one that ends with
         * it may still be the beginning of others. */
        if (end - i > 1 && begin[i].bytes - group.depth >= KEY_BYTES)
            pending[pending_count++] =
                (struct group){group.begin + i, end - i, group.depth + KEY_BYTES};
        i = end;
    }
    return pending_count;
}

bool name_sort(struct name_item *items, uint32_t count)
{
    /* Pending groups do not overlap and have two members at least. */
    struct group *pending = malloc((count / 2 + 1) * sizeof *pending);
    struct name_item *spare = malloc((count + (size_t)1) * sizeof *spare);
    size_t pending_count = 0;
    bool ok = pending != NULL && spare != NULL;

    if (ok && count > 1)
        pending[pending_count++] = (struct group){0, count, 0};
    while (pending_count > 0) {
        struct group group = pending[--pending_count];
        pending_count = group_split(items, spare, group, pending, pending_count);
    }
    free(spare);
    free(pending);
    return ok;
}
