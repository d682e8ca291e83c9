/* The public API alone: a seed and its forks in one process, over real sockets and shared pages. */
#include <rfork/rfork.h>

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { BIG = 300000, SMALL = 5 };

static const uint64_t big_shape[] = {BIG / 100, 100};
static const uint64_t small_shape[] = {SMALL};
static const uint64_t empty_shape[] = {3, 0};
static const struct rf_tensor big = {"b.weight", RF_DTYPE_U8, 2, big_shape};
static const struct rf_tensor tied = {"a.tied", RF_DTYPE_U8, 2, big_shape};
static const struct rf_tensor small = {"c.bias", RF_DTYPE_F32, 1, small_shape};
static const struct rf_tensor empty = {"d.empty", RF_DTYPE_BF16, 2, empty_shape};
static const struct rf_tensor scalar = {"e.scalar", RF_DTYPE_I64, 0, NULL};

struct bed {
    struct rf_seed *seed;
    uint8_t *big_bytes;
    float small_values[SMALL];
    int64_t scalar_value;
};

static void add_all(struct bed *bed, const void *big_at)
{
    assert_int_equal(rf_seed_add_tensor(bed->seed, &big, big_at, NULL), RF_OK);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &tied, big_at, NULL), RF_OK);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &small, bed->small_values, NULL), RF_OK);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &empty, NULL, NULL), RF_OK);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &scalar, &bed->scalar_value, NULL), RF_OK);
    assert_int_equal(rf_seed_add_file(bed->seed, "config.json", "{}", 2, NULL), RF_OK);
}

static int bed_setup(void **state)
{
    const struct rf_seed_options options = {.model = "toy", .chunk_bytes = 64 << 10};
    struct bed *bed = calloc(1, sizeof(*bed));

    bed->big_bytes = malloc(BIG);
    for (unsigned i = 0; i < BIG; i++)
        bed->big_bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    for (unsigned i = 0; i < SMALL; i++)
        bed->small_values[i] = (float)i / 3;
    bed->scalar_value = -42;
    assert_int_equal(rf_seed_create(&options, &bed->seed, NULL), RF_OK);
    *state = bed;
    return 0;
}

static int bed_teardown(void **state)
{
    struct bed *bed = *state;

    rf_seed_destroy(bed->seed);
    free(bed->big_bytes);
    free(bed);
    return 0;
}

static struct rf_fork *open_fork(const struct bed *bed, const char *transport)
{
    const struct rf_fork_options options = {.transport = transport};
    struct rf_fork *fork = NULL;
    struct rf_error error = {.code = RF_OK};
    enum rf_code code = rf_fork_open(rf_seed_url(bed->seed), &options, &fork, &error);

    if (code != RF_OK)
        print_error("%s\n", error.text);
    assert_int_equal(code, RF_OK);
    return fork;
}

static void publish(struct bed *bed)
{
    struct rf_error error = {.code = RF_OK};

    if (rf_seed_publish(bed->seed, &error) != RF_OK)
        fail_msg("%s", error.text);
    assert_non_null(rf_seed_url(bed->seed));
}

static void check_data(const struct bed *bed, const struct rf_fork *fork)
{
    assert_memory_equal(rf_fork_data(fork, "b.weight"), bed->big_bytes, BIG);
    assert_memory_equal(rf_fork_data(fork, "a.tied"), bed->big_bytes, BIG);
    assert_memory_equal(rf_fork_data(fork, "c.bias"), bed->small_values, sizeof(bed->small_values));
    assert_null(rf_fork_data(fork, "d.empty"));
    assert_memory_equal(rf_fork_data(fork, "e.scalar"), &bed->scalar_value, sizeof(int64_t));
    assert_null(rf_fork_data(fork, "no such tensor"));
}

