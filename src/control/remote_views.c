#include "control/remote_views.h"

#include "base/cleanup.h"
#include "base/thread.h"
#include "control/remote_internal.h"
#include "model/convert.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    VIEW_MIN_BYTES = 64 << 10, /* smaller ones are copied: a segment is looked for in every read */
    VIEW_TASK_BYTES = 4 << 20, /* copied by a thread before it looks for more */
    VIEW_EXTENT_BYTES = 8 << 20,
    VIEW_CONVERT_BYTES = 2048,
    VIEW_DIGEST_WAIT_MS = 1000,
    VIEW_ALIGN = 64,
    VIEW_MAX_GROUP = 16,
};

/* One move whose bytes do not stay where they are. */
struct copy {
    const struct reshard_move *move;
    uint32_t holder;
    uint32_t rank;
};

/* A part of the copying. Of a single copy: bytes [lo, hi) of its pieces laid end to end. Of several
 * whose pieces alternate in the seed's stream: their pieces [lo, hi). */
struct task {
    uint64_t first; /* of the copies */
    uint32_t count;
    uint64_t lo;
    uint64_t hi;
};

/* A run of the new rank's stream that no view covers. */
struct hole {
    uint64_t offset;
    uint64_t bytes;
    uint64_t own_offset;
};

/* A rank of the new instance: what is not a view lies in `own`, in the order of the stream. */
struct new_rank {
    struct region *own; /* NULL: all of it is views */
    struct hole *holes; /* [hole_count] */
    uint64_t hole_count;
    uint64_t own_bytes;
};

struct views {
    struct remote *const *remotes;
    uint32_t remote_count;
    const struct reshard *plan;
    struct store *store;
    struct layout *mapped; /* [holder_count] those that are used; others have no segments */
    bool *used;            /* [holder_count] */
    struct new_rank *ranks;
    struct copy *copies;
    uint64_t copy_count;
    uint64_t copy_room;
    struct task *tasks;
    uint64_t task_count;
    uint64_t task_room;
    uint64_t copy_bytes;             /* as the seeds have them */
    uint64_t own_bytes;              /* as they are in memory of our own, constants included */
    atomic_uint_fast64_t done_bytes; /* relaxed: a counter */
    atomic_flag reporting;
};

bool remote_view_fits(const struct reshard_move *move)
{
    return move->from == move->to && move->read.bytes >= VIEW_MIN_BYTES;
}

/* ---- mapping ---- */

static enum rf_code views_map(struct views *views, struct remote_result *result,
                              struct rf_error *err)
{
    const struct reshard *plan = views->plan;
    struct remote_result ignored = *result;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < plan->rank_count; i++) {
        for (uint32_t g = 0; g < plan->ranks[i].group_count; g++)
            views->used[plan->ranks[i].groups[g].holder] = true;
    }
    for (uint32_t i = 0; code == RF_OK && i < plan->holder_count; i++) {
        const struct reshard_holder *holder = &plan->holders[i];

        if (views->used[i])
            code = remote_map_layout(views->remotes[holder->seed], holder->rank, &views->mapped[i],
                                     &ignored, err);
    }
    return code;
}

/* ---- verifying ---- */

struct check {
    const struct manifest *manifest;
    const struct layout *layout;
    struct digest_table *table;
    uint32_t rank;
    struct remote *remote;
};

static enum rf_code check_chunk(void *ctx, uint64_t chunk, struct rf_error *err)
{
    const struct check *check = ctx;
    const atomic_bool *cancel = check->remote->options->cancel;
    const struct stream_range range = {
        .offset = chunk * check->manifest->chunk_bytes,
        .bytes = manifest_chunk_size(check->manifest, check->rank, chunk),
        .count = 1,
    };
    struct chunk_hasher *hasher = chunk_hasher_create(check->manifest->algorithm);
    uint8_t want[HASH_MAX_BYTES];
    uint8_t got[HASH_MAX_BYTES];
    struct layout_cursor cursor;
    struct segment piece;
    char id[64];

