#include "control/remote_agree.h"

#include "base/cleanup.h"
#include "control/remote_internal.h"
#include "control/seed_url.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    AGREE_SAMPLES = 8, /* tensors whose bytes are compared: each costs two requests */
    AGREE_SAMPLE_BYTES = 64 << 10,
};

/* ---- names ---- */

/* A model that has the other one's tensors and more would give bytes, and be another model. */
static enum rf_code same_sources(const struct remote *one, const struct remote *other,
                                 struct rf_error *err)
{
    const struct manifest *a = one->manifest;
    const struct manifest *b = other->manifest;
    uint32_t i = 0;
    uint32_t j = 0;

    if (a->source_count == 0 || b->source_count == 0)
        return RF_OK; /* one that is not cut: its tensors are compared when it is asked for them */
    while (i < a->source_count || j < b->source_count) {
        const char *left = i < a->source_count ? a->sources[i].name : NULL;
        const char *right = j < b->source_count ? b->sources[j].name : NULL;
        int order = left == NULL ? 1 : right == NULL ? -1 : strcmp(left, right);

        if (order != 0)
            return rf_fail(err, RF_E_MISMATCH,
                           "tensor %.120s: %s's model has it, %s's has not: they are seeds of two "
                           "models",
                           order < 0 ? left : right,
                           client_url(order < 0 ? one->client : other->client),
                           client_url(order < 0 ? other->client : one->client));
        i++;
        j++;
    }
    return RF_OK;
}

/* ---- config.json ---- */

static const struct manifest_file *config_of(const struct manifest *manifest)
{
    for (uint32_t i = 0; i < manifest->file_count; i++) {
        if (manifest->files[i].kind == FILE_SIDE &&
            strcmp(manifest->files[i].name, "config.json") == 0)
            return &manifest->files[i];
    }
    return NULL;
}

static enum rf_code same_config(const struct remote *one, const struct remote *other,
                                struct rf_error *err)
{
    const struct manifest_file *a = config_of(one->manifest);
    const struct manifest_file *b = config_of(other->manifest);

    if (a == NULL || b == NULL || one->manifest->algorithm != other->manifest->algorithm ||
        memcmp(a->digest, b->digest, hash_bytes(one->manifest->algorithm)) == 0)
        return RF_OK;
    return rf_fail(err, RF_E_MISMATCH,
                   "%s and %s have different config.json: they are seeds of two models, or of two "
                   "versions of one",
                   client_url(one->client), client_url(other->client));
}

/* ---- bytes ---- */

/* The tensor of the checkpoint that a rank's tensor is, all of it; NULL: it is a slice. */
static const char *whole_source(const struct manifest *manifest, const struct tensor *tensor)
{
    const struct part *part = tensor->parts;

    if (tensor->global_shape != tensor->shape && tensor->ndim > 0 &&
        memcmp(tensor->global_shape, tensor->shape, tensor->ndim * sizeof(*tensor->shape)) != 0)
        return NULL;
    if (tensor->part_count == 0)
        return tensor->name;
    if (tensor->part_count != 1 || part->source == MANIFEST_NONE || part->start != 0)
        return NULL;
    const struct manifest_source *source = &manifest->sources[part->source];
    return source->ndim == tensor->ndim &&
                   (tensor->ndim == 0 || memcmp(source->shape, tensor->shape,
                                                tensor->ndim * sizeof(*tensor->shape)) == 0)
               ? source->name
               : NULL;
}

/* Whether the first ranks of both have it whole, and it is small. */
static bool is_sample(const struct manifest *one, const struct manifest *other,
                      const struct tensor *tensor)
{
    const struct tensor *twin = manifest_find(&one->ranks[0], tensor->name);

    if (tensor->bytes == 0 || tensor->bytes > AGREE_SAMPLE_BYTES || twin == NULL ||
        twin->bytes != tensor->bytes || twin->dtype != tensor->dtype)
        return false;
    const char *source = whole_source(other, tensor);
    const char *twin_source = whole_source(one, twin);
    return source != NULL && twin_source != NULL && strcmp(source, twin_source) == 0;
}

static enum rf_code fetch_sample(const struct remote *remote, const struct tensor *tensor,
                                 struct buf *out, struct rf_error *err)
{
    struct buf path BUF_AUTO = {0};

    buf_printf(&path, "/v1/tensors/");
    seed_url_escape(tensor->name, &path);
    buf_printf(&path, "?rank=0");
    if (path.failed)
        return rf_fail(err, RF_E_NOMEM, "no memory for a request");
    return client_get(remote->client, (const char *)path.data, tensor->bytes, out, err);
}

static enum rf_code same_bytes(const struct remote *one, const struct remote *other,
                               const struct tensor *tensor, struct rf_error *err)
{
    struct buf left BUF_AUTO = {0};
    struct buf right BUF_AUTO = {0};
    enum rf_code code = fetch_sample(one, tensor, &left, err);

    if (code == RF_OK)
        code = fetch_sample(other, tensor, &right, err);
    if (code != RF_OK ||
        (left.bytes == right.bytes && memcmp(left.data, right.data, left.bytes) == 0))
        return code;
    return rf_fail(err, RF_E_MISMATCH,
                   "tensor %.120s: %s and %s have different bytes of it: they are seeds of two "
                   "versions of the model",
                   tensor->name, client_url(one->client), client_url(other->client));
}

/* Some from the beginning to the end of the model: what was trained on changed all of it. */
static enum rf_code same_samples(const struct remote *one, const struct remote *other,
                                 struct rf_error *err)
{
    const struct manifest_rank *rank = &other->manifest->ranks[0];
    rf_autofree uint32_t *samples = calloc((size_t)rank->tensor_count + 1, sizeof(*samples));
    enum rf_code code = RF_OK;
    uint32_t count = 0;

    if (samples == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to compare two seeds");
    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        if (is_sample(one->manifest, other->manifest, &rank->tensors[i]))
            samples[count++] = i;
    }
    uint32_t taken = count < AGREE_SAMPLES ? count : AGREE_SAMPLES;
    for (uint32_t i = 0; code == RF_OK && i < taken; i++) {
        uint32_t sample = samples[(uint64_t)i * count / taken];

        code = same_bytes(one, other, &rank->tensors[sample], err);
    }
    return code;
}

enum rf_code remote_agree(struct remote *one, struct remote *other, struct rf_error *err)
{
    enum rf_code code = same_sources(one, other, err);

    if (code == RF_OK)
        code = same_config(one, other, err);
    return code == RF_OK ? same_samples(one, other, err) : code;
}
