#include "control/nodes.h"

#include "base/clock.h"
#include "base/log.h"
#include "control/nodes_internal.h"
#include "control/seed_url.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- ours ---- */

bool nodes_is_own(struct nodes *nodes, uint64_t rank)
{
    const struct store *store = seed_store(nodes->seed);

    if (store != NULL && seed_state(nodes->seed, NULL) != SEED_LOADING)
        return engine_info_find_rank(store->manifest, rank) != MANIFEST_NONE;
    return nodes->ranks_per_node > 0 && nodes_of_rank(nodes, rank) == nodes->options.node_rank;
}

uint32_t nodes_of_rank(const struct nodes *nodes, uint64_t rank)
{
    if (nodes->ranks_per_node == 0 || rank / nodes->ranks_per_node >= nodes->options.node_count)
        return nodes->options.node_count;
    return node_of_rank(nodes->options.tp_size, nodes->options.node_count, (uint32_t)rank);
}

void nodes_name(const struct nodes *nodes, uint32_t node, char out[ENGINE_INFO_REASON_BYTES])
{
    const char *host = nodes->hosts != NULL ? nodes->hosts[node] : "";
    bool v6 = strchr(host, ':') != NULL;
    char port[8] = "";

    if (nodes->options.info_port != 0)
        snprintf(port, sizeof port, ":%u", nodes->options.info_port);
    if (nodes->hosts == NULL)
        snprintf(out, ENGINE_INFO_REASON_BYTES, "node %" PRIu32, node);
    else
        snprintf(out, ENGINE_INFO_REASON_BYTES, "node %" PRIu32 " (%s%.150s%s%s)", node,
                 v6 ? "[" : "", host, v6 ? "]" : "", port);
}

/* Where te is read from; NULL: err says why it is not. */
static const struct endpoint *te_endpoint(struct nodes *nodes, struct rf_error *err)
{
    char reason[SERVER_REASON_BYTES];
    enum seed_state state = seed_state(nodes->seed, reason);
    uint32_t count = 0;

    if (state == SEED_LOADING || seed_store(nodes->seed) == NULL) {
        rf_fail(err, RF_E_UNREACHABLE, "the model is being loaded: try again");
        return NULL;
    }
    if (state != SEED_READY) {
        rf_fail(err, state == SEED_FAILED ? RF_E_CHANGED : RF_E_UNREACHABLE, "%.300s",
                state == SEED_FAILED ? reason : "this instance is about to stop");
        return NULL;
    }
    const struct endpoint *endpoints = seed_endpoints(nodes->seed, &count);
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(endpoints[i].transport, "te") == 0)
            return &endpoints[i];
    }
    const char *refused = seed_refused_transports(nodes->seed);
    rf_fail(err, RF_E_UNSUPPORTED, "no TransferEngine is running here%s%.300s",
            refused[0] != '\0' ? ": " : "", refused);
    return NULL;
}

static struct blob *make_own(struct nodes *nodes, const struct manifest *manifest, uint32_t index,
                             struct rf_error *err)
{
    uint64_t base = seed_rank_base(nodes->seed, "te", index);
    struct buf text = {0};

    if (base == 0 && manifest->ranks[index].stream_bytes > 0) {
        rf_fail(err, RF_E_UNSUPPORTED, "the TransferEngine does not offer it");
        return NULL;
    }
    engine_info_tensors(&manifest->ranks[index], base, &text);
    buf_append(&text, "]}", 2);
    return blob_create(&text, err);
}

static struct blob *get_own(struct nodes *nodes, uint32_t index, struct rf_error *err)
{
    const struct manifest *manifest = seed_store(nodes->seed)->manifest;
    struct blob *blob = NULL;

    mutex_lock(&nodes->own_lock);
    if (nodes->own == NULL) {
        nodes->own = calloc(manifest->rank_count + (size_t)1, sizeof(struct blob *));
        nodes->own_count = nodes->own != NULL ? manifest->rank_count : 0;
    }
    if (nodes->own == NULL)
        rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", manifest->rank_count);
    else if (nodes->own[index] == NULL)
        nodes->own[index] = make_own(nodes, manifest, index, err);
    if (nodes->own != NULL && nodes->own[index] != NULL)
        blob = blob_ref(nodes->own[index]);
    mutex_unlock(&nodes->own_lock);
    return blob;
}

