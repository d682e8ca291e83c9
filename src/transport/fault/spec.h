/* How misbehaviour is asked for: "fault:SEED[,KEY=VALUE]...:NAME", in the place of a transport's
 * name.
 *
 * SEED         number the faults are drawn from; the same one makes the same decisions kind=A+B
 *   what to do (below); without it delay+short, which break no promise after=BYTES  the
 *   destructive kinds begin once so many bytes have arrived in the session; default 0 odds=N
 *   the destructive kinds strike once in N chances on average; default 1: each time times=N
 *   refuse, corrupt and lie strike at most N times in a session; default: no limit NAME
 *   the transport that is wrapped, as in transport_find() */
#ifndef TRANSPORT_FAULT_SPEC_H
#define TRANSPORT_FAULT_SPEC_H

#include "transport/transport.h"

enum fault_kind {
    FAULT_DELAY = 1 << 0,   /* waits up to FAULT_MAX_DELAY_MS now and then */
    FAULT_SHORT = 1 << 1,   /* offers the wrapped transport small pieces of the sink */
    FAULT_CORRUPT = 1 << 2, /* flips a bit of what arrived; a chance is each piece */
    FAULT_REFUSE = 1 << 3,  /* fails a read with RF_E_FAILED; a chance is each read */
    FAULT_DEATH =
        1
        << 4, /* the session dies: RF_E_UNREACHABLE; a chance is each piece, and each progress() */
    FAULT_STALL =
        1
        << 5, /* nothing moves any more, as if the peer had stopped; a chance is each progress() */
    FAULT_LIE = 1 << 6, /* delivers bytes of another place in the stream; a chance is each read */
};

enum { FAULT_BENIGN = FAULT_DELAY | FAULT_SHORT, FAULT_MAX_DELAY_MS = 20 };

struct fault_spec {
    uint64_t seed;
    unsigned kinds; /* of enum fault_kind */
    uint64_t after_bytes;
    uint64_t odds;  /* >= 1 */
    uint64_t times; /* UINT64_MAX: no limit */
    char inner[TRANSPORT_NAME_BYTES];
};

/* Strict: no key twice, no blanks, no empty value, NAME not another fault. RF_E_INVAL says what
 * is wrong and what could be there. text need not come from a friend. */
enum rf_code fault_spec_parse(const char *text, struct fault_spec *ret_spec, struct rf_error *err);

#endif
