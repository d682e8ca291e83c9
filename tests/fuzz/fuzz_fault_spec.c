/* "fault:SEED[,...]:NAME" as anybody may have written it: taken or refused with a reason, never
 * half of each. */
#include "transport/fault/spec.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct fault_spec spec = {.seed = 4711};
    struct rf_error err = {0};
    char *text =
        malloc(len + 1); /* of exactly its size, so that the sanitizer sees every read beyond it */

    if (text == NULL)
        return 0;
    memcpy(text, data, len);
    text[len] = '\0';
    enum rf_code code = fault_spec_parse(text, &spec, &err);
    if (code == RF_OK) {
        if (spec.odds == 0 || spec.kinds == 0 || spec.inner[0] == '\0' ||
            memchr(spec.inner, '\0', sizeof spec.inner) == NULL)
            abort();
    } else if (code != RF_E_INVAL || err.text[0] == '\0' || spec.seed != 4711) {
        abort();
    }
    free(text);
    return 0;
}
