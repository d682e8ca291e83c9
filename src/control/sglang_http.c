#include "control/sglang_http.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char json_type[] = "application/json";

enum { SGLANG_RANK_MAX_DIGITS = 4300 }; /* as many as Python takes for a number */

/* Digits, of which two may have an underscore between them. Returns where they end; what is too
 * long has an end that is a digit. */
static const char *take_digits(const char *text, char out[SGLANG_RANK_MAX_DIGITS + 1],
                               size_t *ret_count)
{
    size_t count = 0;

    while (text[0] >= '0' && text[0] <= '9' && count < SGLANG_RANK_MAX_DIGITS) {
        out[count++] = *text++;
        if (text[0] == '_' && text[1] >= '0' && text[1] <= '9')
            text++;
    }
    out[count] = '\0';
    *ret_count = count;
    return text;
}

enum sglang_rank sglang_rank_parse(const char *text, uint64_t *ret_rank,
                                   char digits[SGLANG_RANK_DIGITS + 1])
{
    static const char blanks[] = " \t\r\n\v\f+"; /* in an argument a plus is one, too */
    char number[SGLANG_RANK_MAX_DIGITS + 1];
    size_t count = 0;
    uint64_t rank = 0;

    digits[0] = '\0';
    if (text == NULL)
        return SGLANG_RANK_ABSENT;
    text += strspn(text, blanks);
    bool negative = *text == '-';
    text += negative;
    const char *end = take_digits(text, number, &count);
    /* "3.0" is 3, "3." is not. */
    if (end[0] == '.' && end[1] == '0')
        end += 1 + strspn(end + 1, "0");
    if (count == 0 || end[strspn(end, blanks)] != '\0')
        return SGLANG_RANK_NO_NUMBER;
    const char *first = number + strspn(number, "0");
    if (*first == '\0')
        first--; /* the last zero */
    if (negative && *first != '0')
        return SGLANG_RANK_NEGATIVE;
    snprintf(digits, SGLANG_RANK_DIGITS + 1, "%.*s", SGLANG_RANK_DIGITS, first);
    *ret_rank = target_digits(first, strlen(first), UINT64_MAX, &rank) ? rank : UINT64_MAX;
    return SGLANG_RANK;
}

void sglang_reply_unprocessable(struct request *request, struct reply *reply, const char *input)
{
    struct buf json = {0};

    buf_printf(&json,
               "{\"detail\":[{\"type\":\"%s\",\"loc\":[\"query\",\"rank\"],\"msg\":\"%s\","
               "\"input\":",
               input != NULL ? "int_parsing" : "missing",
               input != NULL ? "Input should be a valid integer, unable to parse string as an "
                               "integer"
                             : "Field required");
    if (input != NULL)
        buf_json_string(&json, input, strlen(input));
    else
        buf_printf(&json, "null");
    buf_printf(&json, "}]}");
    reply_exact(request, reply, MHD_HTTP_UNPROCESSABLE_CONTENT, json_type, &json);
}

void sglang_reply_detail(struct request *request, struct reply *reply, unsigned status,
                         const char *text)
{
    struct buf json = {0};

    buf_printf(&json, "{\"detail\":");
    buf_json_string(&json, text, strlen(text));
    buf_printf(&json, "}");
    reply_exact(request, reply, status, json_type, &json);
}

void sglang_reply_info(struct request *request, struct reply *reply, uint64_t rank,
                       struct info_found *found)
{
    char session[ENGINE_INFO_SESSION_BYTES];
    char host[ROUTE_ADDRESS_BYTES];
    struct buf text = {0};
    struct rf_error err;
    uint16_t port;

    nodes_session(found, route_local_host(request, host, &port) ? host : NULL, session);
    buf_append(&text, "{", 1);
    engine_info_begin(rank, session, &text);
    struct blob *head = blob_create(&text, &err);
    if (head == NULL) {
        blob_unref(found->tensors);
        reply_error(request, reply, &err);
        return;
    }
    reply_blobs(request, reply, MHD_HTTP_OK, json_type, head, found->tensors);
}
