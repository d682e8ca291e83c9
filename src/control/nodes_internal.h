/* What the files of nodes share: nodes.c knows the ranks, nodes_ask.c asks other nodes,
 * nodes_service.c answers them, nodes_register.c registers at the first, nodes_await.c waits there
 * for all. Not for others but the routes. */
#ifndef CONTROL_NODES_INTERNAL_H
#define CONTROL_NODES_INTERNAL_H

#include "base/thread.h"
#include "control/engine_info.h"
#include "control/internal.h"
#include "control/nodes.h"

enum {
    NODES_DEFAULT_TIMEOUT_MS = 5000,
    NODES_MAX_ASKING = 256,  /* questions under way at a time */
    NODES_ANSWER_MS = 30000, /* an answer is good for so long: a node may come back otherwise */
    NODES_FAILURE_MS = 1000, /* who asks again meanwhile is told what the last one was told */
    NODES_MAX_LINKS = 1024,  /* connections to the info service */
    NODES_HANDSHAKE_MS = 5000,
};
/* Of what others registered, all ranks together. */
#define NODES_MAX_BYTES (UINT64_C(512) << 20)

/* What is known of a rank that is not ours. */
enum info_state { INFO_NONE, INFO_WANTED, INFO_ASKING, INFO_THERE, INFO_FAILED };
struct info_entry {
    enum info_state state;
    bool registered; /* by itself, not asked for */
    char session[ENGINE_INFO_SESSION_BYTES];
    struct blob *tensors; /* and "]}"; kept while a newer answer is waited for */
    uint64_t since_ns;    /* of the state */
    char reason[ENGINE_INFO_REASON_BYTES];
};

/* What the routes get: the reference is theirs. The session may have a wildcard for its host if it
 * is ours. */
struct info_found {
    char session[ENGINE_INFO_SESSION_BYTES];
    struct blob *tensors; /* the object, and "]}" behind it */
};

enum nodes_stage {
    NODES_CLOSED, /* until nodes_publish() is through */
    NODES_WAITING,
    NODES_OPEN,
};

struct asker;
struct service;
struct registrar;

struct nodes {
    /* fixed at creation */
    struct seed *seed;
    struct nodes_options options; /* without its strings */
    char *host;
    char *bootstrap_host;           /* or NULL */
    char (*hosts)[NODE_HOST_BYTES]; /* [node_count] or NULL */
    uint32_t ranks_per_node;        /* 0: not known */

    /* fixed by nodes_start() */
    struct server *bootstrap;
    struct asker *asker;
    struct service *service;

    struct registrar *registrar; /* by nodes_publish() */
    atomic_int stage;            /* release by who enters it, acquire by nodes_not_ready() */

    struct mutex own_lock;                     /* held while one is made */
    struct blob **own RF_GUARDED_BY(own_lock); /* [rank_count of the manifest] */
    uint32_t own_count RF_GUARDED_BY(own_lock);

    struct mutex lock;
    struct info_entry **entries RF_GUARDED_BY(lock); /* [ENGINE_INFO_MAX_RANK + 1] */
    uint64_t bytes RF_GUARDED_BY(lock);              /* of all tensors in them */
    struct cond news;                                /* a rank has come */
};

/* Whether this node has the rank, or will once it is loaded. */
bool nodes_is_own(struct nodes *nodes, uint64_t rank);
/* The node that has it; node_count: none has. */
uint32_t nodes_of_rank(const struct nodes *nodes, uint64_t rank);
/* "node 1 (10.0.0.2:15036)" */
void nodes_name(const struct nodes *nodes, uint32_t node, char out[ENGINE_INFO_REASON_BYTES]);

/* A rank of ours. RF_E_UNREACHABLE: loading, draining; RF_E_CHANGED: failed; RF_E_UNSUPPORTED: te
 * is not offered, or not a rank of ours. */
enum rf_code nodes_own(struct nodes *nodes, uint64_t rank, struct info_found *ret_found,
                       struct rf_error *err);
/* Where readers find it who reach us at `host` (NULL: not known): a wildcard is replaced. */
void nodes_session(const struct info_found *found, const char *host,
                   char out[ENGINE_INFO_SESSION_BYTES]);
/* Any rank, ours first. With `ask` its node is asked if need be: RF_AGAIN, then
 * nodes_settled() will say when to come again. RF_E_UNSUPPORTED: nobody knows it. */
enum rf_code nodes_find(struct nodes *nodes, uint64_t rank, bool ask, struct info_found *ret_found,
                        struct rf_error *err);
/* Whether no question about the rank is under way. */
bool nodes_settled(struct nodes *nodes, uint64_t rank);
/* Whether a rank of another node has ever been told or answered; if not, reason says why it was not
 * when it was asked for, "" if nobody did. */
bool nodes_knows(struct nodes *nodes, uint64_t rank, char reason[ENGINE_INFO_REASON_BYTES]);
/* Until a rank comes, or the deadline. */
void nodes_wait_news(struct nodes *nodes, uint64_t deadline_ns);
/* Takes what a rank said of itself. RF_E_INVAL: ours; RF_E_NOMEM: too much is kept. */
enum rf_code nodes_register(struct nodes *nodes, const struct engine_info *info,
                            struct rf_error *err);

/* ---- for the asker: the entries' owner is nodes.c ---- */

/* The next rank that is to be asked for, now ASKING; false: there is none. */
bool nodes_next_wanted(struct nodes *nodes, uint64_t *ret_rank);
/* What came of it: info, or err if that is not RF_OK. */
void nodes_asked(struct nodes *nodes, uint64_t rank, const struct engine_info *info,
                 const struct rf_error *err);

enum rf_code asker_start(struct nodes *nodes, struct asker **ret_asker, struct rf_error *err);
void asker_wake(struct asker *asker);
void asker_stop(struct asker *asker); /* NULL is fine */

enum rf_code service_start(struct nodes *nodes, struct service **ret_service, struct rf_error *err);
uint16_t service_port(const struct service *service);
void service_stop(struct service *service); /* NULL is fine */

/* Begins, and waits until it is done or timeout_ms are over. */
enum rf_code registrar_start(struct nodes *nodes, struct registrar **ret_registrar,
                             struct rf_error *err);
void registrar_stop(struct registrar *registrar); /* NULL is fine */

#endif