enum rf_code nodes_own(struct nodes *nodes, uint64_t rank, struct info_found *ret_found,
                       struct rf_error *err)
{
    struct rf_error why = {.code = RF_OK};
    const struct endpoint *endpoint = te_endpoint(nodes, &why);
    struct blob *tensors = NULL;

    if (endpoint != NULL) {
        uint32_t index = engine_info_find_rank(seed_store(nodes->seed)->manifest, rank);
        if (index != MANIFEST_NONE)
            tensors = get_own(nodes, index, &why);
        else
            rf_fail(&why, RF_E_UNSUPPORTED, "not a rank of this node");
    }
    if (tensors == NULL)
        return rf_fail(err, why.code, "%s", why.text);
    snprintf(ret_found->session, sizeof ret_found->session, "%s", endpoint->address);
    ret_found->tensors = tensors;
    return RF_OK;
}

void nodes_session(const struct info_found *found, const char *host,
                   char out[ENGINE_INFO_SESSION_BYTES])
{
    if (host == NULL ||
        !seed_url_replace_wildcard(found->session, host, out, ENGINE_INFO_SESSION_BYTES))
        memcpy(out, found->session, ENGINE_INFO_SESSION_BYTES);
}

/* ---- of others ---- */

static struct info_entry *entry_locked(struct nodes *nodes, uint64_t rank) RF_REQUIRES(nodes->lock)
{
    if (rank > ENGINE_INFO_MAX_RANK)
        return NULL;
    if (nodes->entries[rank] == NULL)
        nodes->entries[rank] = calloc(1, sizeof(struct info_entry));
    return nodes->entries[rank];
}

static void set_state_locked(struct info_entry *entry, enum info_state state)
{
    entry->state = state;
    entry->since_ns = clock_now_ns();
}

/* The tensors and what follows them, ready to be sent. Made, and let go, without the lock: HTTP's
 * own lock is held by who asks whether there are news. */
static struct blob *copy_tensors(const struct engine_info *info, struct rf_error *err)
{
    struct buf text = {0};
    uint8_t *room = buf_reserve(&text, info->tensors_bytes + 2);

    if (room != NULL) {
        memcpy(room, info->tensors, info->tensors_bytes);
        room[info->tensors_bytes] = ']';
        room[info->tensors_bytes + 1] = '}';
        text.bytes = info->tensors_bytes + 2;
    }
    return blob_create(&text, err);
}

/* Exchanges *tensors for what the entry had. RF_E_NOMEM: too much is kept. */
static enum rf_code keep_locked(struct nodes *nodes, struct info_entry *entry, const char *session,
                                struct blob **tensors, struct rf_error *err)
    RF_REQUIRES(nodes->lock)
{
    struct blob *had = entry->tensors;
    uint64_t others = nodes->bytes - (had != NULL ? had->bytes.bytes : 0);
    uint64_t bytes = (*tensors)->bytes.bytes;

    if (others + bytes > NODES_MAX_BYTES)
        return rf_fail(err, RF_E_NOMEM,
                       "%" PRIu64 " bytes are kept of other ranks, %" PRIu64 " more would be over "
                       "%" PRIu64,
                       others, bytes, NODES_MAX_BYTES);
    entry->tensors = *tensors;
    *tensors = had;
    nodes->bytes = others + bytes;
    snprintf(entry->session, sizeof entry->session, "%s", session);
    set_state_locked(entry, INFO_THERE);
    cond_broadcast(&nodes->news);
    return RF_OK;
}

enum rf_code nodes_register(struct nodes *nodes, const struct engine_info *info,
                            struct rf_error *err)
{
    enum rf_code code = RF_OK;

    /* Else anybody could send readers of our ranks to other bytes. */
    if (nodes_is_own(nodes, info->rank))
        return rf_fail(err, RF_E_INVAL,
                       "rank %" PRIu32 " is this instance's own: nobody else can register it",
                       info->rank);
    struct blob *tensors = copy_tensors(info, err);
    if (tensors == NULL)
        return RF_E_NOMEM;
    mutex_lock(&nodes->lock);
    struct info_entry *entry = entry_locked(nodes, info->rank);
    if (entry == NULL)
        code = rf_fail(err, RF_E_NOMEM, "no memory for a rank");
    bool again = entry != NULL && entry->registered;
    if (code == RF_OK)
        code = keep_locked(nodes, entry, info->session, &tensors, err);
    if (code == RF_OK)
        entry->registered = true;
    mutex_unlock(&nodes->lock);
    blob_unref(tensors);
    if (code == RF_OK)
        log_info("rank registered",
                 "rank=%" PRIu32 " session=%s tensors=%" PRIu64 " bytes=%zu again=%d", info->rank,
                 info->session, info->tensor_count, info->tensors_bytes, again);
    return code;
}

