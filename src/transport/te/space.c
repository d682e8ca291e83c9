#include "transport/te/space.h"

#include "base/rand.h"

#include <inttypes.h>
#include <stdlib.h>

static enum rf_code add(struct te_space *space, uint32_t *room, const struct te_place *place,
                        struct rf_error *err)
{
    if (space->count == *room) {
        uint32_t more = *room > 0 ? 2 * *room : 16;
        struct te_place *places = realloc(space->places, more * sizeof *places);
        if (places == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for the addresses of %" PRIu32 " ranks",
                           more);
        space->places = places;
        *room = more;
    }
    space->places[space->count++] = *place;
    return RF_OK;
}

/* What a place takes, its guard included, in units of TE_SPACE_ALIGN. */
static uint64_t units_of(uint64_t bytes)
{
    return (bytes + TE_SPACE_GUARD + TE_SPACE_ALIGN - 1) / TE_SPACE_ALIGN;
}

static int compare_u64(const void *a, const void *b)
{
    const uint64_t *left = a;
    const uint64_t *right = b;

    return (*left > *right) - (*left < *right);
}

/* Deals what is left of the space out as gaps, at random. */
static enum rf_code settle(struct te_space *space, uint64_t free_units, struct rf_error *err)
{
    uint64_t *gaps = calloc(space->count > 0 ? space->count : 1, sizeof *gaps);
    uint64_t unit = TE_SPACE_BEGIN / TE_SPACE_ALIGN;

    if (gaps == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for the addresses of %" PRIu32 " ranks",
                       space->count);
    enum rf_code code = rand_bytes(gaps, space->count * sizeof *gaps, err);
    for (uint32_t i = 0; i < space->count; i++)
        gaps[i] %= free_units;
    qsort(gaps, space->count, sizeof *gaps, compare_u64);
    for (uint32_t i = 0; i < space->count; i++) {
        struct te_place *place = &space->places[i];
        place->base = (unit + gaps[i]) * TE_SPACE_ALIGN;
        unit += units_of(place->bytes);
    }
    free(gaps);
    return code;
}

enum rf_code te_space_init(struct te_space *ret_space, const struct exporter *exporter,
                           struct rf_error *err)
{
    uint64_t free_units = (TE_SPACE_END - TE_SPACE_BEGIN) / TE_SPACE_ALIGN;
    struct te_space space = {.count = 0};
    enum rf_code code = RF_OK;
    uint32_t room = 0;

    for (uint32_t rank = 0; code == RF_OK; rank++) {
        const struct layout *layout = exporter->rank_layout(exporter->ctx, rank);
        if (layout == NULL)
            break;
        const struct te_place place = {
            .bytes = layout->stream_bytes, .rank = rank, .layout = layout};
        if (place.bytes >= TE_SPACE_END || units_of(place.bytes) >= free_units) {
            code = rf_fail(err, RF_E_UNSUPPORTED,
                           "rank %" PRIu32 ": no addresses left for its %" PRIu64 " bytes", rank,
                           place.bytes);
        } else if (place.bytes > 0) {
            free_units -= units_of(place.bytes);
            code = add(&space, &room, &place, err);
        }
    }
    if (code == RF_OK)
        code = settle(&space, free_units, err);
    if (code != RF_OK) {
        te_space_free(&space);
        return code;
    }
    *ret_space = space;
    return RF_OK;
}

void te_space_free(struct te_space *space)
{
    free(space->places);
    *space = (struct te_space){.count = 0};
}

const struct te_place *te_space_find(const struct te_space *space, uint64_t address, uint64_t bytes)
{
    uint32_t low = 0;
    uint32_t high = space->count;

    while (low < high) { /* the first that begins behind the address */
        uint32_t middle = low + (high - low) / 2;

        if (space->places[middle].base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || bytes == 0)
        return NULL;
    const struct te_place *place = &space->places[low - 1];
    uint64_t before = address - place->base;
    return before < place->bytes && bytes <= place->bytes - before ? place : NULL;
}

uint64_t te_space_base(const struct te_space *space, uint32_t rank)
{
    for (uint32_t i = 0; i < space->count; i++) {
        if (space->places[i].rank == rank)
            return space->places[i].base;
    }
    return 0;
}
