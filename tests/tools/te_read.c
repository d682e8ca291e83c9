/* Reads everything that a map names from a TransferEngine, through the reader's half of `te`:
 *
 *   te_read SESSION [--out FILE] [--sessions N] [--times N] [--data-host ADDR|any] [--timeout-ms N]
 *
 * The map comes on standard input: {"NAME": [ADDRESS, ELEMENTS, ELEMENT_BYTES], ...}, whose order is
 * that of the bytes. Says a line of JSON on standard output: the digest of all bytes, how long each
 * time took and what processor time all of them took, both without the question; --out writes the
 * bytes. Exits with 1 and the reason. */
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json_scan.h"
#include "base/thread.h"
#include "transport/te/te.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { READ_BYTES = 8 << 20, IN_FLIGHT = 4, MAX_SESSIONS = 64, MAX_TIMES = 100 };

struct options {
    const char *session;
    const char *out;
    const char *data_host;
    unsigned sessions;
    unsigned times;
    uint64_t timeout_ms;
};

struct job {
    const struct options *options;
    struct transport_directory *directory;
    uint8_t *to;
    uint64_t bytes;
    _Atomic uint64_t next; /* offset of what nobody has asked yet; relaxed: a counter */
};

static void stop(const struct rf_error *err)
{
    fprintf(stderr, "te_read: %s: %s\n", rf_code_name(err->code), err->text);
    exit(1);
}

/* ---- the map ---- */

static struct te_segment *read_map(uint64_t *ret_count, uint64_t *ret_bytes)
{
    struct buf text = {.bytes = 0};
    struct arena arena = {.head = NULL};
    struct te_segment *segments = NULL;
    struct json_scan scan;
    struct json_text key;
    uint64_t count = 0;
    uint64_t offset = 0;
    bool first = true;
    char part[65536];

    for (size_t got; (got = fread(part, 1, sizeof part, stdin)) > 0;)
        buf_append(&text, part, got);
    json_scan_init(&scan, text.data, text.bytes, &arena);
    json_take(&scan, '{', "expected an object");
    while (json_item(&scan, '}', &first)) {
        uint64_t address = 0;
        uint64_t elements = 0;
        uint64_t each = 0;
        bool ok = json_key(&scan, &key) && json_take(&scan, '[', "[") &&
                  json_u64(&scan, &address) && json_take(&scan, ',', ",") &&
                  json_u64(&scan, &elements) && json_take(&scan, ',', ",") &&
                  json_u64(&scan, &each) && json_take(&scan, ']', "]");
        if (!ok)
            break;
        if ((count & (count - 1)) == 0)
            segments = realloc(segments, (count > 0 ? count * 2 : 1) * sizeof *segments);
        if (segments == NULL)
            abort();
        segments[count++] = (struct te_segment){
            .stream_offset = offset, .bytes = elements * each, .address = address};
        offset += elements * each;
    }
    if (scan.problem != NULL) {
        fprintf(stderr, "te_read: the map: %s, at byte %zu\n", scan.problem,
                (size_t)(scan.at - scan.start));
        exit(1);
    }
    arena_free(&arena);
    buf_free(&text);
    *ret_count = count;
    *ret_bytes = offset;
    return segments;
}

/* ---- reading ---- */

struct slot {
    struct sink sink;
    struct read read;
    struct stream_range range;
    uint8_t *to;
    uint64_t done;
};

static int slot_where(struct sink *sink, struct iovec *iov, int max, uint64_t *ret_bytes)
{
    struct slot *slot = (struct slot *)sink;

    (void)max;
    *ret_bytes = slot->read.bytes - slot->done;
    iov[0] = (struct iovec){.iov_base = slot->to + slot->done, .iov_len = *ret_bytes};
    return 1;
}

static enum rf_code slot_took(struct sink *sink, uint64_t bytes, struct rf_error *err)
{
    struct slot *slot = (struct slot *)sink;

    (void)err;
    slot->done += bytes;
    return RF_OK;
}

/* The next piece of the stream into this slot; false when there is none. */
static bool slot_begin(struct job *job, struct slot *slot)
{
    uint64_t offset = atomic_fetch_add_explicit(&job->next, READ_BYTES, memory_order_relaxed);

    if (offset >= job->bytes)
        return false;
    uint64_t bytes = job->bytes - offset < READ_BYTES ? job->bytes - offset : READ_BYTES;
    *slot = (struct slot){.sink = {.where = slot_where, .took = slot_took},
                          .range = {.offset = offset, .bytes = bytes, .count = 1},
                          .to = job->to + offset};
    slot->read = (struct read){.ranges = &slot->range,
                               .range_count = 1,
                               .bytes = bytes,
                               .sink = &slot->sink,
                               .user = slot};
    return true;
}

