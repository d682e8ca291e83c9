/* Runs every file of the given directories through a fuzz target once, with any compiler: what the
 * fuzzer ever found stays found, also where there is no libFuzzer. An empty corpus is a failure,
 * since a test that checks nothing must not pass. */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Returns 1 when the file was replayed, 0 when it is not a regular file, -1 on failure. */
static int replay_file(const char *path)
{
    struct stat st;

    if (stat(path, &st) != 0)
        return -1;
    if (!S_ISREG(st.st_mode))
        return 0;

    FILE *in = fopen(path, "rb");
    if (in == NULL)
        return -1;

    /* Exactly as large as the input, so that the sanitizer sees the first byte read beyond it. */
    size_t len = (size_t)st.st_size;
    uint8_t *data = malloc(len > 0 ? len : 1);
    size_t got = data != NULL ? fread(data, 1, len, in) : 0;
    int done = data != NULL && got == len ? 1 : -1;
    if (done == 1)
        LLVMFuzzerTestOneInput(data, len);
    free(data);
    (void)fclose(in);
    return done;
}

/* Returns the number of files replayed, -1 on failure. */
static long replay_dir(const char *dir_path)
{
    DIR *dir = opendir(dir_path);
    long count = 0;

    if (dir == NULL) {
        (void)fprintf(stderr, "%s: %s\n", dir_path, strerror(errno));
        return -1;
    }
    for (const struct dirent *entry = readdir(dir); entry != NULL && count >= 0;
         entry = readdir(dir)) {
        char *path = NULL;
        if (asprintf(&path, "%s/%s", dir_path, entry->d_name) < 0)
            abort();
        int done = replay_file(path);
        if (done < 0)
            (void)fprintf(stderr, "%s: cannot be read\n", path);
        count = done < 0 ? -1 : count + done;
        free(path);
    }
    (void)closedir(dir);
    return count;
}

int main(int argc, char **argv)
{
    long total = 0;

    for (int i = 1; i < argc; i++) {
        long count = replay_dir(argv[i]);
        if (count < 0)
            return 1;
        total += count;
    }
    printf("%ld inputs replayed\n", total);
    if (total == 0) {
        (void)fprintf(stderr, "empty corpus: nothing was checked\n");
        return 1;
    }
    return 0;
}
