/* Whole programs: how soon a seed is ready, and what memory seed and fork take beside the
 * weights. */
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "cli/bench/bench.h"
#include "format/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    START_TENSOR_BYTES = 16 << 20,
    START_MAX_TENSORS = 8192,
    START_SMALL_PART = 16, /* of load_bytes: the smaller of the two models */
};

#define START_EXTRA_BYTES ((double)(UINT64_C(64) << 20))

/* ---- a model on disk ---- */

struct model_file {
    char folder[256];
    char path[300];
    uint64_t bytes; /* of the tensors */
};

static enum rf_code model_header(uint64_t bytes, struct buf *out, struct rf_error *err)
{
    uint32_t count = (uint32_t)(bytes / START_TENSOR_BYTES);
    struct st_tensor *tensors = calloc(START_MAX_TENSORS, sizeof(*tensors));
    char(*names)[32] = calloc(START_MAX_TENSORS, sizeof(*names));
    static const uint64_t shape[] = {START_TENSOR_BYTES};
    enum rf_code code = RF_OK;

    if (tensors == NULL || names == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory");
    for (uint32_t i = 0; code == RF_OK && i < count; i++) {
        int name_bytes = snprintf(names[i], sizeof(names[i]), "tensor.%05" PRIu32, i);

        tensors[i] = (struct st_tensor){.name = names[i],
                                        .name_bytes = (uint32_t)name_bytes,
                                        .dtype = RF_DTYPE_U8,
                                        .ndim = 1,
                                        .shape = shape,
                                        .bytes = START_TENSOR_BYTES};
    }
    if (code == RF_OK)
        code = st_header_write(tensors, count, NULL, 0, out, err);
    free(tensors);
    free(names);
    return code;
}

enum rf_code bench_write(int fd, const uint8_t *data, uint64_t bytes, struct rf_error *err)
{
    while (bytes > 0) {
        ssize_t done = write(fd, data, bytes);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return rf_fail_sys(err, "write the model for the benchmark");
        data += done;
        bytes -= (uint64_t)done;
    }
    return RF_OK;
}

static enum rf_code model_create(const char *where, uint64_t bytes, struct model_file *ret_model,
                                 struct rf_error *err)
{
    struct model_file model = {.bytes = bytes / START_TENSOR_BYTES * START_TENSOR_BYTES};
    BUF_AUTO struct buf header = {.data = NULL};
    enum rf_code code = model_header(model.bytes, &header, err);

