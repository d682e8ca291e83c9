/* Making the parts of tensors that are not in one piece in a file: rows of slices, other dtypes.
 *
 * Measured on a 2-core virtual machine (AMD EPYC, others at work), 1000 MiB in the page cache,
 * four ranks' slices, into huge pages that are there, GB per second with 1 and 2 threads:
 *     slices of                                    1 KiB       3 KiB       16 KiB
 *     preadv() of rows to where they belong        5.6, 5.5    5.6, 4.9    4.7, 5.5
 *     pread() of 256 KiB, memcpy() from there      3.7, 4.2    4.6, 3.9    4.5, 4.2
 *     the same with streaming stores               4.1, 5.0    5.5, 4.9    4.5, 4.3
 *     memcpy() of as many bytes                    6.9, 6.9    7.6, 6.1    5.2, 5.1
 * So rows go straight from the page cache to the ranks that have them; short ones, and those that
 * are converted, go through a buffer. Files are not mapped: see REGION_FILE. */
#include "base/cleanup.h"
#include "base/thread.h"
#include "model/convert.h"
#include "seed/load_internal.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

enum {
    MAKE_TASK_BYTES = 8 << 20,     /* of a file: what one thread does in one go */
    MAKE_BUFFER_BYTES = 256 << 10, /* stays in the second-level cache */
    MAKE_SHORT_BYTES = 512,        /* rows below go through the buffer */
    MAKE_GAP_BYTES = 4096,         /* read over rather than seek */
    MAKE_VECTORS = 1024,           /* IOV_MAX of Linux */
    MAKE_CALL_BYTES = 64 << 20,    /* of one preadv(); the kernel would end it at 2 GiB */
};

/* Makes [first, first + count) have rows at the same distance in the same source, none of which
 * overlap: read together. */
struct make_group {
    uint64_t first;
    uint64_t count;
    bool buffered;
};

struct make_task {
    struct make_group group;
    uint64_t row;
    uint64_t rows;
};

struct make_run {
    const struct load_make_job *job;
    uint8_t *memory;
    struct make_task *tasks;
    uint64_t count;
    uint64_t room;
};

static bool converts(const struct load_make *make)
{
    return make->from != make->to;
}

static const char *file_name(const struct make_run *run, const struct load_make *make)
{
    return run->job->folder->files[make->file].name;
}

static int file_fd(const struct make_run *run, const struct load_make *make)
{
    return run->job->folder->files[make->file].fd;
}

/* ---- reading ---- */

static enum rf_code fail_short(const char *name, uint64_t at, struct rf_error *err)
{
    return rf_fail(err, RF_E_CHANGED,
                   "%s ends at %" PRIu64 ", inside a tensor: it was cut short since its header was "
                   "read, or is still being written",
                   name, at);
}

/* Reads until all vectors are full; they are used up. */
static enum rf_code read_vectors(const char *name, int fd, uint64_t at, struct iovec *vectors,
                                 unsigned count, struct rf_error *err)
{
    while (count > 0) {
        ssize_t got = preadv(fd, vectors, (int)count, (off_t)at);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return rf_fail_sys(err, "read %s at %" PRIu64, name, at);
        if (got == 0)
            return fail_short(name, at, err);
        at += (uint64_t)got;
        while (count > 0 && (size_t)got >= vectors->iov_len) {
            got -= (ssize_t)vectors->iov_len;
            vectors++;
            count--;
        }
        if (count > 0) {
            vectors->iov_base = (uint8_t *)vectors->iov_base + got;
            vectors->iov_len -= (size_t)got;
        }
    }
    return RF_OK;
}

/* ---- rows that are read to where they belong ---- */

struct scatter {
    const char *name;
    int fd;
    unsigned count;
    uint64_t at; /* in the file, of the first vector */
    uint64_t end;
    struct iovec vectors[MAKE_VECTORS];
    uint8_t gap[MAKE_GAP_BYTES]; /* what nobody wants */
};

static enum rf_code scatter_flush(struct scatter *scatter, struct rf_error *err)
{
    enum rf_code code = read_vectors(scatter->name, scatter->fd, scatter->at, scatter->vectors,
                                     scatter->count, err);

    scatter->count = 0;
    return code;
}

/* [at, at + bytes) of the file, not before what was put last, goes to `to`. */
static enum rf_code scatter_put(struct scatter *scatter, uint64_t at, void *to, uint64_t bytes,
                                struct rf_error *err)
{
    uint64_t gap = scatter->count > 0 ? at - scatter->end : 0;
    enum rf_code code = RF_OK;

    if (gap > MAKE_GAP_BYTES || scatter->count + 2 > MAKE_VECTORS ||
        (scatter->count > 0 && at + bytes - scatter->at > MAKE_CALL_BYTES)) {
        code = scatter_flush(scatter, err);
        gap = 0;
    }
    if (scatter->count == 0)
        scatter->at = at;
    if (gap > 0)
        scatter->vectors[scatter->count++] =
            (struct iovec){.iov_base = scatter->gap, .iov_len = (size_t)gap};
    scatter->vectors[scatter->count++] = (struct iovec){.iov_base = to, .iov_len = (size_t)bytes};
    scatter->end = at + bytes;
    return code;
}