static void tensors_in_the_callers_memory_arrive_by_tcp(void **state)
{
    struct bed *bed = *state;
    struct rf_fork_stats stats;

    add_all(bed, bed->big_bytes);
    publish(bed);
    struct rf_fork *fork = open_fork(bed, "auto");
    assert_int_equal(rf_fork_tensor_count(fork), 5);
    assert_null(rf_fork_data(fork, "b.weight")); /* not before it ran */
    assert_int_equal(rf_fork_run(fork, NULL, NULL, NULL), RF_OK);
    check_data(bed, fork);
    rf_fork_get_stats(fork, &stats);
    assert_string_equal(stats.transport, "tcp");
    assert_true(stats.verified);
    /* The tied tensor is held and sent once. */
    assert_int_equal(stats.bytes, BIG + SMALL * 4 + 8);
    assert_int_equal(strncmp(stats.root_digest, "xxh3-128:", 9), 0);
    rf_fork_close(fork);
}

static void tensors_in_shared_memory_are_mapped_without_copying(void **state)
{
    struct bed *bed = *state;
    struct rf_fork_stats stats;
    void *memory = NULL;

    assert_int_equal(rf_seed_alloc(bed->seed, BIG, &memory, NULL), RF_OK);
    memcpy(memory, bed->big_bytes, BIG);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &big, memory, NULL), RF_OK);
    publish(bed);
    struct rf_fork *taken = open_fork(bed, "auto");
    assert_int_equal(rf_fork_run(taken, NULL, NULL, NULL), RF_OK);
    assert_memory_equal(rf_fork_data(taken, "b.weight"), bed->big_bytes, BIG);
    assert_ptr_not_equal(rf_fork_data(taken, "b.weight"), memory);
    rf_fork_get_stats(taken, &stats);
    assert_string_equal(stats.transport, "map");
    assert_int_equal(stats.wire_bytes, 0);

    /* A write by the new instance faults, and can never reach the seed. */
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* cmocka catches it otherwise */
        *(volatile uint8_t *)(uintptr_t)rf_fork_data(taken, "b.weight") = 1;
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    assert_memory_equal(memory, bed->big_bytes, BIG);
    rf_fork_close(taken);
}

static void mapped_pages_outlive_the_seed(void **state)
{
    struct bed *bed = *state;
    void *memory = NULL;

    assert_int_equal(rf_seed_alloc(bed->seed, BIG, &memory, NULL), RF_OK);
    memcpy(memory, bed->big_bytes, BIG);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &big, memory, NULL), RF_OK);
    publish(bed);
    struct rf_fork *fork = open_fork(bed, "map");
    assert_int_equal(rf_fork_run(fork, NULL, NULL, NULL), RF_OK);
    rf_seed_destroy(bed->seed);
    bed->seed = NULL;
    assert_memory_equal(rf_fork_data(fork, "b.weight"), bed->big_bytes, BIG);
    rf_fork_close(fork);
}

static void bound_memory_gets_the_bytes_and_tied_tensors_a_copy(void **state)
{
    struct bed *bed = *state;
    uint8_t *mine = calloc(2, BIG);
    float values[SMALL];
    struct rf_error error;

    add_all(bed, bed->big_bytes);
    publish(bed);
    struct rf_fork *fork = open_fork(bed, NULL);
    assert_int_equal(rf_fork_bind(fork, "b.weight", mine + BIG, BIG, NULL), RF_OK);
    assert_int_equal(rf_fork_bind(fork, "a.tied", mine, BIG, NULL), RF_OK);
    assert_int_equal(rf_fork_bind(fork, "c.bias", values, sizeof(values), NULL), RF_OK);
    assert_int_equal(rf_fork_bind(fork, "c.bias", values, sizeof(values), &error), RF_E_INVAL);
    assert_int_equal(rf_fork_bind(fork, "e.scalar", values, 4, &error), RF_E_INVAL);
    assert_non_null(strstr(error.text, "4 bytes"));
    assert_int_equal(rf_fork_bind(fork, "x", values, 4, &error), RF_E_MISMATCH);
    assert_int_equal(rf_fork_bind(fork, "e.scalar", NULL, 8, &error), RF_E_INVAL);
    assert_int_equal(rf_fork_run(fork, NULL, NULL, NULL), RF_OK);
    assert_ptr_equal(rf_fork_data(fork, "b.weight"), mine + BIG);
    assert_ptr_equal(rf_fork_data(fork, "a.tied"), mine);
    check_data(bed, fork);
    assert_int_equal(rf_fork_bind(fork, "e.scalar", values, 8, &error), RF_E_INVAL);
    assert_int_equal(rf_fork_run(fork, NULL, NULL, &error), RF_E_INVAL);
    rf_fork_close(fork);
    free(mine);
}

