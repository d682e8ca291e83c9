/* "Did you mean": the known word that is nearest to a mistyped one. */
#ifndef CLI_SUGGEST_H
#define CLI_SUGGEST_H

#include <stddef.h>

struct suggest {
    const char *typed; /* in, borrowed */
    const char *best;  /* out; NULL: none is near */
    unsigned distance;
};

/* Letters to insert, drop, replace, or swap with their neighbour to turn one word into the
 * other; words are looked at up to 80 bytes. */
unsigned suggest_distance(const char *a, const char *b);

/* Keeps word (borrowed) if it is nearer than those before it, and near enough to be meant: a
 * third of the letters may be wrong, or one is the beginning of the other. */
void suggest_offer(struct suggest *suggest, const char *word);

#endif
