/* An "engine" that takes its weights from a seed (engine_seed, or any other) into buffers of its
 * own, laid out differently: last tensor first, each on a 256-byte boundary, and the tied one
 * untied.
 *
 *   engine_fork URL [auto|map|tcp]
 *
 * Checks every byte against what it would have computed itself. */
#include "engine_weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BOUNDARY = 256 };

static int fail(const char *what, const struct rf_error *error)
{
    fprintf(stderr, "engine_fork: %s: %s\n", what, error->text);
    return (int)error->code;
}

static void on_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)ctx;
    fprintf(stderr, "engine_fork: %llu of %llu bytes\n", (unsigned long long)done_bytes,
            (unsigned long long)total_bytes);
}

static uint64_t on_boundary(uint64_t bytes)
{
    return (bytes + BOUNDARY - 1) / BOUNDARY * BOUNDARY;
}

/* Places all tensors into memory of this engine's own, from the last to the first. */
static enum rf_code bind_all(struct rf_fork *fork, uint8_t *memory, uint8_t *places[],
                             struct rf_error *error)
{
    for (unsigned i = ENGINE_TENSORS; i-- > 0;) {
        uint64_t bytes = engine_tensor_bytes(&engine_tensors[i]);
        enum rf_code code = rf_fork_bind(fork, engine_tensors[i].name, memory, bytes, error);

        if (code != RF_OK)
            return code;
        places[i] = memory;
        memory += on_boundary(bytes);
    }
    return RF_OK;
}

static int check_all(uint8_t *const places[])
{
    for (unsigned i = 0; i < ENGINE_TENSORS; i++) {
        uint64_t bytes = engine_tensor_bytes(&engine_tensors[i]);
        uint8_t *expected = malloc(bytes);

        if (expected == NULL)
            return RF_E_NOMEM;
        engine_compute(i == ENGINE_HEAD ? ENGINE_EMBEDDING : i, expected, bytes);
        int equal = memcmp(places[i], expected, bytes) == 0;
        free(expected);
        if (!equal) {
            fprintf(stderr, "engine_fork: %s differs\n", engine_tensors[i].name);
            return RF_E_CORRUPT;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct rf_fork_options options = {.transport = argc > 2 ? argv[2] : "auto"};
    struct rf_fork *fork = NULL;
    struct rf_error error;
    uint8_t *places[ENGINE_TENSORS];
    uint64_t room = 0;

    if (argc < 2) {
        fprintf(stderr, "usage: engine_fork URL [auto|map|tcp]\n");
        return RF_E_INVAL;
    }
    if (rf_fork_open(argv[1], &options, &fork, &error) != RF_OK)
        return fail("open", &error);
    if (rf_fork_match(fork, engine_tensors, ENGINE_TENSORS, &error) != RF_OK) {
        rf_fork_close(fork);
        return fail("not this engine's model", &error);
    }
    for (unsigned i = 0; i < ENGINE_TENSORS; i++)
        room += on_boundary(engine_tensor_bytes(&engine_tensors[i]));
    uint8_t *memory = malloc(room);
    if (memory == NULL) {
        rf_fork_close(fork);
        return RF_E_NOMEM;
    }
    int status = 0;
    if (bind_all(fork, memory, places, &error) != RF_OK)
        status = fail("bind", &error);
    else if (rf_fork_run(fork, on_progress, NULL, &error) != RF_OK)
        status = fail("run", &error);
    else
        status = check_all(places);
    if (status == 0) {
        struct rf_fork_stats stats;

        rf_fork_get_stats(fork, &stats);
        printf("forked %llu bytes by %s (%s), verified=%s, root %s\n",
               (unsigned long long)stats.bytes, stats.transport, stats.reason,
               stats.verified ? "yes" : "no", stats.root_digest);
    }
    rf_fork_close(fork);
    free(memory);
    return status;
}
