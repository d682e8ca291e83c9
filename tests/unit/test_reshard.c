/* Ranks cut anew: every byte from exactly one place, and the right one. */
#include "base/rand.h"
#include "model/convert.h"
#include "model/reshard.h"
#include "util/bytes.h"
#include "util/checkpoint.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- carrying a plan out ---- */

/* Copies one move, and counts how often each byte is written. */
static void move_apply(const struct reshard_move *move, const uint8_t *from, uint64_t from_bytes,
                       uint8_t *to, uint8_t *times, uint64_t to_bytes)
{
    uint64_t asked = 0;
    uint64_t bytes = move->from == move->to ? move->read.bytes
                                            : convert_bytes(move->from, move->read.bytes, move->to);

    assert_int_equal(stream_ranges_check(&move->read, 1, from_bytes, &asked, NULL), RF_OK);
    if (move->read.count == 1)
        assert_int_equal(move->write_stride, 0);
    else
        assert_true(move->write_stride >= bytes);
    for (uint64_t i = 0; i < move->read.count; i++) {
        const uint8_t *at = from + move->read.offset + i * move->read.stride;
        uint64_t out = move->write_offset + i * move->write_stride;

        assert_true(out + bytes <= to_bytes);
        if (move->from == move->to)
            memcpy(to + out, at, bytes);
        else
            assert_int_equal(
                convert_elements(move->from, at, move->read.bytes, move->to, to + out, NULL),
                RF_OK);
        for (uint64_t b = 0; b < bytes; b++)
            times[out + b]++;
    }
}

static void rank_apply(const struct reshard *plan, uint32_t rank, uint8_t *const *held,
                       const uint64_t *held_bytes, uint8_t *to, uint64_t to_bytes)
{
    const struct reshard_rank *of = &plan->ranks[rank];
    uint8_t *times = calloc(to_bytes + 1, 1);
    uint64_t read = 0;
    uint64_t moves = 0;

    for (uint32_t g = 0; g < of->group_count; g++) {
        const struct reshard_group *group = &of->groups[g];

        assert_true(g == 0 || group->holder > group[-1].holder);
        assert_true(group->move_count > 0);
        for (uint64_t m = 0; m < group->move_count; m++) {
            const struct reshard_move *move = &group->moves[m];

            assert_true(m == 0 || move->read.offset >= move[-1].read.offset);
            move_apply(move, held[group->holder], held_bytes[group->holder], to, times, to_bytes);
            read += move->read.bytes * move->read.count;
        }
        moves += group->move_count;
    }
    assert_int_equal(read, of->read_bytes);
    assert_int_equal(moves, of->move_count);
    for (uint32_t f = 0; f < of->fill_count; f++) {
        const struct reshard_fill *fill = &of->fills[f];

        assert_true(fill->offset + fill->constant->bytes <= to_bytes);
        part_fill(fill->constant, to + fill->offset, fill->constant->bytes);
        for (uint64_t b = 0; b < fill->constant->bytes; b++)
            times[fill->offset + b]++;
    }
    for (uint64_t b = 0; b < to_bytes; b++) {
        if (times[b] != 1)
            fail_msg("byte %" PRIu64 " of %" PRIu64 " is written %u times", b, to_bytes, times[b]);
    }
    free(times);
}

static struct reshard *planned(const struct manifest *const *seeds, uint32_t seed_count,
                               const struct manifest *wanted)
{
    struct reshard *plan = NULL;
    struct rf_error err = {0};

    if (reshard_plan(seeds, seed_count, wanted, &plan, &err) != RF_OK)
        fail_msg("%s", err.text);
    return plan;
}

