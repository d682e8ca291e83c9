#include "transport/map/intake.h"

#include "base/cleanup.h"

#include <assert.h>
#include <inttypes.h>

struct map_intake *map_intake_create(void)
{
    struct map_intake *intake = calloc(1, sizeof *intake);

    if (intake != NULL)
        intake->goal = MAP_GRANT_BYTES;
    return intake;
}

static void fds_close(const int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        close(fds[i]);
}

void map_intake_destroy(struct map_intake *intake)
{
    if (intake == NULL)
        return;
    /* Those that are regions by now belong to them. */
    fds_close(intake->fds + intake->region_count, intake->fd_count - intake->region_count);
    for (uint32_t i = 0; i < intake->region_count; i++)
        region_unref(intake->regions[i]);
    layout_free(&intake->layout);
    free(intake);
}

bool map_intake_done(const struct map_intake *intake)
{
    return intake->stage == INTAKE_DONE;
}

uint8_t *map_intake_where(struct map_intake *intake, size_t *ret_bytes)
{
    if (intake->stage == INTAKE_DONE)
        return NULL;
    *ret_bytes = intake->goal - intake->have;
    return intake->buf + intake->have;
}

static void stage_enter(struct map_intake *intake, enum map_intake_stage stage, size_t goal)
{
    intake->stage = stage;
    intake->goal = goal;
    intake->have = 0;
}

static void segments_enter(struct map_intake *intake)
{
    uint32_t next = intake->segments_left < MAP_INTAKE_SEGMENTS ? intake->segments_left
                                                                : (uint32_t)MAP_INTAKE_SEGMENTS;

    stage_enter(intake, INTAKE_SEGMENTS, (size_t)next * MAP_SEGMENT_BYTES);
}

static enum rf_code grant_take(struct map_intake *intake, struct rf_error *err)
{
    enum rf_code code = map_grant_decode(intake->buf, intake->have, &intake->grant, err);
    const struct map_grant *grant = &intake->grant;

    if (code != RF_OK)
        return code;
    if (grant->fd_count != intake->fd_count)
        return rf_fail(err, RF_E_PROTO,
                       "map grant: speaks of %" PRIu32 " descriptors, %" PRIu32 " came with it",
                       grant->fd_count, intake->fd_count);
    intake->segments_left = grant->segment_count;
    if (grant->status != RF_OK)
        stage_enter(intake, INTAKE_TEXT, grant->text_bytes);
    else
        stage_enter(intake, INTAKE_SIZES, (size_t)grant->fd_count * MAP_FD_BYTES);
    return RF_OK;
}

static enum rf_code text_take(struct map_intake *intake)
{
    intake->refused = (enum rf_code)intake->grant.status;
    if (intake->have == 0)
        rf_fail(&intake->refusal, intake->refused, "the seed refused and does not say why");
    else
        rf_fail(&intake->refusal, intake->refused, "the seed refused: %.*s", (int)intake->have,
                (const char *)intake->buf);
    stage_enter(intake, INTAKE_DONE, 0);
    return RF_OK;
}

static enum rf_code sizes_take(struct map_intake *intake, struct rf_error *err)
{
    struct wire_in in = {.at = intake->buf, .end = intake->buf + intake->have, .ok = true};

    for (uint32_t i = 0; i < intake->fd_count; i++) {
        struct region *region = NULL;
        uint64_t bytes = wire_get_u64(&in);
        int fd = intake->fds[i];
        intake->fds[i] = -1; /* region_adopt_memfd() owns it, whatever comes of it */
        enum rf_code code = region_adopt_memfd(fd, bytes, &region, err);
        if (code != RF_OK) {
            /* What is left to close begins after this one. */
            intake->regions[intake->region_count++] = NULL;
            return rf_error_wrap(err, code, "map grant: descriptor %" PRIu32 " of %" PRIu32, i,
                                 intake->fd_count);
        }
        intake->regions[intake->region_count++] = region;
    }
    segments_enter(intake);
    return RF_OK;
}

