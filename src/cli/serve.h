/* `rfork serve`: cmd_serve.c is the command line, serve_sglang.c that part of it which SGLang has,
 * serve.c the life of the instance, serve_load.c where the weights come from. Not for others. */
#ifndef CLI_SERVE_H
#define CLI_SERVE_H

#include "cli/serve_sglang.h"
#include "cli/shards.h"
#include "cli/transfer.h"

#include <stdatomic.h>

enum { SERVE_URL_BYTES = 320 };

struct serve_command {
    const char *model_path;
    const char *from;        /* URL of a seed; from SGLang's arguments too */
    const char *load_format; /* after the check "auto", "safetensors" or "remote_instance" */
    struct serve_sglang sglang;
    char seed_url[SERVE_URL_BYTES];
    bool mmap;
    bool direct;
    uint64_t threads;
    uint64_t chunk_bytes;
    const char *digest;
    const char *model_name;
    struct shard_options shard;
    struct shards shards;
    struct transfer_options transfer;
    const char *host;
    uint64_t port;
    uint64_t data_port;
    uint64_t te_port;
    const char *socket;
    uint64_t max_readers;
    uint64_t drain_timeout_ms;
    bool json;
};

/* What was loaded, and how. */
struct serve_loaded {
    struct store *store; /* the caller's */
    const char *source;  /* "disk", "page-cache", or the seed's URL; borrowed */
    bool from_files;
    uint64_t viewed_bytes; /* of files; see struct load_needs */
    uint64_t made_bytes;
    char transport[TRANSPORT_NAME_BYTES + 8]; /* of a fork; "" else */
    char reason[REMOTE_REASON_BYTES];
    bool verified;
    char model[RF_MAX_NAME_BYTES]; /* for progress, which outlives the manifest's builder */
    /* Whether cancelling must wait for the loader: a fork notices the flag by itself and closes
     * its lease; reads of files notice nothing and hold nothing. Release by the loader, acquire
     * by who cancels. */
    atomic_bool notices_cancel;
};

/* Fills ret_loaded (zero-initialised) as the command says, and says on stderr how much memory it
 * takes before it takes it. Blocks; signals end it if notices_cancel. */
enum rf_code serve_load(const struct serve_command *command, struct serve_loaded *ret_loaded,
                        struct rf_error *err);

/* The whole life of an instance; the exit code. */
int serve_run(const struct serve_command *command);

#endif
