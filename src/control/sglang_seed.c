#include "control/sglang_seed.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "control/sglang_ask.h"
#include "control/sglang_folder.h"
#include "control/sglang_manifest.h"
#include "transport/te/te.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static_assert((int)WEIGHT_MAP_SESSION_BYTES <= (int)TRANSPORT_ADDRESS_BYTES,
              "a session id is an endpoint's address");

enum { SGLANG_PATIENCE = 6 }; /* timeouts, for what all ranks publish */

struct sglang_seed {
    struct client *client;
    const struct sglang_options *options;
    struct sglang_route route;
    struct sglang_server server;
    struct weight_map *maps; /* [rank_count]; until the streams are known to lie where they say */
    uint32_t rank_count;
    uint32_t map_room;
    uint64_t tensor_count; /* in all maps */
    uint64_t name_bytes;
    uint64_t deadline_ns; /* for all maps to have come, and then for all engines' answers */
    struct sglang_engine *engines; /* [engine_count] */
    uint32_t engine_count;
    uint32_t *engine_of; /* [rank_count] */
    struct sglang_folder folder;
    struct manifest *manifest;
    uint64_t buffer_count; /* of all engines */
    uint64_t buffer_bytes;
    char note[SGLANG_NOTE_BYTES];
};

/* ---- the ranks ---- */

static enum rf_code add_map(struct sglang_seed *seed, const struct weight_map *map,
                            struct rf_error *err)
{
    if (seed->rank_count == seed->map_room) {
        uint32_t room = seed->map_room > 0 ? seed->map_room * 2 : 8;
        struct weight_map *maps = realloc(seed->maps, room * sizeof(*maps));

        if (maps == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", room);
        seed->maps = maps;
        seed->map_room = room;
    }
    seed->maps[seed->rank_count++] = *map;
    return RF_OK;
}

/* Before it is kept: a server that is none could go on for ever. */
static enum rf_code admit_map(struct sglang_seed *seed, const struct weight_map *map,
                              struct rf_error *err)
{
    const char *url = client_url(seed->client);

    seed->tensor_count += map->count;
    for (uint32_t i = 0; i < map->count; i++)
        seed->name_bytes += map->entries[i].name_bytes;
    if (seed->tensor_count > MANIFEST_MAX_TENSORS)
        return rf_fail(err, RF_E_PROTO,
                       "%s publishes %" PRIu64 " tensors up to rank %" PRIu32 ", more than %d", url,
                       seed->tensor_count, seed->rank_count, MANIFEST_MAX_TENSORS);
    if (seed->name_bytes > MANIFEST_MAX_BYTES)
        return rf_fail(err, RF_E_PROTO,
                       "%s publishes %" PRIu64 " bytes of names up to rank %" PRIu32
                       ", more than %d",
                       url, seed->name_bytes, seed->rank_count, MANIFEST_MAX_BYTES);
    if (clock_left_ms(seed->deadline_ns) == 0)
        return rf_fail(err, RF_E_TIMEOUT,
                       "%s: what its ranks publish took longer than %" PRIu64
                       " ms, and that was rank %" PRIu32 "; a longer --timeout leaves more",
                       url, seed->options->timeout_ms * SGLANG_PATIENCE, seed->rank_count);
    return RF_OK;
}

/* Why a rank that should be there is not. */
static enum rf_code rank_missing(const struct sglang_seed *seed, struct rf_error *err)
{
    struct rf_error why = {.text = ""};

    if (err != NULL)
        why = *err;
    rf_fail(err, RF_E_UNREACHABLE, "%s publishes %" PRIu32 " of %" PRIu32 " ranks: %.300s",
            client_url(seed->client), seed->rank_count, seed->server.tp_size, why.text);
    return RF_AGAIN;
}

/* All that the server says it has; where it does not say, all up to the first that is not there. */
static enum rf_code ask_ranks(struct sglang_seed *seed, struct rf_error *err)
{
    for (;;) {
        uint32_t said = seed->server.tp_size;
        struct weight_map map;

        if (seed->rank_count > 0 && seed->rank_count == said)
            return RF_OK;
        if (seed->rank_count == MANIFEST_MAX_RANKS)
            return rf_fail(err, RF_E_PROTO, "%s publishes more than %d ranks",
                           client_url(seed->client), MANIFEST_MAX_RANKS);
        enum rf_code code = sglang_ask_map(seed->client, &seed->route, seed->rank_count, &map, err);
        if (code == RF_AGAIN && seed->rank_count > 0)
            return said > 0 ? rank_missing(seed, err) : RF_OK;
        if (code != RF_OK)
            return code;
        code = admit_map(seed, &map, err);
        if (code == RF_OK)
            code = add_map(seed, &map, err);
        if (code != RF_OK) {
            weight_map_free(&map);
            return code;
        }
        if (seed->rank_count == 1 && !seed->route.bootstrap)
            code = sglang_ask_server(seed->client, &seed->server, err);
        if (code != RF_OK)
            return code;
    }
}

static enum rf_code check_server(const struct sglang_seed *seed, struct rf_error *err)
{
    if (seed->server.pp_size > 1)
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "%s is cut into %" PRIu32 " pipeline stages, which publish under the same "
                       "ranks: only one stage can be forked from",
                       client_url(seed->client), seed->server.pp_size);
    return RF_OK;
}

