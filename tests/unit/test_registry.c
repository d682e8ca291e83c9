/* Transports are found by name, and chosen among a seed's endpoints with a reason either way. */
#include "transport/transport.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct endpoint endpoint_of(const char *transport, const char *address, bool here)
{
    struct endpoint endpoint = {.host_id = "another-host"};

    snprintf(endpoint.transport, sizeof endpoint.transport, "%s", transport);
    snprintf(endpoint.address, sizeof endpoint.address, "%s", address);
    if (here)
        transport_host_id(endpoint.host_id);
    return endpoint;
}

static void each_listed_transport_is_found_by_its_name(void **state)
{
    uint32_t count = 0;
    const struct transport *const *all = transport_list(&count);
    const struct transport *found = NULL;
    struct transport_verdict verdict;
    struct rf_error err = {0};

    (void)state;
    assert_true(count >= 2);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(transport_find(all[i]->name, &found, &err), RF_OK);
        assert_ptr_equal(found, all[i]);
        assert_true(all[i]->summary[0] != '\0');
        all[i]->available(&verdict);
        assert_true(verdict.reason[0] != '\0');
    }
}

static void an_unknown_name_lists_the_known_ones(void **state)
{
    static const char *const names[] = {"tcq", "", "TCP", "tcp ", "fault", "fault:7:tcq"};
    const struct transport *found = NULL;
    struct rf_error err = {0};

    (void)state;
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_int_equal(transport_find(names[i], &found, &err), RF_E_UNSUPPORTED);
        assert_non_null(strstr(err.text, "tcp"));
        assert_non_null(strstr(err.text, "null"));
        assert_null(found);
    }
    assert_int_equal(transport_find("fault:x:tcp", &found, &err), RF_E_INVAL);
    assert_int_equal(transport_find("fault:7:fault", &found, &err), RF_E_INVAL);
}

static void a_faulty_name_is_another_transport(void **state)
{
    const struct transport *faulty = NULL;
    const struct transport *plain = NULL;

    (void)state;
    assert_int_equal(transport_find("fault:7:tcp", &faulty, NULL), RF_OK);
    assert_int_equal(transport_find("tcp", &plain, NULL), RF_OK);
    assert_ptr_not_equal(faulty, plain);
}

static void the_best_usable_endpoint_wins_and_says_why(void **state)
{
    struct transport_choice choice = {.transport = NULL};
    struct rf_error err = {0};
    const struct endpoint endpoints[] = {
        endpoint_of("quantum", "entangled", true),
        endpoint_of("map", "@rfork-nobody-listens-here", false),
        endpoint_of("tcp", "192.0.2.7:4000", false),
        endpoint_of("null", "0123456789abcdef", true),
        endpoint_of("tcp", "0.0.0.0:4000", false),
    };

    (void)state;
    assert_int_equal(transport_choose("auto", endpoints, 5, &choice, &err), RF_OK);
    assert_string_equal(choice.transport->name, "tcp");
    assert_string_equal(choice.endpoint.address, "192.0.2.7:4000");
    assert_non_null(strstr(choice.reason, "IP"));
    assert_non_null(strstr(choice.reason, "not quantum: not known here"));
    assert_non_null(strstr(choice.reason, "not map: the seed is on another host"));
    assert_non_null(strstr(choice.reason, "not null: "));
    assert_non_null(strstr(choice.reason, "not tcp: "));
}

static void a_name_takes_that_one_or_fails_with_its_reason(void **state)
{
    struct transport_choice choice = {.transport = NULL};
    struct rf_error err = {0};
    const struct endpoint endpoints[] = {
        endpoint_of("null", "0123456789abcdef", true),
        endpoint_of("tcp", "192.0.2.7:4000", false),
    };

    (void)state;
    assert_int_equal(transport_choose("null", endpoints, 2, &choice, &err), RF_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "another process"));
    assert_null(choice.transport);
    assert_int_equal(transport_choose("map", endpoints, 2, &choice, &err), RF_E_UNSUPPORTED);
    assert_int_equal(transport_choose("quantum", endpoints, 2, &choice, &err), RF_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "there are: "));
    assert_int_equal(transport_choose("auto", NULL, 0, &choice, &err), RF_E_UNSUPPORTED);
    assert_int_equal(transport_choose("tcp", endpoints, 2, &choice, &err), RF_OK);
    assert_string_equal(choice.endpoint.address, "192.0.2.7:4000");
}

static void a_reader_may_ask_for_faults_a_seed_may_not(void **state)
{
    struct transport_choice choice = {.transport = NULL};
    struct rf_error err = {0};
    const struct endpoint plain = endpoint_of("tcp", "192.0.2.7:4000", false);
    const struct endpoint faulty = endpoint_of("fault:7:tcp", "192.0.2.7:4000", false);

    (void)state;
    assert_int_equal(transport_choose("fault:7:tcp", &plain, 1, &choice, &err), RF_OK);
    assert_string_equal(choice.transport->name, "fault");
    assert_string_equal(choice.endpoint.transport, "fault:7:tcp");
    assert_int_equal(transport_choose("fault:7:tcp", &faulty, 1, &choice, &err), RF_OK);
    assert_string_equal(choice.transport->name, "fault");
    assert_int_equal(transport_choose("fault:8:tcp", &faulty, 1, &choice, &err), RF_E_UNSUPPORTED);
    assert_int_equal(transport_choose("auto", &faulty, 1, &choice, &err), RF_E_UNSUPPORTED);
}

static void what_a_peer_wrote_cannot_harm_the_reason(void **state)
{
    struct transport_choice choice = {.transport = NULL};
    struct rf_error err = {0};
    struct endpoint endpoints[TRANSPORT_MAX_ENDPOINTS];

    (void)state;
    for (unsigned i = 0; i < TRANSPORT_MAX_ENDPOINTS; i++) {
        endpoints[i] = endpoint_of("%s%n\x1b[31m", "%s%n", true);
        memset(endpoints[i].transport + 10, 'x', TRANSPORT_NAME_BYTES - 11);
    }
    assert_int_equal(transport_choose("auto", endpoints, TRANSPORT_MAX_ENDPOINTS, &choice, &err),
                     RF_E_UNSUPPORTED);
    assert_null(strchr(err.text, 0x1b));
    endpoints[3] = endpoint_of("tcp", "192.0.2.7:4000", false);
    assert_int_equal(transport_choose("auto", endpoints, TRANSPORT_MAX_ENDPOINTS, &choice, &err),
                     RF_OK);
    assert_null(strchr(choice.reason, 0x1b));
    assert_non_null(strstr(choice.reason, "not %s%n?[31m"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_listed_transport_is_found_by_its_name),
        cmocka_unit_test(an_unknown_name_lists_the_known_ones),
        cmocka_unit_test(a_faulty_name_is_another_transport),
        cmocka_unit_test(the_best_usable_endpoint_wins_and_says_why),
        cmocka_unit_test(a_name_takes_that_one_or_fails_with_its_reason),
        cmocka_unit_test(a_reader_may_ask_for_faults_a_seed_may_not),
        cmocka_unit_test(what_a_peer_wrote_cannot_harm_the_reason),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