    if (code != RF_OK)
        return code;
    snprintf(model.folder, sizeof(model.folder), "%.200s/rfork-bench-XXXXXX", where);
    if (mkdtemp(model.folder) == NULL)
        return rf_fail_sys(err, "make a folder in %s (--folder chooses another place)", where);
    snprintf(model.path, sizeof(model.path), "%s/model.safetensors", model.folder);
    rf_autoclose int fd = open(model.path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    rf_autofree uint8_t *piece = malloc(START_TENSOR_BYTES);
    if (fd < 0)
        code = rf_fail_sys(err, "create %s", model.path);
    else if (piece == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory");
    else
        code = bench_write(fd, header.data, header.bytes, err);
    for (uint64_t at = 0; code == RF_OK && at < model.bytes; at += START_TENSOR_BYTES) {
        memset(piece, (int)(at >> 24), START_TENSOR_BYTES);
        code = bench_write(fd, piece, START_TENSOR_BYTES, err);
    }
    *ret_model = model;
    return code;
}

static void model_remove(const struct model_file *model)
{
    if (model->folder[0] == '\0')
        return;
    (void)unlink(model->path);
    (void)rmdir(model->folder);
}

/* ---- ready ---- */

static enum rf_code ready_once(const struct model_file *model, double *ret_seconds,
                               struct rf_error *err)
{
    char path[300];
    char *words[] = {(char[]){"rfork"},
                     (char[]){"serve"},
                     (char[]){"--mmap"},
                     (char[]){"--port"},
                     (char[]){"0"},
                     (char[]){"--model-path"},
                     path,
                     NULL};
    char url[BENCH_TEXT_BYTES];
    struct program program;

    snprintf(path, sizeof(path), "%s", model->folder);
    uint64_t start_ns = clock_now_ns();
    enum rf_code code = program_start(words, &program, err);
    if (code != RF_OK)
        return code;
    code = program_ready(&program, url, err);
    *ret_seconds = clock_seconds(start_ns, clock_now_ns());
    program_end(&program, SIGTERM);
    return code;
}

static enum rf_code ready_size(struct bench *bench, uint64_t bytes, struct rf_error *err)
{
    struct model_file model = {.bytes = 0};
    char name[BENCH_TEXT_BYTES];
    char text[SIZE_TEXT_BYTES];
    enum rf_code code = model_create(bench->folder, bytes, &model, err);

    if (code == RF_OK) {
        snprintf(name, sizeof(name), "serve --mmap, %s in cache: ready",
                 size_text(model.bytes, text));
        struct bench_result *result = bench_result(bench, name);

        for (unsigned i = 0; code == RF_OK && i < bench->rounds; i++) {
            double seconds = 0;

            code = ready_once(&model, &seconds, err);
            samples_add(&result->samples, seconds);
        }
        bench_judge_most(result, "s", 0.2);
        snprintf(result->note, sizeof(result->note), "from starting the process to its ready line");
    }
    model_remove(&model);
    return code;
}

enum rf_code bench_start(struct bench *bench, struct rf_error *err)
{
    enum rf_code code = ready_size(bench, bench->load_bytes / START_SMALL_PART, err);

    if (code == RF_OK)
        code = ready_size(bench, bench->load_bytes, err);
    return code;
}

/* ---- memory ---- */

static enum rf_code fork_memory(struct bench *bench, const char *url,
                                const struct model_file *model, bool to_folder,
                                struct rf_error *err)
{
    char out[300];
    char url_text[BENCH_TEXT_BYTES];
    char dash_o[] = "-o";
    char *words[] = {(char[]){"rfork"},
                     (char[]){"fork"},
                     (char[]){"--transport"},
                     (char[]){"tcp"},
                     (char[]){"--json"},
                     url_text,
                     NULL,
                     out,
                     NULL};
    struct bench_result *result =
        bench_result(bench, to_folder ? "fork -o: memory" : "fork: memory beside the weights");
    struct program program;

    if (to_folder)
        words[6] = dash_o;
    snprintf(url_text, sizeof(url_text), "%s", url);
    snprintf(out, sizeof(out), "%s/out", model->folder);
    enum rf_code code = program_start(words, &program, err);
    if (code != RF_OK)
        return code;
    /* Its own word: what wait4() reports for a child also counts the parent it was spawned from. */
    double most = program_number(&program, "\"peak_resident_bytes\": ");
    program_end(&program, 0);
    if (most <= 0)
        return rf_fail(err, RF_E_FAILED, "rfork fork %s failed", url);
    samples_add(&result->samples, to_folder ? most : most - (double)model->bytes);
    bench_judge_most(result, "bytes", START_EXTRA_BYTES);
    snprintf(result->note, sizeof(result->note),
             "largest resident set of `rfork fork --transport tcp`%s",
             to_folder ? "; the files are not part of it" : ", less the weights");
    if (to_folder) {
        char file[320];

        snprintf(file, sizeof(file), "%s/model.safetensors", out);
        (void)unlink(file);
        (void)rmdir(out);
    }
    return RF_OK;
}

static enum rf_code seed_memory(struct bench *bench, const struct model_file *model,
                                struct rf_error *err)
{
    char path[300];
    char url[BENCH_TEXT_BYTES];
    char *words[] = {(char[]){"rfork"},
                     (char[]){"serve"},
                     (char[]){"--port"},
                     (char[]){"0"},
                     (char[]){"--model-path"},
                     path,
                     NULL};
    struct program program;

    snprintf(path, sizeof(path), "%s", model->folder);
    enum rf_code code = program_start(words, &program, err);
    if (code != RF_OK)
        return code;
    code = program_ready(&program, url, err);
    if (code == RF_OK)
        code = fork_memory(bench, url, model, false, err);
    if (code == RF_OK)
        code = fork_memory(bench, url, model, true, err);
    if (code == RF_OK) {
        struct bench_result *result = bench_result(bench, "seed: memory beside the weights");

        samples_add(&result->samples,
                    (double)(program_anonymous_memory(&program) + program_shared_memory(&program)) -
                        (double)model->bytes);
        bench_judge_most(result, "bytes", START_EXTRA_BYTES);
        snprintf(result->note, sizeof(result->note),
                 "anonymous and shared memory of `rfork serve` after two forks, less the weights");
    }
    program_end(&program, SIGTERM);
    return code;
}

enum rf_code bench_memory(struct bench *bench, struct rf_error *err)
{
    struct model_file model = {.bytes = 0};
    enum rf_code code = model_create(bench->folder, bench->load_bytes / 4, &model, err);

    if (code == RF_OK)
        code = seed_memory(bench, &model, err);
    model_remove(&model);
    return code;
}
