/* `rfork diff`: two models name by name, and the tensors whose bytes differ. */
#include "base/cleanup.h"
#include "base/size.h"
#include "cli/commands.h"
#include "cli/jsonout.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/subject.h"
#include "model/compare.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct diff_command {
    bool json;
    bool names_only;
    bool files;
    struct look_options look;
};

enum { AT_LOOK = offsetof(struct diff_command, look) };

static const struct option_spec diff_options[] = {
    {.name = "names-only",
     .type = OPTION_FLAG,
     .offset = offsetof(struct diff_command, names_only),
     .help = "Print the names of what differs, one per line, and nothing else."},
    {.name = "files",
     .type = OPTION_FLAG,
     .offset = offsetof(struct diff_command, files),
     .help = "Compare side files too: config, tokenizer and the like."},
    {.name = "json",
     .type = OPTION_FLAG,
     .offset = offsetof(struct diff_command, json),
     .help = "Print one JSON object instead of lines."},
    LOOK_ROWS(AT_LOOK),
};

static const struct command_spec diff_spec = {
    .name = "diff",
    .operands = "A B",
    .min_operands = 2,
    .max_operands = 2,
    .summary = "compare two models name by name",
    .text =
        "Compares two models, each a seed's URL, a folder or a .safetensors file: which tensors "
        "are missing in B or extra there, and which differ in dtype, shape or content. How "
        "they are split into files does not matter. Root digests are compared first; single "
        "tensors only where those differ.\n",
    OPTION_ROWS(diff_options),
    .examples = "  rfork diff http://10.0.0.5:30000 models/llama\n"
                "  rfork diff --names-only models/base models/tuned\n",
    .exits = "  0 equal; 1 they differ; 2 wrong command line; 3 no such file; 4 not a\n"
             "  model; 8 no seed answers; 13 their digests are of different kinds\n",
};

/* One thing that differs. The tensors are those of the manifests, which outlive it. */
struct finding {
    struct difference difference;
    const char *file_a; /* of side files and identity: what each side has; NULL: it has none */
    const char *file_b;
    const struct rank_id *rank; /* NULL: there is only one, or it is of no rank */
};

struct diff {
    const struct diff_command *command;
    struct subject a;
    struct subject b;
    struct finding *findings;
    size_t count;
    size_t room;
    const struct rank_id *rank; /* being compared; NULL: the only one */
    bool nomem;
    bool by_root; /* the roots were equal: no tensor was looked at */
    char root[HASH_TEXT_BYTES];
};

static void add_finding(struct diff *diff, const struct finding *finding)
{
    if (diff->count == diff->room) {
        size_t room = diff->room > 0 ? diff->room * 2 : 64;
        struct finding *grown = reallocarray(diff->findings, room, sizeof(*grown));

        if (grown == NULL) {
            diff->nomem = true;
            return;
        }
        diff->findings = grown;
        diff->room = room;
    }
    diff->findings[diff->count++] = *finding;
}

static void add_difference(void *ctx, const struct difference *difference)
{
    struct diff *diff = ctx;

    add_finding(diff, &(struct finding){.difference = *difference, .rank = diff->rank});
}

static void add_identity(struct diff *diff, const char *name, const char *a, const char *b)
{
    if (strcmp(a, b) != 0)
        add_finding(diff, &(struct finding){.difference = {.kind = DIFF_IDENTITY, .name = name},
                                            .file_a = a,
                                            .file_b = b});
}

/* ---- identity and files ---- */

/* What must be equal for one to fork from the other. Names of models and architectures are only
 * words of their configs. */
static void compare_identity(struct diff *diff)
{
    static const char *const stages[] = {"checkpoint", "fused", "processed"};
    const struct manifest *a = diff->a.manifest;
    const struct manifest *b = diff->b.manifest;

    add_identity(diff, "stage", stages[a->stage % STAGE_COUNT], stages[b->stage % STAGE_COUNT]);
    add_identity(diff, "layout", a->layout, b->layout);
}

static const struct manifest_file *side_file(const struct manifest *manifest, const char *name)
{
    for (uint32_t i = 0; i < manifest->file_count; i++) {
        if (manifest->files[i].kind == FILE_SIDE && strcmp(manifest->files[i].name, name) == 0)
            return &manifest->files[i];
    }
    return NULL;
}

