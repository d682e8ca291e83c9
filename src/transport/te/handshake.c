#include "transport/te/handshake.h"

#include "base/cleanup.h"

#include <inttypes.h>

enum { HANDSHAKE_STEP_BYTES = 1 << 20 }; /* memory that a peer gets before it has sent as much */

static const char asking[] = "waiting for its descriptor";

/* The rest of an answer, whose length the peer has said. Memory grows with what has come. */
static enum rf_code receive_rest(const struct net_peer *peer, int fd, uint64_t bytes,
                                 uint64_t deadline_ns, struct buf *json, struct rf_error *err)
{
    while (json->bytes < bytes) {
        uint64_t step = bytes - json->bytes;
        if (step > HANDSHAKE_STEP_BYTES)
            step = HANDSHAKE_STEP_BYTES;
        uint8_t *at = buf_reserve(json, step);
        if (at == NULL)
            return rf_fail(err, RF_E_NOMEM,
                           "%s %s: no memory for a descriptor of %" PRIu64 " bytes", peer->kind,
                           peer->text, bytes);
        enum rf_code code = net_receive_all(peer, fd, at, step, asking, deadline_ns, err);
        if (code != RF_OK)
            return code;
        json->bytes += step;
    }
    return RF_OK;
}

static enum rf_code ask(const struct net_peer *peer, int fd, uint64_t deadline_ns, struct buf *json,
                        struct rf_error *err)
{
    struct buf question BUF_AUTO = {.bytes = 0};
    uint8_t head[TE_FRAME_HEAD_BYTES + 1];
    uint64_t bytes = 0;

    te_frame_encode(TE_METADATA, "{}\n", 3, &question);
    if (question.failed)
        return rf_fail(err, RF_E_NOMEM, "no memory for a question");
    enum rf_code code = net_send_all(peer, fd, question.data, question.bytes, "sending a question",
                                     deadline_ns, err);
    if (code == RF_OK)
        code = net_receive_all(peer, fd, head, sizeof head, asking, deadline_ns, err);
    if (code != RF_OK)
        return code;
    code = te_frame_length(head, TE_MAX_FRAME_BYTES, &bytes, err);
    if (code != RF_OK)
        return rf_error_wrap(err, code, "%s %s", peer->kind, peer->text);
    if (te_frame_type(head[TE_FRAME_HEAD_BYTES]) != TE_METADATA)
        return rf_fail(err, RF_E_PROTO, "%s %s answers with type %u to a question of type %d",
                       peer->kind, peer->text, head[TE_FRAME_HEAD_BYTES], TE_METADATA);
    return receive_rest(peer, fd, bytes - 1, deadline_ns, json, err);
}

enum rf_code te_handshake(const struct net_peer *peer, const struct net_address *address,
                          uint64_t deadline_ns, struct te_descriptor *ret_descriptor,
                          struct rf_error *err)
{
    struct buf json BUF_AUTO = {.bytes = 0};
    int fd = -1;
    enum rf_code code = net_connect(peer, address, deadline_ns, &fd, err);

    if (code != RF_OK)
        return code;
    code = ask(peer, fd, deadline_ns, &json, err);
    close(fd);
    if (code != RF_OK)
        return code;
    code = te_descriptor_decode(json.data, json.bytes, ret_descriptor, err);
    return code == RF_OK ? RF_OK : rf_error_wrap(err, code, "%s %s", peer->kind, peer->text);
}