/* ---- their engines ---- */

/* The name under which the transport is asked for: te, or faults of it. */
static enum rf_code transport_name(const struct sglang_seed *seed, const char **ret_name,
                                   struct rf_error *err)
{
    const char *wanted = seed->options->transport;
    size_t bytes = wanted != NULL ? strlen(wanted) : 0;

    if (bytes == 0 || strcmp(wanted, "auto") == 0)
        wanted = "te";
    else if (strcmp(wanted, "te") != 0 && (bytes < 3 || strcmp(wanted + bytes - 3, ":te") != 0))
        return rf_fail(err, RF_E_UNSUPPORTED,
                       "--transport %.60s: the engines of an SGLang server are read by te alone",
                       wanted);
    *ret_name = wanted;
    return RF_OK;
}

/* As admit_map() for what engines have registered. */
static enum rf_code admit_engine(const struct sglang_seed *seed, struct rf_error *err)
{
    if (seed->buffer_count > TE_MAX_BUFFERS)
        return rf_fail(err, RF_E_PROTO,
                       "%" PRIu64 " buffers up to engine %" PRIu32 ", more than %d",
                       seed->buffer_count, seed->engine_count, TE_MAX_BUFFERS);
    if (clock_left_ms(seed->deadline_ns) == 0)
        return rf_fail(err, RF_E_TIMEOUT,
                       "the engines' answers took longer than %" PRIu64
                       " ms, and that was engine %" PRIu32 "; a longer --timeout leaves more",
                       seed->options->timeout_ms * SGLANG_PATIENCE, seed->engine_count);
    return RF_OK;
}

static enum rf_code open_engine(struct sglang_seed *seed, const char *session, const char *name,
                                struct rf_error *err)
{
    const struct sglang_options *options = seed->options;
    const struct te_reach reach = {
        .timeout_ms = options->timeout_ms,
        .cancel = options->cancel,
        .cancel_fd = options->cancel_fd,
        .allowed_hosts = options->data_hosts,
    };
    struct sglang_engine *engine = &seed->engines[seed->engine_count];
    struct endpoint endpoint = {.transport = "te"};

    snprintf(engine->session, sizeof(engine->session), "%s", session);
    seed->engine_count++;
    enum rf_code code = te_directory_open(session, &reach, &engine->directory, err);
    if (code != RF_OK)
        return code;
    te_directory_address(engine->directory, endpoint.address);
    code = transport_choose(name, &endpoint, 1, &engine->choice, err);
    if (code != RF_OK)
        return code;
    const struct te_descriptor *descriptor = te_directory_descriptor(engine->directory);
    seed->buffer_count += descriptor->buffer_count;
    for (uint64_t i = 0; i < descriptor->buffer_count; i++)
        seed->buffer_bytes += descriptor->buffers[i].bytes;
    return admit_engine(seed, err);
}

static bool find_engine(const struct sglang_seed *seed, const char *session, uint32_t *ret_engine)
{
    /* Ranks of one engine follow each other, mostly: the last one first. */
    for (uint32_t i = seed->engine_count; i-- > 0;) {
        if (strcmp(seed->engines[i].session, session) == 0) {
            *ret_engine = i;
            return true;
        }
    }
    return false;
}

static enum rf_code open_engines(struct sglang_seed *seed, struct rf_error *err)
{
    const char *name = NULL;
    enum rf_code code = transport_name(seed, &name, err);

