/* Digests that the seed's tables lack are asked for while bytes arrive. */
#include "base/log.h"
#include "fork/internal.h"

#include <inttypes.h>

enum { DIGESTS_PAUSE_MS = 50, DIGESTS_MAX_PAUSE_MS = 2000, DIGESTS_DEFAULT_TIMEOUT_MS = 10000 };

/* How many of a source's items wait for digests of its table. */
static uint64_t items_waiting(struct fork_job *job, uint32_t source)
{
    mutex_lock(&job->lock);
    uint64_t waiting = job->waiting[source];
    mutex_unlock(&job->lock);
    return waiting;
}

static bool only_digests_miss(struct fork_job *job)
{
    mutex_lock(&job->lock);
    bool only = job->all_waiting > 0 && job->all_waiting + job->done_items == job->list.count;
    mutex_unlock(&job->lock);
    return only;
}

static uint64_t all_known(const struct fork_job *job, uint64_t *ret_count)
{
    uint64_t known = 0;

    *ret_count = 0;
    for (uint32_t i = 0; i < job->plan->source_count; i++) {
        const struct digest_table *table = job->plan->sources[i].table;

        known += table != NULL ? digest_table_known(table) : 0;
        *ret_count += table != NULL ? digest_table_count(table) : 0;
    }
    return known;
}

/* A seed that answers, but has stopped making digests, would be waited for without end. */
static enum rf_code check_news(struct fork_job *job, struct digest_watch *watch,
                               struct rf_error *err)
{
    uint64_t timeout_ms =
        job->options->timeout_ms > 0 ? job->options->timeout_ms : DIGESTS_DEFAULT_TIMEOUT_MS;
    uint64_t now_ns = clock_now_ns();
    uint64_t count;
    uint64_t known = all_known(job, &count);

    if (watch->news_ns == 0 || known != watch->known || !only_digests_miss(job)) {
        watch->known = known;
        watch->news_ns = now_ns;
    }
    if (now_ns - watch->news_ns < timeout_ms * CLOCK_NS_PER_MS)
        return RF_OK;
    return rf_fail(err, RF_E_TIMEOUT,
                   "all bytes arrived, but of %" PRIu64 " digests the seed has made %" PRIu64
                   ", and no more in %" PRIu64 " ms: wait longer with --timeout",
                   count, known, timeout_ms);
}

/* A request that failed is made again as a broken connection is opened again: after a pause, and
 * not too often. RF_OK: it will be. */
static enum rf_code refused(struct fork_job *job, struct digest_watch *watch, enum rf_code code,
                            struct rf_error *err)
{
    uint64_t pause_ms = DIGESTS_PAUSE_MS;

    if (!code_is_of_the_path(code) || watch->refused >= job->options->retries)
        return rf_error_wrap(err, code, "digests");
    for (uint32_t i = 0; i < watch->refused && pause_ms < DIGESTS_MAX_PAUSE_MS; i++)
        pause_ms *= 2;
    watch->refused++;
    watch->again_ns = clock_deadline_ns(pause_ms);
    watch->pauses = true;
    log_warn("no digests", "code=%s attempt=%" PRIu32 " why=\"%s\"", rf_code_name(code),
             watch->refused, err->text);
    return RF_OK;
}

/* The first time of all sources, for what there is, so that most are there before their bytes;
 * then of those with items that wait, of one of them with time to wait for news. Each gets its
 * turn. */
static enum rf_code ask_all(struct fork_job *job, struct digest_watch *watch, uint64_t tick_ns,
                            bool *ret_asked, struct rf_error *err)
{
    uint32_t count = job->plan->source_count;
    bool first = !watch->begun && count > 1;
    bool waited = first;

    watch->begun = true;
    for (uint32_t i = 0; i < count && !job_stopped(job); i++) {
        uint32_t source = (watch->turn + i) % count;
        struct digest_table *table = job->plan->sources[source].table;

        if (table == NULL || digest_table_known(table) == digest_table_count(table))
            continue;
        if (count > 1 && !first && items_waiting(job, source) == 0)
            continue;
        enum rf_code code = job->options->digests(job->options->digests_ctx, source, table,
                                                  waited ? clock_now_ns() : tick_ns, err);
        if (code != RF_OK)
            return code;
        if (!waited)
            watch->turn = source + 1;
        waited = true;
        *ret_asked = true;
    }
    return RF_OK;
}

enum rf_code digests_ask(struct fork_job *job, struct digest_watch *watch, uint64_t tick_ns,
                         bool *ret_asked, struct rf_error *err)
{
    watch->pauses = watch->pauses && clock_now_ns() < watch->again_ns;
    if (watch->pauses)
        return RF_OK;
    enum rf_code code = ask_all(job, watch, tick_ns, ret_asked, err);
    if (code != RF_OK)
        return refused(job, watch, code, err);
    if (*ret_asked)
        watch->refused = 0;
    return check_news(job, watch, err);
}
