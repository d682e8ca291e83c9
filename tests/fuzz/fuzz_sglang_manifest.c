/* From what an SGLang seed says to what is read of it: a rank's map, what its engine has
 * registered, and a folder's config.json become a manifest and places in memory. The input is these
 * three texts, with zero bytes between them. */
#include "control/sglang_manifest.h"
#include "must.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Cuts the next text off. */
static const uint8_t *next_text(const uint8_t **data, size_t *size, size_t *ret_bytes)
{
    const uint8_t *text = *data;
    const uint8_t *end = *size > 0 ? memchr(text, 0, *size) : NULL;
    size_t bytes = end != NULL ? (size_t)(end - text) : *size;
    size_t used = end != NULL ? bytes + 1 : bytes;

    *ret_bytes = bytes;
    *data += used;
    *size -= used;
    return text;
}

/* The segments cover the stream from its beginning, each once, and with the map's own addresses. */
static void check_places(const struct manifest *manifest, const struct weight_map *map,
                         const struct te_descriptor *descriptor)
{
    struct te_segment *segments = NULL;
    struct rf_error err;
    uint64_t count = 0;
    uint64_t end = 0;

    bool registered = descriptor != NULL && sglang_check_registered(map, descriptor, &err) == RF_OK;
    must(sglang_segments(&manifest->ranks[0], map, &segments, &count, &err) == RF_OK);
    for (uint64_t i = 0; i < count; i++) {
        must(segments[i].stream_offset == end);
        end += segments[i].bytes;
        must(segments[i].address <= UINT64_MAX - segments[i].bytes);
        must(!registered || segments[i].bytes == 0 ||
             te_descriptor_find(descriptor, segments[i].address, segments[i].bytes) != NULL);
    }
    must(end == manifest->ranks[0].stream_bytes);
    free(segments);
}

static void check_manifest(const struct weight_map *map, const struct te_descriptor *descriptor,
                           const struct model_config *config)
{
    const struct sglang_facts facts = {.model = "m", .config = config};
    struct manifest *manifest = NULL;
    struct rf_error err = {.code = RF_OK};

    enum rf_code code = sglang_manifest_make(&facts, map, 1, &manifest, &err);
    if (code != RF_OK) {
        must(manifest == NULL && err.code == code && err.text[0] != '\0');
        must(code == RF_E_MISMATCH || code == RF_E_PROTO || code == RF_E_NOMEM);
        return;
    }
    must(manifest->rank_count == 1 && manifest->ranks[0].tensor_count == map->count);
    (void)sglang_manifest_check(manifest, map, 1, NULL, &err);
    check_places(manifest, map, descriptor);
    manifest_unref(manifest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config *config = NULL;
    struct te_descriptor descriptor;
    struct weight_map map;
    struct rf_error err;
    size_t bytes;

    const uint8_t *text = next_text(&data, &size, &bytes);
    if (weight_map_decode((const char *)text, bytes, &map, &err) != RF_OK)
        return 0;
    text = next_text(&data, &size, &bytes);
    bool described = te_descriptor_decode(text, bytes, &descriptor, &err) == RF_OK;
    text = next_text(&data, &size, &bytes);
    if (model_config_parse((const char *)text, bytes, &config, &err) != RF_OK)
        config = NULL;
    check_manifest(&map, described ? &descriptor : NULL, config);
    model_config_destroy(config);
    if (described)
        te_descriptor_free(&descriptor);
    weight_map_free(&map);
    return 0;
}
