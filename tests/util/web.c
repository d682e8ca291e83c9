#include "util/web.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "format/safetensors.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

static void must(enum rf_code code, const struct rf_error *err, const char *what)
{
    if (code == RF_OK)
        return;
    (void)fprintf(stderr, "%s: %s: %s\n", what, rf_code_name(code), err->text);
    abort();
}

static void must_be(bool is, const char *what)
{
    if (is)
        return;
    (void)fprintf(stderr, "%s: %s\n", what, strerror(errno));
    abort();
}

/* ---- the model ---- */

struct web_tensor {
    const char *name;
    enum rf_dtype dtype;
    uint32_t ndim;
    uint64_t shape[2];
    const char *alias_of;
    uint64_t bytes;
};

/* Of "big" the size is set by web_start(). */
static struct web_tensor rank0[] = {
    {"a.weight", RF_DTYPE_F32, 2, {2, 3}, NULL, 24},
    {"alias.weight", RF_DTYPE_F32, 2, {2, 3}, "a.weight", 0},
    {"big", RF_DTYPE_U8, 1, {0}, NULL, 0},
    {"empty", RF_DTYPE_F16, 2, {0, 4}, NULL, 0},
    {"sub/\xc3\xbc n&", RF_DTYPE_I16, 1, {5}, NULL, 10},
};
enum { RANK0_COUNT = sizeof rank0 / sizeof rank0[0], RANK0_BIG = 2 };

static const struct web_tensor rank1[] = {
    {"a.weight", RF_DTYPE_F32, 2, {2, 3}, NULL, 24},
    {"only.one", RF_DTYPE_U8, 1, {7}, NULL, 7},
};
enum { RANK1_COUNT = sizeof rank1 / sizeof rank1[0] };

static const struct {
    const char *name;
    const char *text;
} side_files[] = {
    {"config.json", "{\"architectures\":[\"Tiny\"]}\n"},
    {"empty.txt", ""},
    {"sub/vocab list.txt", "one\ntwo\n"},
};
enum { SIDE_COUNT = sizeof side_files / sizeof side_files[0] };

/* The header of the weight file: rank 0 without its alias, in order. */
static void weights_header(struct buf *out)
{
    struct st_tensor tensors[RANK0_COUNT];
    struct rf_error err;
    uint32_t count = 0;

    for (unsigned i = 0; i < RANK0_COUNT; i++) {
        if (rank0[i].alias_of == NULL)
            tensors[count++] = (struct st_tensor){.name = rank0[i].name,
                                                  .name_bytes = (uint32_t)strlen(rank0[i].name),
                                                  .dtype = rank0[i].dtype,
                                                  .ndim = rank0[i].ndim,
                                                  .shape = rank0[i].shape,
                                                  .bytes = rank0[i].bytes};
    }
    must(st_header_write(tensors, count, NULL, 0, out, &err), &err, "header");
}

static void add_tensors(struct manifest_builder *builder, const struct web_tensor *tensors,
                        unsigned count, uint32_t file, uint64_t offset)
{
    struct rf_error err;

    for (unsigned i = 0; i < count; i++) {
        bool alias = tensors[i].alias_of != NULL;
        const struct tensor tensor = {
            .name = tensors[i].name,
            .name_bytes = (uint32_t)strlen(tensors[i].name),
            .dtype = tensors[i].dtype,
            .ndim = tensors[i].ndim,
            .shape = tensors[i].shape,
            .order = i,
            .file = alias ? MANIFEST_NONE : file,
            .file_offset = alias || file == MANIFEST_NONE ? 0 : offset,
        };
        must(manifest_add_tensor(builder, &tensor, tensors[i].alias_of, &err), &err, "tensor");
        offset += tensors[i].bytes;
    }
}

static void add_files(struct manifest_builder *builder, const struct buf *header,
                      uint64_t stream_bytes)
{
    struct rf_error err;
    struct manifest_file weights = {.name = "model.safetensors",
                                    .kind = FILE_WEIGHTS,
                                    .bytes = header->bytes + stream_bytes,
                                    .header_bytes = header->bytes};

    hash_once(HASH_XXH3_128, header->data, header->bytes, weights.digest);
    must(manifest_add_file(builder, &weights, &err), &err, "weights");
    for (unsigned i = 0; i < SIDE_COUNT; i++) {
        struct manifest_file side = {
            .name = side_files[i].name, .kind = FILE_SIDE, .bytes = strlen(side_files[i].text)};

        hash_once(HASH_XXH3_128, side_files[i].text, side.bytes, side.digest);
        must(manifest_add_file(builder, &side, &err), &err, "side file");
    }
}