/* Whether the answer of a node that was asked is too old to be given once more. */
static bool is_stale(const struct info_entry *entry)
{
    uint64_t age_ns = clock_now_ns() - entry->since_ns;

    if (entry->state == INFO_THERE)
        return !entry->registered && age_ns > NODES_ANSWER_MS * CLOCK_NS_PER_MS;
    return entry->state == INFO_NONE ||
           (entry->state == INFO_FAILED && age_ns > NODES_FAILURE_MS * CLOCK_NS_PER_MS);
}

/* What is known of a rank of another node. RF_AGAIN: it is to be asked for, or is being. */
static enum rf_code look_locked(struct nodes *nodes, uint64_t rank, bool can_ask,
                                struct info_found *ret_found, struct rf_error *err)
    RF_REQUIRES(nodes->lock)
{
    struct info_entry *entry = rank <= ENGINE_INFO_MAX_RANK ? nodes->entries[rank] : NULL;

    if (can_ask && (entry == NULL || is_stale(entry))) {
        entry = entry_locked(nodes, rank);
        if (entry == NULL)
            return rf_fail(err, RF_E_NOMEM, "no memory for a rank");
        set_state_locked(entry, INFO_WANTED);
        return RF_AGAIN;
    }
    if (entry == NULL || entry->state == INFO_NONE)
        return rf_fail(err, RF_E_UNSUPPORTED, "nobody has registered it");
    if (entry->state == INFO_FAILED)
        return rf_fail(err, RF_E_UNREACHABLE, "%s", entry->reason);
    if (entry->state != INFO_THERE)
        return RF_AGAIN;
    memcpy(ret_found->session, entry->session, sizeof entry->session);
    ret_found->tensors = blob_ref(entry->tensors);
    return RF_OK;
}

enum rf_code nodes_find(struct nodes *nodes, uint64_t rank, bool ask, struct info_found *ret_found,
                        struct rf_error *err)
{
    uint32_t node = nodes_of_rank(nodes, rank);
    bool known = node < nodes->options.node_count && node != nodes->options.node_rank;
    char name[ENGINE_INFO_REASON_BYTES];
    struct rf_error why = {.code = RF_OK};

    if (nodes_is_own(nodes, rank))
        return nodes_own(nodes, rank, ret_found, err);
    mutex_lock(&nodes->lock);
    enum rf_code code =
        look_locked(nodes, rank, ask && known && nodes->asker != NULL, ret_found, &why);
    mutex_unlock(&nodes->lock);
    if (code == RF_AGAIN && ask)
        asker_wake(nodes->asker);
    if (code == RF_OK || (code == RF_AGAIN && ask))
        return code;
    if (!known) /* of a rank that nobody has SGLang says nothing more either */
        return rf_fail(err, code, "%s", code == RF_E_UNSUPPORTED ? "" : why.text);
    nodes_name(nodes, node, name);
    if (code == RF_AGAIN)
        return rf_fail(err, RF_E_TIMEOUT, "%s has not answered yet", name);
    return rf_fail(err, code, "%s: %s", name, why.text);
}

bool nodes_settled(struct nodes *nodes, uint64_t rank)
{
    mutex_lock(&nodes->lock);
    const struct info_entry *entry = rank <= ENGINE_INFO_MAX_RANK ? nodes->entries[rank] : NULL;
    bool settled = entry == NULL || (entry->state != INFO_WANTED && entry->state != INFO_ASKING);
    mutex_unlock(&nodes->lock);
    return settled;
}

bool nodes_knows(struct nodes *nodes, uint64_t rank, char reason[ENGINE_INFO_REASON_BYTES])
{
    mutex_lock(&nodes->lock);
    const struct info_entry *entry = rank <= ENGINE_INFO_MAX_RANK ? nodes->entries[rank] : NULL;
    bool knows = entry != NULL && entry->tensors != NULL;
    snprintf(reason, ENGINE_INFO_REASON_BYTES, "%s", entry != NULL ? entry->reason : "");
    mutex_unlock(&nodes->lock);
    return knows;
}

