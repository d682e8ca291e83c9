/* What `map` promises beyond what every transport does: the same pages, read-only for good, for
 * the same user alone. */
#include "base/cleanup.h"
#include "base/clock.h"
#include "util/rig.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

extern const struct transport transport_map;

enum { STREAM_BYTES = 3 * 1000 * 1000 + 7, STRANGER_UID = 65534, OTHER_UID = 1234, GRANTS = 300 };

struct fixture {
    struct rig rig;
    struct transport_seed *seed;
    struct endpoint endpoint;
};

static enum rf_code seed_begin(struct fixture *fixture,
                               const struct transport_seed_options *options, struct rf_error *err)
{
    static const struct transport_seed_options none = {0};

    return transport_map.seed_start(&fixture->rig.exporter, options != NULL ? options : &none,
                                    &fixture->seed, &fixture->endpoint, err);
}

static struct fixture *begin(uint32_t ranks, uint64_t stream_bytes, unsigned regions,
                             const struct transport_seed_options *options)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    struct rf_error err = {0};

    assert_non_null(fixture);
    rig_init(&fixture->rig, ranks, stream_bytes, regions);
    if (seed_begin(fixture, options, &err) != RF_OK)
        fail_msg("seed_start: %s", err.text);
    return fixture;
}

static void seed_end(struct fixture *fixture)
{
    transport_map.seed_stop(rf_take(fixture->seed, NULL));
}

static void end(struct fixture *fixture)
{
    seed_end(fixture);
    assert_true(rig_wait_leases(&fixture->rig, 0));
    rig_free(&fixture->rig);
    free(fixture);
}

static enum rf_code try_open(struct fixture *fixture, struct transport_session **ret_session,
                             struct rf_error *err)
{
    struct transport_open_options options = {.timeout_ms = 5000, .cancel_fd = -1};

    memcpy(options.token, fixture->rig.token, sizeof options.token);
    return transport_map.open(&fixture->endpoint, &options, ret_session, err);
}

static struct transport_session *open_session(struct fixture *fixture)
{
    struct transport_session *session = NULL;
    struct rf_error err = {0};

    if (try_open(fixture, &session, &err) != RF_OK)
        fail_msg("open: %s", err.text);
    return session;
}

static struct transport_mapping map_rank(struct transport_session *session, uint32_t rank,
                                         uint64_t bytes)
{
    struct transport_mapping mapping = {0};
    struct rf_error err = {0};

    if (transport_map.map(session, rank, bytes, &mapping, &err) != RF_OK)
        fail_msg("map: %s", err.text);
    assert_int_equal(mapping.bytes, bytes);
    assert_int_equal(mapping.layout.stream_bytes, bytes);
    return mapping;
}

static void assert_same(const struct layout *layout, const struct rig_rank *rank)
{
    for (uint32_t i = 0; i < layout->count; i++) {
        const struct segment *segment = &layout->segments[i];
        assert_memory_equal(region_data(segment->region) + segment->region_offset,
                            rank->bytes + segment->stream_offset, segment->bytes);
    }
}

static void mapped_bytes_are_the_seeds(void **state)
{
    struct fixture *fixture = begin(3, STREAM_BYTES, 5, NULL);
    struct transport_session *session = open_session(fixture);

    (void)state;
    for (uint32_t rank = 0; rank < 3; rank++) {
        struct transport_mapping mapping = map_rank(session, rank, STREAM_BYTES);
        assert_true(mapping.layout.count > 5);
        assert_same(&mapping.layout, &fixture->rig.ranks[rank]);
        layout_free(&mapping.layout);
    }
    assert_true(rig_wait_bytes(&fixture->rig, 3 * (uint64_t)STREAM_BYTES));
    assert_int_equal(rig_leases_taken(&fixture->rig), 1);
    assert_true(rig_wait_leases(&fixture->rig, 1));
    transport_map.close(session);
    end(fixture);
}

