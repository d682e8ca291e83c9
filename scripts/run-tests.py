#!/usr/bin/env python3
"""Builds, runs the tests and the static checks, and ends with the line `N passed, N failed, N skipped`.

run-tests.py [--jobs N] [--only REGEX] test|quick|peers|check

What is counted are test cases where a program reports them (cmocka, unittest), else programs; a check counts as one. A build
that fails is one failure. What was skipped is named, with the reason if there is one, and never counts as passed.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

import check
import peers

ROOT = Path(__file__).resolve().parent.parent

# Which tests run in which build, in this order.
SUITES = {
    "test": [
        ("release", ["system", "cluster"]),
        ("debug-asan", ["unit", "contract", "fuzz", "system"]),
        ("tsan", ["unit", "contract"]),
    ],
    "quick": [("debug-asan", ["unit", "contract", "fuzz"])],
    "peers": [("release", ["peers"])],
    "check": [],
}
WITH_CHECKS = {"test", "check"}


class Totals:
    def __init__(self):
        self.passed = 0
        self.failures = []
        self.skips = []
        self.failed_cases = 0
        self.skipped_cases = 0

    def fail(self, name, cases=1):
        self.failures.append(name)
        self.failed_cases += max(cases, 1)

    def skip(self, name, reason, cases=1):
        self.skips.append(f"{name}: {reason}" if reason else name)
        self.skipped_cases += max(cases, 1)


def headline(text):
    print(f"\n== {text}", flush=True)


# ---- counting ----


def cases_in(output):
    """(passed, failed, skipped) as cmocka or unittest reported them; None when neither did."""
    ran = re.findall(r"^Ran (\d+) tests? in ", output, re.M)
    if ran:
        verdicts = re.findall(r"^(?:OK|FAILED)(?: \((.*)\))?$", output, re.M)

        def total(word):
            return sum(int(n) for verdict in verdicts for n in re.findall(rf"(?:^|, ){word}=(\d+)", verdict))

        failed = total("failures") + total("errors") + total("unexpected successes")
        skipped = total("skipped")
        return max(sum(map(int, ran)) - failed - skipped, 0), failed, skipped
    if "[==========]" in output:
        counts = [sum(map(int, re.findall(rf"\[  {word} ?\] (\d+) test\(s\)", output)))
                  for word in ("PASSED ", "FAILED ", "SKIPPED")]
        return tuple(counts)
    return None


def skip_reason(output):
    lines = [line.strip() for line in output.splitlines() if re.search(r"skip", line, re.I)]
    return lines[-1] if lines else ""


def count_testcase(case, build, totals):
    """Adds one ctest test to the totals."""
    name = f"{case.get('name')} ({build})"
    output = case.findtext("system-out") or ""
    cases = cases_in(output)
    skipped = case.find("skipped")
    if case.get("status") == "run" and cases is None:
        totals.passed += 1
    elif case.get("status") == "run":
        passed, failed, skipped_cases = cases
        totals.passed += passed
        if skipped_cases:
            totals.skip(name, skip_reason(output), skipped_cases)
        if failed or passed + skipped_cases == 0:
            print(f"{name}: exit code 0, but {failed} failed and {passed} passed")
            totals.fail(name, failed)
    elif skipped is not None and skipped.get("message", "").startswith("SKIP_RETURN_CODE"):
        totals.skip(name, skip_reason(output), cases[2] if cases else 1)
    elif case.get("status") == "disabled":
        totals.skip(name, "disabled")
    else:
        totals.passed += cases[0] if cases else 0
        totals.skipped_cases += cases[2] if cases else 0
        totals.fail(name, cases[1] if cases else 1)


# ---- running ----


def sanitizer_prefix(build):
    """The sanitizers of gcc 12 and clang 14 cannot live with the address space randomisation of newer kernels."""
    fixed = ["setarch", "-R"]
    works = subprocess.run([*fixed, "true"], stderr=subprocess.DEVNULL).returncode == 0
    return fixed if build != "release" and works else []


def build_preset(build, jobs, totals):
    headline(f"build {build}")
    begin = time.monotonic()
    code = subprocess.run(["scripts/build.sh", build, str(jobs)], cwd=ROOT).returncode
    print(f"{'built' if code == 0 else 'FAILED'} in {time.monotonic() - begin:.0f} s", flush=True)
    if code != 0:
        totals.fail(f"build {build}")


def run_ctest(build, labels, arguments, totals):
    """Returns how many ctest tests there were."""
    headline(f"{', '.join(labels)} in {build}")
    report = ROOT / "build" / build / f"junit-{'-'.join(labels)}.xml"
    report.unlink(missing_ok=True)
    command = [
        *sanitizer_prefix(build), "ctest", "--test-dir", f"build/{build}", "-L", f"^({'|'.join(labels)})$",
        "-j", str(arguments.jobs), "--output-on-failure", "--no-tests=ignore", "--output-junit", str(report),
        "--test-output-size-passed", "1000000", "--test-output-size-failed", "1000000",
    ]
    if arguments.only:
        command += ["-R", arguments.only]
    code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode
    before = len(totals.failures)
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase")) if report.exists() else []
    for case in cases:
        count_testcase(case, build, totals)
    if not cases:
        print("no tests here")
    if code != 0 and len(totals.failures) == before:
        totals.fail(f"ctest in {build}: exit code {code}")
    return len(cases)


def run_checks(totals):
    headline("static checks")
    passed, failed, skipped = check.run_checks(check.CHECKS)
    totals.passed += len(passed)
    for name in failed:
        totals.fail(f"check {name}")
    for name in skipped:
        totals.skip(f"check {name}", "")


def prepare_peers(totals):
    """Installs the other software; False, and a failure, when it cannot be had."""
    ready = peers.prepare("test")
    if not ready:
        totals.fail("installing the software to test against")
    return ready


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", metavar="REGEX", help="only ctest tests whose name matches")
    parser.add_argument("suite", choices=SUITES)
    arguments = parser.parse_args()
    totals = Totals()
    begin = time.monotonic()
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")

    ready = arguments.suite != "peers" or prepare_peers(totals)
    stages = SUITES[arguments.suite] if ready else []
    for build, _ in stages:
        build_preset(build, arguments.jobs, totals)
    if arguments.suite in WITH_CHECKS:
        run_checks(totals)
    programs = sum(run_ctest(build, labels, arguments, totals) for build, labels in stages)
    if stages and programs == 0 and arguments.suite != "peers":
        totals.fail("no tests were found")

    headline(f"{arguments.suite}: {time.monotonic() - begin:.0f} s")
    for name in totals.skips:
        print(f"skipped: {name}")
    for name in totals.failures:
        print(f"FAILED: {name}")
    print(f"{totals.passed} passed, {totals.failed_cases} failed, {totals.skipped_cases} skipped", flush=True)
    return 1 if totals.failures else 0


if __name__ == "__main__":
    sys.exit(main())
