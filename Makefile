# The front door. The work is in CMakeLists.txt, CMakePresets.json and scripts/.
PREFIX ?= /usr/local
DESTDIR ?=
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 60
BENCH_ARGS ?=

.DEFAULT_GOAL := build
.PHONY: help setup setup-test tools build demo test test-peers quick check bench bench-peers fuzz format install clean distclean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## installs the Debian packages a build needs
	@scripts/setup.sh

setup-test: ## and those the tests and checks need
	@scripts/setup.sh --test

tools:
	@missing=$$(scripts/setup.sh --missing) || \
	    { echo "rfork: missing: $$missing; run 'make setup'" >&2; exit 1; }

build: tools ## release build: build/rfork, build/librfork.so, build/librfork.a
	@scripts/build.sh release $(JOBS)

demo: setup build ## the shortest way to see it work
	@scripts/demo.sh

test: setup-test ## everything but the tests against other software; ends with 'N passed, N failed, N skipped'
	@python3 scripts/run-tests.py --jobs $(JOBS) test

test-peers: ## tests against other software, installed into build/; ends like test
	@scripts/setup.sh --test --peers
	@python3 scripts/run-tests.py --jobs $(JOBS) peers

quick: setup-test ## unit, contract and fuzz replay tests with ASan and UBSan: while writing code
	@python3 scripts/run-tests.py --jobs $(JOBS) quick

check: setup-test ## the static checks alone
	@python3 scripts/run-tests.py --jobs $(JOBS) check

bench: build ## measures, each figure beside its ceiling (BENCH_ARGS='...')
	@build/rfork bench $(BENCH_ARGS)

bench-peers: build ## measures against Mooncake, NIXL and raw sockets (BENCH_ARGS='...')
	@scripts/setup.sh --test --peers
	@scripts/peers.py bench
	@build/venv-peers/bin/python bench/te_peers.py $(BENCH_ARGS)

fuzz: setup-test ## fuzzes each target for FUZZ_SECONDS (60)
	@scripts/fuzz.sh $(FUZZ_SECONDS) $(JOBS)

format: setup-test ## rewrites all C files with clang-format
	@python3 scripts/check.py --format

install: build ## installs below PREFIX (/usr/local); DESTDIR is honoured
	@DESTDIR='$(DESTDIR)' cmake --install build/release --prefix '$(PREFIX)'

clean: ## removes what builds and tests made, but not build/venv-peers and build/peers
	@test ! -d build || find build -mindepth 1 -maxdepth 1 ! -name 'venv-peers*' ! -name peers -exec rm -rf {} +

distclean: ## removes build/ altogether
	@rm -rf build
