#include "cli/ranks.h"

#include "base/cleanup.h"
#include "model/manifest.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>

/* Digits and nothing else, below tp_size. */
static enum rf_code number_parse(const char **at, uint32_t tp_size, uint32_t *ret_rank,
                                 struct rf_error *err)
{
    const char *text = *at;
    uint64_t value = 0;

    if (!isdigit((unsigned char)*text))
        return rf_fail(err, RF_E_INVAL, "\"%.40s\" is no list of ranks: 0-3, or 0,2,5-7", text);
    for (; isdigit((unsigned char)*text); text++) {
        if (value <= MANIFEST_MAX_RANKS)
            value = value * 10 + (uint64_t)(*text - '0');
    }
    if (value >= tp_size)
        return rf_fail(err, RF_E_INVAL,
                       "rank %.*s does not exist: with tp %" PRIu32 " there are 0 to %" PRIu32,
                       (int)(text - *at < 20 ? text - *at : 20), *at, tp_size, tp_size - 1);
    *at = text;
    *ret_rank = (uint32_t)value;
    return RF_OK;
}

/* Marks the ranks of one item, "3" or "0-7". */
static enum rf_code item_parse(const char **at, uint32_t tp_size, bool *wanted,
                               struct rf_error *err)
{
    uint32_t first = 0;
    enum rf_code code = number_parse(at, tp_size, &first, err);
    uint32_t last = first;

    if (code == RF_OK && **at == '-') {
        (*at)++;
        code = number_parse(at, tp_size, &last, err);
    }
    if (code != RF_OK)
        return code;
    if (last < first)
        return rf_fail(err, RF_E_INVAL, "ranks %" PRIu32 "-%" PRIu32 " go backwards", first, last);
    for (uint32_t rank = first; rank <= last; rank++) {
        if (wanted[rank])
            return rf_fail(err, RF_E_INVAL, "rank %" PRIu32 " is in the list twice", rank);
        wanted[rank] = true;
    }
    return RF_OK;
}

static enum rf_code list_parse(const char *text, uint32_t tp_size, bool *wanted,
                               struct rf_error *err)
{
    for (;;) {
        enum rf_code code = item_parse(&text, tp_size, wanted, err);

        if (code != RF_OK || *text == '\0')
            return code;
        if (*text != ',')
            return rf_fail(err, RF_E_INVAL, "\"%.40s\" in a list of ranks: 0-3, or 0,2,5-7", text);
        text++;
    }
}

enum rf_code ranks_parse(const char *text, uint32_t tp_size, struct ranks *ret_ranks,
                         struct rf_error *err)
{
    struct ranks ranks = {.count = 0};

    if (tp_size == 0 || tp_size > MANIFEST_MAX_RANKS)
        return rf_fail(err, RF_E_INVAL, "tp %" PRIu32 ": 1 to %d ranks are possible", tp_size,
                       MANIFEST_MAX_RANKS);
    rf_autofree bool *wanted = calloc(tp_size, sizeof(*wanted));
    rf_autofree uint32_t *list = calloc(tp_size, sizeof(*list));
    if (wanted == NULL || list == NULL)
        return rf_fail(err, RF_E_NOMEM, "no memory for %" PRIu32 " ranks", tp_size);
    enum rf_code code = text != NULL ? list_parse(text, tp_size, wanted, err) : RF_OK;
    if (code != RF_OK)
        return code;
    for (uint32_t i = 0; i < tp_size; i++) {
        if (text == NULL || wanted[i])
            list[ranks.count++] = i;
    }
    ranks.list = rf_take(list, NULL);
    *ret_ranks = ranks;
    return RF_OK;
}