    if (hasher == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to verify");
    layout_cursor_init(&cursor, check->layout, &range, 1);
    while (layout_cursor_peek(&cursor, UINT64_MAX, &piece)) {
        chunk_hasher_update(hasher, region_data(piece.region) + piece.region_offset, piece.bytes);
        layout_cursor_skip(&cursor, piece.bytes);
    }
    chunk_hasher_final(hasher, got);
    chunk_hasher_destroy(hasher);
    if (cancel != NULL && atomic_load_explicit(cancel, memory_order_acquire))
        return rf_fail(err, RF_E_CANCELLED, "cancelled");
    if (digest_table_get(check->table, chunk, want) &&
        memcmp(want, got, hash_bytes(check->manifest->algorithm)) == 0)
        return RF_OK;
    return rf_fail(err, RF_E_CORRUPT,
                   "rank %s, chunk %" PRIu64
                   ": the mapped pages of %s are not what its digest says",
                   rank_id_text(&check->manifest->ranks[check->rank].id, id), chunk,
                   client_url(check->remote->client));
}

static enum rf_code check_holder(const struct views *views, uint32_t holder, struct rf_error *err)
{
    const struct reshard_holder *of = &views->plan->holders[holder];
    struct remote *remote = views->remotes[of->seed];
    uint64_t chunks = manifest_chunk_count(remote->manifest, of->rank);
    struct check check = {
        .manifest = remote->manifest,
        .layout = &views->mapped[holder],
        .table = digest_table_create(remote->manifest->algorithm, chunks),
        .rank = of->rank,
        .remote = remote,
    };
    const atomic_bool *cancel = remote->options->cancel;
    enum rf_code code = check.table != NULL
                            ? RF_OK
                            : rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " digests", chunks);

    while (code == RF_OK && digest_table_known(check.table) < chunks) {
        code = client_digests(remote->client, of->rank, VIEW_DIGEST_WAIT_MS, check.table, err);
        if (cancel != NULL && atomic_load_explicit(cancel, memory_order_acquire))
            code = rf_fail(err, RF_E_CANCELLED, "cancelled");
    }
    if (code == RF_OK)
        code = thread_parallel(thread_cpus(), chunks, check_chunk, &check, err);
    digest_table_destroy(check.table);
    return code;
}

/* ---- laying out ---- */

static enum rf_code add_copy(struct views *views, const struct copy *copy, struct rf_error *err)
{
    if (views->copy_count == views->copy_room) {
        uint64_t room = views->copy_room > 0 ? views->copy_room * 2 : 256;
        struct copy *grown = reallocarray(views->copies, room, sizeof(*grown));

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " copies", room);
        views->copies = grown;
        views->copy_room = room;
    }
    views->copies[views->copy_count++] = *copy;
    views->copy_bytes += copy->move->read.bytes * copy->move->read.count;
    return RF_OK;
}

/* The pieces of the seed's pages that the index-th of a move's is. */
static enum rf_code add_view(const struct layout *mapped, const struct reshard_move *move,
                             uint64_t index, struct layout *layout, struct rf_error *err)
{
    const struct stream_range range = {.offset = move->read.offset + index * move->read.stride,
                                       .bytes = move->read.bytes,
                                       .count = 1};
    uint64_t write = move->write_offset + index * move->write_stride;
    struct layout_cursor cursor;
    struct segment piece;
    enum rf_code code = RF_OK;

    layout_cursor_init(&cursor, mapped, &range, 1);
    while (code == RF_OK && layout_cursor_peek(&cursor, UINT64_MAX, &piece)) {
        uint64_t at = write + (piece.stream_offset - range.offset);

        code = layout_add(layout, at, piece.bytes, piece.region, piece.region_offset, err);
        layout_cursor_skip(&cursor, piece.bytes);
    }
    return code;
}

struct span {
    uint64_t offset;
    uint64_t bytes;
};

