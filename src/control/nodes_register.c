/* A node that is not the first registers its ranks there. */
#include "base/clock.h"
#include "base/log.h"
#include "control/client.h"
#include "control/nodes_internal.h"
#include "control/seed_url.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REGISTRAR_FIRST_MS = 200, /* between two tries, doubled each time */
    REGISTRAR_MAX_MS = 5000,
    REGISTRAR_GIVE_UP_MS = 30 * 60 * 1000,
    REGISTRAR_MAX_ANSWER_BYTES = 4096,
};

struct registrar {
    struct nodes *nodes;
    char url[SEED_URL_BYTES];
    pthread_t thread;
    atomic_bool stop; /* relaxed: the lock, or a poll, orders it */
    struct mutex lock;
    struct cond changed;
    bool ended RF_GUARDED_BY(lock);           /* the thread's work */
    struct rf_error last RF_GUARDED_BY(lock); /* of the last try; RF_OK: all are registered */
};

/* The host a wildcard stands for: the address of ours that reaches the first node. */
static enum rf_code own_session(struct client *client, const char *address,
                                char out[ENGINE_INFO_SESSION_BYTES], struct rf_error *err)
{
    char with_host[ENGINE_INFO_SESSION_BYTES];
    struct buf answer BUF_AUTO = {0};

    snprintf(out, ENGINE_INFO_SESSION_BYTES, "%s", address);
    if (!seed_url_replace_wildcard(address, "x", with_host, sizeof with_host) ||
        strcmp(with_host, address) == 0)
        return RF_OK;
    enum rf_code code =
        client_ask_any(client, "/health", NULL, REGISTRAR_MAX_ANSWER_BYTES, &answer, NULL, err);
    if (code != RF_OK)
        return code;
    seed_url_replace_wildcard(address, client_local_address(client), out,
                              ENGINE_INFO_SESSION_BYTES);
    return RF_OK;
}

static enum rf_code register_rank(struct registrar *registrar, struct client *client, uint64_t rank,
                                  struct rf_error *err)
{
    char session[ENGINE_INFO_SESSION_BYTES];
    struct buf answer BUF_AUTO = {0};
    struct buf body BUF_AUTO = {0};
    struct info_found found;

    enum rf_code code = nodes_own(registrar->nodes, rank, &found, err);
    if (code != RF_OK)
        return code;
    code = own_session(client, found.session, session, err);
    if (code == RF_OK) {
        /* Without the end of the list that it is in elsewhere. */
        engine_info_put(rank, session, found.tensors->bytes.data, found.tensors->bytes.bytes - 2,
                        &body);
        code = body.failed ? rf_fail(err, RF_E_NOMEM, "no memory to register a rank")
                           : client_ask_any(client, "/register_transfer_engine_info",
                                            (const char *)body.data, REGISTRAR_MAX_ANSWER_BYTES,
                                            &answer, NULL, err);
    }
    blob_unref(found.tensors);
    return code;
}

static enum rf_code register_all(struct registrar *registrar, struct client *client,
                                 struct rf_error *err)
{
    const struct manifest *manifest = seed_store(registrar->nodes->seed)->manifest;
    enum rf_code code = RF_OK;

    for (uint32_t i = 0; i < manifest->rank_count && code == RF_OK; i++) {
        uint64_t rank = manifest->ranks[i].id.tp;
        if (engine_info_find_rank(manifest, rank) != i)
            continue;
        code = register_rank(registrar, client, rank, err);
        if (code != RF_OK)
            rf_error_wrap(err, code, "rank %" PRIu64, rank);
    }
    return code;
}

static enum rf_code try_once(struct registrar *registrar, struct rf_error *err)
{
    const struct client_options options = {.timeout_ms = registrar->nodes->options.timeout_ms,
                                           .cancel = &registrar->stop};
    struct client *client = NULL;

    enum rf_code code = client_create(registrar->url, &options, &client, err);
    if (code == RF_OK)
        code = register_all(registrar, client, err);
    client_destroy(client);
    return code;
}

