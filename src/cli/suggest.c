#include "cli/suggest.h"

#include <stdbool.h>
#include <string.h>

enum { SUGGEST_MAX_BYTES = 80, SUGGEST_PREFIX_BYTES = 3 };

static unsigned least(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/* The optimal string alignment distance; rows[] hold what each pair of beginnings costs. */
unsigned suggest_distance(const char *a, const char *b)
{
    unsigned rows[3][SUGGEST_MAX_BYTES + 1];
    unsigned a_bytes = (unsigned)strnlen(a, SUGGEST_MAX_BYTES);
    unsigned b_bytes = (unsigned)strnlen(b, SUGGEST_MAX_BYTES);

    for (unsigned j = 0; j <= b_bytes; j++)
        rows[0][j] = j;
    for (unsigned i = 1; i <= a_bytes; i++) {
        unsigned *row = rows[i % 3];
        const unsigned *above = rows[(i + 2) % 3];

        row[0] = i;
        for (unsigned j = 1; j <= b_bytes; j++) {
            row[j] = least(above[j - 1] + (a[i - 1] != b[j - 1]), least(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], rows[(i + 1) % 3][j - 2] + 1);
        }
    }
    return rows[a_bytes % 3][b_bytes];
}

void suggest_offer(struct suggest *suggest, const char *word)
{
    size_t typed_bytes = strlen(suggest->typed);
    size_t word_bytes = strlen(word);
    size_t longer = typed_bytes > word_bytes ? typed_bytes : word_bytes;
    unsigned distance = suggest_distance(suggest->typed, word);
    bool begins =
        typed_bytes >= SUGGEST_PREFIX_BYTES && strncmp(word, suggest->typed, typed_bytes) == 0;

    if (longer > SUGGEST_MAX_BYTES || (distance > (longer + 2) / 3 && !begins))
        return;
    if (begins)
        distance = 1;
    if (suggest->best == NULL || distance < suggest->distance) {
        suggest->best = word;
        suggest->distance = distance;
    }
}
