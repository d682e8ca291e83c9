/* A lease, as a seed grants it and as a client asks for it. */
#include "control/instance_json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct lease lease;
    struct lease_request request;
    struct rf_error err;
    char text[2 * CHUNK_TOKEN_BYTES + 1];
    uint8_t token[CHUNK_TOKEN_BYTES];

    if (lease_json_parse(data, len, "::1", &lease, &err) == RF_OK) {
        if (lease.endpoint_count > TRANSPORT_MAX_ENDPOINTS || lease.ttl_ms > INT64_MAX)
            abort();
        lease_token_text(lease.token, text);
        if (!lease_token_parse(text, token) || memcmp(token, lease.token, sizeof token) != 0)
            abort();
    }
    if (lease_request_parse(data, len, &request, &err) == RF_OK &&
        (strnlen(request.client, sizeof request.client) == sizeof request.client ||
         strpbrk(request.client, "\n\r\x1b") != NULL))
        abort();
    return 0;
}
