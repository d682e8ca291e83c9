/* What TransferEngines say: descriptors, frame heads, requests, statuses. The first byte chooses.
 * What a decoder accepts keeps its promises and is, encoded and decoded again, the same. */
#include "must.h"
#include "wire/te.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_buffers(const struct te_descriptor *descriptor)
{
    uint64_t end = 0;

    must(descriptor->buffer_count <= TE_MAX_BUFFERS);
    for (uint64_t i = 0; i < descriptor->buffer_count; i++) {
        const struct te_buffer *buffer = &descriptor->buffers[i];

        must(buffer->address != 0 && buffer->bytes != 0 && buffer->address >= end);
        must(buffer->bytes <= UINT64_MAX - buffer->address);
        must(strlen(buffer->name) <= TE_MAX_NAME_BYTES);
        end = buffer->address + buffer->bytes;
        must(te_descriptor_find(descriptor, buffer->address, buffer->bytes) == buffer);
        must(te_descriptor_find(descriptor, end - 1, 1) == buffer);
        must(te_descriptor_find(descriptor, buffer->address, buffer->bytes + 1) == NULL);
    }
    must(te_descriptor_find(descriptor, UINT64_MAX, 2) == NULL);
}

static void same(const struct te_descriptor *a, const struct te_descriptor *b)
{
    must(strcmp(a->name, b->name) == 0 && strcmp(a->protocol, b->protocol) == 0);
    must(strcmp(a->data_host, b->data_host) == 0 && strcmp(a->rdma_server, b->rdma_server) == 0);
    must(a->data_port == b->data_port && a->version == b->version && a->rfork == b->rfork);
    must(a->buffer_count == b->buffer_count);
    for (uint64_t i = 0; i < a->buffer_count; i++)
        must(a->buffers[i].address == b->buffers[i].address &&
             a->buffers[i].bytes == b->buffers[i].bytes &&
             strcmp(a->buffers[i].name, b->buffers[i].name) == 0);
}

static void fuzz_descriptor(const uint8_t *data, size_t size)
{
    struct te_descriptor descriptor;
    struct te_descriptor again;
    struct rf_error err = {0};
    struct buf out BUF_AUTO = {.bytes = 0};

    if (te_descriptor_decode(data, size, &descriptor, &err) != RF_OK) {
        must(err.text[0] != '\0');
        return;
    }
    check_buffers(&descriptor);
    te_descriptor_encode(&descriptor, "t", &out);
    must(te_descriptor_decode(out.data, out.bytes, &again, &err) == RF_OK);
    same(&descriptor, &again);
    te_descriptor_free(&again);
    te_descriptor_free(&descriptor);
}

static void fuzz_frame(const uint8_t *data, size_t size)
{
    struct buf out BUF_AUTO = {.bytes = 0};
    uint64_t bytes = 0;

    if (size <= TE_FRAME_HEAD_BYTES ||
        te_frame_length(data, TE_MAX_FRAME_BYTES, &bytes, NULL) != RF_OK)
        return;
    must(bytes >= 1 && bytes <= TE_MAX_FRAME_BYTES);
    enum te_type type = te_frame_type(data[TE_FRAME_HEAD_BYTES]);
    size_t head = TE_FRAME_HEAD_BYTES + (type != TE_OLD_FORM);
    if (bytes != size - TE_FRAME_HEAD_BYTES)
        return;
    te_frame_encode(type, data + head, size - head, &out);
    must(out.bytes == size && memcmp(out.data, data, size) == 0);
}

static void fuzz_request(const uint8_t *data, size_t size)
{
    uint8_t again[TE_HDR_BYTES];
    struct te_hdr hdr;

    if (size < TE_HDR_BYTES)
        return;
    te_hdr_decode(data, &hdr);
    te_hdr_encode(&hdr, again);
    must(memcmp(again, data, 18) == 0); /* the rest is unused */
}

static void fuzz_status(const uint8_t *data, size_t size)
{
    uint8_t again[TE_STATUS_BYTES];
    uint32_t status = 0;

    if (size < TE_STATUS_BYTES || te_status_decode(data, &status, NULL) != RF_OK)
        return;
    te_status_encode(status, again);
    must(memcmp(again, data, sizeof again) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const targets[])(const uint8_t *, size_t) = {fuzz_descriptor, fuzz_frame,
                                                               fuzz_request, fuzz_status};

    if (size > 0)
        targets[data[0] % (sizeof targets / sizeof targets[0])](data + 1, size - 1);
    return 0;
}
