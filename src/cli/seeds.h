/* What an instance forks from: one seed, or several that hold different ranks of one model; and
 * what it takes of them: the same, or something cut differently. */
#ifndef CLI_SEEDS_H
#define CLI_SEEDS_H

#include "cli/shards.h"
#include "cli/transfer.h"
#include "control/remote_reshard.h"

struct seeds {
    struct remote_options options; /* of all of them */
    struct remote *remotes[REMOTE_MAX_SEEDS];
    uint32_t count;
    struct shards shards;
    struct remote_reshard *reshard; /* NULL: the one seed as it is */
};

/* Opens the seeds at `urls` and agrees with them on what is to be taken; no weights move.
 * shard: what was asked for; NULL: the whole checkpoint (for a folder). *ret_seeds must stay
 * where it is; close it also after a failure. A seed that is asked by te and has not all of it is
 * asked in SGLang's way too, by which the first of several nodes answers for the others.
 * Errors: those of remote_open(), shards_resolve(), remote_reshard_plan(); RF_E_INVAL (too many
 * seeds, --ranks without --tp). */
enum rf_code seeds_open(char *const *urls, unsigned count, const struct transfer_options *transfer,
                        const struct shard_options *shard, struct seeds *ret_seeds,
                        struct rf_error *err);
/* The same with URLs in one text, with commas between them. */
enum rf_code seeds_open_list(const char *urls, const struct transfer_options *transfer,
                             const struct shard_options *shard, struct seeds *ret_seeds,
                             struct rf_error *err);
void seeds_close(struct seeds *seeds);

/* Of what is taken. */
struct manifest *seeds_manifest(const struct seeds *seeds);
uint64_t seeds_tensor_count(const struct seeds *seeds);
/* Whether pages of the seeds would be shared, all of them or in part. */
bool seeds_map(const struct seeds *seeds, const struct transfer_options *transfer);

enum rf_code seeds_take(struct seeds *seeds, const struct transfer_options *transfer,
                        struct store **ret_store, struct remote_result *ret_result,
                        struct rf_error *err);
enum rf_code seeds_take_folder(struct seeds *seeds, const struct remote_folder_options *folder,
                               struct remote_result *ret_result, struct rf_error *err);

/* For --dry-run: what each rank would take, and from whom. */
void seeds_print_plan(const struct seeds *seeds, const struct transfer_options *transfer);
/* The member "plan" of the object that is open. */
void seeds_json_plan(const struct seeds *seeds, const struct transfer_options *transfer,
                     struct jsonout *out);

#endif