static int compare_spans(const void *a, const void *b)
{
    uint64_t left = ((const struct span *)a)->offset;
    uint64_t right = ((const struct span *)b)->offset;

    return left < right ? -1 : left > right;
}

/* What no view covers, one run after the other in memory of our own. */
static enum rf_code find_holes(struct new_rank *rank, struct span *views, uint64_t count,
                               uint64_t stream_bytes, struct rf_error *err)
{
    uint64_t at = 0;

    rank->holes = calloc((size_t)count + 1, sizeof(*rank->holes));
    if (rank->holes == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " views", count);
    if (count > 0)
        qsort(views, count, sizeof(*views), compare_spans);
    for (uint64_t i = 0; i <= count; i++) {
        uint64_t end = i < count ? views[i].offset : stream_bytes;

        if (end > at) {
            rank->holes[rank->hole_count++] =
                (struct hole){.offset = at, .bytes = end - at, .own_offset = rank->own_bytes};
            rank->own_bytes += (end - at + VIEW_ALIGN - 1) / VIEW_ALIGN * VIEW_ALIGN;
        }
        at = i < count ? views[i].offset + views[i].bytes : at;
    }
    return RF_OK;
}

/* Views of what one group of moves reads; the rest becomes tasks. */
static enum rf_code lay_out_group(struct views *views, uint32_t index,
                                  const struct reshard_group *group, struct span *spans,
                                  uint64_t *count, struct rf_error *err)
{
    struct layout *layout = &views->store->ranks[index].layout;
    enum rf_code code = RF_OK;

    for (uint64_t i = 0; code == RF_OK && i < group->move_count; i++) {
        const struct reshard_move *move = &group->moves[i];

        if (!remote_view_fits(move)) {
            const struct copy copy = {.move = move, .holder = group->holder, .rank = index};

            code = add_copy(views, &copy, err);
            continue;
        }
        for (uint64_t piece = 0; code == RF_OK && piece < move->read.count; piece++) {
            spans[(*count)++] =
                (struct span){.offset = move->write_offset + piece * move->write_stride,
                              .bytes = move->read.bytes};
            code = add_view(&views->mapped[group->holder], move, piece, layout, err);
        }
    }
    return code;
}

static uint64_t count_views(const struct reshard_rank *from)
{
    uint64_t count = 0;

    for (uint32_t g = 0; g < from->group_count; g++) {
        for (uint64_t i = 0; i < from->groups[g].move_count; i++) {
            const struct reshard_move *move = &from->groups[g].moves[i];

            count += remote_view_fits(move) ? move->read.count : 0;
        }
    }
    return count;
}

static enum rf_code lay_out_rank(struct views *views, uint32_t index, struct rf_error *err)
{
    const struct reshard_rank *from = &views->plan->ranks[index];
    struct new_rank *rank = &views->ranks[index];
    uint64_t stream_bytes = views->store->manifest->ranks[index].stream_bytes;
    uint64_t view_count = count_views(from);
    rf_autofree struct span *spans = calloc((size_t)view_count + 1, sizeof(*spans));
    enum rf_code code =
        spans != NULL ? RF_OK
                      : rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " views", view_count);
    uint64_t count = 0;

    for (uint32_t g = 0; code == RF_OK && g < from->group_count; g++)
        code = lay_out_group(views, index, &from->groups[g], spans, &count, err);
    if (code == RF_OK)
        code = find_holes(rank, spans, count, stream_bytes, err);
    for (uint64_t i = 0; code == RF_OK && i < rank->hole_count; i++)
        views->own_bytes += rank->holes[i].bytes;
    if (code != RF_OK || rank->own_bytes == 0)
        return code;
    return region_create_memfd("rfork-weights", rank->own_bytes, &rank->own, err);
}