static struct manifest *make_manifest(const struct web_options *options, struct buf *header)
{
    const struct manifest_identity identity = {.model = "tiny <b>&\"model\"",
                                               .architecture = "TinyForCausalLM",
                                               .quantisation = "none",
                                               .layout = "checkpoint",
                                               .algorithm = HASH_XXH3_128,
                                               .chunk_bytes = WEB_CHUNK_BYTES};
    struct rank_id id = {.tp = options->first_tp,
                         .tp_size = options->tp_size != 0 ? options->tp_size : 2,
                         .pp_size = 1,
                         .ep_size = 1,
                         .dp_size = 1,
                         .role = ROLE_TARGET};
    struct manifest *manifest = NULL;
    struct rf_error err;
    uint64_t stream_bytes = 0;

    for (unsigned i = 0; i < RANK0_COUNT; i++)
        stream_bytes += rank0[i].bytes;
    weights_header(header);
    struct manifest_builder *builder = manifest_builder_create(&identity, &err);
    must_be(builder != NULL, "manifest_builder_create");
    add_files(builder, header, stream_bytes);
    must(manifest_add_rank(builder, &id, &err), &err, "rank 0");
    add_tensors(builder, rank0, RANK0_COUNT, 0, header->bytes);
    id.tp++;
    must(manifest_add_rank(builder, &id, &err), &err, "rank 1");
    add_tensors(builder, rank1, RANK1_COUNT, MANIFEST_NONE, 0);
    must(manifest_build(builder, &manifest, &err), &err, "manifest");
    return manifest;
}

static struct region *rank_region(struct web *web, unsigned rank, const char *path)
{
    struct region *region = NULL;
    struct rf_error err;

    if (path == NULL || rank != 0) {
        must(region_create_borrowed(web->memory[rank], web->stream_bytes[rank], &region, &err),
             &err, "region");
        return region;
    }
    rf_autoclose int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must_be(fd >= 0, path);
    ssize_t wrote = write(fd, web->memory[0], web->stream_bytes[0]);
    must_be(wrote == (ssize_t)web->stream_bytes[0], path);
    must(region_create_file(path, fd, &region, &err), &err, "region");
    return region;
}

static void fill_store(struct web *web, struct buf *header, const char *path)
{
    struct store *store = web->store;
    struct rf_error err;

    for (unsigned rank = 0; rank < 2; rank++) {
        uint64_t bytes = store->manifest->ranks[rank].stream_bytes;

        web->stream_bytes[rank] = bytes;
        web->memory[rank] = malloc(bytes);
        must_be(web->memory[rank] != NULL, "malloc");
        for (uint64_t i = 0; i < bytes; i++)
            web->memory[rank][i] = (uint8_t)((i * 2654435761u + rank) >> 11);
        struct region *region = rank_region(web, rank, path);
        struct layout *layout = &store->ranks[rank].layout;
        must(layout_add(layout, 0, bytes, region, 0, &err), &err, "layout");
        must(layout_finish(layout, bytes, &err), &err, "layout");
        must(store_add_region(store, region, &err), &err, "region");
        region_unref(region);
    }
    store->files[0].data = header->data;
    store->files[0].bytes = header->bytes;
    *header = (struct buf){0};
    for (unsigned i = 0; i < SIDE_COUNT; i++) {
        store->files[1 + i].data = (uint8_t *)strdup(side_files[i].text);
        store->files[1 + i].bytes = strlen(side_files[i].text);
    }
}

/* ---- the seed ---- */

void web_start(struct web *web, const struct web_options *options)
{
    static const char *const transports[] = {"null", NULL};
    static const char *const te[] = {"te", NULL};
    const struct seed_options seed = {.host = options->server.host,
                                      .max_readers = options->max_readers,
                                      .lease_ttl_ms = options->lease_ttl_ms,
                                      .transports = transports,
                                      .also = options->nodes != NULL ? te : NULL};
    struct server_options server = options->server;
    struct buf header BUF_AUTO = {0};
    struct rf_error err;

    *web = (struct web){.port = 0};
    rank0[RANK0_BIG].bytes = options->big_bytes != 0 ? options->big_bytes : WEB_BIG_BYTES;
    rank0[RANK0_BIG].shape[0] = rank0[RANK0_BIG].bytes;
    struct manifest *manifest = make_manifest(options, &header);
    must(store_create(manifest, &web->store, &err), &err, "store");
    manifest_unref(manifest);
    fill_store(web, &header, options->weights_path);
    must(seed_create(&seed, &web->seed, &err), &err, "seed");
    if (options->nodes != NULL) {
        must(nodes_create(options->nodes, web->seed, &web->nodes, &err), &err, "nodes");
        must(nodes_start(web->nodes, &err), &err, "nodes");
        server.nodes = web->nodes;
    }
    if (!options->unpublished)
        web_publish(web);
    must(server_start(&server, web->seed, &web->server, &err), &err, "server");
    web->port = server_port(web->server);
}