static void differences_are_named_before_a_byte_moves(void **state)
{
    static const uint64_t other_shape[] = {BIG / 50, 50};
    const struct rf_tensor good[] = {big, tied, small, empty, scalar};
    const struct rf_tensor other[] = {{"b.weight", RF_DTYPE_U8, 2, other_shape},
                                      tied,
                                      {"c.bias", RF_DTYPE_I32, 1, small_shape},
                                      empty,
                                      {"f.new", RF_DTYPE_I64, 0, NULL}};
    struct bed *bed = *state;
    struct rf_error error;

    add_all(bed, bed->big_bytes);
    publish(bed);
    struct rf_fork *fork = open_fork(bed, "tcp");
    assert_int_equal(rf_fork_match(fork, good, 5, &error), RF_OK);
    assert_int_equal(rf_fork_match(fork, other, 5, &error), RF_E_MISMATCH);
    assert_non_null(strstr(error.text, "b.weight"));
    assert_non_null(strstr(error.text, "c.bias"));
    rf_fork_close(fork);
}

static void what_cannot_be_served_is_refused_when_it_is_added(void **state)
{
    static const uint64_t huge[] = {UINT64_MAX, UINT64_MAX};
    static const uint64_t half[] = {3};
    const struct rf_tensor overflowing = {"x", RF_DTYPE_F32, 2, huge};
    const struct rf_tensor half_a_byte = {"x", RF_DTYPE_F4, 1, half};
    struct bed *bed = *state;
    struct rf_error error;

    assert_int_equal(rf_seed_publish(bed->seed, &error), RF_E_INVAL); /* no tensor */
    assert_int_equal(rf_seed_add_tensor(bed->seed, &overflowing, &error, &error), RF_E_INVAL);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &half_a_byte, &error, &error), RF_E_INVAL);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &big, NULL, &error), RF_E_INVAL);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &big, bed->big_bytes, &error), RF_OK);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &big, bed->big_bytes, &error), RF_E_INVAL);
    assert_non_null(strstr(error.text, "b.weight"));
    assert_int_equal(rf_seed_add_file(bed->seed, "../evil", "", 0, &error), RF_E_INVAL);
    assert_int_equal(rf_seed_add_file(bed->seed, "/etc/passwd", "", 0, &error), RF_E_INVAL);
    publish(bed);
    assert_int_equal(rf_seed_add_tensor(bed->seed, &small, bed->small_values, &error), RF_E_INVAL);
    assert_int_equal(rf_seed_add_file(bed->seed, "late", "", 0, &error), RF_E_INVAL);
    assert_int_equal(rf_seed_alloc(bed->seed, 4096, (void **)&(void *){NULL}, &error), RF_E_INVAL);
    assert_int_equal(rf_seed_publish(bed->seed, &error), RF_E_INVAL);
}

static void wrong_options_are_refused(void **state)
{
    const struct rf_seed_options bad_chunk = {.chunk_bytes = 1000};
    const struct rf_seed_options huge_chunk = {.chunk_bytes = UINT64_C(1) << 40};
    const struct rf_fork_options no_transport = {.transport = "carrier-pigeon"};
    const struct rf_fork_options no_rank = {.rank = 7};
    struct rf_seed *seed = NULL;
    struct rf_fork *fork = NULL;
    struct rf_error error;
    struct bed *bed = *state;

    assert_int_equal(rf_seed_create(&bad_chunk, &seed, &error), RF_E_INVAL);
    assert_int_equal(rf_seed_create(&huge_chunk, &seed, &error), RF_E_INVAL);
    assert_null(seed);
    add_all(bed, bed->big_bytes);
    publish(bed);
    assert_int_equal(rf_fork_open(rf_seed_url(bed->seed), &no_transport, &fork, &error),
                     RF_E_UNSUPPORTED);
    assert_non_null(strstr(error.text, "tcp")); /* those there are */
    assert_int_equal(rf_fork_open(rf_seed_url(bed->seed), &no_rank, &fork, &error), RF_E_MISMATCH);
    assert_int_equal(rf_fork_open("ftp://nowhere", &(struct rf_fork_options){0}, &fork, &error),
                     RF_E_INVAL);
    assert_int_equal(
        rf_fork_open("http://127.0.0.1:1", &(struct rf_fork_options){0}, &fork, &error),
        RF_E_UNREACHABLE);
    assert_null(fork);
}

