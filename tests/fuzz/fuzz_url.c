/* Seed URLs as users write them, and targets of requests as anybody sends them. */
#include "control/seed_url.h"
#include "control/target.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* What was accepted must come out the same from its own text. */
static void check_seed_url(const char *text)
{
    struct seed_url url;
    struct seed_url again;
    struct rf_error err;

    if (seed_url_parse(text, &url, &err) != RF_OK)
        return;
    if (seed_url_parse(url.text, &again, &err) != RF_OK || strcmp(url.text, again.text) != 0 ||
        strcmp(url.host, again.host) != 0 || url.port != again.port || url.port == 0)
        abort();
}

static void check_target(char *text)
{
    struct target target;
    struct rf_error err;
    uint64_t value = 0;

    if (target_parse(text, &target, &err) != RF_OK)
        return;
    if (target.path[0] != '/' || target.arg_count > TARGET_MAX_ARGS)
        abort();
    for (unsigned i = 0; i < target.arg_count; i++) {
        if (target_u64(&target, target.args[i].key, 1000, &value, &err) == RF_OK && value > 1000)
            abort();
    }
    (void)target_only(&target, "rank from wait_ms", &err);
    /* What is decoded can be encoded again, and means the same. */
    struct buf path = {0};
    seed_url_escape(target.path, &path);
    struct target again;
    if (!path.failed && (target_parse((char *)path.data, &again, &err) != RF_OK ||
                         strcmp(again.path, target.path) != 0))
        abort();
    buf_free(&path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = malloc(len + 1);
    char out[64];

    if (text == NULL)
        return 0;
    if (len > 0)
        memcpy(text, data, len);
    text[len] = '\0';
    check_seed_url(text);
    (void)seed_url_replace_wildcard(text, "fe80::1", out, sizeof out);
    check_target(text);
    free(text);
    return 0;
}
