#include "transport/te/shake.h"

#include "base/log.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHAKE_HOST_BYTES = 80 }; /* of a numeric address */

enum shake_state {
    SHAKE_HEAD, /* the length comes */
    SHAKE_BODY, /* what it counts */
    SHAKE_OVER, /* the answer goes out, if there is one */
};

struct te_shake {
    const struct te_policy *policy;
    struct te_share *share;
    enum shake_state state;
    enum te_type type;
    bool typed;    /* the first byte of the body has come */
    uint64_t left; /* of the body */
    uint32_t head_bytes;
    uint8_t head[TE_FRAME_HEAD_BYTES];
    struct buf answer;
    uint64_t sent;
    char host[SHAKE_HOST_BYTES];
};

struct te_shake *te_shake_create(const struct te_policy *policy, struct te_share *share,
                                 const char *host)
{
    struct te_shake *shake = calloc(1, sizeof *shake);

    if (shake == NULL)
        return NULL;
    shake->policy = policy;
    shake->share = share;
    (void)snprintf(shake->host, sizeof shake->host, "%s", host);
    return shake;
}

void te_shake_destroy(struct te_shake *shake)
{
    if (shake == NULL)
        return;
    buf_free(&shake->answer);
    free(shake);
}

uint8_t *te_shake_space(struct te_shake *shake, size_t *ret_bytes)
{
    if (shake->state == SHAKE_HEAD) {
        *ret_bytes = TE_FRAME_HEAD_BYTES - shake->head_bytes;
        return shake->head + shake->head_bytes;
    }
    *ret_bytes = TE_SHARE_SCRATCH_BYTES;
    return shake->share->scratch;
}

static void answer_metadata(struct te_shake *shake)
{
    const struct te_policy *policy = shake->policy;
    const char *host = policy->host[0] != '\0' ? policy->host : shake->host;
    bool v6 = strchr(host, ':') != NULL;
    char name[TE_MAX_NAME_BYTES + 16];
    struct buf json BUF_AUTO = {0};

    (void)snprintf(name, sizeof name, v6 ? "[%s]:%u" : "%s:%u", host, policy->handshake_port);
    const struct te_descriptor descriptor = {
        .name = name,
        .protocol = "tcp",
        .data_host = host,
        .rdma_server = "",
        .data_port = policy->data_port,
        .version = 2,
        .rfork = 1,
        .buffers = policy->buffers,
        .buffer_count = policy->space.count,
    };
    te_descriptor_encode(&descriptor, NULL, &json);
    if (json.failed)
        shake->answer.failed = true;
    else
        te_frame_encode(TE_METADATA, json.data, json.bytes, &shake->answer);
}

/* The whole question is here. */
static void answer(struct te_shake *shake)
{
    shake->state = SHAKE_OVER;
    if (shake->type == TE_METADATA)
        answer_metadata(shake);
    else
        te_answer_encode(shake->type, &shake->answer);
    if (shake->answer.failed) {
        log_warn("no memory to answer a handshake", "type=%d", shake->type);
        buf_free(&shake->answer);
    }
}

static void take_head(struct te_shake *shake)
{
    struct rf_error error = {0};

    if (shake->head_bytes < TE_FRAME_HEAD_BYTES)
        return;
    shake->state = SHAKE_BODY;
    if (te_frame_length(shake->head, TE_MAX_QUESTION_BYTES, &shake->left, &error) != RF_OK) {
        log_debug("handshake refused", "why=\"%s\"", error.text);
        shake->state = SHAKE_OVER;
    }
}

void te_shake_arrived(struct te_shake *shake, size_t bytes)
{
    if (shake->state == SHAKE_HEAD) {
        assert(bytes <= TE_FRAME_HEAD_BYTES - shake->head_bytes);
        shake->head_bytes += (uint32_t)bytes;
        take_head(shake);
        return;
    }
    if (shake->state == SHAKE_OVER)
        return; /* it talks on: nobody listens */
    if (!shake->typed)
        shake->type = te_frame_type(shake->share->scratch[0]);
    shake->typed = true;
    shake->left -= bytes < shake->left ? bytes : shake->left;
    if (shake->left == 0)
        answer(shake);
}

bool te_shake_has_output(const struct te_shake *shake)
{
    return shake->sent < shake->answer.bytes;
}

bool te_shake_is_finished(const struct te_shake *shake)
{
    return shake->state == SHAKE_OVER && !te_shake_has_output(shake);
}

bool te_shake_out(struct te_shake *shake, struct net_out *ret_out)
{
    net_out_reset(ret_out);
    if (!te_shake_has_output(shake))
        return false;
    net_out_add(ret_out, shake->answer.data + shake->sent, shake->answer.bytes - shake->sent);
    return true;
}

void te_shake_sent(struct te_shake *shake, uint64_t bytes)
{
    assert(bytes <= shake->answer.bytes - shake->sent);
    shake->sent += bytes;
}

void te_shake_drain(struct te_shake *shake)
{
    /* Who asks now is not told of a seed that is going. */
    shake->state = SHAKE_OVER;
}