static void a_cancelled_fork_does_not_run(void **state)
{
    struct bed *bed = *state;
    struct rf_error error;

    add_all(bed, bed->big_bytes);
    publish(bed);
    struct rf_fork *fork = open_fork(bed, "tcp");
    rf_fork_cancel(fork);
    assert_int_equal(rf_fork_run(fork, NULL, NULL, &error), RF_E_CANCELLED);
    assert_null(rf_fork_data(fork, "b.weight"));
    rf_fork_close(fork);
}

static void counters_and_digests_of_a_seed(void **state)
{
    struct bed *bed = *state;
    struct rf_seed_stats stats;
    struct rf_error error;

    rf_seed_get_stats(bed->seed, &stats);
    assert_int_equal(stats.readers_total, 0);
    assert_int_equal(rf_seed_wait_digests(bed->seed, 1000, &error), RF_E_INVAL);
    add_all(bed, bed->big_bytes);
    publish(bed);
    assert_int_equal(rf_seed_wait_digests(bed->seed, 10000, &error), RF_OK);
    struct rf_fork *fork = open_fork(bed, "tcp");
    assert_int_equal(rf_fork_run(fork, NULL, NULL, NULL), RF_OK);
    rf_fork_close(fork);
    rf_seed_get_stats(bed->seed, &stats);
    assert_true(stats.digests_complete);
    assert_int_equal(stats.readers_total, 1);
    assert_int_equal(stats.stream_bytes, BIG + SMALL * 4 + 8);
    assert_int_equal(stats.bytes_sent, stats.stream_bytes);
    assert_int_equal(rf_seed_drain(bed->seed, 1000), 0);
    assert_int_equal(
        rf_fork_open(rf_seed_url(bed->seed), &(struct rf_fork_options){0}, &fork, &error),
        RF_E_UNREACHABLE);
}

static const char llama_config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":4,\"intermediate_size\":128,\"num_hidden_layers\":1,"
    "\"vocab_size\":32,\"torch_dtype\":\"bfloat16\"}";

enum {
    LLAMA_HIDDEN = 64,
    LLAMA_INNER = 128,
    LLAMA_VOCAB = 32,
    LLAMA_ROOM = 64 << 10,
    LLAMA_SQUARE = 64 * 64
};