/* ---- dividing the copying ---- */

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* Those whose pieces may alternate next to each other. */
static int compare_copies(const void *left, const void *right)
{
    const struct copy *a = left;
    const struct copy *b = right;
    int order = compare_u64(a->holder, b->holder);

    if (order == 0)
        order = compare_u64(a->move->read.stride, b->move->read.stride);
    if (order == 0)
        order = compare_u64(a->move->read.count, b->move->read.count);
    if (order == 0)
        order = compare_u64(a->move->read.offset, b->move->read.offset);
    if (order == 0)
        order = compare_u64(a->rank, b->rank);
    return order != 0 ? order : compare_u64(a->move->write_offset, b->move->write_offset);
}

/* How many copies from `first` on are done together: a row that is cut among several ranks is read
 * once then, from its beginning to its end. Rows of 1 and 3 KiB of two ranks on a Zen 5, GB per
 * second of one processor: 6 and 8 one rank after the other, 20 both at once. */
static uint32_t group_at(const struct views *views, uint64_t first)
{
    const struct copy *head = &views->copies[first];
    const struct stream_range *row = &head->move->read;
    uint64_t end = row->offset + row->bytes;
    uint32_t count = 1;

    if (row->count == 1 || head->move->from != head->move->to)
        return 1;
    for (; count < VIEW_MAX_GROUP && first + count < views->copy_count; count++) {
        const struct copy *copy = &views->copies[first + count];
        const struct stream_range *read = &copy->move->read;

        if (copy->holder != head->holder || read->stride != row->stride ||
            read->count != row->count || copy->move->from != copy->move->to || read->offset < end ||
            read->offset + read->bytes > row->offset + row->stride)
            break;
        end = read->offset + read->bytes;
    }
    return count;
}

static enum rf_code add_task(struct views *views, const struct task *task, struct rf_error *err)
{
    if (views->task_count == views->task_room) {
        uint64_t room = views->task_room > 0 ? views->task_room * 2 : 256;
        struct task *grown = reallocarray(views->tasks, room, sizeof(*grown));

        if (grown == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " copies", room);
        views->tasks = grown;
        views->task_room = room;
    }
    views->tasks[views->task_count++] = *task;
    return RF_OK;
}

static enum rf_code divide_group(struct views *views, uint64_t first, uint32_t count,
                                 struct rf_error *err)
{
    const struct stream_range *read = &views->copies[first].move->read;
    uint64_t end = count > 1 ? read->count : read->count * read->bytes;
    uint64_t step = VIEW_TASK_BYTES;
    enum rf_code code = RF_OK;

    if (count > 1)
        step = read->stride < VIEW_TASK_BYTES ? VIEW_TASK_BYTES / read->stride : 1;
    for (uint64_t lo = 0; code == RF_OK && lo < end; lo += step) {
        const struct task task = {
            .first = first, .count = count, .lo = lo, .hi = end - lo < step ? end : lo + step};

        code = add_task(views, &task, err);
    }
    return code;
}

static enum rf_code divide(struct views *views, struct rf_error *err)
{
    enum rf_code code = RF_OK;

    if (views->copy_count > 0)
        qsort(views->copies, views->copy_count, sizeof(*views->copies), compare_copies);
    for (uint64_t first = 0; code == RF_OK && first < views->copy_count;) {
        uint32_t count = group_at(views, first);

        code = divide_group(views, first, count, err);
        first += count;
    }
    return code;
}

/* ---- copying ---- */

/* Where a byte of the new rank's stream is, and how many follow it there. */
static uint8_t *own_place(const struct new_rank *rank, uint64_t offset, uint64_t *hint,
                          uint64_t *ret_bytes)
{
    const struct hole *hole = &rank->holes[*hint];

    if (offset < hole->offset || offset - hole->offset >= hole->bytes) {
        uint64_t low = 0;
        uint64_t high = rank->hole_count;

        while (high - low > 1) {
            uint64_t middle = low + (high - low) / 2;

            if (rank->holes[middle].offset <= offset)
                low = middle;
            else
                high = middle;
        }
        *hint = low;
        hole = &rank->holes[low];
    }
    *ret_bytes = hole->bytes - (offset - hole->offset);
    return region_data_writable(rank->own) + hole->own_offset + (offset - hole->offset);
}

