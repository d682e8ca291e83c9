#include "base/buf.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUF_FIRST_BYTES = 256 };

/* Room for `bytes` more and a final NUL. */
static bool grow(struct buf *buf, size_t bytes)
{
    size_t need = 0;

    if (buf->failed)
        return false;
    if (__builtin_add_overflow(buf->bytes, bytes, &need) ||
        __builtin_add_overflow(need, (size_t)1, &need)) {
        buf->failed = true;
        return false;
    }
    if (need <= buf->room)
        return true;
    size_t room = buf->room > SIZE_MAX / 2 ? need : buf->room * 2;
    room = room < need ? need : room;
    room = room < BUF_FIRST_BYTES ? BUF_FIRST_BYTES : room;
    uint8_t *data = realloc(buf->data, room);
    if (data == NULL) {
        buf->failed = true;
        return false;
    }
    buf->data = data;
    buf->room = room;
    return true;
}

void buf_append(struct buf *buf, const void *data, size_t bytes)
{
    if (!grow(buf, bytes))
        return;
    if (bytes > 0)
        memcpy(buf->data + buf->bytes, data, bytes);
    buf->bytes += bytes;
    buf->data[buf->bytes] = '\0';
}

void buf_printf(struct buf *buf, const char *fmt, ...)
{
    va_list args;
    va_list again;

    if (!grow(buf, 0))
        return;
    va_start(args, fmt);
    va_copy(again, args);
    size_t room = buf->room - buf->bytes;
    int bytes = vsnprintf((char *)buf->data + buf->bytes, room, fmt, args);
    if (bytes < 0) {
        buf->data[buf->bytes] = '\0';
        buf->failed = true;
    } else if ((size_t)bytes < room) {
        buf->bytes += (size_t)bytes;
    } else if (grow(buf, (size_t)bytes)) {
        vsnprintf((char *)buf->data + buf->bytes, (size_t)bytes + 1, fmt, again);
        buf->bytes += (size_t)bytes;
    } else {
        buf->data[buf->bytes] = '\0';
    }
    va_end(again);
    va_end(args);
}

static void put_escaped(struct buf *buf, uint32_t character)
{
    static const char shorts[] = "\"\\\b\f\n\r\t";
    static const char letters[] = "\"\\bfnrt";
    const char *found = character != 0 ? strchr(shorts, (int)character) : NULL;

    if (found != NULL)
        buf_append(buf, (const char[2]){'\\', letters[found - shorts]}, 2);
    else
        buf_printf(buf, "\\u%04x", (unsigned)character);
}

void buf_json_string(struct buf *buf, const char *text, size_t bytes)
{
    const uint8_t *at = (const uint8_t *)text;
    const uint8_t *end = bytes > 0 ? at + bytes : at;
    const uint8_t *plain = at; /* from here to `at` nothing needs escaping */

    buf_append(buf, "\"", 1);
    while (at < end && !buf->failed) {
        uint32_t character = 0;
        size_t taken = utf8_decode(at, (size_t)(end - at), &character);
        bool escape =
            character < 0x20 || character == '"' || character == '\\' || character == 0x7f;
        if (taken > 0 && !escape) {
            at += taken;
            continue;
        }
        buf_append(buf, plain, (size_t)(at - plain));
        if (taken == 0)
            buf_append(buf, "\xef\xbf\xbd", 3);
        else
            put_escaped(buf, character);
        at += taken == 0 ? 1 : taken;
        plain = at;
    }
    buf_append(buf, plain, (size_t)(at - plain));
    buf_append(buf, "\"", 1);
}

uint8_t *buf_reserve(struct buf *buf, size_t bytes)
{
    return grow(buf, bytes) ? buf->data + buf->bytes : NULL;
}

void buf_free(struct buf *buf)
{
    free(buf->data);
    *buf = (struct buf){0};
}