static void a_rank_without_bytes_can_be_mapped(void **state)
{
    struct fixture *fixture = begin(1, 0, 1, NULL);
    struct transport_session *session = open_session(fixture);
    struct transport_mapping mapping = map_rank(session, 0, 0);

    (void)state;
    assert_int_equal(mapping.layout.count, 0);
    layout_free(&mapping.layout);
    transport_map.close(session);
    end(fixture);
}

static void copied_bytes_are_the_seeds(void **state)
{
    const struct stream_range ranges[] = {
        {.offset = 100, .bytes = 7, .stride = 1001, .count = 900},
        {.offset = 0, .bytes = 2500000, .count = 1},
        {.offset = STREAM_BYTES - 1, .bytes = 1, .count = 1},
    };
    const uint64_t bytes = 7 * 900 + 2500000 + 1;
    struct fixture *fixture = begin(2, STREAM_BYTES, 3, NULL);
    struct transport_session *session = open_session(fixture);
    rf_autofree uint8_t *got = malloc(bytes);
    const uint8_t *from = fixture->rig.ranks[1].bytes;
    struct rf_error err = {0};

    (void)state;
    assert_non_null(got);
    if (rig_read(&transport_map, session, 1, ranges, 3, got, &err) != RF_OK)
        fail_msg("%s", err.text);
    for (unsigned i = 0; i < 900; i++)
        assert_memory_equal(got + (size_t)7 * i, from + 100 + (size_t)1001 * i, 7);
    assert_memory_equal(got + 6300, from, 2500000);
    assert_int_equal(got[bytes - 1], from[STREAM_BYTES - 1]);
    transport_map.close(session);
    end(fixture);
}

static void a_read_beyond_the_stream_fails_alone(void **state)
{
    const struct stream_range beyond = {.offset = STREAM_BYTES - 4, .bytes = 5, .count = 1};
    const struct stream_range last = {.offset = STREAM_BYTES - 4, .bytes = 4, .count = 1};
    struct fixture *fixture = begin(1, STREAM_BYTES, 1, NULL);
    struct transport_session *session = open_session(fixture);
    struct rf_error err = {0};
    uint8_t got[5];

    (void)state;
    assert_int_equal(rig_read(&transport_map, session, 0, &beyond, 1, got, &err), RF_E_INVAL);
    assert_non_null(strstr(err.text, "rank 0"));
    assert_int_equal(rig_read(&transport_map, session, 7, &last, 1, got, &err), RF_E_INVAL);
    assert_non_null(strstr(err.text, "rank 7, the seed has 1"));
    assert_int_equal(rig_read(&transport_map, session, 0, &last, 1, got, &err), RF_OK);
    transport_map.close(session);
    end(fixture);
}

static void a_sink_that_fails_ends_its_read_alone(void **state)
{
    const struct stream_range all = {.bytes = STREAM_BYTES, .count = 1};
    struct fixture *fixture = begin(1, STREAM_BYTES, 1, NULL);
    struct transport_session *session = open_session(fixture);
    rf_autofree uint8_t *got = malloc(STREAM_BYTES);
    struct rf_error err = {0};
    struct read *done = NULL;
    struct rig_sink sink;
    struct read read = {
        .ranges = &all, .range_count = 1, .bytes = STREAM_BYTES, .sink = &sink.sink};

    (void)state;
    assert_non_null(got);
    rig_sink_init(&sink, got, STREAM_BYTES);
    sink.fail_code = RF_E_SYS;
    sink.fail_after = STREAM_BYTES / 2;
    assert_int_equal(transport_map.submit(session, &read, &err), RF_OK);
    assert_int_equal(transport_map.progress(session, clock_deadline_ns(5000), &done, &err), RF_OK);
    assert_ptr_equal(done, &read);
    assert_int_equal(read.code, RF_E_SYS);
    assert_true(sink.done < STREAM_BYTES);
    assert_int_equal(rig_read(&transport_map, session, 0, &all, 1, got, &err), RF_OK);
    assert_memory_equal(got, fixture->rig.ranks[0].bytes, STREAM_BYTES);
    transport_map.close(session);
    end(fixture);
}