/* Notes what came of a try; returns whether it was the last. */
static bool note_locked(struct registrar *registrar, const struct rf_error *err,
                        uint64_t deadline_ns) RF_REQUIRES(registrar->lock)
{
    bool stop = atomic_load_explicit(&registrar->stop, memory_order_relaxed);

    registrar->last = *err;
    /* Refused is refused: trying again would change nothing. */
    registrar->ended =
        stop || err->code == RF_OK || err->code == RF_E_INVAL || clock_left_ms(deadline_ns) == 0;
    cond_broadcast(&registrar->changed);
    return registrar->ended;
}

static void *registrar_main(void *arg)
{
    struct registrar *registrar = arg;
    uint64_t deadline_ns = clock_deadline_ns(REGISTRAR_GIVE_UP_MS);
    uint64_t pause_ms = REGISTRAR_FIRST_MS;
    bool ended = false;

    while (!ended) {
        struct rf_error err = {.code = RF_OK};
        try_once(registrar, &err);
        log_debug("registration", "url=%s result=\"%s\"", registrar->url,
                  err.code == RF_OK ? "done" : err.text);
        mutex_lock(&registrar->lock);
        ended = note_locked(registrar, &err, deadline_ns);
        uint64_t until_ns = clock_deadline_ns(pause_ms);
        while (!ended && !atomic_load_explicit(&registrar->stop, memory_order_relaxed) &&
               cond_wait_until(&registrar->changed, &registrar->lock, until_ns))
            ;
        mutex_unlock(&registrar->lock);
        pause_ms = pause_ms * 2 < REGISTRAR_MAX_MS ? pause_ms * 2 : REGISTRAR_MAX_MS;
        if (ended && err.code == RF_OK)
            log_info("ranks registered", "url=%s", registrar->url);
        else if (ended && !atomic_load_explicit(&registrar->stop, memory_order_relaxed))
            log_warn("ranks are not registered", "url=%s reason=\"%s\"", registrar->url, err.text);
    }
    return NULL;
}

/* Until it is done, one way or the other, or it takes too long to make others wait for it. */
static void await(struct registrar *registrar)
{
    uint64_t deadline_ns = clock_deadline_ns(registrar->nodes->options.timeout_ms);

    mutex_lock(&registrar->lock);
    while (!registrar->ended && cond_wait_until(&registrar->changed, &registrar->lock, deadline_ns))
        ;
    if (!registrar->ended)
        log_warn("ranks are not registered yet", "url=%s reason=\"%s\" next=\"goes on trying\"",
                 registrar->url,
                 registrar->last.code != RF_OK ? registrar->last.text : "no answer yet");
    mutex_unlock(&registrar->lock);
}

enum rf_code registrar_start(struct nodes *nodes, struct registrar **ret_registrar,
                             struct rf_error *err)
{
    const char *host = nodes->bootstrap_host;
    struct registrar *registrar = calloc(1, sizeof *registrar);

    if (registrar == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory to register ranks");
    registrar->nodes = nodes;
    snprintf(registrar->url, sizeof registrar->url,
             strchr(host, ':') != NULL && host[0] != '[' ? "http://[%.255s]:%u"
                                                         : "http://%.255s:%u",
             host, nodes->options.bootstrap_port);
    mutex_init(&registrar->lock);
    cond_init(&registrar->changed);
    enum rf_code code =
        thread_start(&registrar->thread, "rf-register", registrar_main, registrar, err);
    if (code != RF_OK) {
        cond_destroy(&registrar->changed);
        mutex_destroy(&registrar->lock);
        free(registrar);
        return code;
    }
    await(registrar);
    *ret_registrar = registrar;
    return RF_OK;
}

void registrar_stop(struct registrar *registrar)
{
    if (registrar == NULL)
        return;
    mutex_lock(&registrar->lock);
    atomic_store_explicit(&registrar->stop, true, memory_order_relaxed);
    cond_broadcast(&registrar->changed);
    mutex_unlock(&registrar->lock);
    pthread_join(registrar->thread, NULL);
    cond_destroy(&registrar->changed);
    mutex_destroy(&registrar->lock);
    free(registrar);
}
