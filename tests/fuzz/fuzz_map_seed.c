/* What a hostile seed may say to a reader of `map`, with real descriptors among it: the first
 * byte says how many of which kind come with the first bytes, the second how the rest is cut
 * into pieces. Whatever comes, nothing is left open, and a grant that is taken covers its
 * stream. */
#include "transport/map/intake.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FUZZ_FDS = 3, FUZZ_UNIT_BYTES = 4096 };

/* Two that are sealed, of one and two pages, and one that is not. */
static const int *sources(void)
{
    static int fds[FUZZ_FDS] = {-1, -1, -1};

    for (int i = 0; i < FUZZ_FDS && fds[i] < 0; i++) {
        fds[i] = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fds[i] < 0 || ftruncate(fds[i], (off_t)FUZZ_UNIT_BYTES << (i % 2)) != 0 ||
            (i < 2 && fcntl(fds[i], F_ADD_SEALS,
                            F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0))
            abort();
    }
    return fds;
}

static void check_layout(const struct layout *layout, uint64_t stream_bytes)
{
    uint64_t at = 0;
    unsigned sum = 0;

    for (uint32_t i = 0; i < layout->count; i++) {
        const struct segment *segment = &layout->segments[i];
        const uint8_t *data = region_data(segment->region) + segment->region_offset;
        if (segment->stream_offset != at)
            abort();
        at += segment->bytes;
        sum += data[0] + data[segment->bytes - 1]; /* which must be there */
    }
    if (at != stream_bytes || sum != 0)
        abort();
}

static uint32_t feed_fds(uint8_t what, int fds[MAP_MAX_FDS])
{
    uint32_t count = what & 3;

    for (uint32_t i = 0; i < count; i++) {
        fds[i] = fcntl(sources()[(what >> (2 + 2 * i) & 3) % FUZZ_FDS], F_DUPFD_CLOEXEC, 0);
        if (fds[i] < 0)
            abort();
    }
    return count;
}

/* The lowest free descriptor: the same as before when nothing was left open. */
static int next_fd(void)
{
    int fd = fcntl(0, F_DUPFD_CLOEXEC, 0);

    close(fd);
    return fd;
}

static void feed(struct map_intake *intake, const uint8_t *data, size_t len)
{
    size_t most = data[1] == 0 ? len : data[1];
    enum rf_code code = RF_OK;
    struct rf_error err = {0};
    int fds[MAP_MAX_FDS];

    for (size_t at = 2; at < len && code == RF_OK && !map_intake_done(intake);) {
        size_t room = 0;
        uint8_t *to = map_intake_where(intake, &room);
        size_t bytes = len - at < most ? len - at : most;
        bytes = bytes < room ? bytes : room;
        memcpy(to, data + at, bytes);
        code = map_intake_took(intake, bytes, fds, at == 2 ? feed_fds(data[0], fds) : 0, &err);
        at += bytes;
    }
    if (code != RF_OK && (err.code != code || err.text[0] == '\0'))
        abort();
    if (code == RF_OK && map_intake_done(intake) && intake->refused == RF_OK)
        check_layout(&intake->layout, intake->stream_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct map_intake *intake = map_intake_create();

    sources(); /* before the count */
    int before = next_fd();
    if (intake != NULL && len > 2)
        feed(intake, data, len);
    map_intake_destroy(intake);
    if (next_fd() != before)
        abort();
    return 0;
}