/* Plans, carries out, and compares with ranks made of the checkpoint itself. Consumes nothing. */
static void check_reshard(const struct checkpoint *of, const struct manifest *const *seeds,
                          uint32_t seed_count, const struct manifest *wanted)
{
    struct reshard *plan = planned(seeds, seed_count, wanted);
    uint8_t **held = calloc(plan->holder_count, sizeof *held);
    uint64_t *held_bytes = calloc(plan->holder_count, sizeof *held_bytes);
    uint64_t read = 0;

    for (uint32_t h = 0; h < plan->holder_count; h++) {
        const struct reshard_holder *holder = &plan->holders[h];

        held[h] = checkpoint_stream(of, seeds[holder->seed], holder->rank);
        held_bytes[h] = seeds[holder->seed]->ranks[holder->rank].stream_bytes;
        read += holder->read_bytes;
    }
    assert_int_equal(plan->rank_count, wanted->rank_count);
    for (uint32_t r = 0; r < wanted->rank_count; r++) {
        uint64_t bytes = wanted->ranks[r].stream_bytes;
        uint8_t *expected = checkpoint_stream(of, wanted, r);
        uint8_t *made = malloc(bytes + 1);

        memset(made, 0xee, bytes + 1);
        rank_apply(plan, r, held, held_bytes, made, bytes);
        assert_memory_equal(made, expected, bytes);
        read -= plan->ranks[r].read_bytes;
        free(made);
        free(expected);
    }
    assert_int_equal(read, 0);
    for (uint32_t h = 0; h < plan->holder_count; h++)
        free(held[h]);
    free(held);
    free(held_bytes);
    reshard_destroy(plan);
}

/* ---- random plans ---- */

/* A checkpoint of a few random tensors, and a plan with a layout that fuses them at random.
 * Everything divides by 8. */
struct made_up {
    struct checkpoint *checkpoint;
    struct buf plan;
};

enum { MADE_UP_MAX = 10 };

/* Tensors of one group have the same kind and columns, so that they can be fused. */
struct group {
    const char *kind;
    uint64_t columns;
    enum rf_dtype dtype;
    bool widen;
    uint32_t count;
};

static struct group group_make(struct rand_seq *seq)
{
    static const char *const kinds[] = {"column",        "row",       "replicated",
                                        "kv by=4",       "kv by=2",   "embedding pad=16",
                                        "column axis=1", "row axis=2"};
    static const enum rf_dtype dtypes[] = {RF_DTYPE_U8, RF_DTYPE_BF16, RF_DTYPE_F32, RF_DTYPE_I64};
    struct group group = {
        .kind = kinds[rand_below(seq, sizeof kinds / sizeof kinds[0])],
        .columns = 8 * (1 + rand_below(seq, 3)),
        .dtype = dtypes[rand_below(seq, sizeof dtypes / sizeof dtypes[0])],
        .count = 1 + (uint32_t)rand_below(seq, 3),
    };

    group.widen = group.dtype == RF_DTYPE_BF16 && rand_below(seq, 2) == 0;
    return group;
}

static void tensor_make(struct made_up *made, struct rand_seq *seq, const struct group *group,
                        uint32_t number)
{
    uint64_t shape[3] = {8 * (1 + rand_below(seq, 3)), group->columns, 8};
    uint32_t ndim = strstr(group->kind, "axis=2") != NULL ? 3 : 2;
    char name[16];

    if (strncmp(group->kind, "embedding", 9) == 0)
        shape[0] = 1 + rand_below(seq, 40);
    else if (strcmp(group->kind, "replicated") == 0 && rand_below(seq, 2) == 0)
        ndim = 1;
    snprintf(name, sizeof name, "t%c", 'a' + (char)number);
    if (ndim == 1 && group->count > 1)
        ndim = 2;
    checkpoint_add(made->checkpoint, name, group->dtype, ndim, shape);
    buf_printf(&made->plan, "tensor %s %s\n", name, group->kind);
}

static struct made_up made_up_new(struct rand_seq *seq)
{
    struct made_up made = {.checkpoint = checkpoint_new("{}")};
    BUF_AUTO struct buf layout = {0};
    uint32_t number = 0;

    buf_printf(&made.plan, "plan made_up\n");
    buf_printf(&layout, "layout fused\n");
    while (number < MADE_UP_MAX) {
        struct group group = group_make(seq);

        if (rand_below(seq, 5) == 0)
            buf_printf(&layout, "make c%u constant=-1.5 dtype=F32\n", number);
        buf_printf(&layout, "make %c%u%s from", 'z' - (char)rand_below(seq, 20), number,
                   group.widen ? " dtype=F32" : "");
        for (uint32_t i = 0; i < group.count; i++) {
            tensor_make(&made, seq, &group, number);
            buf_printf(&layout, " t%c", 'a' + (char)number++);
        }
        buf_printf(&layout, "\n");
    }
    buf_append(&made.plan, layout.data, layout.bytes);
    buf_append(&made.plan, "", 1);
    assert_false(made.plan.failed);
    return made;
}

