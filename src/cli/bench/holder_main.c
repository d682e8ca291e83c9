/* What the holder process does: weights in shared memory, seeds and raw senders over them, line
 * by line from stdin. */
#include "base/cleanup.h"
#include "base/rand.h"
#include "base/thread.h"
#include "cli/bench/bench.h"
#include "control/server.h"
#include "memory/region.h"
#include "seed/seed.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum {
    HOLD_LINE_BYTES = 512,
    HOLD_TENSOR_BYTES = 64 << 20,
    HOLD_TINY_BYTES = 64, /* of each of very many tensors */
    HOLD_FILL_BYTES = 16 << 20,
};

struct hold {
    struct region *region;
    struct seed *seed;
    struct server *server;
    struct raw_server *raw;
    int home_fd;
};

static enum rf_code fill_piece(void *ctx, uint64_t item, struct rf_error *err)
{
    struct region *region = ctx;
    uint64_t from = item * HOLD_FILL_BYTES;
    uint64_t to = from + HOLD_FILL_BYTES;
    struct rand_seq seq = {.state = item};
    uint64_t *words = (uint64_t *)(void *)(region_data_writable(region) + from);

    if (to > region_bytes(region))
        to = region_bytes(region);
    enum rf_code code = region_populate(region, from, to - from, err);
    if (code != RF_OK)
        return code;
    for (uint64_t i = 0; i < (to - from) / sizeof(uint64_t); i++)
        words[i] = rand_next(&seq);
    return RF_OK;
}

static enum rf_code hold_fill(struct hold *hold, uint64_t bytes, struct rf_error *err)
{
    enum rf_code code = region_create_memfd("rfork-bench", bytes, &hold->region, err);

    if (code == RF_OK)
        code = thread_parallel(thread_cpus(), (bytes + HOLD_FILL_BYTES - 1) / HOLD_FILL_BYTES,
                               fill_piece, hold->region, err);
    if (code == RF_OK)
        code = region_seal(hold->region, err);
    return code;
}

static enum rf_code add_tensors(struct manifest_builder *builder, uint64_t bytes,
                                uint64_t tensor_bytes, struct rf_error *err)
{
    enum rf_code code = RF_OK;
    uint64_t index = 0;

    for (uint64_t at = 0; code == RF_OK && at < bytes; at += tensor_bytes, index++) {
        char name[BENCH_TEXT_BYTES];
        uint64_t shape[1] = {bytes - at < tensor_bytes ? bytes - at : tensor_bytes};

        snprintf(name, sizeof(name), "model.layers.%" PRIu64 ".mlp.experts.%" PRIu64 ".weight",
                 index / 128, index % 128);
        struct tensor tensor = {.name = name,
                                .name_bytes = (uint32_t)strlen(name),
                                .dtype = RF_DTYPE_U8,
                                .ndim = 1,
                                .shape = shape,
                                .file = MANIFEST_NONE,
                                .alias_of = MANIFEST_NONE};
        code = manifest_add_tensor(builder, &tensor, NULL, err);
    }
    return code;
}

static enum rf_code make_manifest(uint64_t bytes, uint64_t tensor_bytes,
                                  struct manifest **ret_manifest, struct rf_error *err)
{
    static const struct rank_id only = {.tp_size = 1, .pp_size = 1, .ep_size = 1, .dp_size = 1};
    const struct manifest_identity identity = {.model = "bench",
                                               .quantisation = "none",
                                               .layout = "checkpoint",
                                               .algorithm = HASH_XXH3_128};
    struct manifest_builder *builder = manifest_builder_create(&identity, err);

    if (builder == NULL)
        return RF_E_NOMEM;
    enum rf_code code = manifest_add_rank(builder, &only, err);
    if (code == RF_OK)
        code = add_tensors(builder, bytes, tensor_bytes, err);
    if (code != RF_OK) {
        manifest_builder_destroy(builder);
        return code;
    }
    return manifest_build(builder, ret_manifest, err);
}

static enum rf_code make_store(struct hold *hold, uint64_t bytes, uint64_t tensor_bytes,
                               struct store **ret_store, struct rf_error *err)
{
    struct manifest *manifest = NULL;
    struct store *store = NULL;
    enum rf_code code = make_manifest(bytes, tensor_bytes, &manifest, err);

