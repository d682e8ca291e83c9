/* Putting the bytes where the ranks are to find them. */
#include "base/cleanup.h"
#include "base/size.h"
#include "base/thread.h"
#include "seed/load_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    LOAD_MAX_THREADS = 8,
    LOAD_SPARE_BYTES = 64 << 20, /* what must be left to the rest of the machine */
};

struct placing {
    const struct load *load;
    struct store *store;
    struct region **files; /* [weights_count] */
    struct region *views;  /* the spans, in memory; NULL: ranks view the files */
    struct region *made;   /* NULL: nothing is */
    unsigned threads;
};

/* ---- whether there is room ---- */

static enum rf_code refuse_large(const struct load *load, struct rf_error *err)
{
    struct load_needs needs;
    char wanted[SIZE_TEXT_BYTES];
    char there[SIZE_TEXT_BYTES];
    bool files = load->options.memory == LOAD_FILES;

    load_needs(load, &needs);
    if (files && needs.made_bytes == 0)
        return RF_OK;
    if (needs.memory_bytes <= needs.available_bytes &&
        needs.available_bytes - needs.memory_bytes >= LOAD_SPARE_BYTES)
        return RF_OK;
    return rf_fail(err, RF_E_NOMEM, "%s: needs %s of memory, %s is available here: free some%s%s",
                   load->folder->path, size_text(needs.memory_bytes, wanted),
                   size_text(needs.available_bytes, there),
                   load->manifest->rank_count > 1 ? ", hold fewer ranks in one process (--ranks)"
                                                  : "",
                   files ? "" : ", or serve it from the page cache with --mmap");
}

/* ---- views ---- */

/* Also of files that no rank views: what is made of one must be of one version of it. */
static enum rf_code open_files(struct placing *placing, struct rf_error *err)
{
    const struct model_folder *folder = placing->load->folder;