/* ---- read-only for good ---- */

static void on_fault(int signal_number)
{
    _exit(signal_number == SIGSEGV ? 42 : 43);
}

static int wait_exit(pid_t child)
{
    int status = 0;

    while (waitpid(child, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_write_through_a_mapping_faults_and_never_reaches_the_seed(void **state)
{
    struct fixture *fixture = begin(1, 1 << 20, 1, NULL);
    struct transport_session *session = open_session(fixture);
    struct transport_mapping mapping = map_rank(session, 0, 1 << 20);
    const uint8_t *data = region_data(mapping.layout.segments[0].region);

    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        union {
            const uint8_t *in;
            volatile uint8_t *out;
        } at = {.in = data};
        (void)signal(SIGSEGV, on_fault);
        *at.out ^= 1;
        _exit(0);
    }
    assert_int_equal(wait_exit(child), 42);
    assert_same(&fixture->rig.ranks[0].layout, &fixture->rig.ranks[0]);
    layout_free(&mapping.layout);
    transport_map.close(session);
    end(fixture);
}

/* Neither the descriptor we were given, nor one opened anew for writing, as its owner may. */
static void no_way_to_write_is_left_to_a_reader(void **state)
{
    struct fixture *fixture = begin(1, 1 << 20, 1, NULL);
    struct transport_session *session = open_session(fixture);
    struct transport_mapping mapping = map_rank(session, 0, 1 << 20);
    int fd = region_fd(mapping.layout.segments[0].region);
    char path[64];

    (void)state;
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    rf_autoclose int writable = open(path, O_RDWR | O_CLOEXEC);
    if (writable >= 0) {
        assert_int_equal(pwrite(writable, "x", 1, 0), -1);
        assert_int_equal(errno, EPERM);
        assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0),
                         MAP_FAILED);
        assert_int_equal(ftruncate(writable, 0), -1);
        assert_int_equal(ftruncate(writable, 2 << 20), -1);
        assert_int_equal(fallocate(writable, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096),
                         -1);
    }
    assert_same(&fixture->rig.ranks[0].layout, &fixture->rig.ranks[0]);
    layout_free(&mapping.layout);
    transport_map.close(session);
    end(fixture);
}

static void a_mapping_outlives_session_and_seed(void **state)
{
    const struct stream_range first = {.bytes = 1, .count = 1};
    struct fixture *fixture = begin(1, STREAM_BYTES, 2, NULL);
    struct transport_session *session = open_session(fixture);
    struct transport_mapping mapping = map_rank(session, 0, STREAM_BYTES);
    struct rf_error err = {0};
    uint8_t got = 0;

    (void)state;
    assert_int_equal(rig_read(&transport_map, session, 0, &first, 1, &got, &err), RF_OK);
    assert_int_equal(got, fixture->rig.ranks[0].bytes[0]);
    seed_end(fixture);
    /* Reads end with the seed, as on any transport, although the pages are still there. */
    assert_int_equal(rig_read(&transport_map, session, 0, &first, 1, &got, &err), RF_E_UNREACHABLE);
    assert_int_equal(rig_read(&transport_map, session, 0, &first, 1, &got, &err), RF_E_UNREACHABLE);
    transport_map.close(session);
    assert_same(&mapping.layout, &fixture->rig.ranks[0]);
    layout_free(&mapping.layout);
    end(fixture);
}

