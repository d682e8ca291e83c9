/* Range headers: whatever they say, the part lies inside. */
#include "control/range.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const uint64_t totals[] = {0, 1, 100, UINT32_MAX, UINT64_MAX};
    char *text = malloc(len + 1);

    if (text == NULL)
        return 0;
    if (len > 0)
        memcpy(text, data, len);
    text[len] = '\0';
    for (unsigned i = 0; i < sizeof totals / sizeof totals[0]; i++) {
        struct byte_range range = {.from = 0, .bytes = 0};
        enum range_kind kind = range_parse(text, totals[i], &range);
        if (kind == RANGE_PART &&
            (range.bytes == 0 || range.from >= totals[i] || range.bytes > totals[i] - range.from))
            abort();
        if (kind != RANGE_PART && (range.from != 0 || range.bytes != 0))
            abort();
    }
    free(text);
    return 0;
}