/* The same of a seed's stream. */
static const uint8_t *seed_place(const struct layout *layout, uint64_t offset, uint32_t *hint,
                                 uint64_t *ret_bytes)
{
    const struct segment *segment = &layout->segments[*hint];

    if (offset < segment->stream_offset || offset - segment->stream_offset >= segment->bytes) {
        *hint = layout_find(layout, offset);
        segment = &layout->segments[*hint];
    }
    uint64_t skip = offset - segment->stream_offset;
    *ret_bytes = segment->bytes - skip;
    return region_data(segment->region) + segment->region_offset + skip;
}

/* One thread's copying. */
struct copier {
    const struct layout *from;
    const struct new_rank *to;
    uint64_t to_hint;
    uint32_t from_hint;
    bool streams; /* past the caches */
};

static void put_run(struct copier *copier, uint64_t to, const uint8_t *data, uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t room = 0;
        uint8_t *at = own_place(copier->to, to, &copier->to_hint, &room);
        uint64_t piece = bytes < room ? bytes : room;

        if (copier->streams)
            memory_stream(at, data, piece);
        else
            memcpy(at, data, piece);
        data += piece;
        to += piece;
        bytes -= piece;
    }
}

static void copy_run(struct copier *copier, uint64_t from, uint64_t to, uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t there = 0;
        const uint8_t *data = seed_place(copier->from, from, &copier->from_hint, &there);
        uint64_t piece = bytes < there ? bytes : there;

        put_run(copier, to, data, piece);
        from += piece;
        to += piece;
        bytes -= piece;
    }
}

static enum rf_code convert_run(struct copier *copier, const struct reshard_move *move,
                                uint64_t from, uint64_t to, uint64_t bytes, struct rf_error *err)
{
    uint8_t narrow[VIEW_CONVERT_BYTES];
    uint8_t wide[VIEW_CONVERT_BYTES * sizeof(uint64_t)];

    while (bytes > 0) {
        uint64_t piece = bytes < sizeof(narrow) ? bytes : sizeof(narrow);
        uint64_t made = convert_bytes((enum rf_dtype)move->from, piece, (enum rf_dtype)move->to);
        struct copier gather = *copier;

        for (uint64_t done = 0; done < piece;) {
            uint64_t there = 0;
            const uint8_t *data = seed_place(gather.from, from + done, &gather.from_hint, &there);
            uint64_t some = piece - done < there ? piece - done : there;

            memcpy(narrow + done, data, some);
            done += some;
        }
        enum rf_code code = convert_elements((enum rf_dtype)move->from, narrow, piece,
                                             (enum rf_dtype)move->to, wide, err);
        if (code != RF_OK)
            return code;
        put_run(copier, to, wide, made);
        from += piece;
        to += made;
        bytes -= piece;
    }
    return RF_OK;
}

/* Says how far it is, if nobody else is just doing so. */
static void report(struct views *views, uint64_t added_bytes)
{
    const struct remote_options *options = views->remotes[0]->options;
    uint64_t done =
        atomic_fetch_add_explicit(&views->done_bytes, added_bytes, memory_order_relaxed) +
        added_bytes;

    if (options->progress == NULL ||
        atomic_flag_test_and_set_explicit(&views->reporting, memory_order_acquire))
        return;
    options->progress(options->progress_ctx, done, views->copy_bytes);
    atomic_flag_clear_explicit(&views->reporting, memory_order_release);
}

static struct copier copier_of(const struct views *views, const struct copy *copy)
{
    return (struct copier){.from = &views->mapped[copy->holder],
                           .to = &views->ranks[copy->rank],
                           .streams = views->copy_bytes >= MEMORY_STREAM_BYTES};
}

static enum rf_code copy_one(const struct views *views, const struct task *task,
                             struct rf_error *err)
{
    const struct copy *copy = &views->copies[task->first];
    const struct reshard_move *move = copy->move;
    struct copier copier = copier_of(views, copy);
    enum rf_code code = RF_OK;