static void a_forked_instance_can_grant_again(void **state)
{
    struct fixture *first = begin(1, STREAM_BYTES, 3, NULL);
    struct fixture second = {0};
    struct transport_session *session = open_session(first);
    struct transport_mapping mapping = map_rank(session, 0, STREAM_BYTES);
    struct rf_error err = {0};

    (void)state;
    rig_init_layout(&second.rig, &mapping.layout);
    if (seed_begin(&second, NULL, &err) != RF_OK)
        fail_msg("%s", err.text);
    transport_map.close(session);
    seed_end(first);
    session = open_session(&second);
    mapping = map_rank(session, 0, STREAM_BYTES);
    assert_same(&mapping.layout, &first->rig.ranks[0]);
    layout_free(&mapping.layout);
    transport_map.close(session);
    seed_end(&second);
    rig_free(&second.rig);
    end(first);
}

/* ---- what cannot be shared ---- */

static void refuse_layout(struct region *region, const char *because)
{
    struct fixture fixture = {0};
    struct layout layout = {0};
    struct rf_error err = {0};

    assert_int_equal(layout_add(&layout, 0, region_bytes(region), region, 0, &err), RF_OK);
    assert_int_equal(layout_finish(&layout, region_bytes(region), &err), RF_OK);
    region_unref(region);
    rig_init_layout(&fixture.rig, &layout);
    assert_int_equal(seed_begin(&fixture, NULL, &err), RF_E_UNSUPPORTED);
    if (strstr(err.text, because) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.text, because);
    assert_null(fixture.seed);
    rig_free(&fixture.rig);
}

static void memory_that_is_not_sealed_is_refused_with_the_reason(void **state)
{
    static const uint8_t own[4096] = {1};
    struct region *region = NULL;
    struct rf_error err = {0};
    char path[] = "/tmp/rfork-map-XXXXXX";
    unsigned fds = rig_open_fds();

    (void)state;
    assert_int_equal(region_create_borrowed(own, sizeof own, &region, &err), RF_OK);
    refuse_layout(region, "the caller's own memory");
    assert_int_equal(region_create_memfd("open", 4096, &region, &err), RF_OK);
    refuse_layout(region, "not sealed");
    rf_autoclose int fd = mkostemp(path, O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(write(fd, own, sizeof own), sizeof own);
    assert_int_equal(region_create_file(path, fd, &region, &err), RF_OK);
    refuse_layout(region, "page cache");
    assert_int_equal(rig_open_fds(), fds + 1);
}

/* ---- who may ---- */

static void a_wrong_token_is_denied(void **state)
{
    const struct stream_range first = {.bytes = 1, .count = 1};
    struct fixture *fixture = begin(1, 4096, 1, NULL);
    struct transport_mapping mapping = {0};
    struct rf_error err = {0};
    uint8_t got = 0;

    (void)state;
    fixture->rig.token[31] ^= 1;
    struct transport_session *session = open_session(fixture);
    fixture->rig.token[31] ^= 1;
    assert_int_equal(rig_read(&transport_map, session, 0, &first, 1, &got, &err), RF_E_DENIED);
    assert_int_equal(transport_map.map(session, 0, 4096, &mapping, &err), RF_E_DENIED);
    assert_non_null(strstr(err.text, "opens nothing"));
    assert_int_equal(rig_leases_taken(&fixture->rig), 0);
    transport_map.close(session);
    end(fixture);
}

static void a_lease_that_is_over_maps_no_more(void **state)
{
    struct fixture *fixture = begin(2, 4096, 1, NULL);
    struct transport_session *session = open_session(fixture);
    struct transport_mapping mapping = map_rank(session, 0, 4096);
    struct rf_error err = {0};

    (void)state;
    layout_free(&mapping.layout);
    atomic_store(&fixture->rig.check_code, RF_E_CHANGED);
    assert_int_equal(transport_map.map(session, 1, 4096, &mapping, &err), RF_E_CHANGED);
    atomic_store(&fixture->rig.check_code, RF_OK);
    mapping = map_rank(session, 1, 4096);
    layout_free(&mapping.layout);
    transport_map.close(session);
    end(fixture);
}

static socklen_t abstract_address(const char *name, struct sockaddr_un *ret_un)
{
    size_t bytes = strlen(name);

    *ret_un = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(ret_un->sun_path, name, bytes);
    ret_un->sun_path[0] = '\0';
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes);
}