static enum rf_code segment_take(struct map_intake *intake, const uint8_t *raw,
                                 struct rf_error *err)
{
    struct map_segment segment;
    enum rf_code code = map_segment_decode(raw, MAP_SEGMENT_BYTES, &segment, err);

    if (code != RF_OK)
        return code;
    if (segment.fd_index >= intake->region_count)
        return rf_fail(err, RF_E_PROTO,
                       "map segment: in descriptor %" PRIu32 ", there are %" PRIu32,
                       segment.fd_index, intake->region_count);
    struct region *region = intake->regions[segment.fd_index];
    /* The decoder made sure that the sum does not wrap. */
    if (segment.fd_offset + segment.bytes > region_bytes(region))
        return rf_fail(err, RF_E_PROTO,
                       "map segment: %" PRIu64 " bytes at %" PRIu64 " of descriptor %" PRIu32
                       ", which has %" PRIu64,
                       segment.bytes, segment.fd_offset, segment.fd_index, region_bytes(region));
    if (__builtin_add_overflow(intake->stream_bytes, segment.bytes, &intake->stream_bytes))
        return rf_fail(err, RF_E_PROTO, "map segments: together beyond 2^64 bytes");
    return layout_add(&intake->layout, segment.stream_offset, segment.bytes, region,
                      segment.fd_offset, err);
}

/* Segments may come in any order; that they cover the stream once, without hole, layout_finish()
 * finds out. */
static enum rf_code segments_take(struct map_intake *intake, struct rf_error *err)
{
    uint32_t count = (uint32_t)(intake->have / MAP_SEGMENT_BYTES);
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < count; i++) {
        code = segment_take(intake, intake->buf + (size_t)i * MAP_SEGMENT_BYTES, err);
        if (code != RF_OK)
            return code;
    }
    intake->segments_left -= count;
    if (intake->segments_left > 0) {
        segments_enter(intake);
        return RF_OK;
    }
    code = layout_finish(&intake->layout, intake->stream_bytes, err);
    if (code != RF_OK)
        return rf_error_wrap(err, code == RF_E_NOMEM ? code : RF_E_PROTO, "map grant");
    stage_enter(intake, INTAKE_DONE, 0);
    return RF_OK;
}

static enum rf_code stage_take(struct map_intake *intake, struct rf_error *err)
{
    switch (intake->stage) {
    case INTAKE_GRANT:
        return grant_take(intake, err);
    case INTAKE_TEXT:
        return text_take(intake);
    case INTAKE_SIZES:
        return sizes_take(intake, err);
    case INTAKE_SEGMENTS:
        return segments_take(intake, err);
    case INTAKE_DONE:
        break;
    }
    return RF_OK;
}

static enum rf_code fds_take(struct map_intake *intake, const int *fds, uint32_t count,
                             struct rf_error *err)
{
    if (count == 0)
        return RF_OK;
    if (intake->begun || count > MAP_MAX_FDS) {
        fds_close(fds, count);
        return rf_fail(err, RF_E_PROTO,
                       "map grant: %" PRIu32
                       " descriptors %s: at most %d come, with its first byte",
                       count, intake->begun ? "more in its middle" : "at once", MAP_MAX_FDS);
    }
    for (uint32_t i = 0; i < count; i++)
        intake->fds[i] = fds[i];
    intake->fd_count = count;
    return RF_OK;
}

enum rf_code map_intake_took(struct map_intake *intake, size_t bytes, const int *fds,
                             uint32_t fd_count, struct rf_error *err)
{
    enum rf_code code = fds_take(intake, fds, fd_count, err);

    assert(bytes <= intake->goal - intake->have);
    intake->begun = true;
    intake->have += bytes;
    /* A stage without bytes (no descriptors, no text) is over as soon as it is entered. */
    while (code == RF_OK && intake->stage != INTAKE_DONE && intake->have == intake->goal)
        code = stage_take(intake, err);
    return code;
}
