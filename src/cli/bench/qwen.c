/* A model folder in the shape of Qwen3, of about so many bytes: something that there is a plan for.
 */
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/rand.h"
#include "cli/bench/bench.h"
#include "format/safetensors.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    QWEN_LAYER_TENSORS = 11,
    QWEN_OTHER_TENSORS = 3,
    QWEN_MIN_LAYERS = 2,
    QWEN_NAME_BYTES = 64,
    QWEN_PIECE_BYTES = 16 << 20, /* written at once */
    QWEN_ELEMENT_BYTES = 2,      /* BF16 */
};

/* From the largest on; the last two are not published ones. Layers are added until it is enough. */
static const struct qwen family[] = {
    {.hidden = 2048,
     .intermediate = 6144,
     .heads = 16,
     .kv_heads = 8,
     .head_dim = 128,
     .vocab = 151936},
    {.hidden = 1024,
     .intermediate = 3072,
     .heads = 16,
     .kv_heads = 8,
     .head_dim = 128,
     .vocab = 32768},
    {.hidden = 512, .intermediate = 1536, .heads = 8, .kv_heads = 4, .head_dim = 64, .vocab = 2048},
};

struct matrix {
    char name[QWEN_NAME_BYTES];
    uint64_t shape[2];
};

struct tensors {
    struct matrix *matrices;
    struct st_tensor *tensors;
    uint32_t count;
};

/* columns 0: a vector. */
static void add(struct tensors *tensors, uint64_t rows, uint64_t columns, const char *name)
{
    struct matrix *matrix = &tensors->matrices[tensors->count];

    *matrix = (struct matrix){.shape = {rows, columns}};
    snprintf(matrix->name, sizeof(matrix->name), "%s", name);
    tensors->tensors[tensors->count++] = (struct st_tensor){
        .name = matrix->name,
        .name_bytes = (uint32_t)strlen(matrix->name),
        .dtype = RF_DTYPE_BF16,
        .ndim = columns > 0 ? 2 : 1,
        .shape = matrix->shape,
        .bytes = rows * (columns > 0 ? columns : 1) * QWEN_ELEMENT_BYTES,
    };
}

static void add_layer(struct tensors *tensors, const struct qwen *qwen, uint64_t layer)
{
    uint64_t q_size = qwen->heads * qwen->head_dim;
    uint64_t kv_size = qwen->kv_heads * qwen->head_dim;
    const struct {
        const char *name;
        uint64_t rows, columns;
    } parts[QWEN_LAYER_TENSORS] = {
        {"input_layernorm", qwen->hidden, 0},
        {"self_attn.q_proj", q_size, qwen->hidden},
        {"self_attn.k_proj", kv_size, qwen->hidden},
        {"self_attn.v_proj", kv_size, qwen->hidden},
        {"self_attn.o_proj", qwen->hidden, q_size},
        {"self_attn.q_norm", qwen->head_dim, 0},
        {"self_attn.k_norm", qwen->head_dim, 0},
        {"post_attention_layernorm", qwen->hidden, 0},
        {"mlp.gate_proj", qwen->intermediate, qwen->hidden},
        {"mlp.up_proj", qwen->intermediate, qwen->hidden},
        {"mlp.down_proj", qwen->hidden, qwen->intermediate},
    };

    for (unsigned i = 0; i < QWEN_LAYER_TENSORS; i++) {
        char name[QWEN_NAME_BYTES];

        snprintf(name, sizeof(name), "model.layers.%" PRIu64 ".%s.weight", layer, parts[i].name);
        add(tensors, parts[i].rows, parts[i].columns, name);
    }
}

static enum rf_code list_tensors(const struct qwen *qwen, struct tensors *tensors,
                                 struct rf_error *err)
{
    size_t room = qwen->layers * QWEN_LAYER_TENSORS + QWEN_OTHER_TENSORS;

