/* What a seed says of itself. */
#include "control/instance_json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* What was accepted must be fit for use without a further look. */
static void check(const struct instance_info *info)
{
    const char *texts[] = {
        info->instance_id,
        info->version,
        info->state,
        info->state_reason,
        info->model,
        info->architecture,
        info->quantisation,
        info->layout,
        info->stage,
        info->host_id,
        info->manifest_id,
        info->root_digest,
        info->refused_transports,
    };

    for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        if (texts[i] == NULL || strpbrk(texts[i], "\n\r\x1b") != NULL)
            abort();
    }
    if (info->endpoint_count > TRANSPORT_MAX_ENDPOINTS || info->rank_count > MANIFEST_MAX_RANKS)
        abort();
    for (uint32_t i = 0; i < info->endpoint_count; i++) {
        const struct endpoint *endpoint = &info->endpoints[i];
        if (endpoint->transport[0] == '\0' || endpoint->address[0] == '\0' ||
            strnlen(endpoint->address, sizeof endpoint->address) == sizeof endpoint->address)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct instance_info info;
    struct rf_error err = {.text = ""};

    if (instance_json_parse(data, len, "10.0.0.1", &info, &err) == RF_OK) {
        check(&info);
        instance_info_free(&info);
    } else if (err.text[0] == '\0' || strchr(err.text, '\n') != NULL) {
        abort();
    }
    return 0;
}
