/* Ranks, slices, and what they are made of. */
#include "base/size.h"
#include "cli/inspect.h"
#include "cli/output.h"

#include <inttypes.h>
#include <stdio.h>

static bool is_slice(const struct tensor *tensor)
{
    return tensor->global_shape != tensor->shape;
}

/* Whether a part is all of its source. */
static bool is_whole(const struct manifest *manifest, const struct part *part)
{
    if (part->source == MANIFEST_NONE)
        return true;
    const struct manifest_source *source = &manifest->sources[part->source];
    return source->ndim == 0 || part->count == source->shape[part->axis];
}

/* How many tensors of a rank other ranks have other pieces of; fused ones have no shape that says
 * it. */
static uint32_t count_slices(const struct manifest *manifest, const struct manifest_rank *rank)
{
    uint32_t slices = 0;

    for (uint32_t i = 0; i < rank->tensor_count; i++) {
        const struct tensor *tensor = &rank->tensors[i];
        bool slice = is_slice(tensor);

        for (uint32_t p = 0; p < tensor->part_count && !slice; p++)
            slice = !is_whole(manifest, &tensor->parts[p]);
        slices += slice;
    }
    return slices;
}

void inspect_print_ranks(const struct inspect *inspect)
{
    const struct manifest *manifest = inspect->subject.manifest;
    struct load_needs needs;
    char name[64];
    char bytes[SIZE_TEXT_BYTES];
    char other[SIZE_TEXT_BYTES];
    char slices[64];

    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        const struct manifest_rank *rank = &manifest->ranks[i];
        uint32_t count = count_slices(manifest, rank);

        slices[0] = '\0';
        if (count > 0)
            snprintf(slices, sizeof(slices), " (%" PRIu32 " slice%s)", count,
                     count == 1 ? "" : "s");
        output_put("rank           %s: %" PRIu32 " tensors%s, %s, %" PRIu64 " chunk%s of %s\n",
                   rank_id_text(&rank->id, name), rank->tensor_count, slices,
                   size_text(rank->stream_bytes, bytes), manifest_chunk_count(manifest, i),
                   manifest_chunk_count(manifest, i) == 1 ? "" : "s",
                   size_text(manifest->chunk_bytes, other));
    }
    if (inspect->subject.load == NULL)
        return;
    load_needs(inspect->subject.load, &needs);
    output_put("would hold     %s shown where it is in the files, %s made\n",
               size_text(needs.viewed_bytes, bytes), size_text(needs.made_bytes, other));
}

/* ---- tensors ---- */

static void print_dims(const uint64_t *dims, uint32_t count)
{
    putchar('[');
    for (uint32_t d = 0; d < count; d++)
        output_put("%s%" PRIu64, d > 0 ? ", " : "", dims != NULL ? dims[d] : 0);
    putchar(']');
}

/* "model.layers.0.self_attn.o_proj.weight[:, 512:1024] as F32" */
static void print_part(const struct manifest *manifest, const struct tensor *tensor,
                       const struct part *part)
{
    if (part->source == MANIFEST_NONE) {
        output_put("  part         %s, %" PRIu64 " bytes\n",
                   part->axis == 0 ? "zeros" : "a constant", part->bytes);
        return;
    }
    const struct manifest_source *source = &manifest->sources[part->source];
    output_put("  part         %s", source->name);
    if (!is_whole(manifest, part)) {
        putchar('[');
        for (uint32_t d = 0; d < part->axis; d++)
            output_put(":, ");
        output_put("%" PRIu64 ":%" PRIu64 "]", part->start, part->start + part->count);
    }
    if (part_converts(manifest, tensor, part))
        output_put(", %s as %s", rf_dtype_name(source->dtype), rf_dtype_name(tensor->dtype));
    output_put(", %" PRIu64 " bytes\n", part->bytes);
}

static void print_tensor(const struct manifest *manifest, const struct manifest_rank *rank,
                         const struct tensor *tensor)
{
    output_put("tensor         %s %s ", tensor->name, rf_dtype_name(tensor->dtype));
    print_dims(tensor->shape, tensor->ndim);
    output_put(" %" PRIu64, tensor->bytes);
    if (is_slice(tensor)) {
        output_put(" of ");
        print_dims(tensor->global_shape, tensor->ndim);
        output_put(" at ");
        print_dims(tensor->slice_start, tensor->ndim);
    }
    if (tensor->alias_of != MANIFEST_NONE)
        output_put(" = %s", rank->tensors[tensor->alias_of].name);
    putchar('\n');
    for (uint32_t i = 0; i < tensor->part_count; i++)
        print_part(manifest, tensor, &tensor->parts[i]);
}

void inspect_print_tensors(const struct manifest *manifest)
{
    char name[64];

    for (uint32_t r = 0; r < manifest->rank_count; r++) {
        const struct manifest_rank *rank = &manifest->ranks[r];

        if (manifest->rank_count > 1)
            output_put("tensors of     %s\n", rank_id_text(&rank->id, name));
        for (uint32_t i = 0; i < rank->tensor_count; i++)
            print_tensor(manifest, rank, &rank->tensors[i]);
    }
}

/* ---- for programs ---- */

void inspect_json_ranks(const struct inspect *inspect, struct jsonout *out)
{
    const struct manifest *manifest = inspect->subject.manifest;
    struct load_needs needs;
    char name[64];

    jsonout_text(out, "layout", manifest->layout);
    jsonout_open(out, "rank_list", '[');
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        const struct manifest_rank *rank = &manifest->ranks[i];

        jsonout_open(out, NULL, '{');
        jsonout_text(out, "name", rank_id_text(&rank->id, name));
        jsonout_u64(out, "tensors", rank->tensor_count);
        jsonout_u64(out, "slices", count_slices(manifest, rank));
        jsonout_u64(out, "bytes", rank->stream_bytes);
        jsonout_close(out, '}');
    }
    jsonout_close(out, ']');
    if (inspect->subject.load == NULL)
        return;
    load_needs(inspect->subject.load, &needs);
    jsonout_u64(out, "viewed_bytes", needs.viewed_bytes);
    jsonout_u64(out, "made_bytes", needs.made_bytes);
}