void web_publish(struct web *web)
{
    struct rf_error err;

    must(seed_publish(web->seed, web->store, &err), &err, "publish");
    must(seed_wait_digests(web->seed, clock_deadline_ns(WEB_TIMEOUT_MS), &err), &err, "digests");
    if (web->nodes != NULL) {
        must(nodes_publish(web->nodes, &err), &err, "nodes");
        nodes_open(web->nodes);
    }
}

void web_stop(struct web *web)
{
    bool published = seed_store(web->seed) != NULL;

    server_stop(web->server);
    nodes_destroy(web->nodes);
    seed_destroy(web->seed);
    if (!published)
        store_destroy(web->store);
    free(web->memory[0]);
    free(web->memory[1]);
    *web = (struct web){.port = 0};
}

/* ---- a plain client ---- */

int web_connect(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port),
                                  .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    const struct timeval limit = {.tv_sec = WEB_TIMEOUT_MS / 1000};

    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must_be(fd >= 0, "socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    must_be(connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect");
    return fd;
}

bool web_send(int fd, const void *data, size_t bytes)
{
    const uint8_t *at = data;

    while (bytes > 0) {
        ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        at += sent;
        bytes -= (size_t)sent;
    }
    return true;
}

const char *web_header(const struct web_answer *answer, const char *name)
{
    static _Thread_local char value[1024];
    const char *at = answer->head.data != NULL ? (const char *)answer->head.data : "";
    size_t bytes = strlen(name);

    while ((at = strstr(at, "\r\n")) != NULL) {
        at += 2;
        if (strncasecmp(at, name, bytes) != 0 || at[bytes] != ':')
            continue;
        at += bytes + 1;
        at += strspn(at, " ");
        snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\r\n"), at);
        return value;
    }
    return "";
}

static bool receive_head(int fd, struct web_answer *answer)
{
    char byte;

    for (;;) {
        if (recv(fd, &byte, 1, 0) != 1)
            return false;
        buf_append(&answer->head, &byte, 1);
        if (answer->head.bytes >= 4 &&
            memcmp(answer->head.data + answer->head.bytes - 4, "\r\n\r\n", 4) == 0)
            return true;
    }
}

void web_receive(int fd, bool without_body, struct web_answer *ret_answer)
{
    char block[16384];

    *ret_answer = (struct web_answer){.status = 0};
    if (!receive_head(fd, ret_answer) || strncmp((char *)ret_answer->head.data, "HTTP/1.", 7) != 0)
        return;
    ret_answer->status = (int)strtol((char *)ret_answer->head.data + 9, NULL, 10);
    if (ret_answer->status == 100) { /* and now the real one */
        web_answer_free(ret_answer);
        web_receive(fd, without_body, ret_answer);
        return;
    }
    size_t wanted = (size_t)strtoull(web_header(ret_answer, "Content-Length"), NULL, 10);
    if (without_body || ret_answer->status == 204 || ret_answer->status == 304)
        wanted = 0;
    while (ret_answer->body.bytes < wanted) {
        size_t left = wanted - ret_answer->body.bytes;
        ssize_t got = recv(fd, block, left < sizeof block ? left : sizeof block, 0);
        if (got <= 0)
            break;
        buf_append(&ret_answer->body, block, (size_t)got);
    }
    buf_append(&ret_answer->body, "", 0);
    ret_answer->whole = ret_answer->body.bytes == wanted;
}

bool web_wait_closed(int fd, uint64_t timeout_ms)
{
    uint64_t deadline_ns = clock_deadline_ns(timeout_ms);
    char block[16384];

    for (;;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        if (poll(&poll_fd, 1, clock_left_ms(deadline_ns)) <= 0)
            return false;
        if (recv(fd, block, sizeof block, MSG_DONTWAIT) <= 0 && errno != EAGAIN)
            return true;
    }
}

void web_ask(uint16_t port, const char *head, const void *body, size_t body_bytes,
             struct web_answer *ret_answer)
{
    struct buf text BUF_AUTO = {0};
    int fd = web_connect(port);

    buf_printf(&text, "%sHost: test\r\nConnection: close\r\n", head);
    if (body != NULL)
        buf_printf(&text, "Content-Length: %zu\r\n", body_bytes);
    buf_printf(&text, "\r\n");
    buf_append(&text, body != NULL ? body : "", body_bytes);
    web_send(fd, text.data, text.bytes);
    web_receive(fd, strncmp(head, "HEAD ", 5) == 0, ret_answer);
    close(fd);
}

void web_get(uint16_t port, const char *path, struct web_answer *ret_answer)
{
    struct buf head BUF_AUTO = {0};

    buf_printf(&head, "GET %s HTTP/1.1\r\n", path);
    web_ask(port, (const char *)head.data, NULL, 0, ret_answer);
}

void web_answer_free(struct web_answer *answer)
{
    buf_free(&answer->head);
    buf_free(&answer->body);
    *answer = (struct web_answer){.status = 0};
}