static enum rf_code read_some(void *ctx, uint64_t item, struct rf_error *err)
{
    struct job *job = ctx;
    const struct transport_open_options options = {.timeout_ms = job->options->timeout_ms,
                                                   .cancel_fd = -1,
                                                   .connections = job->options->sessions,
                                                   .directory = job->directory};
    const struct endpoint endpoint = {.transport = "te"};
    struct transport_session *session = NULL;
    struct slot slots[IN_FLIGHT];
    unsigned busy = 0;

    (void)item;
    enum rf_code code = te_session_open(&endpoint, &options, &session, err);
    for (; code == RF_OK && busy < IN_FLIGHT && slot_begin(job, &slots[busy]); busy++)
        code = te_session_submit(session, &slots[busy].read, err);
    while (code == RF_OK && busy > 0) {
        struct read *done = NULL;

        code = te_session_progress(session, clock_deadline_ns(600 * 1000), &done, err);
        if (code != RF_OK)
            break;
        if (done->code != RF_OK) {
            *err = done->error;
            code = done->code;
        } else if (slot_begin(job, done->user)) {
            code = te_session_submit(session, done, err);
        } else {
            busy--;
        }
    }
    te_session_close(session);
    return code;
}

static double cpu_seconds(void)
{
    struct rusage usage;

    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void read_all(struct job *job)
{
    double seconds[MAX_TIMES] = {0};
    uint8_t digest[HASH_MAX_BYTES];
    char text[HASH_TEXT_BYTES];
    struct rf_error err = {0};
    double cpu = 0;

    for (unsigned i = 0; i < job->options->times; i++) {
        memset(job->to, 0xee, job->bytes); /* touched, and not what it should become */
        atomic_store_explicit(&job->next, 0, memory_order_relaxed);
        double cpu_before = cpu_seconds();
        uint64_t begin_ns = clock_now_ns();
        if (thread_parallel(job->options->sessions, job->options->sessions, read_some, job, &err) !=
            RF_OK)
            stop(&err);
        seconds[i] = clock_seconds(begin_ns, clock_now_ns());
        cpu += cpu_seconds() - cpu_before;
    }
    hash_once(HASH_XXH3_128, job->to, job->bytes, digest);
    printf("{\"bytes\":%" PRIu64 ",\"digest\":\"%s\",\"cpu_seconds\":%.3f,\"seconds\":[",
           job->bytes, hash_text(HASH_XXH3_128, digest, text), cpu);
    for (unsigned i = 0; i < job->options->times; i++)
        printf("%s%.4f", i > 0 ? "," : "", seconds[i]);
    printf("]}\n");
}

static void write_out(const struct job *job)
{
    FILE *file = fopen(job->options->out, "wb");

    if (file == NULL || fwrite(job->to, 1, job->bytes, file) != job->bytes || fclose(file) != 0) {
        fprintf(stderr, "te_read: %s: %s\n", job->options->out, strerror(errno));
        exit(1);
    }
}

/* ---- options ---- */

static uint64_t number(const char *text, uint64_t max)
{
    char *end = NULL;
    unsigned long long value = strtoull(text, &end, 10);

    if (*text == '\0' || *end != '\0' || value == 0 || value > max) {
        fprintf(stderr, "te_read: \"%s\" is not a number from 1 to %" PRIu64 "\n", text, max);
        exit(2);
    }
    return value;
}

static struct options parse(int argc, char **argv)
{
    struct options options = {.session = argc > 1 ? argv[1] : NULL, .sessions = 1, .times = 1};

    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--out") == 0)
            options.out = argv[i + 1];
        else if (strcmp(argv[i], "--data-host") == 0)
            options.data_host = argv[i + 1];
        else if (strcmp(argv[i], "--sessions") == 0)
            options.sessions = (unsigned)number(argv[i + 1], MAX_SESSIONS);
        else if (strcmp(argv[i], "--times") == 0)
            options.times = (unsigned)number(argv[i + 1], MAX_TIMES);
        else if (strcmp(argv[i], "--timeout-ms") == 0)
            options.timeout_ms = number(argv[i + 1], UINT32_MAX);
        else
            options.session = NULL;
    }
    if (options.session == NULL || argc % 2 != 0) {
        fprintf(stderr, "usage: te_read SESSION [--out FILE] [--sessions N] [--times N]\n"
                        "               [--data-host ADDR|any] [--timeout-ms N] < MAP\n");
        exit(2);
    }
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    const struct te_reach reach = {
        .timeout_ms = options.timeout_ms, .cancel_fd = -1, .allowed_hosts = options.data_host};
    struct job job = {.options = &options};
    struct rf_error err = {0};
    uint64_t count = 0;

    rf_autofree struct te_segment *segments = read_map(&count, &job.bytes);
    if (te_directory_open(options.session, &reach, &job.directory, &err) != RF_OK ||
        te_directory_set_rank(job.directory, 0, segments, count, job.bytes, &err) != RF_OK)
        stop(&err);
    job.to = malloc(job.bytes + 1);
    if (job.to == NULL)
        abort();
    read_all(&job);
    if (options.out != NULL)
        write_out(&job);
    te_directory_close(job.directory);
    free(job.to);
    return 0;
}
