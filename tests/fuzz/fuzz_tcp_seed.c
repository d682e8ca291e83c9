/* What a reader may say to a seed, through the seed's state machine and without sockets. The first
 * byte of the input decides whether a good hello goes before the rest; each next one how many bytes
 * arrive at once, and how many of the answer the socket takes. Whatever comes, the answer is one
 * that a reader would accept: a welcome, then whole frames with the right bytes. */
#include "behind.h"
#include "transport/tcp/conn.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* ---- the reader of its answers ---- */

struct listener {
    uint8_t head[CHUNK_WELCOME_BYTES];
    size_t head_bytes;
    bool welcomed;
    uint32_t body_left;
    bool over; /* nothing may follow this body */
};

static void hear_head(struct listener *listener)
{
    struct chunk_welcome welcome;
    struct chunk_hdr hdr;

    listener->head_bytes = 0;
    if (!listener->welcomed) {
        must(chunk_welcome_decode(listener->head, CHUNK_WELCOME_BYTES, &welcome, NULL) == RF_OK);
        listener->welcomed = true;
        listener->over = welcome.status != RF_OK;
        return;
    }
    must(chunk_hdr_decode(listener->head, CHUNK_HDR_BYTES, &hdr, NULL) == RF_OK);
    must(hdr.type == CHUNK_DATA || hdr.type == CHUNK_ERROR || hdr.type == CHUNK_GOODBYE ||
         hdr.type == CHUNK_DIGEST);
    listener->body_left = hdr.body_bytes;
    listener->over = hdr.type == CHUNK_ERROR && hdr.request_id == 0;
}

static void hear(struct listener *listener, const uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        must(!listener->over || listener->body_left > 0);
        if (listener->body_left > 0) {
            size_t n = bytes < listener->body_left ? bytes : listener->body_left;
            listener->body_left -= (uint32_t)n;
            data += n;
            bytes -= n;
            continue;
        }
        listener->head[listener->head_bytes++] = *data++;
        bytes--;
        if (listener->head_bytes == (listener->welcomed ? CHUNK_HDR_BYTES : CHUNK_WELCOME_BYTES))
            hear_head(listener);
    }
}

/* ---- between the two ---- */

/* The socket takes `most` bytes of what is to be sent. */
static void take_answer(struct tcp_conn *conn, struct net_out *out, struct listener *listener,
                        uint64_t most)
{
    enum rf_code code = RF_OK;
    uint64_t sent = 0;

    if (!tcp_conn_out(conn, out, &code, NULL)) {
        must(code == RF_OK); /* memory can always be read */
        return;
    }
    must(out->bulk_bytes == 0 && out->iov_count > 0 && out->iov_count <= NET_OUT_IOV);
    for (int i = 0; i < out->iov_count && sent < most; i++) {
        uint64_t n = out->iov[i].iov_len < most - sent ? out->iov[i].iov_len : most - sent;
        hear(listener, out->iov[i].iov_base, n);
        sent += n;
    }
    if (sent > 0)
        (void)tcp_conn_sent(conn, sent);
}

static size_t put_in(struct tcp_conn *conn, const uint8_t *data, size_t bytes)
{
    size_t room = 0;
    uint8_t *at = tcp_conn_space(conn, &room);

    if (bytes > room)
        bytes = room;
    memcpy(at, data, bytes);
    if (bytes > 0)
        tcp_conn_arrived(conn, bytes);
    must(tcp_conn_reads(conn) <= CHUNK_MAX_IN_FLIGHT);
    return bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct net_out out;
    struct tcp_policy policy = {.exporter = behind_exporter(1), .max_readers = 1};
    struct listener listener = {.body_left = 0};
    const uint8_t *end = data + len;

    struct tcp_conn *conn = tcp_conn_create(&policy);
    must(conn != NULL);
    if (len > 0 && (*data++ & 1) != 0) {
        const struct chunk_hello hello = {.version_min = 1, .version_max = 1};
        uint8_t raw[CHUNK_HELLO_BYTES];
        chunk_hello_encode(&hello, raw);
        must(put_in(conn, raw, sizeof raw) == sizeof raw);
        must(tcp_conn_is_open(conn));
    }
    while (data < end) {
        uint8_t step = *data++;
        size_t bytes = step & 0x80 ? (size_t)(end - data) : (size_t)(step & 0x3f);
        if (bytes > (size_t)(end - data))
            bytes = (size_t)(end - data);
        if (step == 0x7f)
            tcp_conn_drain(conn);
        data += put_in(conn, data, bytes);
        take_answer(conn, &out, &listener, (uint64_t)step * 7);
    }
    /* A reader that takes everything gets everything. */
    for (unsigned i = 0; tcp_conn_has_output(conn); i++) {
        must(i < 2000 * 1000);
        take_answer(conn, &out, &listener, UINT64_MAX);
    }
    must(tcp_conn_reads(conn) == 0 && listener.body_left == 0 && listener.head_bytes == 0);
    tcp_conn_destroy(conn);
    must(behind_leases == 0 && atomic_load_explicit(&policy.readers, memory_order_relaxed) == 0);
    return 0;
}