static enum rf_code make_scattered(const struct make_run *run, const struct make_task *task,
                                   struct rf_error *err)
{
    const struct load_make *makes = &run->job->parts->makes[task->group.first];
    struct scatter scatter;
    enum rf_code code = RF_OK;

    scatter.name = file_name(run, makes);
    scatter.fd = file_fd(run, makes);
    scatter.count = 0;
    scatter.at = 0;
    scatter.end = 0;
    for (uint64_t row = task->row; row < task->row + task->rows && code == RF_OK; row++) {
        for (uint64_t i = 0; i < task->group.count && code == RF_OK; i++) {
            const struct load_make *make = &makes[i];
            uint64_t from = make->source_at + row * make->range.stride + make->range.offset;

            code = scatter_put(&scatter, from, run->memory + make->at + row * make->row_bytes,
                               make->range.bytes, err);
        }
    }
    return code == RF_OK ? scatter_flush(&scatter, err) : code;
}

/* ---- rows that go through a buffer ---- */

static enum rf_code read_buffer(const struct make_run *run, const struct load_make *make,
                                uint64_t from, uint8_t *buffer, uint64_t bytes,
                                struct rf_error *err)
{
    struct iovec vector = {.iov_base = buffer, .iov_len = (size_t)bytes};

    return read_vectors(file_name(run, make), file_fd(run, make), make->source_at + from, &vector,
                        1, err);
}

/* Puts `bytes` of a row, from byte `inside` of it on, where they belong. */
static enum rf_code put_row(const struct make_run *run, const struct load_make *make, uint64_t row,
                            uint64_t inside, const uint8_t *from, uint64_t bytes,
                            struct rf_error *err)
{
    uint8_t *to = run->memory + make->at + row * make->row_bytes;

    if (!converts(make)) {
        memcpy(to + inside, from, (size_t)bytes);
        return RF_OK;
    }
    enum rf_code code = convert_elements(make->from, from, bytes, make->to,
                                         to + convert_bytes(make->from, inside, make->to), err);
    return code == RF_OK ? code : rf_error_wrap(err, code, "%s", file_name(run, make));
}

/* A row of one make that does not fit the buffer; its pieces are whole elements. */
static enum rf_code make_long_row(const struct make_run *run, const struct load_make *make,
                                  uint64_t row, uint8_t *buffer, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    for (uint64_t done = 0; done < make->range.bytes && code == RF_OK;) {
        uint64_t from = row * make->range.stride + make->range.offset + done;
        uint64_t left = make->range.bytes - done;
        uint64_t bytes = left < MAKE_BUFFER_BYTES ? left : MAKE_BUFFER_BYTES;

        code = read_buffer(run, make, from, buffer, bytes, err);
        if (code == RF_OK)
            code = put_row(run, make, row, done, buffer, bytes, err);
        done += bytes;
    }
    return code;
}

/* `rows` rows, of which each make's part lies within `width` bytes from the first make's on. */
static enum rf_code make_rows(const struct make_run *run, const struct make_task *task,
                              uint64_t row, uint64_t rows, uint64_t width, uint8_t *buffer,
                              struct rf_error *err)
{
    const struct load_make *makes = &run->job->parts->makes[task->group.first];
    uint64_t stride = makes->range.stride;
    uint64_t begin = makes->range.offset;
    enum rf_code code =
        read_buffer(run, makes, row * stride + begin, buffer, (rows - 1) * stride + width, err);

    for (uint64_t i = 0; i < task->group.count && code == RF_OK; i++) {
        const uint8_t *from = buffer + (makes[i].range.offset - begin);

        for (uint64_t r = 0; r < rows && code == RF_OK; r++)
            code =
                put_row(run, &makes[i], row + r, 0, from + r * stride, makes[i].range.bytes, err);
    }
    return code;
}

static enum rf_code make_buffered(const struct make_run *run, const struct make_task *task,
                                  struct rf_error *err)
{
    const struct load_make *makes = &run->job->parts->makes[task->group.first];
    const struct load_make *last = &makes[task->group.count - 1];
    uint64_t width = last->range.offset + last->range.bytes - makes->range.offset;
    rf_autofree uint8_t *buffer = malloc(MAKE_BUFFER_BYTES);
    uint64_t end = task->row + task->rows;
    uint64_t at_once = 1;
    enum rf_code code = RF_OK;

    if (buffer == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a buffer of %d bytes to read %s",
                       MAKE_BUFFER_BYTES, file_name(run, makes));
    if (width <= MAKE_BUFFER_BYTES && makes->range.stride > 0)
        at_once = (MAKE_BUFFER_BYTES - width) / makes->range.stride + 1;
    for (uint64_t row = task->row; row < end && code == RF_OK;) {
        uint64_t rows = end - row < at_once ? end - row : at_once;

        if (width <= MAKE_BUFFER_BYTES)
            code = make_rows(run, task, row, rows, width, buffer, err);
        for (uint64_t i = 0; width > MAKE_BUFFER_BYTES && i < task->group.count && code == RF_OK;
             i++)
            code = make_long_row(run, &makes[i], row, buffer, err);
        row += rows;
    }
    return code;
}

