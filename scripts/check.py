#!/usr/bin/env python3
"""The static checks: check.py [NAME...] runs all, or those named; check.py --format rewrites the C files.

Each check is a function that returns its findings as lines; none means it passed. It raises Skip when there is nothing to
look at. Files are those git knows or would add, so that a check can be run before the commit.
"""

import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOBS = os.cpu_count() or 2
TIDY_SECONDS = int(os.environ.get("TIDY_SECONDS", "600"))
MAX_COMPLEXITY = 15
MAX_LINES = 60
MAX_COLUMNS = 120

# The layers, left to right. Those in one group may not include each other.
LAYER_GROUPS = [
    ["base"],
    ["format", "wire", "memory"],
    ["model"],
    ["transport"],
    ["seed", "fork", "family"],
    ["control"],
    ["api"],
    ["cli"],
]
RANK = {layer: rank for rank, group in enumerate(LAYER_GROUPS) for layer in group}


class Skip(Exception):
    """There is nothing this check could look at; the text says why."""


# ---- helpers ----


def project_files():
    """All files git knows or would add, as paths relative to ROOT; without git all that are not below build/."""
    listing = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True)
    if done.returncode == 0:
        names = sorted(set(done.stdout.decode().split("\0")) - {""})
    else:
        every = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        names = sorted(path for path in every if path.parts[0] not in ("build", ".git"))
    return [Path(name) for name in names if (ROOT / name).is_file()]


FILES = project_files()


def select(*suffixes, under=("src", "include", "tests", "bench", "examples")):
    return [f for f in FILES if f.suffix in suffixes and f.parts[0] in under]


def read(path):
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


def run(*command, stdin=None, environment=None, folder=ROOT):
    """Runs a command in a folder; returns (exit code, stdout and stderr together)."""
    if shutil.which(command[0]) is None:
        return 127, f"{command[0]}: not installed; run 'scripts/setup.sh --test'"
    done = subprocess.run(
        command, cwd=folder, input=stdin if stdin is not None else "", text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
    )
    return done.returncode, done.stdout


def findings_of(*command, stdin=None):
    code, out = run(*command, stdin=stdin)
    return [] if code == 0 else out.splitlines() or [f"{command[0]}: exit code {code}"]


def parallel(function, items):
    """Applies function to all items, JOBS at a time; returns the findings in the order of the items."""
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        return [line for lines in pool.map(function, items) for line in lines]


