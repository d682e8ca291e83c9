# Tests are found by their place; this table is the whole interface.
#
#   tests/unit/test_X.c      -> ctest unit.X        cmocka
#   tests/contract/test_X.c  -> ctest contract.X    cmocka
#   tests/fuzz/fuzz_X.c      -> ctest fuzz.X        replays tests/fuzz/corpus/X/
#   tests/system/test_X.py   -> ctest system.X      unittest, finds the program in $RFORK
#   tests/cluster/test_X.py  -> ctest cluster.X     the same, in network namespaces (root)
#   tests/peers/test_X.py    -> ctest peers.X       the same, in build/venv-peers
#   tests/tools/X.c          -> $RFORK_BUILD/tests/tools/X, a program that tests call
#
# A file may say in a comment of its own `ctest: timeout=600 serial` when the defaults do not fit.

enable_testing()

# One test's properties: label, skip code, environment, time limit (from the file if it says one).
function(rfork_test_properties test source label timeout)
    set_tests_properties(${test} PROPERTIES
        LABELS ${label} SKIP_RETURN_CODE 77 ENVIRONMENT "${test_environment}")
    file(STRINGS ${source} hint REGEX "ctest: [a-z]" LIMIT_COUNT 1)
    if(hint MATCHES "timeout=([0-9]+)")
        set(timeout ${CMAKE_MATCH_1})
    endif()
    if(hint MATCHES "serial")
        set_tests_properties(${test} PROPERTIES RUN_SERIAL ON)
    endif()
    set_tests_properties(${test} PROPERTIES TIMEOUT ${timeout})
endfunction()

set(test_environment
    RFORK=${RFORK_OUTPUT_DIR}/rfork
    RFORK_BUILD=${RFORK_OUTPUT_DIR}
    RFORK_SOURCE=${PROJECT_SOURCE_DIR}
    RFORK_SANITIZE=${RFORK_SANITIZE}
    ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:check_initialization_order=1
    UBSAN_OPTIONS=print_stacktrace=1
    TSAN_OPTIONS=second_deadlock_stack=1:suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp)

# ---- C tests ----

if(RFORK_TESTS)
    pkg_check_modules(cmocka REQUIRED IMPORTED_TARGET cmocka)

    set(test_libs rfork_core)
    file(GLOB util_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/util/*.c)
    if(util_sources)
        add_library(rfork_testutil STATIC ${util_sources})
        target_include_directories(rfork_testutil PUBLIC ${PROJECT_SOURCE_DIR}/tests)
        target_link_libraries(rfork_testutil PUBLIC rfork_core PkgConfig::cmocka)
        list(PREPEND test_libs rfork_testutil)
    endif()

    foreach(kind unit contract)
        file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${kind}/test_*.c)
        foreach(source IN LISTS sources)
            get_filename_component(file ${source} NAME_WE)
            string(REGEX REPLACE "^test_" "" name ${file})
            add_executable(${kind}_${name} ${source})
            target_include_directories(${kind}_${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
            target_link_libraries(${kind}_${name} PRIVATE ${test_libs} PkgConfig::cmocka)
            set_target_properties(${kind}_${name} PROPERTIES
                OUTPUT_NAME ${file} RUNTIME_OUTPUT_DIRECTORY ${RFORK_OUTPUT_DIR}/tests/${kind})
            add_test(NAME ${kind}.${name} COMMAND ${kind}_${name})
            rfork_test_properties(${kind}.${name} ${source} ${kind} 120)
        endforeach()
    endforeach()
endif()

# ---- fuzz targets, and their replay with any compiler ----

file(GLOB fuzz_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_*.c)
if(RFORK_FUZZ)
    add_custom_target(fuzzers)
endif()
foreach(source IN LISTS fuzz_sources)
    get_filename_component(file ${source} NAME_WE)
    string(REGEX REPLACE "^fuzz_" "" name ${file})
    # libFuzzer declares the entry point, no header of ours does.
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS -Wno-missing-prototypes)
    if(RFORK_FUZZ)
        add_executable(${file} ${source})
        target_link_options(${file} PRIVATE -fsanitize=fuzzer)
        target_link_libraries(${file} PRIVATE rfork_core)
        set_target_properties(${file} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${RFORK_OUTPUT_DIR}/fuzz)
        add_dependencies(fuzzers ${file})
    endif()
    if(RFORK_TESTS)
        add_executable(replay_${name} ${source} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.c)
        target_link_libraries(replay_${name} PRIVATE rfork_core)
        set_target_properties(replay_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${RFORK_OUTPUT_DIR}/fuzz)
        add_test(NAME fuzz.${name} COMMAND replay_${name} ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
        rfork_test_properties(fuzz.${name} ${source} fuzz 120)
    endif()
endforeach()

# ---- programs that Python tests call; in every build, since those tests are ----

file(GLOB tool_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/tools/*.c)
foreach(source IN LISTS tool_sources)
    get_filename_component(name ${source} NAME_WE)
    add_executable(tool_${name} ${source})
    target_link_libraries(tool_${name} PRIVATE rfork_core)
    set_target_properties(tool_${name} PROPERTIES
        OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${RFORK_OUTPUT_DIR}/tests/tools)
endforeach()

# ---- Python tests: nothing to build, so every build has them ----

function(rfork_python_tests kind python timeout)
    file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${kind}/test_*.py)
    foreach(source IN LISTS sources)
        get_filename_component(file ${source} NAME_WE)
        string(REGEX REPLACE "^test_" "" name ${file})
        add_test(NAME ${kind}.${name} COMMAND ${python} ${source})
        rfork_test_properties(${kind}.${name} ${source} ${kind} ${timeout})
    endforeach()
endfunction()

rfork_python_tests(system /usr/bin/python3 300)
rfork_python_tests(cluster /usr/bin/python3 300)
rfork_python_tests(peers ${PROJECT_SOURCE_DIR}/build/venv-peers/bin/python 900)