/* ---- tasks ---- */

/* Threads take items one after the other. Each is led through a part of the tasks of its own: those
 * that follow each other fill memory side by side, and two threads that ask for the same huge page
 * get small ones first, whose content the kernel copies then. */
static uint64_t task_of_item(const struct make_run *run, uint64_t item)
{
    uint64_t parts = run->job->threads > 0 ? run->job->threads : 1;
    uint64_t each = run->count / parts;
    uint64_t longer = run->count % parts; /* the first so many have one more */
    bool is_last = item >= each * parts;
    uint64_t part = is_last ? item - each * parts : item % parts;

    return part * each + (part < longer ? part : longer) + (is_last ? each : item / parts);
}

static enum rf_code make_item(void *ctx, uint64_t item, struct rf_error *err)
{
    const struct make_run *run = ctx;
    const struct load_make_job *job = run->job;
    const struct make_task *task = &run->tasks[task_of_item(run, item)];
    uint64_t bytes = 0;

    /* Memory is asked for where it is filled next, and not all of it first: what the kernel has
     * just cleared is still in the cache then. */
    for (uint64_t i = 0; i < task->group.count; i++) {
        const struct load_make *make = &job->parts->makes[task->group.first + i];
        uint64_t made = task->rows * make->row_bytes;
        enum rf_code code =
            region_populate(job->region, make->at + task->row * make->row_bytes, made, err);

        if (code != RF_OK)
            return code;
        bytes += made;
    }
    enum rf_code code =
        task->group.buffered ? make_buffered(run, task, err) : make_scattered(run, task, err);
    if (code == RF_OK && job->progress != NULL)
        job->progress(job->progress_ctx, bytes);
    return code;
}

static bool is_buffered(const struct load_make *make)
{
    return converts(make) || make->range.bytes < MAKE_SHORT_BYTES;
}

/* As many makes from `first` on as can be read together. */
static struct make_group group_at(const struct load_parts *parts, uint64_t first)
{
    const struct load_make *head = &parts->makes[first];
    struct make_group group = {.first = first, .count = 1, .buffered = is_buffered(head)};

    for (uint64_t i = first + 1; i < parts->make_count; i++, group.count++) {
        const struct load_make *make = &parts->makes[i];
        const struct stream_range *before = &parts->makes[i - 1].range;

        if (make->file != head->file || make->source_at != head->source_at ||
            make->range.stride != head->range.stride || make->range.count != head->range.count ||
            make->to != head->to || is_buffered(make) != group.buffered ||
            make->range.offset < before->offset + before->bytes)
            break;
    }
    return group;
}

static enum rf_code add_task(struct make_run *run, const struct make_task *task,
                             struct rf_error *err)
{
    if (run->count == run->room) {
        uint64_t room = run->room == 0 ? 256 : run->room * 2;
        struct make_task *tasks = reallocarray(run->tasks, room, sizeof *tasks);

        if (tasks == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " tasks", room);
        run->tasks = tasks;
        run->room = room;
    }
    run->tasks[run->count++] = *task;
    return RF_OK;
}

static enum rf_code plan_tasks(struct make_run *run, struct rf_error *err)
{
    const struct load_parts *parts = run->job->parts;
    enum rf_code code = RF_OK;

    for (uint64_t first = 0; first < parts->make_count && code == RF_OK;) {
        struct make_task task = {.group = group_at(parts, first)};
        const struct stream_range *range = &parts->makes[first].range;
        uint64_t at_once = range->stride > 0 ? MAKE_TASK_BYTES / range->stride + 1 : 1;

        for (task.row = 0; task.row < range->count && code == RF_OK; task.row += task.rows) {
            uint64_t left = range->count - task.row;

            task.rows = left < at_once ? left : at_once;
            code = add_task(run, &task, err);
        }
        first += task.group.count;
    }
    return code;
}

enum rf_code load_make_all(const struct load_make_job *job, struct rf_error *err)
{
    const struct load_parts *parts = job->parts;
    struct make_run run = {.job = job, .memory = region_data_writable(job->region)};
    enum rf_code code = plan_tasks(&run, err);

    if (code == RF_OK)
        code = thread_parallel(job->threads, run.count, make_item, &run, err);
    for (uint32_t i = 0; i < parts->constant_count && code == RF_OK; i++) {
        const struct load_constant *constant = &parts->constants[i];

        /* Zeros too: a hole would read as such, but may find no memory when it is first read. */
        code = region_populate(job->region, constant->at, constant->part->bytes, err);
        if (code == RF_OK)
            part_fill(constant->part, run.memory + constant->at, constant->part->bytes);
    }
    free(run.tasks);
    return code;
}
