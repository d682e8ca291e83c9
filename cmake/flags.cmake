# Compiler and linker options, as one interface target that everything of ours links.

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
include(CheckPIESupported)
check_pie_supported(LANGUAGES C)

# No NDEBUG: assertions are about our own bugs, cost nothing measurable, and stopping beats serving wrong bytes.
set(CMAKE_C_FLAGS_RELEASE "-O2 -g")
set(CMAKE_C_FLAGS_DEBUG "-O1 -g -fno-omit-frame-pointer")

add_library(rfork_flags INTERFACE)
target_compile_options(rfork_flags INTERFACE
    -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wcast-qual -Wwrite-strings
    -Wundef -Wvla -Wformat=2
    -fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=
    $<$<C_COMPILER_ID:Clang>:-Wthread-safety>
    $<$<BOOL:${RFORK_WERROR}>:-Werror>)

if(RFORK_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID STREQUAL "Clang")
        message(FATAL_ERROR "RFORK_FUZZ needs clang: use 'cmake --preset fuzz'")
    endif()
    set(RFORK_SANITIZE address,undefined)
    target_compile_options(rfork_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

if(RFORK_SANITIZE)
    target_compile_options(rfork_flags INTERFACE -fsanitize=${RFORK_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(rfork_flags INTERFACE -fsanitize=${RFORK_SANITIZE})
elseif(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_compile_options(rfork_flags INTERFACE
        -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fstack-clash-protection)
    target_link_options(rfork_flags INTERFACE -Wl,-z,relro,-z,now)
endif()