/* A Llama of one layer whose bytes count up from its tensor's first. */
static void add_llama(struct rf_seed *seed, uint8_t *bytes)
{
    static const struct {
        const char *name;
        uint64_t shape[2];
    } tensors[] = {
        {"lm_head.weight", {LLAMA_VOCAB, LLAMA_HIDDEN}},
        {"model.embed_tokens.weight", {LLAMA_VOCAB, LLAMA_HIDDEN}},
        {"model.norm.weight", {LLAMA_HIDDEN, 0}},
        {"model.layers.0.input_layernorm.weight", {LLAMA_HIDDEN, 0}},
        {"model.layers.0.post_attention_layernorm.weight", {LLAMA_HIDDEN, 0}},
        {"model.layers.0.self_attn.q_proj.weight", {LLAMA_HIDDEN, LLAMA_HIDDEN}},
        {"model.layers.0.self_attn.k_proj.weight", {LLAMA_HIDDEN, LLAMA_HIDDEN}},
        {"model.layers.0.self_attn.v_proj.weight", {LLAMA_HIDDEN, LLAMA_HIDDEN}},
        {"model.layers.0.self_attn.o_proj.weight", {LLAMA_HIDDEN, LLAMA_HIDDEN}},
        {"model.layers.0.mlp.gate_proj.weight", {LLAMA_INNER, LLAMA_HIDDEN}},
        {"model.layers.0.mlp.up_proj.weight", {LLAMA_INNER, LLAMA_HIDDEN}},
        {"model.layers.0.mlp.down_proj.weight", {LLAMA_HIDDEN, LLAMA_INNER}},
    };

    for (unsigned i = 0; i < LLAMA_ROOM; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    for (unsigned i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        const struct rf_tensor tensor = {.name = tensors[i].name,
                                         .dtype = RF_DTYPE_BF16,
                                         .ndim = tensors[i].shape[1] != 0 ? 2 : 1,
                                         .shape = tensors[i].shape};

        assert_int_equal(rf_seed_add_tensor(seed, &tensor, bytes + i, NULL), RF_OK);
    }
    assert_int_equal(
        rf_seed_add_file(seed, "config.json", llama_config, strlen(llama_config), NULL), RF_OK);
}

static void a_rank_of_another_size_is_cut_from_the_seed(void **state)
{
    const struct rf_seed_options llama = {.model = "llama", .architecture = "LlamaForCausalLM"};
    const struct rf_fork_options options = {.transport = "tcp", .tp_size = 2, .rank = 1};
    const struct rf_fork_options three = {.transport = "tcp", .tp_size = 3};
    uint8_t *bytes = malloc(LLAMA_ROOM);
    uint8_t column[LLAMA_SQUARE];
    struct rf_seed *seed = NULL;
    struct rf_fork *fork = NULL;
    struct rf_fork_stats stats;
    struct rf_error error = {.code = RF_OK};

    (void)state;
    assert_non_null(bytes);
    assert_int_equal(rf_seed_create(&llama, &seed, NULL), RF_OK);
    add_llama(seed, bytes);
    assert_int_equal(rf_seed_publish(seed, NULL), RF_OK);
    assert_int_equal(rf_fork_open(rf_seed_url(seed), &three, &fork, &error), RF_E_INVAL);
    if (rf_fork_open(rf_seed_url(seed), &options, &fork, &error) != RF_OK)
        fail_msg("%s", error.text);
    assert_int_equal(rf_fork_tensor_count(fork), 12);
    /* The second half of each row of the ninth tensor, which begins at byte 8. */
    assert_int_equal(rf_fork_bind(fork, "model.layers.0.self_attn.o_proj.weight", column,
                                  sizeof(column), &error),
                     RF_OK);
    if (rf_fork_run(fork, NULL, NULL, &error) != RF_OK)
        fail_msg("%s", error.text);
    for (unsigned row = 0; row < LLAMA_HIDDEN; row++)
        assert_memory_equal(column + (size_t)row * LLAMA_HIDDEN,
                            bytes + 8 + (size_t)row * 2 * LLAMA_HIDDEN + LLAMA_HIDDEN,
                            LLAMA_HIDDEN);
    /* The second half of the rows of the sixth. */
    assert_memory_equal(rf_fork_data(fork, "model.layers.0.self_attn.q_proj.weight"),
                        bytes + 5 + LLAMA_SQUARE, LLAMA_SQUARE);
    rf_fork_get_stats(fork, &stats);
    assert_true(stats.verified);
    rf_fork_close(fork);
    rf_seed_destroy(seed);
    free(bytes);
}

int main(void)
{
#define BED_TEST(name) cmocka_unit_test_setup_teardown(name, bed_setup, bed_teardown)
    const struct CMUnitTest tests[] = {
        BED_TEST(tensors_in_the_callers_memory_arrive_by_tcp),
        BED_TEST(tensors_in_shared_memory_are_mapped_without_copying),
        BED_TEST(mapped_pages_outlive_the_seed),
        BED_TEST(bound_memory_gets_the_bytes_and_tied_tensors_a_copy),
        BED_TEST(differences_are_named_before_a_byte_moves),
        BED_TEST(what_cannot_be_served_is_refused_when_it_is_added),
        BED_TEST(wrong_options_are_refused),
        BED_TEST(a_cancelled_fork_does_not_run),
        BED_TEST(counters_and_digests_of_a_seed),
        cmocka_unit_test(a_rank_of_another_size_is_cut_from_the_seed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
