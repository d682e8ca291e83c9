/* `rfork inspect`, in two files: cmd_inspect.c the command, inspect_ranks.c what it says of ranks
 * and their tensors. Not for others. */
#ifndef CLI_INSPECT_H
#define CLI_INSPECT_H

#include "cli/jsonout.h"
#include "cli/shards.h"
#include "cli/subject.h"

struct inspect_command {
    bool json;
    bool tensors;
    bool digest;
    struct look_options look;
    struct shard_options shard;
};

struct inspect {
    const struct inspect_command *command;
    struct subject subject;
    char root[HASH_TEXT_BYTES]; /* "" if not known */
    char id[HASH_TEXT_BYTES];
    struct subject_dtype dtypes[RF_DTYPE_COUNT];
    uint64_t tensors;
};

void inspect_print_ranks(const struct inspect *inspect);
void inspect_print_tensors(const struct manifest *manifest);
/* The members "layout", "rank_list", and what serve would view and make, of the open object. */
void inspect_json_ranks(const struct inspect *inspect, struct jsonout *out);

#endif