    seed->deadline_ns = clock_deadline_ns(seed->options->timeout_ms * SGLANG_PATIENCE);
    seed->engines = calloc((size_t)seed->rank_count + 1, sizeof(*seed->engines));
    seed->engine_of = calloc((size_t)seed->rank_count + 1, sizeof(*seed->engine_of));
    if (seed->engines == NULL || seed->engine_of == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " engines", seed->rank_count);
    for (uint32_t i = 0; code == RF_OK && i < seed->rank_count; i++) {
        const char *session = seed->maps[i].session;

        if (find_engine(seed, session, &seed->engine_of[i]))
            continue;
        seed->engine_of[i] = seed->engine_count;
        code = open_engine(seed, session, name, err);
        if (code != RF_OK)
            rf_error_wrap(err, code, "rank %" PRIu32 "'s engine at %.100s, as %s says", i, session,
                          client_url(seed->client));
    }
    return code;
}

static enum rf_code check_rank(const struct sglang_seed *seed, uint32_t rank, struct rf_error *err)
{
    const struct sglang_engine *engine = &seed->engines[seed->engine_of[rank]];
    enum rf_code code =
        sglang_check_registered(&seed->maps[rank], te_directory_descriptor(engine->directory), err);

    return code == RF_OK
               ? RF_OK
               : rf_error_wrap(err, code, "rank %" PRIu32 " of %s", rank, client_url(seed->client));
}

/* ---- the manifest ---- */

static enum rf_code make_manifest(struct sglang_seed *seed, struct rf_error *err)
{
    const struct sglang_options *options = seed->options;
    struct sglang_facts facts = {.model = seed->server.model[0] != '\0' ? seed->server.model
                                                                        : "unknown"};

    if (options->model_path != NULL) {
        enum rf_code code = sglang_folder_open(options->model_path, seed->maps, seed->rank_count,
                                               seed->server.ep_size, &seed->folder, err);

        if (code != RF_OK)
            return code;
        if (sglang_folder_has_weights(&seed->folder)) {
            seed->manifest = manifest_ref(seed->folder.manifest);
            return RF_OK;
        }
        facts.side = seed->folder.manifest;
        facts.config = seed->folder.config;
        facts.model = seed->server.model[0] != '\0' ? facts.model : facts.side->model;
    }
    return sglang_manifest_make(&facts, seed->maps, seed->rank_count, &seed->manifest, err);
}

static enum rf_code place_rank(struct sglang_seed *seed, uint32_t rank, struct rf_error *err)
{
    struct sglang_engine *engine = &seed->engines[seed->engine_of[rank]];
    const struct manifest_rank *of = &seed->manifest->ranks[rank];
    rf_autofree struct te_segment *segments = NULL;
    uint64_t count = 0;
    enum rf_code code = sglang_segments(of, &seed->maps[rank], &segments, &count, err);

    if (code == RF_OK)
        code =
            te_directory_set_rank(engine->directory, rank, segments, count, of->stream_bytes, err);
    return code == RF_OK
               ? RF_OK
               : rf_error_wrap(err, code, "rank %" PRIu32 " of %s", rank, client_url(seed->client));
}

static void make_note(struct sglang_seed *seed)
{
    bool known = sglang_folder_has_weights(&seed->folder);
    char bytes[SIZE_TEXT_BYTES];
    char layout[80] = "";

    if (known)
        snprintf(layout, sizeof(layout), "as the folder says, layout %.40s",
                 seed->manifest->layout);
    snprintf(
        seed->note, sizeof(seed->note),
        "%s: %" PRIu32 " rank%s in %" PRIu32 " engine%s with %" PRIu64
        " registered buffer%s, %s; shapes and dtypes are %s; no digests are known: what is sent "
        "cannot be verified",
        seed->route.bootstrap ? "an SGLang bootstrap server" : "an SGLang server", seed->rank_count,
        seed->rank_count == 1 ? "" : "s", seed->engine_count, seed->engine_count == 1 ? "" : "s",
        seed->buffer_count, seed->buffer_count == 1 ? "" : "s",
        size_text(seed->buffer_bytes, bytes), known ? layout : "not known, only their sizes");
}

/* ---- opening and closing ---- */

static void free_maps(struct sglang_seed *seed)
{
    for (uint32_t i = 0; seed->maps != NULL && i < seed->rank_count; i++)
        weight_map_free(&seed->maps[i]);
    free(seed->maps);
    seed->maps = NULL;
}

static enum rf_code open_all(struct sglang_seed *seed, struct rf_error *err)
{
    enum rf_code code = ask_ranks(seed, err);