/* In a child that is somebody else: what opening and mapping come to, as its exit code. */
static int map_as(struct fixture *fixture, uid_t uid)
{
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        struct transport_session *session = NULL;
        struct transport_mapping mapping = {0};
        if (setresuid(uid, uid, uid) != 0)
            _exit(99);
        enum rf_code code = try_open(fixture, &session, NULL);
        if (code == RF_OK)
            code = transport_map.map(session, 0, 4096, &mapping, NULL);
        _exit((int)code);
    }
    return wait_exit(child);
}

static void another_user_is_denied_although_it_has_the_token(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        print_message("not root: cannot become another user\n");
        skip();
    }
    struct fixture *fixture = begin(1, 4096, 1, NULL);
    assert_int_equal(map_as(fixture, STRANGER_UID), RF_E_DENIED);
    assert_int_equal(rig_leases_taken(&fixture->rig), 0);
    assert_int_equal(map_as(fixture, 0), RF_OK);
    end(fixture);
}

/* Whoever binds an abstract name first has it: a reader's token must not go to another user. */
static void a_seed_of_another_user_gets_no_token(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        print_message("not root: cannot become another user\n");
        skip();
    }
    struct fixture fixture = {.endpoint = {.transport = "map"}};
    snprintf(fixture.endpoint.address, sizeof fixture.endpoint.address, "@rfork-stranger-%d",
             (int)getpid());
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct transport_session *session = NULL;
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_un un;
        socklen_t bytes = abstract_address(fixture.endpoint.address, &un);
        if (fd < 0 || seteuid(OTHER_UID) != 0 || bind(fd, (struct sockaddr *)&un, bytes) != 0 ||
            listen(fd, 1) != 0 || seteuid(0) != 0 || setuid(STRANGER_UID) != 0)
            _exit(99);
        _exit((int)try_open(&fixture, &session, NULL));
    }
    assert_int_equal(wait_exit(child), RF_E_DENIED);
}

/* ---- judging ---- */

static void judging_says_why(void **state)
{
    struct fixture *fixture = begin(1, 4096, 1, NULL);
    struct endpoint endpoint = fixture->endpoint;
    struct transport_verdict verdict = {0};

    (void)state;
    assert_string_equal(endpoint.transport, "map");
    assert_int_equal(strncmp(endpoint.address, "@rfork-", 7), 0);
    transport_map.available(&verdict);
    assert_true(verdict.usable);
    transport_map.judge(&endpoint, &verdict);
    assert_true(verdict.usable);
    assert_int_equal(verdict.rank, 300);
    assert_string_equal(verdict.reason, "same host: shares the seed's pages");

    snprintf(endpoint.host_id, sizeof endpoint.host_id, "elsewhere");
    transport_map.judge(&endpoint, &verdict);
    assert_false(verdict.usable);
    assert_string_equal(verdict.reason, "the seed is on another host");
    endpoint.host_id[0] = '\0';
    transport_map.judge(&endpoint, &verdict);
    assert_false(verdict.usable);
    endpoint = fixture->endpoint;
    snprintf(endpoint.address, sizeof endpoint.address, "@somebody-else");
    transport_map.judge(&endpoint, &verdict);
    assert_false(verdict.usable);
    assert_non_null(strstr(verdict.reason, "@somebody-else"));
    endpoint = fixture->endpoint;
    seed_end(fixture);
    transport_map.judge(&endpoint, &verdict);
    assert_false(verdict.usable);
    assert_non_null(strstr(verdict.reason, "the seed is gone, or in a container"));
    end(fixture);
}

/* ---- a socket in the file system ---- */