    placing->files = calloc(folder->weights_count + (size_t)1, sizeof(struct region *));
    if (placing->files == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " files", folder->weights_count);
    for (uint32_t i = 0; i < folder->weights_count; i++) {
        const struct folder_file *file = &folder->files[i];
        enum rf_code code = region_create_file(file->name, file->fd, &placing->files[i], err);

        if (code == RF_OK && region_bytes(placing->files[i]) != file->bytes)
            code =
                rf_fail(err, RF_E_CHANGED, "%s: is %" PRIu64 " bytes, was %" PRIu64 " a moment ago",
                        file->name, region_bytes(placing->files[i]), file->bytes);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

static enum rf_code add_views(struct placing *placing, struct rf_error *err)
{
    const struct load_parts *parts = &placing->load->parts;
    enum rf_code code = RF_OK;

    for (uint64_t i = 0; i < parts->span_count && code == RF_OK; i++)
        code = store_add_region(placing->store, placing->files[parts->spans[i].file], err);
    return code;
}

static enum rf_code read_spans(struct placing *placing, struct rf_error *err)
{
    const struct load *load = placing->load;
    const struct load_parts *parts = &load->parts;
    uint32_t file_count = load->folder->weights_count;
    rf_autofree struct region_file *files = calloc(file_count + (size_t)1, sizeof *files);
    rf_autofree struct region_span *spans = calloc(parts->span_count + 1, sizeof *spans);

    if (files == NULL || spans == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to read %" PRIu64 " pieces", parts->span_count);
    for (uint32_t i = 0; i < file_count; i++)
        files[i] = (struct region_file){.path = load->folder->files[i].name,
                                        .fd = load->folder->files[i].fd};
    for (uint64_t i = 0; i < parts->span_count; i++)
        spans[i] = (struct region_span){.offset = parts->spans[i].at,
                                        .bytes = parts->spans[i].bytes,
                                        .file_offset = parts->spans[i].file_offset,
                                        .file = parts->spans[i].file};
    return region_load_spans(placing->views, files, file_count, spans, (uint32_t)parts->span_count,
                             placing->threads, load->options.direct, load->options.progress,
                             load->options.progress_ctx, err);
}

static enum rf_code place_views(struct placing *placing, struct rf_error *err)
{
    const struct load *load = placing->load;

    if (load->options.memory == LOAD_FILES)
        return add_views(placing, err);
    if (load->parts.span_count == 0)
        return RF_OK;
    enum rf_code code =
        region_create_memfd("rfork-weights", load->parts.span_bytes, &placing->views, err);
    if (code == RF_OK)
        code = read_spans(placing, err);
    if (code == RF_OK)
        code = region_seal(placing->views, err);
    if (code == RF_OK)
        code = store_add_region(placing->store, placing->views, err);
    return code;
}

/* ---- what is made ---- */

static enum rf_code place_made(struct placing *placing, struct rf_error *err)
{
    const struct load *load = placing->load;
    struct load_make_job job = {
        .folder = load->folder,
        .parts = &load->parts,
        .threads = placing->threads,
        .progress = load->options.progress,
        .progress_ctx = load->options.progress_ctx,
    };

    if (load->parts.made_bytes == 0)
        return RF_OK;
    enum rf_code code =
        region_create_memfd("rfork-made", load->parts.made_bytes, &placing->made, err);
    job.region = placing->made;
    if (code == RF_OK)
        code = load_make_all(&job, err);
    if (code == RF_OK)
        code = region_seal(placing->made, err);
    if (code == RF_OK)
        code = store_add_region(placing->store, placing->made, err);
    return code;
}

/* ---- layouts ---- */

static enum rf_code lay_out_place(struct placing *placing, const struct load_place *place,
                                  struct rf_error *err)
{
    const struct load_parts *parts = &placing->load->parts;
    struct region *region = placing->made;
    uint64_t at = 0;

    if (place->kind == LOAD_MADE)
        at = parts->makes[place->index].at;
    if (place->kind == LOAD_CONSTANT)
        at = parts->constants[place->index].at;
    if (place->kind == LOAD_VIEW) {
        const struct load_span *span = load_parts_span(parts, place->index, place->at);

        region = placing->views != NULL ? placing->views : placing->files[place->index];
        at = placing->views != NULL ? span->at + (place->at - span->file_offset) : place->at;
    }
    return layout_add(&placing->store->ranks[place->rank].layout, place->stream_offset,
                      place->bytes, region, at, err);
}

static enum rf_code lay_out(struct placing *placing, struct rf_error *err)
{
    const struct load_parts *parts = &placing->load->parts;
    const struct manifest *manifest = placing->load->manifest;
    enum rf_code code = RF_OK;

    for (uint64_t i = 0; i < parts->place_count && code == RF_OK; i++)
        code = lay_out_place(placing, &parts->places[i], err);
    for (uint32_t i = 0; i < manifest->rank_count && code == RF_OK; i++)
        code =
            layout_finish(&placing->store->ranks[i].layout, manifest->ranks[i].stream_bytes, err);
    return code;
}

/* The folder was looked at a while ago: what was read must be that, and all of one version. */
static enum rf_code check_files(const struct placing *placing, struct rf_error *err)
{
    const struct load *load = placing->load;

    for (uint32_t i = 0; i < load->folder->weights_count; i++) {
        const struct store_file *blob = &load->files[i];
        rf_autofree uint8_t *now = malloc(blob->bytes);

        if (now == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for a header of %" PRIu64 " bytes",
                           blob->bytes);
        enum rf_code code = region_read(placing->files[i], 0, now, blob->bytes, err);
        if (code == RF_OK && memcmp(now, blob->data, blob->bytes) != 0)
            code = rf_fail(err, RF_E_CHANGED, "%s: its header changed while it was being loaded",
                           load->folder->files[i].name);
        if (code == RF_OK)
            code = region_check(placing->files[i], err);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

enum rf_code load_place_all(const struct load *load, struct store *store, struct rf_error *err)
{
    struct placing placing = {.load = load, .store = store, .threads = load->options.threads};
    enum rf_code code = refuse_large(load, err);

    if (placing.threads == 0)
        placing.threads = thread_cpus() < LOAD_MAX_THREADS ? thread_cpus() : LOAD_MAX_THREADS;
    if (code == RF_OK)
        code = open_files(&placing, err);
    if (code == RF_OK)
        code = place_views(&placing, err);
    if (code == RF_OK)
        code = place_made(&placing, err);
    if (code == RF_OK)
        code = check_files(&placing, err);
    if (code == RF_OK)
        code = lay_out(&placing, err);
    for (uint32_t i = 0; placing.files != NULL && i < load->folder->weights_count; i++)
        region_unref(placing.files[i]);
    free(placing.files);
    region_unref(placing.views);
    region_unref(placing.made);
    return code;
}
