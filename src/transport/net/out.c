#include "transport/net/out.h"

#include <string.h>

enum {
    OUT_IOV_MIN_BYTES = 512, /* below it, a copy costs less than an entry of iov */
    OUT_PIECES = 4096,       /* looked at for one call: a reader may ask for single bytes */
};

void net_out_reset(struct net_out *out)
{
    out->iov_count = 0;
    out->iov_bytes = 0;
    out->bulk_bytes = 0;
    out->staged = 0;
    out->more = false;
}

void net_out_add(struct net_out *out, const void *data, uint64_t bytes)
{
    struct iovec *last = out->iov_count > 0 ? &out->iov[out->iov_count - 1] : NULL;

    out->iov_bytes += bytes;
    if (last != NULL && (const uint8_t *)last->iov_base + last->iov_len == data) {
        last->iov_len += bytes;
        return;
    }
    /* iovec is one type for both directions; sending does not write. */
    struct iovec *next = &out->iov[out->iov_count++];
    memcpy(&next->iov_base, &data, sizeof data);
    next->iov_len = bytes;
}

/* Puts a large piece down to be sent without a copy; false if it has to be copied.
 *
 * Lent pages stay in the sockets' queues until the reader has read them, also after the seed has
 * stopped, so they must be ours: then nobody writes to them before they are freed, and freeing
 * waits for the queues. Memory borrowed from the caller may be used for something else by then. */
static bool add_bulk(struct net_out *out, const struct segment *piece,
                     const struct net_out_limits *limits)
{
    enum region_kind kind = region_kind(piece->region);
    bool file = kind == REGION_FILE;
    enum net_bulk bulk = file ? NET_BULK_FILE : NET_BULK_PAGES;

    if (limits->no_bulk[bulk] || piece->bytes < limits->bulk_min_bytes)
        return false;
    if (kind == REGION_HOST && region_data_writable(piece->region) == NULL)
        return false;
    out->bulk = bulk;
    out->bulk_bytes = piece->bytes;
    out->fd = file ? region_fd(piece->region) : -1;
    out->fd_offset = piece->region_offset;
    out->pages = file ? NULL : region_data(piece->region) + piece->region_offset;
    return true;
}

/* Adds a piece that is copied; *ret_bytes is how much of it, 0 when the staging is full. */
static enum rf_code add_piece(struct net_out *out, const struct segment *piece, uint64_t *ret_bytes,
                              struct rf_error *err)
{
    const uint8_t *data = region_data(piece->region);
    uint64_t room = NET_STAGING_BYTES - out->staged;
    uint64_t bytes = piece->bytes;

    if (data == NULL || bytes < OUT_IOV_MIN_BYTES) {
        bytes = bytes < room ? bytes : room;
        *ret_bytes = bytes;
        if (bytes == 0)
            return RF_OK;
        enum rf_code code = region_read(piece->region, piece->region_offset,
                                        out->staging + out->staged, bytes, err);
        if (code == RF_OK) {
            net_out_add(out, out->staging + out->staged, bytes);
            out->staged += bytes;
        }
        return code;
    }
    net_out_add(out, data + piece->region_offset, bytes);
    *ret_bytes = bytes;
    return RF_OK;
}

enum rf_code net_out_add_stream(struct net_out *out, const struct layout_cursor *cursor,
                                uint64_t bytes, const struct net_out_limits *limits,
                                uint64_t *ret_left, struct rf_error *err)
{
    struct layout_cursor walk = *cursor;
    uint64_t left = bytes;
    struct segment piece;

    for (int pieces = 0; pieces < OUT_PIECES && out->iov_count < NET_OUT_IOV; pieces++) {
        uint64_t added = 0;
        if (left == 0 || !layout_cursor_peek(&walk, left, &piece))
            break;
        if (add_bulk(out, &piece, limits)) {
            left -= piece.bytes;
            break;
        }
        enum rf_code code = add_piece(out, &piece, &added, err);
        if (code != RF_OK)
            return code;
        if (added == 0)
            break;
        layout_cursor_skip(&walk, added);
        left -= added;
    }
    *ret_left = left;
    return RF_OK;
}
