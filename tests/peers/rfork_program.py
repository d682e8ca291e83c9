"""Runs the program under test ($RFORK) for the tests in this folder: seeds, forks, and the real models."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RFORK = os.environ["RFORK"]
BUILD = Path(os.environ["RFORK_BUILD"])
SOURCE = Path(os.environ["RFORK_SOURCE"])
SECONDS = 120  # longer than anything here takes on a busy machine
SKIP = 77


def skip(reason: str) -> None:
    """Ends the process with the exit code that says: this cannot run here."""
    print(f"skipped: {reason}")
    sys.exit(SKIP)


def model(name: str) -> Path:
    """Returns the folder of a real model, fetched if need be; skips where it cannot be had."""
    command = [sys.executable, str(SOURCE / "tools/models/fetch.py"), "--out", str(BUILD / "models"), name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        skip(done.stderr.strip().splitlines()[-1])
    return Path(done.stdout.strip().splitlines()[-1]).resolve()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards; in the build folder, where there is room for models."""
    with tempfile.TemporaryDirectory(prefix="peers-", dir=BUILD) as folder:
        yield Path(folder)


def rfork(*arguments: str | Path) -> str:
    """Runs the program to its end; returns its standard output. AssertionError with its words when it fails."""
    command = [RFORK, *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def rfork_json(*arguments: str | Path) -> dict:
    """Runs the program with --json; returns what it printed."""
    return json.loads(rfork(*arguments, "--json"))


@contextlib.contextmanager
def seed(*arguments: str | Path) -> Iterator[str]:
    """Runs `rfork serve` with these arguments; yields its URL; at the end it must stop at once with exit code 0."""
    command = [RFORK, "serve", *map(str, arguments), "--host", "127.0.0.1", "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)

        def words() -> str:
            log.seek(0)
            return f"{' '.join(command)}: exit code {process.poll()}\n{log.read()}"

        try:
            yield _ready_url(process, words)
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=20) != 0:
                raise AssertionError(words())
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _ready_url(process: subprocess.Popen, words) -> str:
    """Waits for the line `rfork: ready url=... ...`; returns its URL."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        readable, _, _ = select.select([process.stdout], [], [], deadline - time.monotonic())
        line = process.stdout.readline() if readable else ""
        if line.startswith("rfork: ready "):
            return dict(word.partition("=")[::2] for word in line.split()[2:])["url"]
        if not line:
            break
    raise AssertionError(f"no ready line\n{words()}")


def forked(source: Path, target: Path, *arguments: str) -> dict:
    """Serves the folder `source`, forks it into the folder `target`; returns what the fork reported."""
    with seed("--model-path", source) as url:
        return rfork_json("fork", url, "-o", target, *arguments)