static struct manifest *made_up_shard(const struct made_up *made, const char *layout, uint32_t tp)
{
    struct manifest *manifest = NULL;
    struct rf_error err = {0};

    if (checkpoint_try(made->checkpoint, (const char *)made->plan.data, layout, tp, 1, &manifest,
                       &err) != RF_OK)
        fail_msg("%s\n%s", err.text, (const char *)made->plan.data);
    return manifest;
}

static void random_plans_and_sizes_are_resharded_to_the_byte(void **state)
{
    (void)state;
    static const char *const layouts[] = {"checkpoint", "fused"};
    struct rand_seq seq = {20};

    for (unsigned round = 0; round < 150; round++) {
        struct made_up made = made_up_new(&seq);

        for (unsigned pair = 0; pair < 4; pair++) {
            struct manifest *seed =
                made_up_shard(&made, layouts[rand_below(&seq, 2)], 1u << rand_below(&seq, 4));
            struct manifest *wanted =
                made_up_shard(&made, layouts[rand_below(&seq, 2)], 1u << rand_below(&seq, 4));
            const struct manifest *const seeds[] = {seed};

            check_reshard(made.checkpoint, seeds, 1, wanted);
            manifest_unref(seed);
            manifest_unref(wanted);
        }
        checkpoint_free(made.checkpoint);
        buf_free(&made.plan);
    }
}

static void random_plans_give_the_whole_checkpoint_back(void **state)
{
    (void)state;
    struct rand_seq seq = {21};

    for (unsigned round = 0; round < 60; round++) {
        struct made_up made = made_up_new(&seq);
        struct manifest *seed = made_up_shard(
            &made, rand_below(&seq, 2) == 0 ? "checkpoint" : "fused", 1u << rand_below(&seq, 4));
        struct manifest *original = checkpoint_whole(made.checkpoint);
        struct manifest *whole = NULL;
        const struct manifest *const seeds[] = {seed};
        const struct manifest *const originals[] = {original};

        assert_int_equal(shard_whole(seed, &whole, NULL), RF_OK);
        assert_int_equal(whole->ranks[0].stream_bytes, original->ranks[0].stream_bytes);
        check_reshard(made.checkpoint, seeds, 1, whole);
        check_reshard(made.checkpoint, originals, 1, seed);
        manifest_unref(whole);
        manifest_unref(original);
        manifest_unref(seed);
        checkpoint_free(made.checkpoint);
        buf_free(&made.plan);
    }
}

/* ---- families ---- */

static const struct family deepseek = {.architecture = "DeepseekV3ForCausalLM",
                                       .layers = 2,
                                       .hidden = 24,
                                       .heads = 16,
                                       .kv_heads = 16,
                                       .intermediate = 32,
                                       .vocab = 130,
                                       .experts = 4,
                                       .moe = 16,
                                       .dense = 1,
                                       .q_lora = 10};

static const struct family llama = {.architecture = "LlamaForCausalLM",
                                    .layers = 2,
                                    .hidden = 32,
                                    .heads = 16,
                                    .kv_heads = 4,
                                    .head_dim = 2,
                                    .intermediate = 32,
                                    .vocab = 100};

static void families_are_resharded_between_all_sizes(void **state)
{
    (void)state;
    static const uint32_t pairs[][2] = {{1, 2}, {2, 4}, {4, 2}, {4, 1}, {2, 16}, {16, 8}, {8, 8}};

    for (unsigned f = 0; f < 2; f++) {
        struct checkpoint *of = checkpoint_of(f == 0 ? &llama : &deepseek);

        for (unsigned i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
            struct manifest *seed = checkpoint_shard(of, "sglang", pairs[i][0], 1);
            struct manifest *wanted = checkpoint_shard(of, "sglang", pairs[i][1], 1);
            const struct manifest *const seeds[] = {seed};

            check_reshard(of, seeds, 1, wanted);
            manifest_unref(seed);
            manifest_unref(wanted);
        }
        checkpoint_free(of);
    }
}

