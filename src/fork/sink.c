/* The sink of one chunk: bytes go to their places and into the hash as they arrive. */
#include "base/cleanup.h"
#include "fork/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* What is left of the segment that holds the next byte, within the chunk. */
static uint64_t segment_rest(const struct chunk_slot *slot, uint32_t segment, uint64_t done)
{
    const struct fork_segment *at = &slot->dest->segments[segment];
    uint64_t skip = slot->range.offset + done - at->stream_offset;
    uint64_t in_segment = at->bytes - skip;
    uint64_t in_chunk = slot->range.bytes - done;

    return in_segment < in_chunk ? in_segment : in_chunk;
}

static int slot_where(struct sink *sink, struct iovec *iov, int max, uint64_t *ret_bytes)
{
    struct chunk_slot *slot = (struct chunk_slot *)sink;
    uint32_t segment = slot->segment;
    uint64_t done = slot->done;
    uint64_t room = FORK_PIECE_BYTES;
    int count = 0;

    if (slot->bounce != NULL) {
        uint64_t left = slot->range.bytes - done;

        *ret_bytes = left < FORK_BOUNCE_BYTES ? left : FORK_BOUNCE_BYTES;
        iov[0] = (struct iovec){.iov_base = slot->bounce, .iov_len = *ret_bytes};
        return 1;
    }
    while (count < max && room > 0 && done < slot->range.bytes) {
        const struct fork_segment *at = &slot->dest->segments[segment];
        uint64_t bytes = segment_rest(slot, segment, done);
        uint64_t skip = slot->range.offset + done - at->stream_offset;

        if (bytes > room)
            bytes = room;
        iov[count++] = (struct iovec){.iov_base = at->addr + skip, .iov_len = bytes};
        room -= bytes;
        done += bytes;
        if (skip + bytes == at->bytes)
            segment++;
    }
    *ret_bytes = done - slot->done;
    return count;
}

static enum rf_code write_all(const struct fork_segment *at, uint64_t skip, const uint8_t *data,
                              uint64_t bytes, struct rf_error *err)
{
    while (bytes > 0) {
        ssize_t put = pwrite(at->fd, data, bytes, (off_t)(at->fd_offset + skip));

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return rf_fail_sys(err,
                               "writing %" PRIu64 " bytes at %" PRIu64 " of the destination file",
                               bytes, at->fd_offset + skip);
        data += put;
        skip += (uint64_t)put;
        bytes -= (uint64_t)put;
    }
    return RF_OK;
}

static enum rf_code slot_took(struct sink *sink, uint64_t bytes, struct rf_error *err)
{
    struct chunk_slot *slot = (struct chunk_slot *)sink;
    const uint8_t *bounce = slot->bounce;

    if (bytes > slot->range.bytes - slot->done)
        return rf_fail(err, RF_E_PROTO, "more bytes than the chunk has");
    atomic_fetch_add_explicit(slot->arrived_bytes, bytes, memory_order_relaxed);
    while (bytes > 0) {
        const struct fork_segment *at = &slot->dest->segments[slot->segment];
        uint64_t skip = slot->range.offset + slot->done - at->stream_offset;
        uint64_t piece = segment_rest(slot, slot->segment, slot->done);

        if (piece > bytes)
            piece = bytes;
        if (slot->hasher != NULL)
            chunk_hasher_update(slot->hasher, bounce != NULL ? bounce : at->addr + skip, piece);
        if (bounce != NULL) {
            enum rf_code code = write_all(at, skip, bounce, piece, err);

            if (code != RF_OK)
                return code;
            bounce += piece;
        }
        slot->done += piece;
        bytes -= piece;
        if (skip + piece == at->bytes)
            slot->segment++;
    }
    return RF_OK;
}

enum rf_code chunk_slot_init(struct chunk_slot *slot, const struct fork_dest *dest,
                             enum hash_algorithm algorithm, bool verify, bool to_files,
                             struct rf_error *err)
{
    *slot = (struct chunk_slot){
        .sink = {.where = slot_where, .took = slot_took},
        .dest = dest,
    };
    if (verify)
        slot->hasher = chunk_hasher_create(algorithm);
    if (to_files)
        slot->bounce = malloc(FORK_BOUNCE_BYTES);
    if ((verify && slot->hasher == NULL) || (to_files && slot->bounce == NULL)) {
        chunk_slot_free(slot);
        return rf_fail(err, RF_E_NOMEM, "no memory to receive a chunk");
    }
    return RF_OK;
}

void chunk_slot_free(struct chunk_slot *slot)
{
    chunk_hasher_destroy(slot->hasher);
    free(slot->bounce);
    slot->hasher = NULL;
    slot->bounce = NULL;
}

void chunk_slot_begin(struct chunk_slot *slot, uint32_t rank, uint64_t chunk, uint64_t offset,
                      uint64_t bytes)
{
    slot->range = (struct stream_range){.offset = offset, .bytes = bytes, .count = 1};
    slot->chunk = chunk;
    slot->done = 0;
    slot->segment = fork_dest_find(slot->dest, offset);
    slot->busy = true;
    slot->read = (struct read){
        .rank = rank,
        .ranges = &slot->range,
        .range_count = 1,
        .bytes = bytes,
        .sink = &slot->sink,
        .user = slot,
    };
    if (slot->hasher != NULL)
        chunk_hasher_begin(slot->hasher);
}
