/* An "engine" that serves weights it computed itself, from its own memory.
 *
 *   engine_seed [--share]
 *
 * Prints its URL on stdout, serves until stdin ends, then lets readers finish. With --share the
 * weights lie in memory from rf_seed_alloc(), so that forks on the same host map them instead of
 * copying. */
#include "engine_weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what, const struct rf_error *error)
{
    fprintf(stderr, "engine_seed: %s: %s\n", what, error->text);
    return (int)error->code;
}

/* All tensors but the tied one, end to end. */
static uint64_t weights_bytes(void)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < ENGINE_TENSORS; i++)
        bytes += i != ENGINE_HEAD ? engine_tensor_bytes(&engine_tensors[i]) : 0;
    return bytes;
}

static enum rf_code add_weights(struct rf_seed *seed, uint8_t *memory, struct rf_error *error)
{
    const uint8_t *embedding = memory;

    for (unsigned i = 0; i < ENGINE_TENSORS; i++) {
        uint64_t bytes = engine_tensor_bytes(&engine_tensors[i]);
        const uint8_t *data = memory;

        if (i == ENGINE_HEAD) {
            data = embedding; /* the same bytes under a second name are held, and sent, once */
        } else {
            engine_compute(i, memory, bytes);
            memory += bytes;
        }
        enum rf_code code = rf_seed_add_tensor(seed, &engine_tensors[i], data, error);
        if (code != RF_OK)
            return code;
    }
    return RF_OK;
}

int main(int argc, char **argv)
{
    static const char config[] = "{\"architectures\": [\"ToyForCausalLM\"]}\n";
    struct rf_seed_options options = {.model = "toy", .architecture = "ToyForCausalLM"};
    struct rf_seed *seed = NULL;
    struct rf_error error;
    void *shared = NULL;
    int share = argc > 1 && strcmp(argv[1], "--share") == 0;

    if (rf_seed_create(&options, &seed, &error) != RF_OK)
        return fail("create", &error);
    if (share && rf_seed_alloc(seed, weights_bytes(), &shared, &error) != RF_OK)
        return fail("allocate", &error);
    void *own = share ? NULL : malloc(weights_bytes());
    if (!share && own == NULL)
        return RF_E_NOMEM;
    if (add_weights(seed, share ? shared : own, &error) != RF_OK)
        return fail("add tensors", &error);
    if (rf_seed_add_file(seed, "config.json", config, sizeof(config) - 1, &error) != RF_OK)
        return fail("add config.json", &error);
    if (rf_seed_publish(seed, &error) != RF_OK)
        return fail("publish", &error);

    printf("%s\n", rf_seed_url(seed));
    fflush(stdout);
    while (getchar() != EOF) {
    }
    rf_seed_drain(seed, 5000);
    struct rf_seed_stats stats;
    rf_seed_get_stats(seed, &stats);
    fprintf(stderr, "engine_seed: %llu readers, %llu bytes sent\n",
            (unsigned long long)stats.readers_total, (unsigned long long)stats.bytes_sent);
    rf_seed_destroy(seed);
    free(own);
    return 0;
}