static void expert_parallel_ranks_are_made_of_tensor_parallel_ones(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&deepseek);
    struct manifest *tp = checkpoint_shard(of, "sglang", 4, 1);
    struct manifest *ep = checkpoint_shard(of, "sglang", 4, 2);
    const struct manifest *const a[] = {tp};
    const struct manifest *const b[] = {ep};

    check_reshard(of, a, 1, ep);
    check_reshard(of, b, 1, tp);
    manifest_unref(tp);
    manifest_unref(ep);
    checkpoint_free(of);
}

/* ---- stacks that no plan makes ---- */

enum { STACK = 8, STACK_BYTES = 8 };

/* What one rank has of each source: `count` bytes from start on, in this order. */
struct stack_rank {
    uint64_t start[STACK];
    uint64_t count;
};

static struct checkpoint *stack_checkpoint(void)
{
    struct checkpoint *of = checkpoint_new("{}");
    char name[8];

    for (unsigned i = 0; i < STACK; i++) {
        snprintf(name, sizeof name, "e%u", i);
        checkpoint_add(of, name, RF_DTYPE_U8, 1, (uint64_t[]){STACK_BYTES});
    }
    return of;
}

static struct manifest *stacked(const struct checkpoint *of, const uint32_t order[STACK],
                                const struct stack_rank *ranks, uint32_t rank_count)
{
    struct manifest_builder *builder = checkpoint_builder(of, "checkpoint");
    struct manifest *manifest = NULL;

    for (uint32_t tp = 0; tp < rank_count; tp++) {
        const struct rank_id id = {
            .tp = tp, .tp_size = rank_count, .pp_size = 1, .ep_size = 1, .dp_size = 1};
        const uint64_t shape[] = {STACK, ranks[tp].count};
        struct part parts[STACK];

        for (unsigned i = 0; i < STACK; i++)
            parts[i] = (struct part){
                .source = order[i], .start = ranks[tp].start[i], .count = ranks[tp].count};
        const struct tensor tensor = {.name = "all",
                                      .dtype = RF_DTYPE_U8,
                                      .ndim = 2,
                                      .shape = shape,
                                      .file = MANIFEST_NONE,
                                      .parts = parts,
                                      .part_count = STACK};
        assert_int_equal(manifest_add_rank(builder, &id, NULL), RF_OK);
        assert_int_equal(manifest_add_tensor(builder, &tensor, NULL, NULL), RF_OK);
    }
    assert_int_equal(manifest_build(builder, &manifest, NULL), RF_OK);
    return manifest;
}

static const uint32_t in_order[STACK] = {0, 1, 2, 3, 4, 5, 6, 7};

static void a_stack_in_another_order_is_resharded(void **state)
{
    (void)state;
    static const uint32_t other[STACK] = {0, 1, 2, 6, 3, 4, 7, 5};
    static const struct stack_rank halves[] = {
        {{0}, 4},
        {{4, 4, 4, 4, 4, 4, 4, 4}, 4},
    };
    static const struct stack_rank whole[] = {{{0}, STACK_BYTES}};
    struct checkpoint *of = stack_checkpoint();
    struct manifest *seed = stacked(of, other, halves, 2);
    struct manifest *wanted = stacked(of, in_order, whole, 1);
    const struct manifest *const a[] = {seed};
    const struct manifest *const b[] = {wanted};

    check_reshard(of, a, 1, wanted);
    check_reshard(of, b, 1, seed);
    manifest_unref(seed);
    manifest_unref(wanted);
    checkpoint_free(of);
}

/* All have the same sources at the same places, and are not cut in the same way. */
static void ranks_whose_slices_differ_in_a_stack_are_told_apart(void **state)
{
    (void)state;
    static const struct stack_rank mixed[] = {
        {{0}, 4},
        {{4, 0, 4, 0, 4, 0, 4, 0}, 4},
        {{0, 4, 0, 4, 0, 4, 0, 4}, 4},
    };
    static const struct stack_rank whole[] = {{{0}, STACK_BYTES}};
    struct checkpoint *of = stack_checkpoint();
    struct manifest *seed = stacked(of, in_order, mixed, 3);
    struct manifest *wanted = stacked(of, in_order, whole, 1);
    const struct manifest *const a[] = {seed};

    check_reshard(of, a, 1, wanted);
    manifest_unref(seed);
    manifest_unref(wanted);
    checkpoint_free(of);
}