    for (uint64_t at = task->lo; code == RF_OK && at < task->hi;) {
        uint64_t piece = at / move->read.bytes;
        uint64_t skip = at % move->read.bytes;
        uint64_t left = move->read.bytes - skip;
        uint64_t bytes = left < task->hi - at ? left : task->hi - at;
        uint64_t from = move->read.offset + piece * move->read.stride + skip;
        uint64_t to = move->write_offset + piece * move->write_stride;

        if (move->from == move->to)
            copy_run(&copier, from, to + skip, bytes);
        else
            code = convert_run(
                &copier, move, from,
                to + convert_bytes((enum rf_dtype)move->from, skip, (enum rf_dtype)move->to), bytes,
                err);
        at += bytes;
    }
    return code;
}

static void copy_group(const struct views *views, const struct task *task)
{
    const struct copy *copies = &views->copies[task->first];
    struct copier copiers[VIEW_MAX_GROUP];

    for (uint32_t i = 0; i < task->count; i++)
        copiers[i] = copier_of(views, &copies[i]);
    for (uint64_t row = task->lo; row < task->hi; row++) {
        for (uint32_t i = 0; i < task->count; i++) {
            const struct reshard_move *move = copies[i].move;

            copy_run(&copiers[i], move->read.offset + row * move->read.stride,
                     move->write_offset + row * move->write_stride, move->read.bytes);
        }
    }
}

static uint64_t task_bytes(const struct views *views, const struct task *task)
{
    uint64_t bytes = 0;

    if (task->count == 1)
        return task->hi - task->lo;
    for (uint32_t i = 0; i < task->count; i++)
        bytes += views->copies[task->first + i].move->read.bytes;
    return bytes * (task->hi - task->lo);
}

static enum rf_code do_task(void *ctx, uint64_t index, struct rf_error *err)
{
    struct views *views = ctx;
    const struct task *task = &views->tasks[index];
    const atomic_bool *cancel = views->remotes[0]->options->cancel;
    enum rf_code code = RF_OK;

    if (cancel != NULL && atomic_load_explicit(cancel, memory_order_acquire))
        return rf_fail(err, RF_E_CANCELLED, "cancelled");
    if (task->count > 1)
        copy_group(views, task);
    else
        code = copy_one(views, task, err);
    memory_stream_end();
    report(views, task_bytes(views, task));
    return code;
}

/* ---- filling, sealing ---- */

/* Extents of all ranks are counted through: each rank has a whole number of them. */
static uint64_t extents_of(const struct new_rank *rank)
{
    return (rank->own_bytes + VIEW_EXTENT_BYTES - 1) / VIEW_EXTENT_BYTES;
}

static enum rf_code populate_extent(void *ctx, uint64_t index, struct rf_error *err)
{
    const struct views *views = ctx;
    const struct new_rank *rank = views->ranks;

    for (; index >= extents_of(rank); rank++)
        index -= extents_of(rank);
    uint64_t offset = index * VIEW_EXTENT_BYTES;
    uint64_t left = rank->own_bytes - offset;

    return region_populate(rank->own, offset, left < VIEW_EXTENT_BYTES ? left : VIEW_EXTENT_BYTES,
                           err);
}

static enum rf_code populate(struct views *views, struct rf_error *err)
{
    enum rf_code code = remote_refuse_large(views->remotes[0], views->own_bytes, err);
    uint64_t extents = 0;

    for (uint32_t i = 0; i < views->plan->rank_count; i++)
        extents += extents_of(&views->ranks[i]);
    return code == RF_OK ? thread_parallel(thread_cpus(), extents, populate_extent, views, err)
                         : code;
}

/* Constants that are not zeros: those are there. */
static void fill_rank(const struct reshard_rank *from, const struct new_rank *rank)
{
    uint64_t hint = 0;

    for (uint32_t i = 0; i < from->fill_count; i++) {
        const struct reshard_fill *fill = &from->fills[i];
        uint64_t room = 0;

        if (fill->constant->axis != 0)
            part_fill(fill->constant, own_place(rank, fill->offset, &hint, &room),
                      fill->constant->bytes);
    }
}