    if (code == RF_OK)
        code = check_server(seed, err);
    if (code == RF_OK)
        code = open_engines(seed, err);
    for (uint32_t i = 0; code == RF_OK && i < seed->rank_count; i++)
        code = check_rank(seed, i, err);
    if (code == RF_OK)
        code = make_manifest(seed, err);
    for (uint32_t i = 0; code == RF_OK && i < seed->rank_count; i++)
        code = place_rank(seed, i, err);
    free_maps(seed);
    if (code != RF_OK)
        return code;
    make_note(seed);
    for (uint32_t i = 0; i < seed->engine_count; i++) {
        char *reason = seed->engines[i].choice.reason;
        size_t used = strlen(reason);

        snprintf(reason + used, sizeof(seed->engines[i].choice.reason) - used, "%s%s",
                 used > 0 ? "; " : "", seed->note);
    }
    return RF_OK;
}

enum rf_code sglang_seed_open(struct client *client, const struct sglang_options *options,
                              struct sglang_seed **ret_seed, struct rf_error *err)
{
    struct sglang_seed *seed = calloc(1, sizeof(*seed));

    if (seed == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for a seed");
    seed->client = client;
    seed->options = options;
    seed->deadline_ns = clock_deadline_ns(options->timeout_ms * SGLANG_PATIENCE);
    enum rf_code code = open_all(seed, err);
    if (code != RF_OK) {
        sglang_seed_close(seed);
        return code;
    }
    *ret_seed = seed;
    return RF_OK;
}

void sglang_seed_close(struct sglang_seed *seed)
{
    if (seed == NULL)
        return;
    free_maps(seed);
    for (uint32_t i = 0; i < seed->engine_count; i++)
        te_directory_close(seed->engines[i].directory);
    free(seed->engines);
    free(seed->engine_of);
    manifest_unref(seed->manifest);
    sglang_folder_close(&seed->folder);
    free(seed);
}

/* ---- what others ask ---- */

struct manifest *sglang_seed_manifest(const struct sglang_seed *seed)
{
    return seed->manifest;
}

const char *sglang_seed_note(const struct sglang_seed *seed)
{
    return seed->note;
}

uint32_t sglang_seed_engine(const struct sglang_seed *seed, uint32_t rank)
{
    return seed->engine_of[rank];
}

const struct sglang_engine *sglang_seed_engines(const struct sglang_seed *seed, uint32_t *ret_count)
{
    *ret_count = seed->engine_count;
    return seed->engines;
}

enum rf_code sglang_seed_file(const struct sglang_seed *seed, uint32_t file, struct buf *out,
                              struct rf_error *err)
{
    return sglang_folder_file(&seed->folder, file, out, err);
}

enum rf_code sglang_seed_info(const struct sglang_seed *seed, struct instance_info *ret_info,
                              struct rf_error *err)
{
    const struct manifest *manifest = seed->manifest;
    struct instance_info info = {
        .version = "",
        .state = "ready",
        .stage = "",
        .host_id = "",
        .root_digest = "",
        .refused_transports = "",
        .bytes = manifest_total_bytes(manifest),
        .rank_count = manifest->rank_count,
    };
    char id[HASH_TEXT_BYTES];
    struct {
        const char *from;
        const char **to;
    } texts[] = {
        {seed->engines[0].session, &info.instance_id},
        {seed->note, &info.state_reason},
        {manifest->model, &info.model},
        {manifest->architecture, &info.architecture},
        {manifest->quantisation, &info.quantisation},
        {manifest->layout, &info.layout},
        {strchr(hash_text(manifest->algorithm, manifest->id, id), ':') + 1, &info.manifest_id},
    };

    for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        *texts[i].to = arena_strndup(&info.arena, texts[i].from, strlen(texts[i].from));
        if (*texts[i].to == NULL) {
            arena_free(&info.arena);
            return rf_fail(err, RF_E_NOMEM, "no memory for what %s says", client_url(seed->client));
        }
    }
    for (uint32_t i = 0; i < manifest->rank_count; i++)
        info.tensor_count += manifest->ranks[i].tensor_count;
    while (info.endpoint_count < seed->engine_count &&
           info.endpoint_count < TRANSPORT_MAX_ENDPOINTS) {
        info.endpoints[info.endpoint_count] = seed->engines[info.endpoint_count].choice.endpoint;
        info.endpoint_count++;
    }
    *ret_info = info;
    return RF_OK;
}

enum rf_code sglang_seed_check(struct sglang_seed *seed, struct rf_error *err)
{
    const char *was = seed->engines[seed->engine_of[0]].session;
    struct weight_map map;
    enum rf_code code = sglang_ask_map(seed->client, &seed->route, 0, &map, err);

    if (code != RF_OK)
        return code;
    if (strcmp(map.session, was) != 0)
        code = rf_fail(err, RF_E_CHANGED,
                       "%s has another engine by now (%.100s, it was %.100s): it was started anew",
                       client_url(seed->client), map.session, was);
    weight_map_free(&map);
    return code;
}