/* ---- what a plan looks like ---- */

static void the_same_ranks_are_whole_streams(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *seed = checkpoint_shard(of, "sglang", 4, 1);
    struct manifest *wanted = checkpoint_shard(of, "sglang", 4, 1);
    const struct manifest *const seeds[] = {seed, seed};
    struct reshard *plan = planned(seeds, 2, wanted);

    for (uint32_t r = 0; r < 4; r++) {
        assert_int_equal(plan->ranks[r].move_count, 1);
        assert_int_equal(plan->ranks[r].read_bytes, wanted->ranks[r].stream_bytes);
        assert_int_equal(plan->holders[plan->ranks[r].groups[0].holder].rank, r);
    }
    reshard_destroy(plan);
    manifest_unref(seed);
    manifest_unref(wanted);
    checkpoint_free(of);
}

static void whole_tensors_that_follow_each_other_are_one_move(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *original = checkpoint_whole(of);
    struct manifest *one = checkpoint_shard(of, "checkpoint", 1, 1);
    const struct manifest *const seeds[] = {original};
    struct reshard *plan = planned(seeds, 1, one);

    assert_int_equal(plan->ranks[0].move_count, 1);
    reshard_destroy(plan);
    manifest_unref(original);
    manifest_unref(one);
    checkpoint_free(of);
}

static void replicated_tensors_are_read_from_idle_ranks(void **state)
{
    (void)state;
    static const char text[] = "plan p\ntensor r* replicated\ntensor s column\n";
    struct checkpoint *of = checkpoint_new("{}");
    struct manifest *seed = NULL;
    struct manifest *wanted = NULL;
    char name[8];

    checkpoint_add(of, "s", RF_DTYPE_U8, 1, (uint64_t[]){8});
    for (unsigned i = 0; i < 64; i++) {
        snprintf(name, sizeof name, "r%02u", i);
        checkpoint_add(of, name, RF_DTYPE_U8, 1, (uint64_t[]){1000});
    }
    assert_int_equal(checkpoint_try(of, text, "checkpoint", 4, 1, &seed, NULL), RF_OK);
    assert_int_equal(checkpoint_try(of, text, "checkpoint", 2, 1, &wanted, NULL), RF_OK);
    const struct manifest *const seeds[] = {seed};
    struct reshard *plan = planned(seeds, 1, wanted);
    for (uint32_t h = 0; h < 4; h++) {
        assert_true(plan->holders[h].read_bytes >= 31000);
        assert_true(plan->holders[h].read_bytes <= 33100);
    }
    reshard_destroy(plan);
    check_reshard(of, seeds, 1, wanted);
    manifest_unref(seed);
    manifest_unref(wanted);
    checkpoint_free(of);
}

static struct manifest *sharded(const struct checkpoint *of, const struct shard_request *wanted)
{
    struct model_config *config = NULL;
    struct plan *plan = NULL;
    struct manifest *manifest = NULL;
    struct manifest_builder *builder = checkpoint_builder(of, wanted->layout);

    assert_int_equal(model_config_parse(of->config, strlen(of->config), &config, NULL), RF_OK);
    assert_int_equal(plan_for_architecture(model_config_architecture(config), &plan, NULL), RF_OK);
    struct shard_request request = *wanted;
    request.plan = plan;
    request.config = config;
    assert_int_equal(shard_ranks(builder, &request, NULL), RF_OK);
    assert_int_equal(manifest_build(builder, &manifest, NULL), RF_OK);
    plan_destroy(plan);
    model_config_destroy(config);
    return manifest;
}

static struct manifest *some_ranks(const struct checkpoint *of, uint32_t tp_size,
                                   const uint32_t *ranks, uint32_t rank_count)
{
    return sharded(
        of, &(struct shard_request){
                .layout = "sglang", .tp_size = tp_size, .ranks = ranks, .rank_count = rank_count});
}

