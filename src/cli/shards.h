/* The options that cut a model into tensor-parallel ranks, as serve, fork and inspect take them. */
#ifndef CLI_SHARDS_H
#define CLI_SHARDS_H

#include "cli/options.h"
#include "cli/ranks.h"
#include "seed/load.h"

struct shard_options {
    uint64_t tp;        /* 0: not given: 1, of a fork the seed's */
    uint64_t ep;        /* the same */
    const char *ranks;  /* NULL: all */
    const char *layout; /* NULL: not given: "checkpoint", of a fork the seed's */
    const char *plan;   /* path; NULL: the built-in one */
};

/* Rows of an option table; `at` is the offset of a struct shard_options. */
/* clang-format off */
#define SHARD_ROW_TP(at)                                                                           \
    {.name = "tp", .aliases = "tp-size|tensor-parallel-size", .type = OPTION_COUNT, .arg = "N",    \
     .min = 1, .max = MANIFEST_MAX_RANKS, .offset = (at) + offsetof(struct shard_options, tp),     \
     .help = "Cut the model into N tensor-parallel ranks. If not given, a checkpoint is one rank " \
             "and a fork is cut as its seed."}
#define SHARD_ROW_EP(at)                                                                           \
    {.name = "ep", .aliases = "ep-size|expert-parallel-size", .type = OPTION_COUNT, .arg = "N",    \
     .min = 1, .max = MANIFEST_MAX_RANKS, .offset = (at) + offsetof(struct shard_options, ep),     \
     .help = "Divide the experts among N groups of these ranks, instead of cutting each."}
#define SHARD_ROW_RANKS(at)                                                                        \
    {.name = "ranks", .type = OPTION_TEXT, .arg = "LIST",                                          \
     .offset = (at) + offsetof(struct shard_options, ranks),                                       \
     .help = "Which of the ranks to hold: 0-3, or 0,2,5. All if not given."}
#define SHARD_ROW_LAYOUT(at)                                                                       \
    {.name = "layout", .type = OPTION_TEXT, .arg = "NAME",                                         \
     .offset = (at) + offsetof(struct shard_options, layout),                                      \
     .help = "checkpoint: each tensor under its own name. sglang: fused, padded and named as an "  \
             "SGLang engine has them. A plan may have others. If not given: checkpoint, of a "     \
             "fork the seed's."}
#define SHARD_ROW_PLAN(at)                                                                         \
    {.name = "plan", .type = OPTION_TEXT, .arg = "FILE",                                           \
     .offset = (at) + offsetof(struct shard_options, plan),                                        \
     .help = "How the tensors are cut. The built-in plan of the model's architecture if not "      \
             "given."}
/* clang-format on */

/* What the options say, ready for a loader. */
struct shards {
    bool given;              /* false: the checkpoint as it is, one rank */
    struct load_shards load; /* points into the next two, and to the options' layout */
    struct ranks ranks;
    struct plan *plan;
};

/* Whether anything is to be cut, or was said about how. */
bool shards_asked(const struct shard_options *options);
/* Parses the list of ranks and reads the plan file. Errors: RF_E_INVAL (the list of ranks),
 * RF_E_SYS (the file), RF_E_FORMAT (what is in it), RF_E_NOMEM. Free with shards_free(). */
enum rf_code shards_resolve(const struct shard_options *options, struct shards *ret_shards,
                            struct rf_error *err);
void shards_free(struct shards *shards);

/* "0-3/4", "0,2,5/8": the tp numbers of all ranks, and of how many; their number alone where they
 * differ in more than tp. Cut to fit. */
const char *shards_ranks_text(const struct manifest *manifest, char *out, size_t room);

#endif
