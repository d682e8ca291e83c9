/* The text of plans: what it says, and what it may not say. */
#include "base/rand.h"
#include "model/plan_internal.h"
#include "util/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct plan *parsed(const char *text)
{
    struct plan *plan = NULL;
    struct rf_error err = {0};

    if (plan_parse("test", text, strlen(text), &plan, &err) != RF_OK)
        fail_msg("%s", err.text);
    return plan;
}

static void built_in_plans_are_plans(void **state)
{
    (void)state;
    static const char *const architectures[] = {"LlamaForCausalLM", "Qwen2ForCausalLM",
                                                "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
                                                "DeepseekV3ForCausalLM"};
    const char *name = NULL;

    for (unsigned i = 0; i < sizeof architectures / sizeof architectures[0]; i++) {
        struct plan *plan = NULL;
        assert_int_equal(plan_for_architecture(architectures[i], &plan, NULL), RF_OK);
        assert_true(plan_has_architecture(plan, architectures[i]));
        assert_true(plan_has_layout(plan, "sglang"));
        assert_true(plan_has_layout(plan, "checkpoint"));
        assert_false(plan_has_layout(plan, "other"));
        assert_non_null(plan_builtin(i, &name));
        assert_string_equal(name, plan_name(plan));
        plan_destroy(plan);
    }
    assert_null(plan_builtin(5, &name));
}

/* The first block of docs/sharding.md between ``` lines. */
static void the_documented_example_is_a_plan(void **state)
{
    (void)state;
    const char *source = getenv("RFORK_SOURCE"); /* ctest sets it */
    char path[4096];
    char text[16384];

    snprintf(path, sizeof path, "%s/docs/sharding.md", source != NULL ? source : ".");
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail_msg("%s: cannot be opened; run in the source folder or set RFORK_SOURCE", path);
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[bytes] = '\0';
    char *begin = strstr(text, "```\n");
    assert_non_null(begin);
    char *end = strstr(begin + 4, "```");
    assert_non_null(end);
    *end = '\0';
    struct plan *plan = parsed(begin + 4);
    assert_true(plan_has_architecture(plan, "PhiForCausalLM"));
    assert_true(plan->rule_count > 15);
    plan_destroy(plan);
}

static void an_architecture_without_a_plan_is_named(void **state)
{
    (void)state;
    struct plan *plan = NULL;
    struct rf_error err = {0};

    assert_int_equal(plan_for_architecture("MambaForCausalLM", &plan, &err), RF_E_UNSUPPORTED);
    assert_null(plan);
    assert_says(&err, "\"MambaForCausalLM\"");
    assert_says(&err, "LlamaForCausalLM, Qwen2ForCausalLM");
    assert_says(&err, "docs/sharding.md");
}

static void alternatives_stand_for_several_lines_in_order(void **state)
{
    (void)state;
    struct plan *plan = parsed("plan p\n"
                               "tensor (a|b).(x|yy|) column # and a comment\n"
                               "layout l\n"
                               "make f.(x|yy) from a.(x|yy) b.(x|yy)\n");
    static const char *const names[] = {"a.x", "a.yy", "a.", "b.x", "b.yy", "b."};

    assert_int_equal(plan->rule_count, 6);
    for (unsigned i = 0; i < 6; i++) {
        assert_string_equal(plan->rules[i].pattern.text, names[i]);
        assert_int_equal(plan->rules[i].line, 2);
    }
    assert_int_equal(plan->layouts[0].make_count, 2);
    assert_string_equal(plan->layouts[0].makes[1].target.text, "f.yy");
    assert_int_equal(plan->layouts[0].makes[1].from_count, 2);
    assert_string_equal(plan->layouts[0].makes[1].from[1].text, "b.yy");
    plan_destroy(plan);
}

static void set_names_stand_for_text(void **state)
{
    (void)state;
    struct plan *plan = parsed("plan p\r\n"
                               "index layer 4\r\n"
                               "set L model.{layer}\r\n"
                               "set A $L.attn\r\n"
                               "tensor $A.q\tcolumn\r\n");

    assert_string_equal(plan->rules[0].pattern.text, "model.{layer}.attn.q");
    plan_destroy(plan);
}

