#!/usr/bin/env python3
"""Installs the software that rfork is tested and measured against, if it is not there yet.

peers.py test    build/venv-peers from tests/peers/requirements*.txt (*no-deps*: pip --no-deps), and the older releases
                 of Mooncake, each in build/peers/mooncake-VERSION: an environment can have but one
peers.py bench   and NIXL, in build/peers/nixl

What is there is left alone until what is asked for changes.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "build/venv-peers"
PIP = [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q",
       "--no-compile"]  # most of it is never imported

# Folder in build/peers -> what pip installs there. The plain package needs CUDA from 0.3.7 on.
FOLDERS = {
    "test": {
        "mooncake-0.3.6": "mooncake-transfer-engine==0.3.6",
        "mooncake-0.3.9": "mooncake-transfer-engine-non-cuda==0.3.9",
        "mooncake-0.3.12.post1": "mooncake-transfer-engine-non-cuda==0.3.12.post1",
    },
    "bench": {"nixl": "nixl-cu13==1.5.1"},
}


def run(commands):
    """True when all of them succeed."""
    return all(subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode == 0 for command in commands)


def once(folder, wanted, commands):
    """Makes a folder anew by these commands unless its stamp says `wanted`; False when one fails."""
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return True
    print(f"\n== installing the software to test against into {folder.relative_to(ROOT)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    if not run(commands):
        return False
    stamp.write_text(wanted)
    return True


def prepare(what):
    """Installs what "test" or "bench" needs; False when that fails."""
    files = sorted((ROOT / "tests/peers").glob("requirements*.txt"))
    digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
    commands = [["python3", "-m", "venv", str(VENV)]]
    commands += [[*PIP, *(["--no-deps"] if "no-deps" in path.name else []), "-r", str(path)] for path in files]
    if not once(VENV, digest, commands):
        return False
    folders = {**FOLDERS["test"], **(FOLDERS["bench"] if what == "bench" else {})}
    for name, package in folders.items():
        folder = ROOT / "build/peers" / name
        if not once(folder, package, [[*PIP, "--no-deps", "--only-binary", ":all:", "--target", str(folder), package]]):
            return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=FOLDERS)
    return 0 if prepare(parser.parse_args().what) else 1


if __name__ == "__main__":
    sys.exit(main())
