#include "util/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

uint8_t *exact_copy(const void *data, size_t bytes)
{
    uint8_t *copy = malloc(bytes);

    assert_true(copy != NULL || bytes == 0);
    if (bytes > 0)
        memcpy(copy, data, bytes);
    return copy;
}

void assert_says(const struct rf_error *err, const char *words)
{
    if (strstr(err->text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err->text, words);
}