static void several_seeds_hold_a_model_together(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *a = some_ranks(of, 4, (const uint32_t[]){2, 0}, 2);
    struct manifest *b = some_ranks(of, 4, (const uint32_t[]){3, 1, 2}, 3);
    struct manifest *c = checkpoint_shard(of, "checkpoint", 4, 1);
    struct manifest *wanted = checkpoint_shard(of, "sglang", 2, 1);
    const struct manifest *const seeds[] = {a, b, c};

    check_reshard(of, seeds, 2, wanted);
    check_reshard(of, seeds, 3, wanted);
    manifest_unref(a);
    manifest_unref(b);
    manifest_unref(c);
    manifest_unref(wanted);
    checkpoint_free(of);
}

/* ---- from a seed alone ---- */

static void a_new_instance_is_planned_from_the_seeds_manifest(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *seeds_of[] = {checkpoint_shard(of, "sglang", 8, 1), checkpoint_whole(of)};
    struct manifest *direct = checkpoint_shard(of, "sglang", 2, 1);
    struct model_config *config = NULL;
    struct plan *plan = NULL;

    assert_int_equal(model_config_parse(of->config, strlen(of->config), &config, NULL), RF_OK);
    assert_int_equal(plan_for_architecture("LlamaForCausalLM", &plan, NULL), RF_OK);
    const struct shard_request request = {
        .plan = plan, .config = config, .layout = "sglang", .tp_size = 2};
    for (unsigned i = 0; i < 2; i++) {
        struct manifest *wanted = NULL;
        struct rf_error err = {0};
        const struct manifest *const seeds[] = {seeds_of[i]};

        if (shard_like(seeds_of[i], &request, &wanted, &err) != RF_OK)
            fail_msg("%s", err.text);
        assert_string_equal(wanted->layout, "sglang");
        assert_int_equal(wanted->stage, STAGE_FUSED);
        assert_int_equal(wanted->source_count, direct->source_count);
        assert_int_equal(wanted->ranks[1].stream_bytes, direct->ranks[1].stream_bytes);
        check_reshard(of, seeds, 1, wanted);
        manifest_unref(wanted);
        manifest_unref(seeds_of[i]);
    }
    manifest_unref(direct);
    plan_destroy(plan);
    model_config_destroy(config);
    checkpoint_free(of);
}

/* ---- refusals ---- */

static void assert_refused(const struct manifest *seed, const struct manifest *wanted,
                           const char *words)
{
    const struct manifest *const seeds[] = {seed};
    struct reshard *plan = NULL;
    struct rf_error err = {0};

    assert_int_equal(reshard_plan(seeds, 1, wanted, &plan, &err), RF_E_MISMATCH);
    assert_null(plan);
    assert_says(&err, words);
}

static void a_rank_that_is_missing_is_named(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *some = some_ranks(of, 4, (const uint32_t[]){0, 1, 3}, 3);
    struct manifest *wanted = checkpoint_shard(of, "sglang", 2, 1);
    struct manifest *whole = NULL;

    assert_refused(some, wanted,
                   "rank tp1/2: tensor lm_head.weight needs elements 64 to 99 of axis 0"
                   " of lm_head.weight");
    assert_refused(some, wanted, "it would be in tp2/4");
    assert_int_equal(shard_whole(some, &whole, NULL), RF_OK);
    assert_refused(some, whole, "it would be in tp2/4");
    manifest_unref(some);
    manifest_unref(wanted);
    manifest_unref(whole);
    checkpoint_free(of);
}

/* Both may be layers and heads of one family, with equal names and shapes. */
static void a_draft_model_is_no_source_of_the_target(void **state)
{
    (void)state;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *target = checkpoint_shard(of, "checkpoint", 4, 1);
    struct manifest *draft = sharded(
        of, &(struct shard_request){.layout = "checkpoint", .tp_size = 2, .role = ROLE_DRAFT});
    struct manifest *wanted = checkpoint_shard(of, "checkpoint", 2, 1);
    const struct manifest *const seeds[] = {draft, target};

    assert_refused(draft, wanted, "rank tp0/2: tensor lm_head.weight needs elements 0 to 49");
    assert_refused(target, draft, "rank tp0/2,draft: tensor lm_head.weight");
    struct reshard *plan = planned(seeds, 2, wanted);
    for (uint32_t i = 0; i < plan->holder_count; i++)
        assert_int_equal(plan->holders[i].read_bytes > 0, plan->holders[i].seed == 1);
    reshard_destroy(plan);
    check_reshard(of, seeds, 2, draft);
    manifest_unref(target);
    manifest_unref(draft);
    manifest_unref(wanted);
    checkpoint_free(of);
}