    tensors->matrices = calloc(room, sizeof(*tensors->matrices));
    tensors->tensors = calloc(room, sizeof(*tensors->tensors));
    if (tensors->matrices == NULL || tensors->tensors == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %zu tensors", room);
    add(tensors, qwen->vocab, qwen->hidden, "model.embed_tokens.weight");
    for (uint64_t i = 0; i < qwen->layers; i++)
        add_layer(tensors, qwen, i);
    add(tensors, qwen->hidden, 0, "model.norm.weight");
    add(tensors, qwen->vocab, qwen->hidden, "lm_head.weight");
    return RF_OK;
}

/* Which of the family, and how many layers of it, come closest from below. */
static void choose(uint64_t bytes, struct qwen *qwen)
{
    uint64_t row_bytes = 0;

    for (unsigned i = 0; i < sizeof(family) / sizeof(family[0]); i++) {
        *qwen = family[i];
        uint64_t q_size = qwen->heads * qwen->head_dim;
        uint64_t kv_size = qwen->kv_heads * qwen->head_dim;
        uint64_t vectors = 2 * qwen->hidden + 2 * qwen->head_dim;
        uint64_t columns = (q_size + 2 * kv_size + 2 * qwen->intermediate) * qwen->hidden;
        uint64_t layer_bytes;
        uint64_t rest = (2 * qwen->vocab + 1) * qwen->hidden * QWEN_ELEMENT_BYTES;

        row_bytes = (q_size + qwen->intermediate) * qwen->hidden * QWEN_ELEMENT_BYTES;
        layer_bytes = (columns + vectors) * QWEN_ELEMENT_BYTES + row_bytes;
        qwen->layers = bytes > rest ? (bytes - rest) / layer_bytes : 0;
        qwen->bytes = rest + qwen->layers * layer_bytes;
        if (qwen->layers >= QWEN_MIN_LAYERS)
            break;
    }
    qwen->row_bytes = qwen->layers * row_bytes;
}

static int create_file(const struct qwen *qwen, const char *name, struct rf_error *err)
{
    char path[300];

    snprintf(path, sizeof(path), "%s/%s", qwen->folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        rf_fail_sys(err, "create %s", path);
    return fd;
}

static enum rf_code write_config(const struct qwen *qwen, struct rf_error *err)
{
    BUF_AUTO struct buf text = {.data = NULL};
    rf_autoclose int fd = create_file(qwen, "config.json", err);

    if (fd < 0)
        return RF_E_SYS;
    buf_printf(&text,
               "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\",\n"
               " \"dtype\": \"bfloat16\", \"tie_word_embeddings\": false,\n"
               " \"num_hidden_layers\": %" PRIu64 ", \"hidden_size\": %" PRIu64 ",\n"
               " \"intermediate_size\": %" PRIu64 ", \"num_attention_heads\": %" PRIu64 ",\n"
               " \"num_key_value_heads\": %" PRIu64 ", \"head_dim\": %" PRIu64 ",\n"
               " \"vocab_size\": %" PRIu64 "}\n",
               qwen->layers, qwen->hidden, qwen->intermediate, qwen->heads, qwen->kv_heads,
               qwen->head_dim, qwen->vocab);
    if (text.failed)
        return rf_fail(err, RF_E_NOMEM, "no memory for a config.json");
    return bench_write(fd, text.data, text.bytes, err);
}

static enum rf_code write_weights(const struct qwen *qwen, struct rf_error *err)
{
    struct tensors tensors = {.count = 0};
    BUF_AUTO struct buf header = {.data = NULL};
    struct rand_seq seq = {.state = 1};
    rf_autoclose int fd = create_file(qwen, "model.safetensors", err);
    rf_autofree uint64_t *piece = malloc(QWEN_PIECE_BYTES);
    enum rf_code code = fd >= 0 ? list_tensors(qwen, &tensors, err) : RF_E_SYS;

    if (code == RF_OK && piece == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory for %d bytes", QWEN_PIECE_BYTES);
    if (code == RF_OK)
        code = st_header_write(tensors.tensors, tensors.count, NULL, 0, &header, err);
    free(tensors.matrices);
    free(tensors.tensors);
    if (code == RF_OK)
        code = bench_write(fd, header.data, header.bytes, err);
    for (size_t i = 0; code == RF_OK && i < QWEN_PIECE_BYTES / sizeof(*piece); i++)
        piece[i] = rand_next(&seq);
    for (uint64_t at = 0; code == RF_OK && at < qwen->bytes; at += QWEN_PIECE_BYTES) {
        uint64_t left = qwen->bytes - at;

        piece[0] = at; /* no two pieces are the same */
        code = bench_write(fd, (const uint8_t *)piece,
                           left < QWEN_PIECE_BYTES ? left : QWEN_PIECE_BYTES, err);
    }
    /* Or it would be written while something is timed. */
    if (code == RF_OK && fdatasync(fd) != 0)
        code = rf_fail_sys(err, "write the model for the benchmark");
    return code;
}

enum rf_code qwen_create(const char *where, uint64_t bytes, struct qwen *ret_qwen,
                         struct rf_error *err)
{
    choose(bytes, ret_qwen);
    snprintf(ret_qwen->folder, sizeof(ret_qwen->folder), "%.200s/rfork-bench-XXXXXX", where);
    if (mkdtemp(ret_qwen->folder) == NULL) {
        ret_qwen->folder[0] = '\0';
        return rf_fail_sys(err, "make a folder in %s (--folder chooses another place)", where);
    }
    enum rf_code code = write_config(ret_qwen, err);
    return code == RF_OK ? write_weights(ret_qwen, err) : code;
}

void qwen_remove(const struct qwen *qwen)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    char path[300];

    if (qwen->folder[0] == '\0')
        return;
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", qwen->folder, names[i]);
        (void)unlink(path);
    }
    (void)rmdir(qwen->folder);
}
