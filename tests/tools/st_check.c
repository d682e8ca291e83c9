/* Reads paths of safetensors files, one per line, and answers each with one line on standard
 * output:
 *
 *   ok NAME:DTYPE:SHAPE:OFFSET:BYTES ...   NAME in hexadecimal, SHAPE as 2,3 or empty, by offset
 *   refused: REASON
 *
 * Thousands of files in one process: for tests that compare our parser with other software. */
#include "base/cleanup.h"
#include "format/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static void print_header(const struct st_header *header)
{
    fputs("ok", stdout);
    for (uint32_t i = 0; i < header->tensor_count; i++) {
        const struct st_tensor *tensor = &header->tensors[i];

        putchar(' ');
        for (uint32_t k = 0; k < tensor->name_bytes; k++)
            printf("%02x", (unsigned char)tensor->name[k]);
        printf(":%s:", rf_dtype_name(tensor->dtype));
        for (uint32_t k = 0; k < tensor->ndim; k++)
            printf("%s%" PRIu64, k == 0 ? "" : ",", tensor->shape[k]);
        printf(":%" PRIu64 ":%" PRIu64, tensor->offset, tensor->bytes);
    }
    putchar('\n');
}

/* Returns false if the file could not be looked at: that is no verdict on its contents. */
static bool check_file(const char *path)
{
    rf_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct rf_error err;
    struct st_header header;
    struct stat st;

    if (fd < 0 || fstat(fd, &st) != 0) {
        fprintf(stderr, "st_check: %s: %s\n", path, strerror(errno));
        return false;
    }
    if (st_header_read(path, fd, (uint64_t)st.st_size, &header, &err) != RF_OK) {
        printf("refused: %s\n", err.text);
        return true;
    }
    print_header(&header);
    st_header_free(&header);
    return true;
}

int main(void)
{
    rf_autofree char *line = NULL;
    size_t room = 0;

    for (;;) {
        ssize_t bytes = getline(&line, &room, stdin);

        if (bytes < 0)
            break;
        if (line[bytes - 1] == '\n')
            line[bytes - 1] = '\0';
        if (!check_file(line))
            return EXIT_FAILURE;
    }
    return fflush(stdout) == 0 && ferror(stdin) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
