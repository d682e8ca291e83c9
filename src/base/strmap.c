#include "base/strmap.h"

#include "base/siphash.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { STRMAP_MIN_SLOTS = 16 };

struct slot {
    const char *key; /* NULL: free */
    size_t bytes;
    uint32_t hash; /* upper half: saves most comparisons of strings */
    uint32_t value;
};

/* Linear probing in a power of two of slots of which at most three quarters are taken. */
struct strmap {
    struct slot *slots;
    size_t mask;
    size_t count;
};

/* One key for all maps of the process: names come from peers, who must not know where they land. */
static uint64_t strmap_key[2];
static pthread_once_t strmap_key_once = PTHREAD_ONCE_INIT;

static void strmap_key_make(void)
{
    /* Without entropy (early boot) the time and a number are better than a constant. */
    if (getrandom(strmap_key, sizeof strmap_key, GRND_NONBLOCK) != (ssize_t)sizeof strmap_key) {
        struct timespec now = {0};
        clock_gettime(CLOCK_REALTIME, &now);
        strmap_key[0] = (uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec;
        strmap_key[1] = (uint64_t)getpid();
    }
}

static struct slot *slots_create(size_t slots)
{
    return calloc(slots, sizeof(struct slot));
}

struct strmap *strmap_create(size_t expected)
{
    size_t slots = STRMAP_MIN_SLOTS;

    pthread_once(&strmap_key_once, strmap_key_make);
    while (slots / 4 * 3 < expected) {
        if (slots > SIZE_MAX / sizeof(struct slot) / 2)
            return NULL;
        slots *= 2;
    }
    struct strmap *map = malloc(sizeof *map);
    if (map == NULL)
        return NULL;
    *map = (struct strmap){.slots = slots_create(slots), .mask = slots - 1};
    if (map->slots == NULL) {
        free(map);
        return NULL;
    }
    return map;
}

void strmap_destroy(struct strmap *map)
{
    if (map == NULL)
        return;
    free(map->slots);
    free(map);
}

/* The slot that holds the key, or the free one where it belongs. */
static struct slot *locate(const struct strmap *map, uint64_t hash, const char *key, size_t bytes)
{
    uint32_t upper = (uint32_t)(hash >> 32);
    size_t at = (size_t)hash & map->mask;

    for (;; at = (at + 1) & map->mask) {
        struct slot *slot = &map->slots[at];
        if (slot->key == NULL)
            return slot;
        if (slot->hash == upper && slot->bytes == bytes && memcmp(slot->key, key, bytes) == 0)
            return slot;
    }
}

static bool grow(struct strmap *map)
{
    size_t slots = map->mask + 1;

    if (slots > SIZE_MAX / sizeof(struct slot) / 2)
        return false;
    struct strmap wider = {.slots = slots_create(slots * 2), .mask = slots * 2 - 1};
    if (wider.slots == NULL)
        return false;
    for (size_t i = 0; i < slots; i++) {
        const struct slot *slot = &map->slots[i];
        if (slot->key != NULL)
            *locate(&wider, siphash(strmap_key, slot->key, slot->bytes), slot->key, slot->bytes) =
                *slot;
    }
    free(map->slots);
    map->slots = wider.slots;
    map->mask = wider.mask;
    return true;
}

enum rf_code strmap_add(struct strmap *map, const char *key, size_t bytes, uint32_t value,
                        uint32_t *ret_old)
{
    if (bytes == 0)
        key = ""; /* a NULL key marks a free slot */
    uint64_t hash = siphash(strmap_key, key, bytes);
    struct slot *slot = locate(map, hash, key, bytes);
    if (slot->key != NULL) {
        if (ret_old != NULL)
            *ret_old = slot->value;
        return RF_E_INVAL;
    }
    if (map->count + 1 > (map->mask + 1) / 4 * 3) {
        if (!grow(map))
            return RF_E_NOMEM;
        slot = locate(map, hash, key, bytes);
    }
    *slot =
        (struct slot){.key = key, .bytes = bytes, .hash = (uint32_t)(hash >> 32), .value = value};
    map->count++;
    return RF_OK;
}

bool strmap_find(const struct strmap *map, const char *key, size_t bytes, uint32_t *ret_value)
{
    if (bytes == 0)
        key = "";
    const struct slot *slot = locate(map, siphash(strmap_key, key, bytes), key, bytes);
    if (slot->key == NULL)
        return false;
    *ret_value = slot->value;
    return true;
}
