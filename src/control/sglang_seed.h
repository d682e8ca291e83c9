/* A seed that is not ours: an SGLang server (or its bootstrap server alone, or a seed of ours that
 * is asked in SGLang's way) in front of TransferEngines, one for each rank or for several. Says what
 * a remote needs: a manifest, and whom to connect to for which rank. One thread at a time. */
#ifndef CONTROL_SGLANG_SEED_H
#define CONTROL_SGLANG_SEED_H

#include "control/client.h"

enum { SGLANG_NOTE_BYTES = 384 };

struct sglang_options {
    const char *transport;     /* "auto" (also NULL): te */
    const char *model_path;    /* folder of the model, NULL: none; see sglang_seed_open() */
    const char *data_hosts;    /* as struct te_reach.allowed_hosts */
    uint64_t timeout_ms;       /* of a handshake with an engine; six of them for all ranks */
    const atomic_bool *cancel; /* may be NULL */
    int cancel_fd;             /* -1 or an eventfd */
};

struct sglang_seed;

/* Asks all ranks what they publish, shakes hands with their engines, and makes the manifest:
 *  - with a folder that has weight files (whose headers are read, not the weights): what these
 *    make in the layouts sglang, sglang-shared-fused and checkpoint; the first that has just the
 *    tensors that the ranks publish;
 *  - with one that has none, or no folder: the ranks' names and sizes (sglang_manifest_make()).
 * Side files are the folder's.
 *
 * The client and what options point to must outlive the seed. Errors: RF_AGAIN (the server is
 * there and does not publish all ranks, or not yet; err says what it said), those of
 * sglang_ask_map(), te_directory_open() and model_folder_open(); RF_E_MISMATCH (ranks or tensors
 * that are missing, or in nothing that the engine has registered; other tensors than the
 * folder's), RF_E_UNSUPPORTED (a transport that is not te; pipeline stages; no plan for the
 * architecture of a folder). */
enum rf_code sglang_seed_open(struct client *client, const struct sglang_options *options,
                              struct sglang_seed **ret_seed, struct rf_error *err);
void sglang_seed_close(struct sglang_seed *seed);

struct manifest *sglang_seed_manifest(const struct sglang_seed *seed);
/* What there is: engines, buffers, what is not known and not verified. */
const char *sglang_seed_note(const struct sglang_seed *seed);
/* As a seed of ours would say it; free with instance_info_free(). */
enum rf_code sglang_seed_info(const struct sglang_seed *seed, struct instance_info *ret_info,
                              struct rf_error *err);

/* Who has a rank; ranks of one engine have the same. */
uint32_t sglang_seed_engine(const struct sglang_seed *seed, uint32_t rank);
struct sglang_engine {
    struct transport_choice choice;
    struct transport_directory *directory;
    char session[TRANSPORT_ADDRESS_BYTES]; /* its id, and its name in messages */
};
const struct sglang_engine *sglang_seed_engines(const struct sglang_seed *seed,
                                                uint32_t *ret_count);

/* What the folder holds of a file of the manifest: a weight file's header, a side file whole. */
enum rf_code sglang_seed_file(const struct sglang_seed *seed, uint32_t file, struct buf *out,
                              struct rf_error *err);

/* Whether it still is what it was: RF_E_CHANGED if rank 0 has another engine by now. */
enum rf_code sglang_seed_check(struct sglang_seed *seed, struct rf_error *err);

#endif