static void compare_files(struct diff *diff)
{
    const struct manifest *a = diff->a.manifest;
    const struct manifest *b = diff->b.manifest;

    for (uint32_t i = 0; i < a->file_count; i++) {
        const struct manifest_file *file = &a->files[i];
        const struct manifest_file *other =
            file->kind == FILE_SIDE ? side_file(b, file->name) : file;

        if (other == NULL)
            add_finding(diff,
                        &(struct finding){.difference = {.kind = DIFF_MISSING, .name = file->name},
                                          .file_a = "a file"});
        else if (other->bytes != file->bytes ||
                 memcmp(other->digest, file->digest, hash_bytes(a->algorithm)) != 0)
            add_finding(diff,
                        &(struct finding){.difference = {.kind = DIFF_CONTENT, .name = file->name},
                                          .file_a = "a file",
                                          .file_b = "another content"});
    }
    for (uint32_t i = 0; i < b->file_count; i++) {
        if (b->files[i].kind == FILE_SIDE && side_file(a, b->files[i].name) == NULL)
            add_finding(diff, &(struct finding){
                                  .difference = {.kind = DIFF_EXTRA, .name = b->files[i].name},
                                  .file_b = "a file"});
    }
}

/* ---- content ---- */

/* Roots are over equal chunk sizes, or say nothing about each other. */
static enum rf_code roots_equal(struct diff *diff, bool *ret_equal, struct rf_error *err)
{
    uint8_t root_a[HASH_MAX_BYTES];
    uint8_t root_b[HASH_MAX_BYTES];
    enum hash_algorithm algorithm = diff->a.manifest->algorithm;

    *ret_equal = false;
    if (diff->a.manifest->chunk_bytes != diff->b.manifest->chunk_bytes)
        return RF_OK;
    enum rf_code code = subject_root(&diff->a, root_a, err);
    if (code == RF_OK)
        code = subject_root(&diff->b, root_b, err);
    if (code == RF_OK && memcmp(root_a, root_b, hash_bytes(algorithm)) == 0) {
        *ret_equal = true;
        hash_text(algorithm, root_a, diff->root);
    }
    return code;
}

static bool comparable(const struct tensor *a, const struct tensor *b)
{
    return b != NULL && a->bytes == b->bytes && a->dtype == b->dtype && a->ndim == b->ndim &&
           (a->ndim == 0 || memcmp(a->shape, b->shape, a->ndim * sizeof(*a->shape)) == 0);
}

static void compare_tables(struct diff *diff, uint32_t rank_a, uint32_t rank_b,
                           const struct digest_table *table_a, const struct digest_table *table_b)
{
    const struct manifest_rank *a = &diff->a.manifest->ranks[rank_a];
    const struct manifest_rank *b = &diff->b.manifest->ranks[rank_b];
    unsigned bytes = hash_bytes(diff->a.manifest->algorithm);

    for (uint32_t i = 0; i < a->tensor_count; i++) {
        const struct tensor *tensor = &a->tensors[i];
        const struct tensor *other = manifest_find(b, tensor->name);
        uint8_t digest_a[HASH_MAX_BYTES];
        uint8_t digest_b[HASH_MAX_BYTES];

        if (!comparable(tensor, other) || tensor->bytes == 0)
            continue;
        if (!digest_table_get(table_a, i, digest_a) ||
            !digest_table_get(table_b, (uint64_t)(other - b->tensors), digest_b) ||
            memcmp(digest_a, digest_b, bytes) == 0)
            continue;
        add_finding(
            diff,
            &(struct finding){
                .difference = {.kind = DIFF_CONTENT, .name = tensor->name, .a = tensor, .b = other},
                .rank = diff->rank});
    }
}

static enum rf_code compare_content(struct diff *diff, uint32_t rank_a, uint32_t rank_b,
                                    struct rf_error *err)
{
    struct digest_table *table_a = NULL;
    struct digest_table *table_b = NULL;
    enum rf_code code = subject_tensor_digests(&diff->a, rank_a, &table_a, err);

    if (code == RF_OK)
        code = subject_tensor_digests(&diff->b, rank_b, &table_b, err);
    if (code == RF_OK)
        compare_tables(diff, rank_a, rank_b, table_a, table_b);
    digest_table_destroy(table_a);
    digest_table_destroy(table_b);
    return code;
}

/* ---- all of it ---- */

/* Which rank of A what is found from now on is of. */
static void rank_begin(struct diff *diff, uint32_t rank)
{
    const struct manifest *a = diff->a.manifest;

    diff->rank = a->rank_count > 1 ? &a->ranks[rank].id : NULL;
}

/* Index of the rank with these coordinates, or MANIFEST_NONE. */
static uint32_t find_rank(const struct manifest *manifest, const struct rank_id *id)
{
    for (uint32_t i = 0; i < manifest->rank_count; i++) {
        if (rank_id_compare(&manifest->ranks[i].id, id) == 0)
            return i;
    }
    return MANIFEST_NONE;
}

