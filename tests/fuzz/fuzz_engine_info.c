/* What others say of ranks: registrations, and the frames between nodes. */
#include "control/engine_info.h"
#include "wire/weight_map.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* What was taken lies inside the text, looks like an object, and is called something. */
static void check(const struct engine_info *info, const uint8_t *data, size_t len)
{
    const uint8_t *at = (const uint8_t *)info->tensors;

    if (at < data || info->tensors_bytes < 2 || info->tensors_bytes > len - (size_t)(at - data))
        abort();
    if (at[0] != '{' || at[info->tensors_bytes - 1] != '}')
        abort();
    if (!weight_map_session_ok(info->session, strlen(info->session)))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct engine_question question;
    struct engine_info info;
    struct engine_info again;
    struct rf_error err;

    if (engine_info_parse_put(data, len, &info, &err) == RF_OK) {
        struct buf out = {0};
        check(&info, data, len);
        engine_info_put(info.rank, info.session, info.tensors, info.tensors_bytes, &out);
        if (!out.failed && (engine_info_parse_put(out.data, out.bytes, &again, &err) != RF_OK ||
                            again.rank != info.rank || again.tensor_count != info.tensor_count))
            abort();
        buf_free(&out);
    }
    if (engine_answer_parse(data, len, 1, &info, &err) == RF_OK)
        check(&info, data, len);
    if (engine_question_parse(data, len, &question, &err) == RF_OK &&
        (strnlen(question.action, sizeof question.action) == sizeof question.action ||
         strpbrk(question.action, "\n\r\x1b") != NULL))
        abort();
    return 0;
}
