/* Parses the safetensors files whose paths it reads from its input, one per line, and prints one line
 * for each: "ok" or "refused: <reason>". tests/peers compares that with the reference implementation. */
#include "base/cleanup.h"
#include "format/safetensors.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static enum rf_code check(const char *path, struct rf_error *err)
{
    rf_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct st_header header;
    struct stat st;

    if (fd < 0 || fstat(fd, &st) != 0)
        return rf_fail_sys(err, "open %s", path);
    enum rf_code code = st_header_read(path, fd, (uint64_t)st.st_size, &header, err);
    if (code == RF_OK)
        st_header_free(&header);
    return code;
}

int main(void)
{
    rf_autofree char *line = NULL;
    size_t room = 0;
    ssize_t bytes;

    while ((bytes = getline(&line, &room, stdin)) > 0) {
        struct rf_error err = {.code = RF_OK};

        if (line[bytes - 1] == '\n')
            line[bytes - 1] = '\0';
        if (check(line, &err) == RF_OK)
            puts("ok");
        else
            printf("refused: %s\n", err.text);
        fflush(stdout); /* the other side may wait for each answer */
    }
    return 0;
}