/* Ranks that only one side has differ as a whole: a line per tensor of theirs would hide that. */
static enum rf_code compare_ranks(struct diff *diff, struct rf_error *err)
{
    const struct manifest *a = diff->a.manifest;
    const struct manifest *b = diff->b.manifest;

    for (uint32_t i = 0; i < a->rank_count; i++) {
        uint32_t j = find_rank(b, &a->ranks[i].id);
        char name[64];

        if (j == MANIFEST_NONE)
            return rf_fail(
                err, RF_E_MISMATCH,
                "%s has rank %s, %s has not: they are sharded differently, and only "
                "equal shards can be compared; `rfork inspect --digest --tp N` tells the "
                "digest that a folder has when it is sharded",
                diff->a.text, rank_id_text(&a->ranks[i].id, name), diff->b.text);
        rank_begin(diff, i);
        compare_tensors(&a->ranks[i], &b->ranks[j], add_difference, diff);
    }
    if (a->rank_count != b->rank_count)
        return rf_fail(err, RF_E_MISMATCH, "%s has %" PRIu32 " ranks, %s %" PRIu32, diff->a.text,
                       a->rank_count, diff->b.text, b->rank_count);
    return RF_OK;
}

/* Structure was looked at before content: what is printed goes by names. */
static int finding_order(const void *a, const void *b)
{
    const struct difference *left = &((const struct finding *)a)->difference;
    const struct difference *right = &((const struct finding *)b)->difference;
    int order = strcmp(left->name, right->name);

    if (order == 0)
        order = (left->kind > right->kind) - (left->kind < right->kind);
    if (order == 0 && ((const struct finding *)a)->rank != NULL)
        order =
            rank_id_compare(((const struct finding *)a)->rank, ((const struct finding *)b)->rank);
    return order;
}

static enum rf_code compare_all(struct diff *diff, struct rf_error *err)
{
    const struct manifest *a = diff->a.manifest;
    bool equal = false;

    if (a->algorithm != diff->b.manifest->algorithm)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "%s has digests by %s, %s by %s: fork one of them into a folder and compare "
                       "that",
                       diff->a.text, hash_name(a->algorithm), diff->b.text,
                       hash_name(diff->b.manifest->algorithm));
    compare_identity(diff);
    enum rf_code code = compare_ranks(diff, err);
    if (code == RF_OK && diff->count == 0)
        code = roots_equal(diff, &equal, err);
    diff->by_root = equal;
    for (uint32_t i = 0; code == RF_OK && !equal && i < a->rank_count; i++) {
        rank_begin(diff, i);
        code = compare_content(diff, i, find_rank(diff->b.manifest, &a->ranks[i].id), err);
    }
    if (code == RF_OK && diff->command->files)
        compare_files(diff);
    if (diff->count > 0)
        qsort(diff->findings, diff->count, sizeof(*diff->findings), finding_order);
    if (code == RF_OK && diff->nomem)
        code = rf_fail(err, RF_E_NOMEM, "no memory for %zu differences", diff->count + 1);
    return code;
}

/* ---- telling ---- */

static const char *kind_name(enum difference_kind kind)
{
    static const char *const names[] = {
        [DIFF_MISSING] = "missing", [DIFF_EXTRA] = "extra",     [DIFF_DTYPE] = "dtype",
        [DIFF_SHAPE] = "shape",     [DIFF_SLICE] = "slice",     [DIFF_ALIAS] = "alias",
        [DIFF_PARTS] = "parts",     [DIFF_CONTENT] = "content", [DIFF_IDENTITY] = "identity",
    };

    return (unsigned)kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "?";
}

static void print_finding(const struct finding *finding)
{
    const struct difference *difference = &finding->difference;
    struct buf line BUF_AUTO = {0};
    char rank[64];

    if (finding->rank != NULL)
        buf_printf(&line, "rank %s: ", rank_id_text(finding->rank, rank));
    if (difference->a != NULL || difference->b != NULL)
        difference_text(difference, "in A", "in B", &line);
    else
        buf_printf(&line, "%s: %s in A, %s in B", difference->name,
                   finding->file_a != NULL ? finding->file_a : "none",
                   finding->file_b != NULL ? finding->file_b : "none");
    if (!line.failed)
        output_put("%s\n", (const char *)line.data);
}

static void print_names(const struct diff *diff)
{
    const char *last = "";

    /* A tensor may differ in dtype and shape: two findings, next to each other. */
    for (size_t i = 0; i < diff->count; i++) {
        const char *name = diff->findings[i].difference.name;

        if (strcmp(name, last) != 0)
            output_put("%s\n", name);
        last = name;
    }
}

