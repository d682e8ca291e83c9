/* The addresses under which a seed publishes its ranks: nowhere in any memory, different at each
 * start, far apart, so that an address that is wrong by a little hits nothing. */
#ifndef TRANSPORT_TE_SPACE_H
#define TRANSPORT_TE_SPACE_H

#include "transport/transport.h"

#define TE_SPACE_BEGIN (UINT64_C(1) << 44)
#define TE_SPACE_END   (UINT64_C(1) << 46) /* 47 bits are what a user's address has everywhere */
#define TE_SPACE_ALIGN (UINT64_C(2) << 20)
#define TE_SPACE_GUARD (UINT64_C(1) << 30) /* at least, between two ranks */

struct te_place {
    uint64_t base;
    uint64_t bytes; /* > 0 */
    uint32_t rank;
    const struct layout *layout;
};

struct te_space {
    struct te_place *places; /* of ranks that have bytes; by base, which is by rank */
    uint32_t count;
};

/* RF_E_NOMEM, RF_E_UNSUPPORTED (more bytes than there are addresses), RF_E_SYS (no randomness). */
enum rf_code te_space_init(struct te_space *ret_space, const struct exporter *exporter,
                           struct rf_error *err);
void te_space_free(struct te_space *space);
/* The place that holds all of [address, address + bytes); NULL if none does, or bytes is 0. */
const struct te_place *te_space_find(const struct te_space *space, uint64_t address,
                                     uint64_t bytes);
/* 0: no such rank, or an empty one. */
uint64_t te_space_base(const struct te_space *space, uint32_t rank);

#endif