static enum rf_code end_rank(struct views *views, uint32_t index, struct rf_error *err)
{
    struct new_rank *rank = &views->ranks[index];
    struct layout *layout = &views->store->ranks[index].layout;
    enum rf_code code = RF_OK;

    if (rank->own != NULL) {
        fill_rank(&views->plan->ranks[index], rank);
        code = region_seal(rank->own, err);
    }
    for (uint64_t i = 0; code == RF_OK && i < rank->hole_count; i++)
        code = layout_add(layout, rank->holes[i].offset, rank->holes[i].bytes, rank->own,
                          rank->holes[i].own_offset, err);
    if (code == RF_OK)
        code = layout_finish(layout, views->store->manifest->ranks[index].stream_bytes, err);
    return code == RF_OK ? remote_add_regions(views->store, layout, err) : code;
}

/* ---- all of it ---- */

static enum rf_code views_create(struct views *views, struct rf_error *err)
{
    atomic_init(&views->done_bytes, 0);
    atomic_flag_clear(&views->reporting);
    views->mapped = calloc((size_t)views->plan->holder_count + 1, sizeof(*views->mapped));
    views->used = calloc((size_t)views->plan->holder_count + 1, sizeof(*views->used));
    views->ranks = calloc((size_t)views->plan->rank_count + 1, sizeof(*views->ranks));
    if (views->mapped == NULL || views->used == NULL || views->ranks == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for views of %" PRIu32 " ranks",
                       views->plan->holder_count);
    return RF_OK;
}

static void views_free(struct views *views)
{
    for (uint32_t i = 0; views->mapped != NULL && i < views->plan->holder_count; i++)
        layout_free(&views->mapped[i]);
    for (uint32_t i = 0; views->ranks != NULL && i < views->plan->rank_count; i++) {
        region_unref(views->ranks[i].own);
        free(views->ranks[i].holes);
    }
    free(views->mapped);
    free(views->used);
    free(views->ranks);
    free(views->copies);
    free(views->tasks);
}

static enum rf_code views_fill(struct views *views, bool verify, struct remote_result *result,
                               struct rf_error *err)
{
    const struct reshard *plan = views->plan;
    enum rf_code code = views_map(views, result, err);

    for (uint32_t i = 0; code == RF_OK && verify && i < plan->holder_count; i++) {
        if (views->used[i])
            code = check_holder(views, i, err);
    }
    for (uint32_t i = 0; code == RF_OK && i < plan->rank_count; i++)
        code = lay_out_rank(views, i, err);
    if (code == RF_OK)
        code = divide(views, err);
    if (code == RF_OK)
        code = populate(views, err);
    if (code == RF_OK)
        code = thread_parallel(thread_cpus(), views->task_count, do_task, views, err);
    for (uint32_t i = 0; code == RF_OK && i < plan->rank_count; i++)
        code = end_rank(views, i, err);
    return code;
}

enum rf_code remote_views_make(struct remote *const *remotes, uint32_t remote_count,
                               const struct reshard *plan, bool verify, struct store *store,
                               struct remote_result *result, struct rf_error *err)
{
    struct views views = {
        .remotes = remotes, .remote_count = remote_count, .plan = plan, .store = store};
    const struct remote_options *options = remotes[0]->options;
    enum rf_code code = views_create(&views, err);

    if (code == RF_OK)
        code = views_fill(&views, verify, result, err);
    if (code == RF_OK) {
        result->verified = verify;
        result->bytes = manifest_total_bytes(store->manifest);
        result->copied_bytes = views.own_bytes;
        result->wire_bytes = views.copy_bytes;
        if (options->progress != NULL)
            options->progress(options->progress_ctx, views.copy_bytes, views.copy_bytes);
    }
    views_free(&views);
    return code;
}