void nodes_wait_news(struct nodes *nodes, uint64_t deadline_ns)
{
    mutex_lock(&nodes->lock);
    cond_wait_until(&nodes->news, &nodes->lock, deadline_ns);
    mutex_unlock(&nodes->lock);
}

bool nodes_next_wanted(struct nodes *nodes, uint64_t *ret_rank)
{
    bool found = false;

    mutex_lock(&nodes->lock);
    for (uint64_t rank = 0; rank <= ENGINE_INFO_MAX_RANK && !found; rank++) {
        struct info_entry *entry = nodes->entries[rank];
        if (entry == NULL || entry->state != INFO_WANTED)
            continue;
        set_state_locked(entry, INFO_ASKING);
        *ret_rank = rank;
        found = true;
    }
    mutex_unlock(&nodes->lock);
    return found;
}

void nodes_asked(struct nodes *nodes, uint64_t rank, const struct engine_info *info,
                 const struct rf_error *err)
{
    struct rf_error why = *err;
    struct blob *tensors = why.code == RF_OK ? copy_tensors(info, &why) : NULL;

    mutex_lock(&nodes->lock);
    struct info_entry *entry = nodes->entries[rank];
    /* It may have registered meanwhile: that is newer. */
    if (entry->state == INFO_ASKING) {
        if (tensors != NULL)
            keep_locked(nodes, entry, info->session, &tensors, &why);
        if (why.code != RF_OK) {
            set_state_locked(entry, INFO_FAILED);
            snprintf(entry->reason, sizeof entry->reason, "%.255s", why.text);
        }
    }
    mutex_unlock(&nodes->lock);
    blob_unref(tensors);
    if (why.code != RF_OK)
        log_warn("node does not tell its rank", "rank=%" PRIu64 " node=%" PRIu32 " reason=\"%s\"",
                 rank, nodes_of_rank(nodes, rank), why.text);
}

/* ---- the whole ---- */

static bool copy_hosts(struct nodes *nodes, const struct node_hosts *hosts)
{
    if (hosts == NULL)
        return true;
    nodes->hosts = calloc(hosts->count, sizeof *nodes->hosts);
    if (nodes->hosts == NULL)
        return false;
    memcpy(nodes->hosts, hosts->hosts, hosts->count * sizeof *nodes->hosts);
    return true;
}

static bool copy_options(struct nodes *nodes, const struct nodes_options *options)
{
    const char *head = options->bootstrap_host;

    nodes->host = strdup(options->host != NULL ? options->host : "127.0.0.1");
    if (!copy_hosts(nodes, options->hosts) || nodes->host == NULL)
        return false;
    if (head == NULL && nodes->hosts != NULL)
        head = nodes->hosts[0];
    if (head == NULL)
        return true;
    nodes->bootstrap_host = strdup(head);
    return nodes->bootstrap_host != NULL;
}

static enum rf_code check_options(const struct nodes_options *options, struct rf_error *err)
{
    uint32_t count = options->node_count > 0 ? options->node_count : 1;
    struct node_span span;

    if (options->hosts != NULL && options->hosts->count != count)
        return rf_fail(err, RF_E_INVAL, "%" PRIu32 " nodes, but %" PRIu32 " addresses", count,
                       options->hosts->count);
    if (count == 1 && options->node_rank == 0)
        return RF_OK;
    if (options->tp_size == 0)
        return rf_fail(err, RF_E_INVAL, "%" PRIu32 " nodes, but how many ranks?", count);
    return node_span(options->tp_size, count, options->node_rank, &span, err);
}

enum rf_code nodes_create(const struct nodes_options *options, struct seed *seed,
                          struct nodes **ret_nodes, struct rf_error *err)
{
    enum rf_code code = check_options(options, err);