def includes(path):
    """Yields (line number, quoted?, name) for each #include."""
    for number, line in enumerate(read(path).splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
        if match:
            yield number, match[1] == '"', match[2]


def resolve(path, name):
    """The project file that a quoted include in `path` means, or None."""
    for base in (path.parent, Path("src"), Path("include"), Path("tests")):
        candidate = Path(os.path.normpath(base / name))
        if (ROOT / candidate).is_file():
            return candidate
    return None


# ---- the checks ----


def layer_of(path):
    return path.parts[1] if len(path.parts) > 2 and path.parts[0] == "src" else None


def subfolder_of(path):
    """The transport's own folder: src/transport/tcp/x.c -> tcp; None directly in src/transport."""
    return path.parts[2] if len(path.parts) > 3 else None


def forbidden_include(path, target):
    """Why `path` may not include `target`, both below src/; None when it may."""
    mine, theirs = layer_of(path), layer_of(target)
    if theirs not in RANK:
        return f"{target} belongs to no layer"
    if mine == theirs:
        other = subfolder_of(target) if mine == "transport" else None
        if other in (None, "fault", "net", subfolder_of(path)) or path.name == "registry.c":
            return None
        return f"one transport may not include another's {target}"
    if RANK[theirs] == RANK[mine]:
        return f"{mine} and {theirs} are side by side and may not include each other"
    if RANK[theirs] > RANK[mine]:
        return f"{mine} may not include {theirs}, which is to its right"
    return None


def check_layers():
    found = []
    for path in select(".c", ".h", under=("src",)):
        if layer_of(path) not in RANK:
            found.append(f"{path}: not in a layer; there are: {' '.join(RANK)}")
            continue
        for number, quoted, name in includes(path):
            target = resolve(path, name) if quoted else None
            if quoted and target is None:
                found.append(f"{path}:{number}: \"{name}\" is not one of our files")
            elif target is not None and target.parts[0] == "src":
                reason = forbidden_include(path, target)
                if reason:
                    found.append(f"{path}:{number}: {reason}")
            elif target is not None and target.parts[0] == "tests":
                found.append(f"{path}:{number}: a source includes a test's header, {target}")
    return found


def check_headers():
    """Every header compiles alone; public ones also as plain C11 and as C++."""
    common = ["-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Iinclude"]
    internal = ["gcc", "-x", "c", "-std=gnu17", "-D_GNU_SOURCE", "-Isrc", "-Itests", *common, "-"]
    public = [
        ["gcc", "-x", "c", "-std=c11", "-pedantic", *common, "-"],
        ["g++", "-x", "c++", "-std=c++11", "-pedantic", *common, "-"],
    ]

    def one(path):
        base = {"include": "include", "src": "src"}.get(path.parts[0], "tests")
        source = f'#include "{path.relative_to(base)}"\nextern int rfork_header_compiles;\n'
        commands = public if path.parts[0] == "include" else [internal]
        return [line for command in commands for line in findings_of(*command, stdin=source)]

    headers = select(".h", under=("include", "src")) + [f for f in select(".h") if f.parts[:2] == ("tests", "util")]
    if not headers:
        raise Skip("no headers")
    return parallel(one, headers)


def check_own_header_first():
    found = []
    for path in select(".c", under=("src",)):
        own = path.with_suffix(".h")
        if not (ROOT / own).is_file():
            continue
        first = next(includes(path), None)
        if first is None or resolve(path, first[2]) != own:
            found.append(f"{path}: its first include must be \"{own.relative_to('src')}\"")
    return found


def check_format():
    files = select(".c", ".h")
    if not files:
        raise Skip("no C files")
    batches = [files[i::JOBS] for i in range(JOBS) if files[i::JOBS]]
    lines = parallel(lambda batch: findings_of("clang-format", "--dry-run", "-Werror", *map(str, batch)), batches)
    # One line per file is enough: `make format` mends it.
    bad = sorted({line.split(":")[0] for line in lines if "clang-format-violations" in line})
    if lines and not bad:
        return lines
    return [f"{path}: not formatted; run 'make format'" for path in bad]


def tidy_fingerprint(entry):
    """Changes when anything does that clang-tidy would see: sources with comments, flags, configuration."""
    words = shlex.split(entry["command"])
    words = words[: words.index("-o")] + words[words.index("-o") + 2 :]
    words = ["-E" if word == "-c" else word for word in words] + ["-C"]
    out = subprocess.run(words, cwd=entry["directory"], stdin=subprocess.DEVNULL, capture_output=True)
    if out.returncode != 0:
        return None
    digest = hashlib.sha256(out.stdout)
    digest.update(entry["command"].encode())
    digest.update((ROOT / ".clang-tidy").read_bytes())
    return digest.hexdigest()


def check_clang_tidy():
    """Files that passed once and have not changed are not read again."""
    if shutil.which("clang-tidy") is None:
        return ["clang-tidy: not installed; run 'scripts/setup.sh --test'"]
    found = findings_of("scripts/build.sh", "tsan", "0")
    if found:
        return found
    database = json.loads((ROOT / "build/tsan/compile_commands.json").read_text())
    ours = tuple(str(ROOT / folder) + "/" for folder in ("src", "examples", "bench"))
    entries = {entry["file"]: entry for entry in database if entry["file"].startswith(ours)}
    if not entries:
        raise Skip("no sources")
    cache = ROOT / "build/check/tidy"
    cache.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + TIDY_SECONDS

    def one(entry):
        name = os.path.relpath(entry["file"], ROOT)
        key = tidy_fingerprint(entry)
        if key and (cache / key).exists():
            return []
        if time.monotonic() > deadline:
            return [f"{name}: not checked, {TIDY_SECONDS} s are over (TIDY_SECONDS=...)"]
        code, out = run("clang-tidy", "--quiet", "-p", "build/tsan", name)
        lines = [line for line in out.splitlines() if not re.match(r"\d+ warnings?( and \d+ errors?)? generated|Suppressed|Use -header-filter|Error while processing", line)]
        if code == 0 and key:
            (cache / key).touch()
        return [] if code == 0 else lines or [f"{name}: clang-tidy exit code {code}"]

    return parallel(one, [entries[name] for name in sorted(entries)])


def check_cppcheck():
    files = select(".c", under=("src", "bench", "examples"))
    if not files:
        raise Skip("no sources")
    (ROOT / "build/check/cppcheck").mkdir(parents=True, exist_ok=True)
    return findings_of(
        "cppcheck", "--quiet", f"-j{JOBS}", "--cppcheck-build-dir=build/check/cppcheck", "--std=c11",
        "--enable=warning,performance,portability", "--inline-suppr", "--error-exitcode=1",
        "--library=posix", "--library=gnu", "--suppress=missingIncludeSystem", "--suppress=unmatchedSuppression",
        # It does not know __attribute__((cleanup)): ASan and LeakSanitizer look for leaks. readdir() is safe
        # on a stream of one thread's own, and readdir_r() is deprecated.
        "--suppress=memleak", "--suppress=resourceLeak", "--suppress=readdirCalled",
        "--template={file}:{line}: {severity}: {message} [{id}]", "-D__linux__", "-D__x86_64__", "-D_GNU_SOURCE",
        "-D__GNUC__=12", "-Iinclude", "-Isrc", *map(str, files),
    )


def allowed_complexity():
    """{'file:function': reason} from complexity-allow.txt."""
    allowed = {}
    for line in read("scripts/complexity-allow.txt").splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            key, _, reason = line.partition(" ")
            allowed[key] = reason.strip()
    return allowed


def attribute_pattern(texts):
    """What pmccabe's parser stumbles over: attributes, and the macros that stand for one."""
    nested = r"\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)"
    plain, with_arguments = set(), set()
    for text in texts:
        for name, arguments in re.findall(r"^#define\s+(\w+)(\([^)]*\))?\s+__attribute__", text, re.M):
            (with_arguments if arguments else plain).add(name)
    choices = [rf"__attribute__\s*{nested}"]
    choices += [rf"\b{name}\s*{nested}" for name in sorted(with_arguments)]
    choices += [rf"\b{name}\b" for name in sorted(plain)]
    return re.compile("|".join(choices))


def check_complexity():
    files = select(".c", ".h")
    if not files:
        raise Skip("no C files")
    texts = {path: read(path) for path in files}
    attributes = attribute_pattern(texts.values())
    with tempfile.TemporaryDirectory(prefix="rfork-pmccabe-") as folder:
        for path, text in texts.items():
            copy = Path(folder) / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(attributes.sub(lambda match: "\n" * match[0].count("\n"), text))
        code, out = run("pmccabe", *map(str, files), folder=folder)
    if code != 0:
        return out.splitlines()
    allowed, found = allowed_complexity(), []
    unused = set(allowed)
    for line in out.splitlines():
        match = re.match(r"(\d+)\t\d+\t\d+\t\d+\t(\d+)\t(.+?)\((\d+)\): (\S+)", line)
        if not match:
            found.append(f"pmccabe: {line}")
            continue
        complexity, lines, path, number, name = match.groups()
        if int(complexity) <= MAX_COMPLEXITY and int(lines) <= MAX_LINES:
            continue
        key = f"{path}:{name}"
        unused.discard(key)
        if not allowed.get(key):
            found.append(
                f"{path}:{number}: {name}: complexity {complexity} (at most {MAX_COMPLEXITY}), "
                f"{lines} lines (at most {MAX_LINES}): split it"
            )
    return found + [f"scripts/complexity-allow.txt: {key} is no longer needed" for key in sorted(unused)]


def check_man():
    pages = [f for f in FILES if f.parts[:2] == ("docs", "man") and f.suffix in (".1", ".3", ".5", ".7")]
    if not pages:
        raise Skip("no man pages")
    return findings_of("mandoc", "-Tlint", "-W", "warning", *map(str, pages))


def check_foreign_paths():
    """The project names no place that exists on one developer's machine alone."""
    places = re.compile(rb"(?<![\w.-])/(?:wor" + rb"k(?![\w-])|tmp/bash_" + rb"jobs)")
    found = []
    for path in FILES:
        for number, line in enumerate((ROOT / path).read_bytes().split(b"\n"), 1):
            if places.search(line):
                found.append(f"{path}:{number}: a path that exists on one machine only")
    return found


TEXT = {".c", ".h", ".py", ".sh", ".md", ".txt", ".cmake", ".json", ".in", ".yml", ".yaml", ".toml", ".cfg", ".1", ".3"}


def is_text(path):
    names = ("Makefile", "LICENSE", ".clang-format", ".clang-tidy", ".gitignore", ".editorconfig")
    if path.parts[:3] == ("tests", "fuzz", "corpus") or path.parts[:2] == ("tests", "golden"):
        return False
    return path.suffix in TEXT or path.name in names or path.parts[0] == ".ci"


def check_whitespace():
    found = []
    for path in filter(is_text, FILES):
        text = read(path)
        for number, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip():
                found.append(f"{path}:{number}: white space at the end of the line")
            if "\t" in line and path.name not in ("Makefile", "LICENSE"):
                found.append(f"{path}:{number}: a tab")
            if path.suffix in (".c", ".h") and len(line) > MAX_COLUMNS:
                found.append(f"{path}:{number}: {len(line)} columns, more than {MAX_COLUMNS}")
        if text and not text.endswith("\n"):
            found.append(f"{path}: no newline at the end")
    return found


def first_line(path):
    with open(ROOT / path, "rb") as file:
        return file.readline(80)


def check_scripts():
    """Shell scripts parse, Python compiles, and what has a #! line may be executed."""
    found = []
    for path in FILES:
        shebang = first_line(path)
        if path.suffix == ".sh" or re.match(rb"#!.*\b(ba|da)?sh\b", shebang):
            found += findings_of("bash", "-n", str(path))
        if path.suffix == ".py" or re.match(rb"#!.*\bpython3?\b", shebang):
            try:
                compile((ROOT / path).read_bytes(), str(path), "exec")
            except (SyntaxError, ValueError) as error:
                found.append(f"{path}: {error}")
        if path.parts[0] in ("scripts", ".ci") and shebang.startswith(b"#!"):
            if not os.access(ROOT / path, os.X_OK):
                found.append(f"{path}: has a #! line but is not executable")
    return found


def built(path):
    if not (ROOT / path).exists():
        raise Skip(f"{path} is not built")
    return path


def check_exports():
    """Both libraries give their users the public API and nothing else."""
    found = []
    for command in (["nm", "-D", "--defined-only", built("build/librfork.so")],
                    ["nm", "-g", "--defined-only", built("build/librfork.a")]):
        code, out = run(*command)
        if code != 0:
            return out.splitlines()
        names = [line.split()[2] for line in out.splitlines() if len(line.split()) == 3]
        found += [f"{command[-1]}: exports {name}" for name in names if not name.startswith("rf_")]
    return found


def check_install():
    """What `make install` puts down is complete and can be compiled against, from wherever it lies."""
    built("build/librfork.so")
    if not (ROOT / "include/rfork/rfork.h").is_file():
        raise Skip("no include/rfork/rfork.h")
    with tempfile.TemporaryDirectory(prefix="rfork-install-") as folder:
        prefix = Path(folder) / "opt"
        found = findings_of("cmake", "--install", "build/release", "--prefix", str(prefix))
        wanted = ["bin/rfork", "lib/librfork.so", "lib/librfork.so.0", "lib/librfork.a", "lib/pkgconfig/rfork.pc",
                  "include/rfork/rfork.h"]
        found += [f"make install: no {name}" for name in wanted if not (prefix / name).exists()]
        if found:
            return found
        environment = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
        _, symbols = run("nm", "-D", "--defined-only", str(prefix / "lib/librfork.so"))
        symbol = next((line.split()[2] for line in symbols.splitlines() if " rf_" in line), "rf_nothing")
        source = "#include <rfork/rfork.h>\nint main(void)\n{\n    return 0;\n}\n"
        compiler = ["gcc", "-x", "c", "-", "-x", "none", "-o", f"{folder}/program", f"-Wl,-u,{symbol}"]
        for private in (False, True):
            query = ["pkg-config", "--cflags", *([] if private else ["--libs"]), "rfork"]
            code, flags = run(*query, environment=environment)
            if code == 0 and private: # the static library, with what it needs as shared libraries
                code, needs = run("pkg-config", "--print-requires-private", "rfork", environment=environment)
                _, libraries = run("pkg-config", "--libs", *needs.split())
                flags += f" {prefix}/lib/librfork.a {libraries} -pthread -ldl -lm"
            if code != 0:
                return flags.splitlines()
            found += findings_of(*compiler, *shlex.split(flags), stdin=source)
    return found


CHECKS = {
    "layers": check_layers,
    "headers": check_headers,
    "own-header-first": check_own_header_first,
    "format": check_format,
    "clang-tidy": check_clang_tidy,
    "cppcheck": check_cppcheck,
    "complexity": check_complexity,
    "man": check_man,
    "foreign-paths": check_foreign_paths,
    "whitespace": check_whitespace,
    "scripts": check_scripts,
    "exports": check_exports,
    "install": check_install,
}


def run_checks(names):
    """Runs the named checks, printing as it goes; returns (passed, failed, skipped) as lists of names."""
    passed, failed, skipped = [], [], []
    for name in names:
        begin = time.monotonic()
        try:
            found = CHECKS[name]()
        except Skip as reason:
            print(f"skipped {name}: {reason}", flush=True)
            skipped.append(f"{name}: {reason}")
            continue
        seconds = time.monotonic() - begin
        if found:
            print(f"FAILED {name}", *found, sep="\n    ", flush=True)
            failed.append(name)
        else:
            print(f"ok {name}" + (f" ({seconds:.0f} s)" if seconds >= 1 else ""), flush=True)
            passed.append(name)
    return passed, failed, skipped


def main(arguments):
    if arguments == ["--format"]:
        files = select(".c", ".h")
        return 0 if not files else subprocess.run(["clang-format", "-i", *map(str, files)], cwd=ROOT).returncode
    unknown = set(arguments) - set(CHECKS)
    if unknown:
        print(f"no such check: {' '.join(sorted(unknown))}; there are: {' '.join(CHECKS)}", file=sys.stderr)
        return 2
    passed, failed, skipped = run_checks(arguments or CHECKS)
    print(f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