static void print_lines(const struct diff *diff)
{
    uint64_t kinds[DIFF_IDENTITY + 1] = {0};
    const char *between = ": ";

    if (diff->count == 0) {
        output_put("equal%s%s\n", diff->by_root ? ": root digest " : "",
                   diff->by_root ? diff->root : "");
        return;
    }
    output_put("A: %s\n", diff->a.text);
    output_put("B: %s\n", diff->b.text);
    for (size_t i = 0; i < diff->count; i++) {
        print_finding(&diff->findings[i]);
        kinds[diff->findings[i].difference.kind]++;
    }
    output_put("%zu difference%s", diff->count, diff->count == 1 ? "" : "s");
    for (unsigned i = 0; i <= DIFF_IDENTITY; i++) {
        if (kinds[i] == 0)
            continue;
        output_put("%s%" PRIu64 " %s", between, kinds[i], kind_name((enum difference_kind)i));
        between = ", ";
    }
    putchar('\n');
}

static void json_side(struct jsonout *out, const char *key, const struct tensor *tensor,
                      const char *text)
{
    if (tensor == NULL) {
        jsonout_text_or_null(out, key, text);
        return;
    }
    jsonout_open(out, key, '{');
    jsonout_text(out, "dtype", rf_dtype_name(tensor->dtype));
    jsonout_open(out, "shape", '[');
    for (uint32_t i = 0; i < tensor->ndim; i++)
        jsonout_u64(out, NULL, tensor->shape[i]);
    jsonout_close(out, ']');
    jsonout_u64(out, "bytes", tensor->bytes);
    jsonout_close(out, '}');
}

static enum rf_code print_json(const struct diff *diff, struct rf_error *err)
{
    struct jsonout out = {.comma = false};
    char rank[64];

    jsonout_open(&out, NULL, '{');
    jsonout_text(&out, "a", diff->a.text);
    jsonout_text(&out, "b", diff->b.text);
    jsonout_bool(&out, "equal", diff->count == 0);
    jsonout_text_or_null(&out, "root_digest", diff->root);
    jsonout_open(&out, "differences", '[');
    for (size_t i = 0; i < diff->count; i++) {
        const struct finding *finding = &diff->findings[i];

        jsonout_open(&out, NULL, '{');
        jsonout_text(&out, "name", finding->difference.name);
        jsonout_text(&out, "kind", kind_name(finding->difference.kind));
        jsonout_text_or_null(&out, "rank",
                             finding->rank != NULL ? rank_id_text(finding->rank, rank) : NULL);
        json_side(&out, "a", finding->difference.a, finding->file_a);
        json_side(&out, "b", finding->difference.b, finding->file_b);
        jsonout_close(&out, '}');
    }
    jsonout_close(&out, ']');
    jsonout_close(&out, '}');
    return jsonout_print(&out, err);
}

/* ---- the command ---- */

/* A folder's digests are made the way the other side's are. */
static enum rf_code open_both(struct diff *diff, const char *a, const char *b, struct rf_error *err)
{
    const struct look_options *look = &diff->command->look;
    bool b_first = subject_is_url(b) && !subject_is_url(a);
    struct subject *first = b_first ? &diff->b : &diff->a;
    struct subject *second = b_first ? &diff->a : &diff->b;
    enum rf_code code = subject_open(b_first ? b : a, look, NULL, first, err);

    if (code == RF_OK)
        code = subject_open(b_first ? a : b, look, first->manifest, second, err);
    return code;
}

int cmd_diff(int argc, char **argv)
{
    struct diff_command command = {.json = false};
    struct diff diff = {.command = &command};
    struct rf_error error;
    unsigned operands;
    int exit_code = options_parse(&diff_spec, argc, argv, &command, &operands);

    if (exit_code == OPTIONS_GO_ON)
        exit_code = ask_check("diff", &command.look.ask);
    if (exit_code != OPTIONS_GO_ON)
        return exit_code;
    enum rf_code code = open_both(&diff, argv[1], argv[2], &error);
    if (code == RF_OK)
        code = compare_all(&diff, &error);
    if (code == RF_OK && command.json)
        code = print_json(&diff, &error);
    else if (code == RF_OK && command.names_only)
        print_names(&diff);
    else if (code == RF_OK)
        print_lines(&diff);
    exit_code = code != RF_OK ? output_error(&error) : diff.count > 0 ? RF_E_FAILED : RF_OK;
    free(diff.findings);
    subject_close(&diff.a);
    subject_close(&diff.b);
    return output_end(exit_code);
}
