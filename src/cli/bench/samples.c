/* Samples, medians, and judging them. */
#include "base/size.h"
#include "cli/bench/bench.h"

#include <stdlib.h>
#include <string.h>

void samples_add(struct samples *samples, double value)
{
    if (samples->count < BENCH_MAX_ROUNDS)
        samples->values[samples->count++] = value;
}

static int double_order(const void *a, const void *b)
{
    double left = *(const double *)a;
    double right = *(const double *)b;

    return (left > right) - (left < right);
}

double samples_median(const struct samples *samples)
{
    double sorted[BENCH_MAX_ROUNDS];

    if (samples->count == 0)
        return 0;
    memcpy(sorted, samples->values, samples->count * sizeof(sorted[0]));
    qsort(sorted, samples->count, sizeof(sorted[0]), double_order);
    unsigned half = samples->count / 2;
    return samples->count % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

double samples_min(const struct samples *samples)
{
    double least = samples->count > 0 ? samples->values[0] : 0;

    for (unsigned i = 1; i < samples->count; i++)
        least = samples->values[i] < least ? samples->values[i] : least;
    return least;
}

double samples_max(const struct samples *samples)
{
    double most = 0;

    for (unsigned i = 0; i < samples->count; i++)
        most = samples->values[i] > most ? samples->values[i] : most;
    return most;
}

struct bench_result *bench_result(struct bench *bench, const char *name)
{
    /* The last line is reused rather than written beyond: there are far fewer measurements. */
    unsigned index =
        bench->result_count < BENCH_MAX_RESULTS ? bench->result_count++ : BENCH_MAX_RESULTS - 1;
    struct bench_result *result = &bench->results[index];

    memset(result, 0, sizeof(*result));
    snprintf(result->name, sizeof(result->name), "%s", name);
    return result;
}

void bench_skip(struct bench *bench, const char *name, const char *why)
{
    struct bench_result *result = bench_result(bench, name);

    result->skipped = true;
    snprintf(result->note, sizeof(result->note), "%.180s", why);
}

void bench_judge_rate(struct bench_result *result, double target)
{
    char text[SIZE_TEXT_BYTES];

    result->unit = "bytes/s";
    result->value = samples_median(&result->samples);
    result->ceiling = samples_median(&result->ceiling_samples);
    result->judged = result->ceiling > 0 ? result->value / result->ceiling : 0;
    result->target = target;
    snprintf(result->value_text, sizeof(result->value_text), "%s",
             size_rate_text(result->value, text));
    snprintf(result->ceiling_text, sizeof(result->ceiling_text), "%s",
             size_rate_text(result->ceiling, text));
}

void bench_judge_most(struct bench_result *result, const char *unit, double target)
{
    char text[SIZE_TEXT_BYTES];

    result->unit = unit;
    result->at_most = true;
    result->value = samples_median(&result->samples);
    result->judged = result->value;
    result->target = target;
    if (strcmp(unit, "s") == 0)
        snprintf(result->value_text, sizeof(result->value_text), "%s",
                 size_seconds_text(result->value, text));
    else
        snprintf(result->value_text, sizeof(result->value_text), "%s",
                 size_text((uint64_t)(result->value > 0 ? result->value : 0), text));
}

bool bench_met(const struct bench_result *result)
{
    if (result->skipped)
        return true;
    return result->at_most ? result->judged <= result->target : result->judged >= result->target;
}