struct place {
    char folder[64];
    char path[96];
    char lock[104];
};

static void place_begin(struct place *place)
{
    snprintf(place->folder, sizeof place->folder, "/tmp/rfork-map-XXXXXX");
    assert_non_null(mkdtemp(place->folder));
    snprintf(place->path, sizeof place->path, "%s/seed.sock", place->folder);
    snprintf(place->lock, sizeof place->lock, "%s.lock", place->path);
}

static void place_end(const struct place *place)
{
    assert_int_equal(rmdir(place->folder), 0); /* nothing was left in it */
}

static void a_socket_file_is_for_its_owner_and_goes_with_the_seed(void **state)
{
    struct place place;
    struct stat st;

    (void)state;
    place_begin(&place);
    mode_t mask = umask(0);
    struct fixture *fixture =
        begin(1, 4096, 1, &(struct transport_seed_options){.socket = place.path});
    umask(mask);
    assert_string_equal(fixture->endpoint.address, place.path);
    assert_int_equal(lstat(place.path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0600);
    struct transport_session *session = open_session(fixture);
    struct transport_mapping mapping = map_rank(session, 0, 4096);
    layout_free(&mapping.layout);
    transport_map.close(session);

    /* A second seed leaves the first one's socket alone. */
    struct fixture other = {0};
    struct rf_error err = {0};
    rig_init(&other.rig, 1, 4096, 1);
    assert_int_equal(
        seed_begin(&other, &(struct transport_seed_options){.socket = place.path}, &err),
        RF_E_INVAL);
    assert_non_null(strstr(err.text, "another seed is listening"));
    rig_free(&other.rig);
    session = open_session(fixture);
    transport_map.close(session);
    end(fixture);
    place_end(&place);
}

static int bind_at(const char *path, bool listening)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    memcpy(un.sun_path, path, strlen(path));
    assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof un), 0);
    assert_true(!listening || listen(fd, 1) == 0);
    return fd;
}