static void names_match_their_patterns(void **state)
{
    (void)state;
    struct plan *plan = parsed("plan p\nindex layer 4\nindex expert 4\n"
                               "tensor l.{layer}.e.{expert}.w column\n"
                               "tensor *.scale scale\n"
                               "tensor x{layer}y{layer} column\n"
                               "tensor all* column\n");
    static const struct {
        unsigned rule;
        const char *name;
        bool matches;
    } cases[] = {
        {0, "l.0.e.12.w", true},   {0, "l.01.e.2.w", false}, {0, "l.0.e.2.wx", false},
        {0, "l.0.e..w", false},    {0, "l.0.e.2", false},    {0, "l.1234567890.e.2.w", false},
        {1, "any.4.scale", true},  {1, ".scale", true},      {1, "scale", false},
        {1, "any.scale.x", false}, {2, "x3y3", true},        {2, "x3y4", false},
        {3, "all", true},          {3, "all of it", true},   {3, "al", false},
    };

    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct plan_numbers numbers = {.present = 0};
        bool matches = plan_match(&plan->rules[cases[i].rule].pattern, cases[i].name,
                                  strlen(cases[i].name), &numbers);
        if (matches != cases[i].matches)
            fail_msg("%s", cases[i].name);
        if (matches && cases[i].rule == 0) {
            char name[64];
            size_t bytes = 0;
            assert_int_equal(numbers.value[1], 12);
            assert_true(
                plan_name_make(&plan->rules[0].pattern, &numbers, name, sizeof name, &bytes));
            assert_string_equal(name, cases[i].name);
        }
    }
    plan_destroy(plan);
}

/* ---- values ---- */

static void assert_value(const char *expression, const char *config_text, uint64_t expected,
                         const char *words)
{
    struct model_config *config = NULL;
    struct plan_values values;
    struct rf_error err = {0};
    uint64_t value = 0;
    char text[512];

    snprintf(text, sizeof text,
             "plan p\ndefault d n+1\nlet twice d*2\nlet lost absent\ntensor t column by=%s\n",
             expression);
    struct plan *plan = parsed(text);
    assert_int_equal(model_config_parse(config_text, strlen(config_text), &config, NULL), RF_OK);
    assert_int_equal(plan_values_create(plan, config, &values, NULL), RF_OK);
    enum rf_code code = plan_eval(&values, &plan->rules[0].by, 5, &value, &err);
    if (words != NULL) {
        assert_int_equal(code, RF_E_FORMAT);
        assert_says(&err, words);
    } else {
        assert_int_equal(code, RF_OK);
        assert_int_equal(value, expected);
    }
    plan_values_free(&values);
    model_config_destroy(config);
    plan_destroy(plan);
}

static void values_are_worked_out(void **state)
{
    (void)state;
    static const char config[] = "{\"n\":6,\"o\":{\"p\":[4,5]},\"text\":\"x\"}";

    assert_value("7", config, 7, NULL);
    assert_value("n*2+3", config, 15, NULL);
    assert_value("3+n*2-n/3", config, 13, NULL);
    assert_value("o.p.1*n", config, 30, NULL);
    assert_value("d", config, 7, NULL);
    assert_value("d", "{\"d\":3}", 3, NULL);
    assert_value("twice", "{\"n\":6,\"twice\":1}", 14, NULL);
    assert_value("n/4", config, 0, "n/4 is no whole number");
    assert_value("n/0", config, 0, "no whole number");
    assert_value("3-n", config, 0, "no whole number");
    assert_value("n*999999999999999999*999", config, 0, "no whole number");
    assert_value("m", config, 0, "has no m, which plan p needs in line 5");
    assert_value("lost", config, 0, "has no absent, which plan p needs in line 4");
    assert_value("text", config, 0, "text is no whole number");
}

