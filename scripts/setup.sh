#!/usr/bin/env bash
# Installs the Debian packages that rfork needs; does nothing, quickly, when all are there.
#
#   setup.sh            what a build needs
#   setup.sh --test     and what 'make test' needs
#   setup.sh --peers    and what 'make test-peers' needs
#   setup.sh --missing  installs nothing: prints the build tools and libraries that are missing, fails if any
set -euo pipefail

build_packages=(
    gcc libc6-dev binutils make cmake ninja-build pkg-config
    libmicrohttpd-dev libcurl4-openssl-dev libjansson-dev libxxhash-dev libssl-dev
    libzmq3-dev
)
test_packages=(
    libcmocka-dev g++ clang libclang-rt-14-dev clang-tidy clang-format cppcheck pmccabe mandoc
    llvm python3 python3-venv git curl iproute2 procps
)
peers_packages=(
    python3 python3-venv ca-certificates libibverbs1 ibverbs-providers librdmacm1 libnuma1
)

say() {
    printf 'setup: %s\n' "$*"
}

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Looks for the tools and libraries themselves, however they came to be there.
print_missing() {
    local name absent=()
    for name in cc cmake ninja pkg-config objcopy; do
        command -v "$name" >/dev/null || absent+=("$name")
    done
    if command -v pkg-config >/dev/null; then
        for name in libmicrohttpd libcurl jansson libxxhash libcrypto libzmq; do
            pkg-config --exists "$name" || absent+=("$name")
        done
    fi
    [ ${#absent[@]} -eq 0 ] || { echo "${absent[*]}"; return 1; }
}

packages=("${build_packages[@]}")
for arg in "$@"; do
    case $arg in
        --missing) print_missing; exit ;;
        --test) packages+=("${test_packages[@]}") ;;
        --peers) packages+=("${peers_packages[@]}") ;;
        *) die "unknown argument '$arg' (there are: --test --peers --missing)" ;;
    esac
done

if ! command -v dpkg-query >/dev/null; then
    missing=$(print_missing) || die "not a Debian system; install these yourself: $missing"
    say "not a Debian system, but what a build needs is here"
    exit 0
fi

# dpkg-query fails when it knows nothing of a package; that package is then missing from the list, which is the point.
installed=$(dpkg-query -W -f '${db:Status-Status} ${binary:Package}\n' "${packages[@]}" 2>/dev/null |
    sed -n 's/^installed \([^:]*\).*/\1/p') || true
wanted=()
for package in "${packages[@]}"; do
    grep -qxF -- "$package" <<<"$installed" || wanted+=("$package")
done
if [ ${#wanted[@]} -eq 0 ]; then
    say "all packages are installed"
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "missing: ${wanted[*]}; run as root, or install sudo"
    as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
say "installing ${wanted[*]}"
"${as_root[@]}" apt-get update -q </dev/null || die "apt-get update failed; missing: ${wanted[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${wanted[@]}" </dev/null ||
    die "apt-get could not install: ${wanted[*]}"
