/* A model on disk: a Hugging Face folder (one safetensors file, or shards with
 * model.safetensors.index.json, and side files), or one .safetensors file alone. */
#ifndef FORMAT_MODEL_FOLDER_H
#define FORMAT_MODEL_FOLDER_H

#include "format/safetensors.h"

enum {
    FOLDER_MAX_FILES = 10000,
    FOLDER_MAX_SIDE_BYTES = 64 << 20, /* a larger side file is left out, and said so */
};

enum folder_file_kind { FOLDER_WEIGHTS, FOLDER_SIDE };

struct folder_file {
    const char *name; /* relative to the folder, '/' between parts, never absolute, no ".." */
    enum folder_file_kind kind;
    int fd; /* O_RDONLY | O_CLOEXEC; -1 for side files, which are opened when read */
    uint64_t bytes;
    struct st_header header; /* of FOLDER_WEIGHTS */
};

struct model_folder {
    char *path;                /* as given, without '/' at its end */
    struct folder_file *files; /* weights first, in the order of their names; then side files */
    uint32_t file_count;
    uint32_t weights_count;
    uint64_t weights_bytes; /* files, headers included */
    uint64_t side_bytes;
    struct arena arena;
};

/* Opens the folder or file and reads all headers (in parallel when there are several). Which
 * weight files belong to the model: those the index names, if there is one (each tensor must be
 * where the index says; a tensor in a shard that the index does not name, or the reverse, is an
 * error); else model.safetensors; else the only *.safetensors there. Side files: every other
 * regular file in the folder and one level of sub-folders up to FOLDER_MAX_SIDE_BYTES (not
 * hidden ones, not other weight formats such as .bin .pt .pth .gguf .h5 .msgpack .onnx .ot, not
 * *.safetensors), with symlinks followed when they lead to a regular file (Hugging Face caches
 * are made of them). The index itself is a side file. Errors: RF_E_FORMAT (missing shard, tensor
 * in two shards, header bad: file, tensor and numbers named), RF_E_SYS, RF_E_NOMEM. Close with
 * model_folder_close(). */
enum rf_code model_folder_open(const char *path, struct model_folder *ret_folder,
                               struct rf_error *err);
/* The same, but a folder without any *.safetensors is one with side files alone (weights_count 0). */
enum rf_code model_folder_open_any(const char *path, struct model_folder *ret_folder,
                                   struct rf_error *err);
void model_folder_close(struct model_folder *folder);

/* Whole content of a side file, NUL-terminated beyond *ret_bytes; the caller frees it. Errors:
 * RF_E_CHANGED (its size is no longer what it was at opening), RF_E_INVAL (not a side file),
 * RF_E_SYS, RF_E_NOMEM. Any thread. */
enum rf_code model_folder_read(const struct model_folder *folder, const struct folder_file *file,
                               char **ret_data, size_t *ret_bytes, struct rf_error *err);

/* A weight file's first header.data_offset bytes, its length and header, into data. Errors:
 * RF_E_CHANGED (it is shorter by now), RF_E_SYS. Any thread. */
enum rf_code model_folder_header(const struct folder_file *file, uint8_t *data,
                                 struct rf_error *err);

/* Whether a relative name from a peer or an index may be used as a path below a folder: parts
 * not empty, not "." or "..", no control characters, no backslash, valid UTF-8, at most
 * RF_MAX_NAME_BYTES, not absolute. */
bool folder_name_ok(const char *name);

/* Writes a model folder so that it is never mistaken for one before it is complete: files go into a
 * temporary folder beside `path`; commit() makes them durable and renames it into place. */
struct folder_writer;

/* path must not exist, or be an empty folder. Errors: RF_E_INVAL (exists and is not empty: says
 * so), RF_E_SYS. A writer is used by one thread at a time. A process that is killed leaves the
 * temporary folder `<path>.rfork-partial-<pid>-<random>` behind, which may be removed. */
enum rf_code folder_writer_create(const char *path, struct folder_writer **ret_writer,
                                  struct rf_error *err);
/* Whether folder_writer_create() would do it as things are now; makes nothing. */
enum rf_code folder_writer_check(const char *path, struct rf_error *err);
/* Creates a file of that size (space reserved: RF_E_NOMEM names the bytes wanted and free when
 * the disk is full) and returns a read-write descriptor that the writer owns until commit or
 * destroy. */
enum rf_code folder_writer_file(struct folder_writer *writer, const char *name, uint64_t bytes,
                                int *ret_fd, struct rf_error *err);
/* Flushes to disk if `durable`, closes, renames into place. */
enum rf_code folder_writer_commit(struct folder_writer *writer, bool durable, struct rf_error *err);
/* Removes the temporary folder unless committed. NULL is fine. Async-signal-unsafe. */
void folder_writer_destroy(struct folder_writer *writer);

#endif