/* ---- refusals ---- */

static const struct {
    const char *text;
    const char *words;
} bad_texts[] = {
    {"", "test:0: says nothing"},
    {"# only a comment\n", "test:1: says nothing"},
    {"plan p\n", "test:1: ends without a line `tensor"},
    {"tensor a column\n", "test:1: the first line is `plan NAME`"},
    {"plan p\nplan q\n", "test:2: `plan NAME` stands once"},
    {"plan p\nfoo bar\n", "test:2: \"foo\" begins no line"},
    {"plan p\ntensor a\n", "`tensor NAME KIND"},
    {"plan p\ntensor a diagonal\n", "kind \"diagonal\" is none of"},
    {"plan p\ntensor a column colour=red\n", "unknown word \"colour=red\""},
    {"plan p\ntensor a column by=\n", "is missing before \"\""},
    {"plan p\ntensor a column by=n+\n", "is missing before"},
    {"plan p\ntensor a column by=n&2\n", "& is none of + - * /"},
    {"plan p\ntensor a column by=9999999999999999999\n", "too large"},
    {"plan p\ntensor a column axis=9\n", "axis \"9\" is none of 0 to 7"},
    {"plan p\ntensor a column [n\n", "a shape is [A,B]"},
    {"plan p\ntensor a column [n,,m]\n", "is missing before"},
    {"plan p\ntensor a kv\n", "kv needs by=HEADS"},
    {"plan p\ntensor a replicated by=3\n", "are for tensors that are split"},
    {"plan p\ntensor a column pad=3\n", "pad= is for embeddings"},
    {"plan p\ntensor a.{layer} column\n", "{layer}: no line `index layer ...` before"},
    {"plan p\ntensor a.{layer column\n", "{ without a }"},
    {"plan p\ntensor a.} column\n", "} without a {"},
    {"plan p\nindex l 4\ntensor {l}{l} column\n", "two numbers without anything between"},
    {"plan p\ntensor *.* column\n", "only text may follow a *"},
    {"plan p\ntensor $L.a column\n", "$L: no line `set L ...` before"},
    {"plan p\nset L\n", "`set NAME TEXT`"},
    {"plan p\nset L1 x\n", "a name has letters and _ only"},
    {"plan p\ntensor (a|b column\n", "( without a )"},
    {"plan p\ntensor a|b) column\n", ") without a ("},
    {"plan p\ntensor (a|(b|c)) column\n", "a ( inside of (...)"},
    {"plan p\ntensor ((a|b).c|d) column\n", "a ( inside of (...)"},
    {"plan p\nindex l\n", "`index NAME"},
    {"plan p\nindex l 4\nindex l 5\n", "test:3: index l: is in line 2 already"},
    {"plan p\nlet a b + c\n", "without blanks in the expression"},
    {"plan p\nmake a\n", "`make` stands below a line `layout NAME`"},
    {"plan p\ndrop a\n", "`drop` stands below"},
    {"plan p\nlayout checkpoint\n", "layout checkpoint is there already"},
    {"plan p\nlayout l\nlayout l\n", "layout l is there already"},
    {"plan p\nlayout l123456789012345678901234567890123456789012345678901234567890123456789\n",
     "at most 64 bytes"},
    {"plan p\nlayout l colour\n", "`layout NAME [dtype=config]`"},
    {"plan p\nlayout l\nmake a from\n", "made from nothing"},
    {"plan p\nlayout l\nmake a dtype=FP8\n", "dtype \"FP8\" is none"},
    {"plan p\nlayout l\nmake a* from b\n", "* is for tensors of the checkpoint"},
    {"plan p\nlayout l\nmake a stack=e from b\n", "no line `index e ...` before"},
    {"plan p\nindex e 4\nlayout l\nmake a stack=e from b\n", "does not have the index"},
    {"plan p\nindex e 4\nlayout l\nmake a from b.{e}\n", "a number that nothing gives"},
    {"plan p\nindex e 4\nlayout l\nmake a.{e} stack=e from b.{e}\n", "is in the name"},
    {"plan p\nindex e 4\nindex l 4\nlayout l\nmake a.{e}.{l} from b\n", "one number at most"},
    {"plan p\nlayout l\nmake a from b and c\n", "stack=INDEX is missing"},
    {"plan p\nindex e 4\nlayout l\nmake a stack=e from b.{e} c.{e} and d\n",
     "as many as before it"},
    {"plan p\nlayout l\nmake a constant=x dtype=F32\n", "constant \"x\" is no number"},
    {"plan p\nlayout l\nmake a constant=1\n", "a constant is a scalar with dtype=F32"},
    {"plan p\ntensor a\x01 column\n", "a control character"},
    {"plan p\ntensor a\xff column\n", "a byte that is not UTF-8"},
};