static void a_dead_seeds_socket_is_replaced(void **state)
{
    struct place place;

    (void)state;
    place_begin(&place);
    close(bind_at(place.path, true));
    close(open(place.lock, O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    struct fixture *fixture =
        begin(1, 4096, 1, &(struct transport_seed_options){.socket = place.path});
    transport_map.close(open_session(fixture));
    end(fixture);
    place_end(&place);
}

static void refuse_place(const char *path, enum rf_code code, const char *because)
{
    struct fixture fixture = {0};
    struct rf_error err = {0};
    unsigned fds = rig_open_fds();

    rig_init(&fixture.rig, 1, 4096, 1);
    assert_int_equal(seed_begin(&fixture, &(struct transport_seed_options){.socket = path}, &err),
                     code);
    if (strstr(err.text, because) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.text, because);
    rig_free(&fixture.rig);
    assert_int_equal(rig_open_fds(), fds);
}

static void what_is_not_a_dead_seeds_socket_is_left_alone(void **state)
{
    struct place place;
    struct stat st;
    char path[200];

    (void)state;
    place_begin(&place);
    close(open(place.path, O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    refuse_place(place.path, RF_E_INVAL, "not a socket");
    assert_int_equal(lstat(place.path, &st), 0);
    assert_int_equal(unlink(place.path), 0);

    int fd = bind_at(place.path, true);
    refuse_place(place.path, RF_E_INVAL, "another process is listening");
    assert_int_equal(lstat(place.path, &st), 0);
    close(fd);
    assert_int_equal(unlink(place.path), 0);

    memset(path, 'x', sizeof path - 1);
    path[0] = '/';
    path[sizeof path - 1] = '\0';
    refuse_place(path, RF_E_INVAL, "shorter path");
    refuse_place("/nonexistent/folder/x.sock", RF_E_SYS, "/nonexistent/folder/x.sock");
    refuse_place("@foreign", RF_E_INVAL, "@foreign");
    place_end(&place);
}

static void a_relative_path_is_found_from_elsewhere(void **state)
{
    struct place place;
    char before[4096];

    (void)state;
    place_begin(&place);
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(place.folder), 0);
    struct fixture *fixture =
        begin(1, 4096, 1, &(struct transport_seed_options){.socket = "seed.sock"});
    assert_int_equal(chdir(before), 0);
    assert_string_equal(fixture->endpoint.address, place.path);
    transport_map.close(open_session(fixture));
    end(fixture);
    place_end(&place);
}

/* ---- living together ---- */

static void grants_leak_no_descriptor(void **state)
{
    struct fixture *fixture = begin(1, 1 << 16, 4, NULL);
    unsigned fds = rig_open_fds();

    (void)state;
    for (int i = 0; i < GRANTS; i++) {
        struct transport_session *session = open_session(fixture);
        struct transport_mapping mapping = map_rank(session, 0, 1 << 16);
        assert_same(&mapping.layout, &fixture->rig.ranks[0]);
        transport_map.close(session);
        layout_free(&mapping.layout);
    }
    assert_true(rig_wait_leases(&fixture->rig, 0));
    assert_int_equal(rig_open_fds(), fds);
    end(fixture);
}

/* Connects by hand, says nothing, and waits until the seed closes. */
static void be_silent(const struct endpoint *endpoint)
{
    struct sockaddr_un un;
    socklen_t bytes = abstract_address(endpoint->address, &un);
    rf_autoclose int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    char byte = 0;

    assert_int_equal(connect(fd, (struct sockaddr *)&un, bytes), 0);
    assert_int_equal(poll(&wait, 1, 5000), 1);
    assert_int_equal(recv(fd, &byte, 1, 0), 0);
}

static void a_silent_session_is_closed_and_comes_back(void **state)
{
    struct fixture *fixture =
        begin(1, 4096, 1, &(struct transport_seed_options){.idle_timeout_ms = 50});
    struct transport_session *early = open_session(fixture);
    struct transport_mapping mapping = map_rank(early, 0, 4096);
    struct transport_session *late = open_session(fixture);

    (void)state;
    layout_free(&mapping.layout);
    be_silent(&fixture
                   /* came later, so that `late` is closed by now; `early` holds pages and is not */
                   ->endpoint);
    assert_true(rig_wait_leases(&fixture->rig, 1));
    mapping = map_rank(late, 0, 4096);
    layout_free(&mapping.layout);
    assert_true(rig_wait_leases(&fixture->rig, 2));
    transport_map.close(early);
    transport_map.close(late);
    end(fixture);
}

static void one_reader_too_many_is_told_so(void **state)
{
    struct fixture *fixture =
        begin(1, 4096, 1, &(struct transport_seed_options){.max_connections = 1});
    struct transport_session *first = open_session(fixture);
    struct transport_mapping mapping = map_rank(first, 0, 4096);
    struct transport_session *second = open_session(fixture);
    struct rf_error err = {0};

    (void)state;
    layout_free(&mapping.layout);
    assert_int_equal(transport_map.map(second, 0, 4096, &mapping, &err), RF_E_NOMEM);
    assert_non_null(strstr(err.text, "1 readers are connected"));
    transport_map.close(first);
    assert_true(rig_wait_leases(&fixture->rig, 0));
    mapping = map_rank(second, 0, 4096);
    layout_free(&mapping.layout);
    transport_map.close(second);
    end(fixture);
}

static void draining_grants_nothing_new(void **state)
{
    struct transport_session *late = NULL;
    struct fixture *fixture = begin(2, 4096, 1, NULL);
    struct transport_session *session = open_session(fixture);
    struct transport_mapping mapping = map_rank(session, 0, 4096);
    struct rf_error err = {0};

    (void)state;
    assert_int_equal(transport_map.seed_drain(fixture->seed, clock_deadline_ns(5000)), 0);
    assert_same(&mapping.layout, &fixture->rig.ranks[0]);
    layout_free(&mapping.layout);
    assert_int_equal(transport_map.map(session, 1, 4096, &mapping, &err), RF_E_UNREACHABLE);
    assert_non_null(strstr(err.text, "stopping"));
    assert_int_equal(try_open(fixture, &late, &err), RF_E_UNREACHABLE);
    assert_true(rig_wait_leases(&fixture->rig, 1)); /* who holds pages is not sent away */
    transport_map.close(session);
    end(fixture);
}

static void a_size_the_manifest_does_not_say_is_refused(void **state)
{
    struct fixture *fixture = begin(1, 4096, 1, NULL);
    struct transport_session *session = open_session(fixture);
    struct transport_mapping mapping = {0};
    struct rf_error err = {0};

    (void)state;
    assert_int_equal(transport_map.map(session, 0, 4097, &mapping, &err), RF_E_PROTO);
    assert_null(mapping.layout.segments);
    transport_map.close(session);
    end(fixture);
}

/* In a child: its limit of descriptors is its own. */
static void a_reader_out_of_descriptors_says_so(void **state)
{
    struct fixture *fixture = begin(1, 1 << 16, 8, NULL);
    struct transport_session *session = open_session(fixture);

    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct transport_mapping mapping = {0};
        struct rf_error err = {0};
        int next = dup(0);
        struct rlimit limit = {.rlim_cur = (rlim_t)next + 3, .rlim_max = (rlim_t)next + 3};
        close(next);
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            _exit(99);
        enum rf_code code = transport_map.map(session, 0, 1 << 16, &mapping, &err);
        for (int fd = next; fd < next + 3; fd++) {
            if (fcntl(fd, F_GETFD) >= 0)
                _exit(98); /* one of those that did arrive was left open */
        }
        _exit((int)code);
    }
    assert_int_equal(wait_exit(child), RF_E_NOMEM);
    transport_map.close(session);
    end(fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mapped_bytes_are_the_seeds),
        cmocka_unit_test(a_rank_without_bytes_can_be_mapped),
        cmocka_unit_test(copied_bytes_are_the_seeds),
        cmocka_unit_test(a_read_beyond_the_stream_fails_alone),
        cmocka_unit_test(a_sink_that_fails_ends_its_read_alone),
        cmocka_unit_test(a_write_through_a_mapping_faults_and_never_reaches_the_seed),
        cmocka_unit_test(no_way_to_write_is_left_to_a_reader),
        cmocka_unit_test(a_mapping_outlives_session_and_seed),
        cmocka_unit_test(a_forked_instance_can_grant_again),
        cmocka_unit_test(memory_that_is_not_sealed_is_refused_with_the_reason),
        cmocka_unit_test(a_wrong_token_is_denied),
        cmocka_unit_test(a_lease_that_is_over_maps_no_more),
        cmocka_unit_test(another_user_is_denied_although_it_has_the_token),
        cmocka_unit_test(a_seed_of_another_user_gets_no_token),
        cmocka_unit_test(judging_says_why),
        cmocka_unit_test(a_socket_file_is_for_its_owner_and_goes_with_the_seed),
        cmocka_unit_test(a_dead_seeds_socket_is_replaced),
        cmocka_unit_test(what_is_not_a_dead_seeds_socket_is_left_alone),
        cmocka_unit_test(a_relative_path_is_found_from_elsewhere),
        cmocka_unit_test(grants_leak_no_descriptor),
        cmocka_unit_test(a_silent_session_is_closed_and_comes_back),
        cmocka_unit_test(one_reader_too_many_is_told_so),
        cmocka_unit_test(draining_grants_nothing_new),
        cmocka_unit_test(a_size_the_manifest_does_not_say_is_refused),
        cmocka_unit_test(a_reader_out_of_descriptors_says_so),
    };

    return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