    if (code != RF_OK)
        return code;
    code = store_create(manifest, &store, err);
    manifest_unref(manifest);
    if (code == RF_OK)
        code = store_add_region(store, hold->region, err);
    if (code == RF_OK)
        code = layout_add(&store->ranks[0].layout, 0, bytes, hold->region, 0, err);
    if (code == RF_OK)
        code = layout_finish(&store->ranks[0].layout, bytes, err);
    if (code != RF_OK) {
        store_destroy(store);
        return code;
    }
    *ret_store = store;
    return RF_OK;
}

static enum rf_code hold_publish(struct hold *hold, uint64_t bytes, uint64_t tensor_bytes,
                                 const char *host, struct rf_error *err)
{
    const struct seed_options options = {.host = host};
    const struct server_options server_options = {.host = host};
    struct store *store = NULL;
    enum rf_code code = make_store(hold, bytes, tensor_bytes, &store, err);

    if (code == RF_OK)
        code = seed_create(&options, &hold->seed, err);
    if (code == RF_OK)
        code = seed_publish(hold->seed, rf_take(store, NULL), err);
    if (code == RF_OK)
        code = seed_wait_digests(hold->seed, UINT64_MAX, err); /* not part of what is timed */
    if (code == RF_OK)
        code = server_start(&server_options, hold->seed, &hold->server, err);
    store_destroy(store);
    return code;
}

static void hold_stop(struct hold *hold)
{
    server_stop(hold->server);
    seed_destroy(hold->seed);
    raw_stop(hold->raw);
    hold->server = NULL;
    hold->seed = NULL;
    hold->raw = NULL;
}

static double cpu_seconds(void)
{
    struct rusage usage = {.ru_maxrss = 0};

    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* "publish BYTES HOST NS", "tiny COUNT HOST NS", "raw BYTES HOST NS"; NS is "-" or a namespace. */
static enum rf_code hold_start(struct hold *hold, const char *what, uint64_t number,
                               const char *host, const char *name_space, struct rf_error *err)
{
    enum rf_code code = RF_OK;
    uint16_t port = 0;

    if (strcmp(name_space, "-") != 0)
        code = namespace_enter(name_space, err);
    if (code == RF_OK && strcmp(what, "publish") == 0)
        code = hold_publish(hold, number, HOLD_TENSOR_BYTES, host, err);
    else if (code == RF_OK && strcmp(what, "tiny") == 0)
        code = hold_publish(hold, number * HOLD_TINY_BYTES, HOLD_TINY_BYTES, host, err);
    else if (code == RF_OK)
        code = raw_start(host, region_data(hold->region), number, &hold->raw, &port, err);
    if (strcmp(name_space, "-") != 0)
        (void)setns(hold->home_fd, CLONE_NEWNET);
    if (code != RF_OK)
        return code;
    if (port != 0)
        printf("ok %" PRIu16 "\n", port);
    else
        printf("ok %s\n", server_url(hold->server));
    return RF_OK;
}

static void hold_obey(struct hold *hold, char *line)
{
    struct rf_error error = {.code = RF_OK};
    char *rest = NULL;
    const char *what = strtok_r(line, " \n", &rest);
    const char *number_text = strtok_r(NULL, " \n", &rest);
    const char *host = strtok_r(NULL, " \n", &rest);
    const char *name_space = strtok_r(NULL, " \n", &rest);
    uint64_t number = number_text != NULL ? strtoull(number_text, NULL, 10) : 0;

    if (what == NULL) {
        printf("nothing to do\n");
    } else if (name_space != NULL) {
        if (number * (strcmp(what, "tiny") == 0 ? HOLD_TINY_BYTES : 1) > region_bytes(hold->region))
            printf("no more than %" PRIu64 " bytes here\n", region_bytes(hold->region));
        else if (hold_start(hold, what, number, host, name_space, &error) != RF_OK)
            printf("%s\n", error.text);
    } else if (strcmp(what, "stop") == 0) {
        hold_stop(hold);
        printf("ok stopped\n");
    } else if (strcmp(what, "cpu") == 0) {
        printf("ok %.6f\n", cpu_seconds());
    } else {
        printf("unknown: %s\n", what);
    }
    fflush(stdout);
}

int holder_main(uint64_t bytes)
{
    struct hold hold = {.home_fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)};
    struct rf_error error = {.code = RF_OK};
    char line[HOLD_LINE_BYTES];

    if (hold_fill(&hold, bytes, &error) != RF_OK) {
        printf("%s\n", error.text);
        return (int)error.code;
    }
    printf("ok filled\n");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin) != NULL)
        hold_obey(&hold, line);
    hold_stop(&hold);
    region_unref(hold.region);
    return 0;
}
