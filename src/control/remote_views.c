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
};

/* One copy that is left to do, or a part of it: bytes [lo, hi) of the move's pieces laid end to
 * end. */
struct task {
    const struct reshard_move *move;
    uint64_t lo;
    uint64_t hi;
    uint32_t holder;
    uint32_t rank;
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
    return move->read.count == 1 && move->from == move->to && move->read.bytes >= VIEW_MIN_BYTES;
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

static enum rf_code add_task(struct views *views, const struct reshard_move *move, uint32_t holder,
                             uint32_t rank, struct rf_error *err)
{
    uint64_t bytes = move->read.bytes * move->read.count;

    for (uint64_t lo = 0; lo < bytes; lo += VIEW_TASK_BYTES) {
        if (views->task_count == views->task_room) {
            uint64_t room = views->task_room > 0 ? views->task_room * 2 : 256;
            struct task *grown = reallocarray(views->tasks, room, sizeof(*grown));

            if (grown == NULL)
                return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " copies", room);
            views->tasks = grown;
            views->task_room = room;
        }
        views->tasks[views->task_count++] = (struct task){
            .move = move,
            .holder = holder,
            .rank = rank,
            .lo = lo,
            .hi = bytes - lo < VIEW_TASK_BYTES ? bytes : lo + VIEW_TASK_BYTES,
        };
    }
    views->copy_bytes += bytes;
    return RF_OK;
}

/* The pieces of the seed's pages that a move is. */
static enum rf_code add_view(const struct layout *mapped, const struct reshard_move *move,
                             struct layout *layout, struct rf_error *err)
{
    struct layout_cursor cursor;
    struct segment piece;
    enum rf_code code = RF_OK;

    layout_cursor_init(&cursor, mapped, &move->read, 1);
    while (code == RF_OK && layout_cursor_peek(&cursor, UINT64_MAX, &piece)) {
        uint64_t at = move->write_offset + (piece.stream_offset - move->read.offset);

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
            code = add_task(views, move, group->holder, index, err);
            continue;
        }
        spans[(*count)++] = (struct span){.offset = move->write_offset, .bytes = move->read.bytes};
        code = add_view(&views->mapped[group->holder], move, layout, err);
    }
    return code;
}

static enum rf_code lay_out_rank(struct views *views, uint32_t index, struct rf_error *err)
{
    const struct reshard_rank *from = &views->plan->ranks[index];
    struct new_rank *rank = &views->ranks[index];
    uint64_t stream_bytes = views->store->manifest->ranks[index].stream_bytes;
    rf_autofree struct span *spans = calloc((size_t)from->move_count + 1, sizeof(*spans));
    enum rf_code code = spans != NULL ? RF_OK
                                      : rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu64 " views",
                                                from->move_count);
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
    uint32_t from_hint;
    uint64_t to_hint;
};

static void put_run(struct copier *copier, uint64_t to, const uint8_t *data, uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t room = 0;
        uint8_t *at = own_place(copier->to, to, &copier->to_hint, &room);
        uint64_t piece = bytes < room ? bytes : room;

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

static enum rf_code do_task(void *ctx, uint64_t index, struct rf_error *err)
{
    struct views *views = ctx;
    const struct task *task = &views->tasks[index];
    const struct reshard_move *move = task->move;
    const atomic_bool *cancel = views->remotes[0]->options->cancel;
    struct copier copier = {.from = &views->mapped[task->holder], .to = &views->ranks[task->rank]};
    enum rf_code code = RF_OK;

    if (cancel != NULL && atomic_load_explicit(cancel, memory_order_acquire))
        return rf_fail(err, RF_E_CANCELLED, "cancelled");
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
    report(views, task->hi - task->lo);
    return code;
}

/* ---- filling, sealing ---- */

static enum rf_code populate_extent(void *ctx, uint64_t index, struct rf_error *err)
{
    const struct new_rank *rank = ctx;
    uint64_t offset = index * VIEW_EXTENT_BYTES;
    uint64_t left = rank->own_bytes - offset;

    return region_populate(rank->own, offset, left < VIEW_EXTENT_BYTES ? left : VIEW_EXTENT_BYTES,
                           err);
}

static enum rf_code populate(struct views *views, struct rf_error *err)
{
    enum rf_code code = remote_refuse_large(views->remotes[0], views->own_bytes, err);

    for (uint32_t i = 0; code == RF_OK && i < views->plan->rank_count; i++) {
        struct new_rank *rank = &views->ranks[i];
        uint64_t extents = (rank->own_bytes + VIEW_EXTENT_BYTES - 1) / VIEW_EXTENT_BYTES;

        code = thread_parallel(thread_cpus(), extents, populate_extent, rank, err);
    }
    return code;
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
