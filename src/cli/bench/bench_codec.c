/* Headers and manifests of very many tensors. */
#include "base/buf.h"
#include "base/clock.h"
#include "cli/bench/bench.h"
#include "control/client.h"
#include "format/safetensors.h"
#include "model/compare.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { CODEC_TENSORS = 60000, CODEC_NAME_BYTES = 96, CODEC_ROUNDS = 11 };

/* A mixture-of-experts model's header: 128 experts a layer, three matrices each. */
static enum rf_code make_header(struct buf *out, struct rf_error *err)
{
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    static const uint64_t shape[] = {2, 16};
    struct st_tensor *tensors = calloc(CODEC_TENSORS, sizeof(*tensors));
    char(*names)[CODEC_NAME_BYTES] = calloc(CODEC_TENSORS, sizeof(*names));
    enum rf_code code = RF_OK;

    if (tensors == NULL || names == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory for %d tensors", CODEC_TENSORS);
    for (unsigned i = 0; code == RF_OK && i < CODEC_TENSORS; i++) {
        int bytes = snprintf(names[i], CODEC_NAME_BYTES, "model.layers.%u.mlp.experts.%u.%s.weight",
                             i / 3 / 128, i / 3 % 128, parts[i % 3]);

        tensors[i] = (struct st_tensor){.name = names[i],
                                        .name_bytes = (uint32_t)bytes,
                                        .dtype = RF_DTYPE_BF16,
                                        .ndim = 2,
                                        .shape = shape,
                                        .bytes = 64};
    }
    if (code == RF_OK)
        code = st_header_write(tensors, CODEC_TENSORS, NULL, 0, out, err);
    free(tensors);
    free(names);
    return code;
}

enum rf_code bench_header(struct bench *bench, struct rf_error *err)
{
    BUF_AUTO struct buf file = {.data = NULL};
    struct bench_result *result = bench_result(bench, "header of 60,000 tensors: parse");
    enum rf_code code = make_header(&file, err);

    for (unsigned i = 0; code == RF_OK && i < CODEC_ROUNDS; i++) {
        struct st_header header;
        uint64_t start_ns = clock_now_ns();

        code = st_header_parse("bench", file.data + 8, file.bytes - 8,
                               file.bytes + (uint64_t)CODEC_TENSORS * 64, &header, err);
        samples_add(&result->samples, clock_seconds(start_ns, clock_now_ns()));
        if (code == RF_OK)
            st_header_free(&header);
    }
    bench_judge_most(result, "s", 0.03);
    snprintf(result->note, sizeof(result->note), "%zu bytes of JSON", file.bytes - 8);
    return code;
}

static enum rf_code manifest_once(const char *url, struct manifest **ret_manifest,
                                  double *ret_seconds, struct rf_error *err)
{
    const struct client_options options = {.timeout_ms = 0};
    struct client *client = NULL;
    struct manifest *manifest = NULL;
    uint64_t start_ns = clock_now_ns();
    enum rf_code code = client_create(url, &options, &client, err);

    /* The first to ask: the seed encodes it now. */
    if (code == RF_OK)
        code = client_manifest(client, &manifest, err);
    if (code == RF_OK)
        code = compare_explain(&manifest->ranks[0], &manifest->ranks[0], err);
    *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    client_destroy(client);
    if (code == RF_OK)
        *ret_manifest = manifest;
    return code;
}

enum rf_code bench_manifest(struct bench *bench, struct rf_error *err)
{
    struct bench_result *result =
        bench_result(bench, "manifest of 60,000 tensors: encode, fetch, parse, match");
    struct holder *holder = NULL;
    uint32_t tensors = 0;
    enum rf_code code = bench_holder(bench, &holder, err);

    for (unsigned i = 0; code == RF_OK && i < bench->rounds; i++) {
        char url[BENCH_TEXT_BYTES];
        char answer[BENCH_TEXT_BYTES];
        struct manifest *manifest = NULL;
        double seconds = 0;

        code = holder_ask(holder, url, err, "tiny %d 127.0.0.1 -", CODEC_TENSORS);
        if (code == RF_OK)
            code = manifest_once(url, &manifest, &seconds, err);
        if (code != RF_OK)
            break;
        samples_add(&result->samples, seconds);
        tensors = manifest->ranks[0].tensor_count;
        manifest_unref(manifest);
        code = holder_ask(holder, answer, err, "stop");
    }
    bench_judge_most(result, "s", 0.2);
    snprintf(result->note, sizeof(result->note),
             "%" PRIu32 " tensors; first request to a seed just published", tensors);
    return code;
}