static void another_model_is_refused(void **state)
{
    (void)state;
    struct family other = llama;
    struct checkpoint *of = checkpoint_of(&llama);
    struct manifest *seed = checkpoint_shard(of, "sglang", 2, 1);

    other.intermediate = 64;
    struct checkpoint *larger = checkpoint_of(&other);
    struct manifest *wanted = checkpoint_shard(larger, "sglang", 4, 1);
    assert_refused(seed, wanted,
                   "mlp.down_proj.weight of the checkpoint: BF16 [32, 64] wanted, "
                   "BF16 [32, 32] at the seed");
    manifest_unref(wanted);
    wanted = checkpoint_shard(of, "sglang", 4, 1);
    const char *name = wanted->model;
    wanted->model = "another";
    assert_refused(seed, wanted, "model \"another\" wanted, the seed has \"tiny\"");
    wanted->model = name;
    wanted->weight_version = 3;
    assert_refused(seed, wanted, "weight version 3 wanted, the seed has 0");
    wanted->weight_version = 0;
    wanted->stage = STAGE_PROCESSED;
    assert_refused(seed, wanted, "the new instance has processed tensors");
    manifest_unref(wanted);
    manifest_unref(seed);
    checkpoint_free(of);
    checkpoint_free(larger);
}

static void ranks_that_say_nothing_fit_only_their_equals(void **state)
{
    (void)state;
    const uint64_t shape[] = {4};
    const struct tensor tensor = {
        .name = "w", .dtype = RF_DTYPE_U8, .ndim = 1, .shape = shape, .file = MANIFEST_NONE};
    struct manifest *manifests[2];

    for (uint32_t size = 2; size <= 3; size++) {
        const struct checkpoint nothing = {.count = 0};
        struct manifest_builder *builder = checkpoint_builder(&nothing, "engine");

        for (uint32_t tp = 0; tp < size; tp++) {
            const struct rank_id id = {
                .tp = tp, .tp_size = size, .pp_size = 1, .ep_size = 1, .dp_size = 1};
            assert_int_equal(manifest_add_rank(builder, &id, NULL), RF_OK);
            assert_int_equal(manifest_add_tensor(builder, &tensor, NULL, NULL), RF_OK);
        }
        assert_int_equal(manifest_build(builder, &manifests[size - 2], NULL), RF_OK);
    }
    const struct manifest *const seeds[] = {manifests[0]};
    struct reshard *plan = planned(seeds, 1, manifests[0]);
    assert_int_equal(plan->ranks[1].move_count, 1);
    reshard_destroy(plan);
    assert_refused(manifests[0], manifests[1], "no seed has a rank that is equal");
    struct manifest *whole = NULL;
    struct rf_error err = {0};
    assert_int_equal(shard_whole(manifests[0], &whole, &err), RF_E_MISMATCH);
    assert_says(&err, "does not say of which tensors its 2 ranks are slices");
    manifest_unref(manifests[0]);
    manifest_unref(manifests[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_plans_and_sizes_are_resharded_to_the_byte),
        cmocka_unit_test(random_plans_give_the_whole_checkpoint_back),
        cmocka_unit_test(families_are_resharded_between_all_sizes),
        cmocka_unit_test(expert_parallel_ranks_are_made_of_tensor_parallel_ones),
        cmocka_unit_test(a_stack_in_another_order_is_resharded),
        cmocka_unit_test(ranks_whose_slices_differ_in_a_stack_are_told_apart),
        cmocka_unit_test(the_same_ranks_are_whole_streams),
        cmocka_unit_test(whole_tensors_that_follow_each_other_are_one_move),
        cmocka_unit_test(replicated_tensors_are_read_from_idle_ranks),
        cmocka_unit_test(several_seeds_hold_a_model_together),
        cmocka_unit_test(a_new_instance_is_planned_from_the_seeds_manifest),
        cmocka_unit_test(a_rank_that_is_missing_is_named),
        cmocka_unit_test(a_draft_model_is_no_source_of_the_target),
        cmocka_unit_test(another_model_is_refused),
        cmocka_unit_test(ranks_that_say_nothing_fit_only_their_equals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
