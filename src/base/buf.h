/* A growable run of bytes. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include "base/error.h"

/* Zero-initialise. Once growing failed, `failed` stays set and further appends do nothing, so
 * that a writer checks once at its end. text buffers are NUL-terminated beyond `bytes` when data
 * != NULL. */
struct buf {
    uint8_t *data;
    size_t bytes;
    size_t room;
    bool failed;
};

void buf_append(struct buf *buf, const void *data, size_t bytes);
void buf_printf(struct buf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Appends a JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. */
void buf_json_string(struct buf *buf, const char *text, size_t bytes);
/* Makes room for `bytes` more and returns where they go, or NULL; the caller adds to buf->bytes. */
uint8_t *buf_reserve(struct buf *buf, size_t bytes);
void buf_free(struct buf *buf);

#define BUF_AUTO __attribute__((cleanup(buf_free)))

#endif