static void lines_that_say_nothing_known_are_refused(void **state)
{
    (void)state;

    for (unsigned i = 0; i < sizeof bad_texts / sizeof bad_texts[0]; i++) {
        struct plan *plan = NULL;
        struct rf_error err = {0};
        char *copy = (char *)exact_copy(bad_texts[i].text, strlen(bad_texts[i].text));

        if (plan_parse("test", copy, strlen(bad_texts[i].text), &plan, &err) != RF_E_FORMAT)
            fail_msg("accepted: %s", bad_texts[i].text);
        assert_null(plan);
        assert_says(&err, bad_texts[i].words);
        free(copy);
    }
}

static void a_line_without_end_is_refused(void **state)
{
    (void)state;
    static const char *const repeated[] = {"x", "(a|b)", "a ", "$A"};
    struct plan *plan = NULL;

    for (unsigned i = 0; i < sizeof repeated / sizeof repeated[0]; i++) {
        BUF_AUTO struct buf text = {0};

        buf_printf(&text, "plan p\nset A aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\ntensor ");
        for (unsigned n = 0; n < 2000; n++)
            buf_printf(&text, "%s", repeated[i]);
        buf_printf(&text, " column\n");
        assert_int_equal(plan_parse("test", (const char *)text.data, text.bytes, &plan, NULL),
                         i == 0 ? RF_OK : RF_E_FORMAT);
        if (i == 0)
            plan_destroy(plan);
    }
}

static void damaged_plans_are_refused_or_plans(void **state)
{
    (void)state;
    static const char *const bits[] = {"(",  "|", ")",    "{",   "}",       "*", "$", "[", ",", "=",
                                       "\n", " ", "from", "and", "{layer}", "!", "#", "/", "0"};
    struct rand_seq seq = {4};

    for (unsigned round = 0; round < 3000; round++) {
        const char *text = plan_builtin(round % 5, NULL);
        size_t at = rand_below(&seq, strlen(text));
        const char *bit = bits[rand_below(&seq, sizeof bits / sizeof bits[0])];
        struct plan *plan = NULL;
        BUF_AUTO struct buf damaged = {0};

        buf_append(&damaged, text, at);
        buf_append(&damaged, bit, strlen(bit));
        buf_append(&damaged, text + at + 1, strlen(text) - at - 1);
        enum rf_code code =
            plan_parse("damaged", (const char *)damaged.data, damaged.bytes, &plan, NULL);
        assert_true(code == RF_OK || code == RF_E_FORMAT);
        if (code == RF_OK)
            plan_destroy(plan);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(built_in_plans_are_plans),
        cmocka_unit_test(the_documented_example_is_a_plan),
        cmocka_unit_test(an_architecture_without_a_plan_is_named),
        cmocka_unit_test(alternatives_stand_for_several_lines_in_order),
        cmocka_unit_test(set_names_stand_for_text),
        cmocka_unit_test(names_match_their_patterns),
        cmocka_unit_test(values_are_worked_out),
        cmocka_unit_test(lines_that_say_nothing_known_are_refused),
        cmocka_unit_test(a_line_without_end_is_refused),
        cmocka_unit_test(damaged_plans_are_refused_or_plans),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