    if (code != RF_OK)
        return code;
    struct nodes *nodes = calloc(1, sizeof *nodes);
    if (nodes == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for the nodes");
    nodes->seed = seed;
    nodes->options = *options;
    nodes->options.host = NULL; /* the caller's strings */
    nodes->options.hosts = NULL;
    nodes->options.bootstrap_host = NULL;
    if (nodes->options.node_count == 0)
        nodes->options.node_count = 1;
    if (nodes->options.timeout_ms == 0)
        nodes->options.timeout_ms = NODES_DEFAULT_TIMEOUT_MS;
    nodes->ranks_per_node = options->tp_size / nodes->options.node_count;
    mutex_init(&nodes->own_lock);
    mutex_init(&nodes->lock);
    cond_init(&nodes->news);
    nodes->entries = calloc(ENGINE_INFO_MAX_RANK + 1, sizeof(struct info_entry *));
    if (!copy_options(nodes, options) || nodes->entries == NULL) {
        nodes_destroy(nodes);
        return rf_fail(err, RF_E_NOMEM, "no memory for the nodes");
    }
    *ret_nodes = nodes;
    return RF_OK;
}

enum rf_code nodes_start(struct nodes *nodes, struct rf_error *err)
{
    const struct nodes_options *options = &nodes->options;
    const struct server_options server = {.host = nodes->host,
                                          .port = options->bootstrap_port,
                                          .kind = SERVER_BOOTSTRAP,
                                          .nodes = nodes};
    bool asked = options->info_port != 0 || nodes->hosts != NULL;
    struct rf_error why = {.code = RF_OK};
    enum rf_code code = RF_OK;

    if (options->node_rank > 0)
        return asked ? service_start(nodes, &nodes->service, err) : RF_OK;
    code = server_start(&server, nodes->seed, &nodes->bootstrap, &why);
    if (code != RF_OK && why.sys_errno == EADDRINUSE)
        return rf_fail(err, code,
                       "port %u on %s is taken: on a host with other seeds this one needs an "
                       "--engine-info-bootstrap-port of its own",
                       options->bootstrap_port, nodes->host);
    if (code != RF_OK)
        return rf_fail(err, code, "bootstrap server: %.400s", why.text);
    if (options->node_count > 1 && nodes->hosts != NULL && options->info_port != 0)
        code = asker_start(nodes, &nodes->asker, err);
    return code;
}

enum rf_code nodes_publish(struct nodes *nodes, struct rf_error *err)
{
    const struct manifest *manifest = seed_store(nodes->seed)->manifest;
    struct info_found found;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < manifest->rank_count && code == RF_OK; i++) {
        uint64_t rank = manifest->ranks[i].id.tp;
        if (engine_info_find_rank(manifest, rank) != i)
            continue; /* of a draft, a later stage: SGLang has no name for it */
        code = nodes_own(nodes, rank, &found, err);
        if (code == RF_OK)
            blob_unref(found.tensors);
    }
    if (code == RF_OK && nodes->options.node_rank > 0 && nodes->bootstrap_host != NULL &&
        nodes->options.bootstrap_port != 0)
        code = registrar_start(nodes, &nodes->registrar, err);
    if (code == RF_OK)
        atomic_store_explicit(&nodes->stage, NODES_WAITING, memory_order_release);
    return code;
}

void nodes_open(struct nodes *nodes)
{
    atomic_store_explicit(&nodes->stage, NODES_OPEN, memory_order_release);
}

const char *nodes_not_ready(struct nodes *nodes)
{
    switch (atomic_load_explicit(&nodes->stage, memory_order_acquire)) {
    case NODES_CLOSED:
        return "what TransferEngines need to know is being published";
    case NODES_WAITING:
        return "the ranks of other nodes are waited for";
    default:
        return NULL;
    }
}

void nodes_destroy(struct nodes *nodes)
{
    if (nodes == NULL)
        return;
    registrar_stop(nodes->registrar);
    server_stop(nodes->bootstrap);
    asker_stop(nodes->asker);
    service_stop(nodes->service);
    for (uint32_t i = 0; i < nodes->own_count; i++)
        blob_unref(nodes->own[i]);
    free(nodes->own);
    for (uint32_t i = 0; nodes->entries != NULL && i <= ENGINE_INFO_MAX_RANK; i++) {
        if (nodes->entries[i] != NULL)
            blob_unref(nodes->entries[i]->tensors);
        free(nodes->entries[i]);
    }
    free(nodes->entries);
    cond_destroy(&nodes->news);
    mutex_destroy(&nodes->lock);
    mutex_destroy(&nodes->own_lock);
    free(nodes->hosts);
    free(nodes->bootstrap_host);
    free(nodes->host);
    free(nodes);
}

const char *nodes_bootstrap_url(const struct nodes *nodes)
{
    return nodes->bootstrap != NULL ? server_url(nodes->bootstrap) : "";
}

uint16_t nodes_bootstrap_port(const struct nodes *nodes)
{
    return nodes->bootstrap != NULL ? server_port(nodes->bootstrap) : 0;
}

uint16_t nodes_info_port(const struct nodes *nodes)
{
    return nodes->service != NULL ? service_port(nodes->service) : 0;
}
