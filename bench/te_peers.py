#!/usr/bin/env python3
"""Measures the te transport against the software it speaks with: Mooncake, NIXL over UCX and TCP, and raw sockets.

  te_peers.py [--bytes 1GiB] [--tensors 400,4000,16000] [--rounds 5] [--only PARTS] [--json]

One host (a network namespace), so that all goes over its loopback. All memory is touched beforehand and all contents
are compared with the files after each read. Who is compared takes turns, round by round, and medians count. Mooncake's
best mode is its connection pool with three limits raised ("tuned"); as shipped it refuses more than 2048 tensors.
Needs root, and what `scripts/peers.py bench` installs. Exit code 1 when a target was missed.

Parts: move (who moves the bytes how fast, and what that costs the seed), unpooled (a connection for each tensor),
publish (how soon 100,000 tensors can be read), handshakes (1,000 at once, among hostile ones).
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("RFORK", str(ROOT / "build/rfork"))
os.environ.setdefault("RFORK_BUILD", str(ROOT / "build"))
os.environ.setdefault("RFORK_SOURCE", str(ROOT))
sys.path.insert(0, str(ROOT / "tests/peers"))
sys.dont_write_bytecode = True
import te_peer  # noqa: E402

HERE = Path(__file__).resolve().parent
PARTS = ("move", "unpooled", "publish", "handshakes")
GIB = 1 << 30

# What our reader from our seed, or their reader from our seed, is to be: so many times as fast as these.
OURS_TO_MOONCAKE = {400: 1.4, 4000: 1.4, 16000: 3.0}
OURS_TO_NIXL = {400: 2.0, 16000: 2.0}
UNPOOLED = {400: 2.0, 4000: 8.0}
PUBLISH_SECONDS = 0.3
HANDSHAKE_SECONDS = 1.0


class Bench:
    """What all parts share: the host, models, processes, and what has been found."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self.arguments = arguments
        self.folder = folder
        self.host = te_peer.hosts.Network().host("bench")
        self.samples: list[dict] = []
        self.rows: list[dict] = []
        self.ours = not arguments.baselines

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def model(self, tensors: int, size: str) -> Path:
        """A generated model; the last one is removed, they are large."""
        folder = self.folder / f"model-{tensors}-{size}"
        if not folder.exists():
            program = ROOT / "tools/models/generate.py"
            subprocess.run([sys.executable, program, "--out", folder, "--tensors", str(tensors), "--bytes", size],
                           check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        return folder

    def program(self, name: str | Path, **env: str) -> te_peer.Program:
        """A process on the host: one of bench/, or another by its path."""
        return te_peer.Program(self.host, HERE / name, self.folder, te_peer.NEWEST, env)

    def nixl(self) -> te_peer.Program:
        """The same with NIXL."""
        paths = os.pathsep.join([str(te_peer.PEERS / "nixl"), str(te_peer.HERE)])
        return self.program("peer_nixl.py", PYTHONPATH=paths)

    def mooncake(self, mode: str) -> te_peer.Mooncake:
        """An engine of the newest release on the host."""
        return te_peer.Mooncake(self.host, self.folder, env=te_peer.MODES[mode])

    def starting(self, model: Path, *more: str) -> te_peer.hosts.HostSeed:
        """`rfork serve` of a model as it is in its files; returns when it is ready."""
        how = ("--model-path", str(model), "--layout", "checkpoint", *more)
        return te_peer.hosts.HostSeed(self.host, self.folder, *how, seconds=300)

    @contextlib.contextmanager
    def seed(self, model: Path) -> Iterator[te_peer.hosts.HostSeed]:
        """The same with te, and its digests made."""
        with self.starting(model, te_peer.START_SEED) as seed:
            te_peer.util.wait_until(lambda: seed.instance().get("root_digest"), 300, "the root digest", pause=0.2)
            yield seed

    def info(self, seed: te_peer.hosts.HostSeed) -> tuple[str, dict]:
        """Session and map of rank 0."""
        status, _, body = seed.get(f"{te_peer.NEW_PATH}?rank=0", timeout=60)
        if status != 200:
            raise RuntimeError(f"{te_peer.NEW_PATH}: {status} {body[:500]}")
        return tuple(json.loads(body)["remote_instance_transfer_engine_info"])

    # ---- figures ----

    def sample(self, part: str, tensors: int, who: str, read: Callable[[], dict], seed_pid: int | None = None) -> None:
        """Measures once; a read that fails is kept as such."""
        before = te_peer.cpu_seconds(seed_pid) if seed_pid else 0
        report = read()
        cpu = te_peer.cpu_seconds(seed_pid) - before if seed_pid else None
        if report["rc"] == 0 and report.get("different") != []:
            raise RuntimeError(f"{who}, {tensors} tensors: wrong bytes: {report.get('different')}")
        ok = report["rc"] == 0
        self.samples.append({
            "part": part, "tensors": tensors, "who": who, "seconds": report["seconds"] if ok else None,
            "rc": report["rc"], "bytes": report["bytes"],
            "seed_cpu_seconds_per_gib": None if cpu is None else cpu * GIB / report["bytes"],
            **{key: report[key] for key in ("all_seconds", "connections", "verified") if key in report},
        })  # fmt: skip
        said = f"{report['seconds']:.3f} s" if ok else f"failed ({report['rc']})"
        self.say(f"  {part} {tensors} {who}: {said}")

    def median(self, part: str, tensors: int, who: str, what: str = "seconds") -> float | None:
        """Of all rounds; None when one failed or none was run."""
        found = [s[what] for s in self.samples if (s["part"], s["tensors"], s.get("who")) == (part, tensors, who)]
        return statistics.median(found) if found and None not in found else None

    def row(
        self, what: str, value: float | None, unit: str, at_least: float | None = None, at_most: float | None = None,
        note: str = "",
    ) -> None:  # fmt: skip
        """One line of the table: passed when the value keeps its bound, None when it has none or was not measured."""
        passed = None
        if value is not None and at_least is not None:
            passed = value >= at_least
        if value is not None and at_most is not None:
            passed = value <= at_most
        self.rows.append({"what": what, "value": value, "unit": unit, "at_least": at_least, "at_most": at_most,
                          "passed": passed, "note": note})  # fmt: skip

    def times(self, what: str, part: str, tensors: int, slow: str, fast: str, at_least: float | None) -> None:
        """A row: how many times as fast one is as another."""
        a, b = self.median(part, tensors, slow), self.median(part, tensors, fast)
        note = ", ".join(f"{who} {value:.3f} s" for who, value in ((slow, a), (fast, b)) if value is not None)
        self.row(f"{what}, {tensors} tensors", a / b if a and b else None, "times", at_least=at_least, note=note)


def alternate(rounds: int, turns: list[Callable[[], None]]) -> None:
    """Each round all of them, each round another one first."""
    for i in range(rounds):
        for turn in turns[i % len(turns) :] + turns[: i % len(turns)]:
            turn()


# ---- parts ----


def move(bench: Bench, tensors: int) -> None:
    """All ways to move one model, in turns."""
    model = bench.model(tensors, bench.arguments.bytes)
    files = te_peer.weights(model)
    with contextlib.ExitStack() as stack:

        def started(program: te_peer.Program) -> te_peer.Program:
            stack.callback(program.close)
            return program

        raw_seed, raw_reader = started(bench.program("peer_raw.py")), started(bench.program("peer_raw.py"))
        raw_seed.ask("load", files=files)
        port = raw_seed.ask("listen", host=bench.host.address)["port"]
        theirs, pooled = started(bench.mooncake("tuned")), started(bench.mooncake("tuned"))
        registered = theirs.ask("load", files=files, register="each", seconds=300)
        bench.say(f"  Mooncake registered {registered['buffers']} buffers in {registered['seconds']:.2f} s")
        their_map = theirs.ask("map")["map"]
        nixl_seed, nixl_reader = started(bench.nixl()), started(bench.nixl())
        nixl = nixl_seed.ask("load", files=files)
        nixl_seed.process.send_signal(signal.SIGSTOP)  # its thread spins on a core, also when nobody reads

        def by_nixl() -> dict:
            nixl_seed.process.send_signal(signal.SIGCONT)
            try:
                return nixl_reader.ask("read", metadata=nixl["metadata"], map=nixl["map"], files=files)
            finally:
                nixl_seed.process.send_signal(signal.SIGSTOP)

        def raw(connections: int) -> dict:
            return raw_reader.ask("read", host=bench.host.address, port=port, files=files, connections=connections)

        def mooncake(session: str, tensor_map: dict) -> dict:
            return pooled.ask("read", session=session, map=tensor_map, files=files, batch=1 << 20)

        def turn(who: str, read: Callable[[], dict], pid: int | None = None) -> None:
            turns.append(lambda: bench.sample("move", tensors, who, read, pid))

        turns: list[Callable[[], None]] = []
        turn("raw 1", lambda: raw(1), raw_seed.process.pid)
        turn("raw 4", lambda: raw(4), raw_seed.process.pid)
        turn("mooncake", lambda: mooncake(theirs.session, their_map), theirs.process.pid)
        turn("nixl", by_nixl)
        if bench.ours:
            seed = stack.enter_context(bench.seed(model))
            session, our_map = bench.info(seed)
            reader = started(bench.program(te_peer.HERE / "library_program.py"))

            def ours(verify: bool) -> dict:
                return reader.ask("read", url=seed.url, files=files, transport="te", verify=verify)

            turn("rfork", lambda: ours(True), seed.pid)
            turn("rfork unverified", lambda: ours(False), seed.pid)
            turn("mooncake from rfork", lambda: mooncake(session, our_map), seed.pid)
        for first in turns:  # connections, caches, pages
            first()
        bench.samples = [sample for sample in bench.samples if (sample["part"], sample["tensors"]) != ("move", tensors)]
        alternate(bench.arguments.rounds, turns)
    report_move(bench, tensors)


def report_move(bench: Bench, tensors: int) -> None:
    """The rows of what move() measured."""
    size = next(s["bytes"] for s in bench.samples if (s["part"], s["tensors"]) == ("move", tensors))
    for who in ("raw 1", "raw 4", "mooncake", "nixl", "rfork", "rfork unverified", "mooncake from rfork"):
        seconds = bench.median("move", tensors, who)
        if seconds is not None:
            bench.row(f"{who}, {tensors} tensors", size / seconds / 1e9, "GB/s", note=f"{seconds:.3f} s")
    bench.times("rfork to Mooncake", "move", tensors, "mooncake", "rfork", OURS_TO_MOONCAKE.get(tensors))
    bench.times("rfork to NIXL", "move", tensors, "nixl", "rfork", OURS_TO_NIXL.get(tensors))
    better = min(("raw 1", "raw 4"), key=lambda who: bench.median("move", tensors, who) or 1e9)
    bench.times("rfork to the better of raw sockets", "move", tensors, better, "rfork", None)
    bench.times("their pooled reader from our seed to from their own", "move", tensors, "mooncake",
                "mooncake from rfork", 1.0)  # fmt: skip
    theirs = bench.median("move", tensors, "mooncake", "seed_cpu_seconds_per_gib")
    bench.row(f"Mooncake seed's CPU, {tensors} tensors", theirs, "s/GiB")
    for who in ("rfork", "mooncake from rfork"):
        cpu = bench.median("move", tensors, who, "seed_cpu_seconds_per_gib")
        bench.row(f"our seed's CPU, {who}, {tensors} tensors", cpu, "s/GiB", at_most=theirs)


def unpooled(bench: Bench, tensors: int) -> None:
    """Their reader with a connection for each tensor, from their seed and from ours."""
    model = bench.model(tensors, bench.arguments.bytes)
    files = te_peer.weights(model)
    with contextlib.ExitStack() as stack:
        theirs, reader = bench.mooncake(""), bench.mooncake("unpooled")
        for program in (theirs, reader):
            stack.callback(program.close)
        their_map = theirs.hold(*files, register="each")

        def read(session: str, tensor_map: dict) -> dict:
            return reader.ask("read", session=session, map=tensor_map, files=files, batch=1 << 20, seconds=300)

        turns = [lambda: bench.sample("unpooled", tensors, "mooncake", lambda: read(theirs.session, their_map),
                                      theirs.process.pid)]  # fmt: skip
        if bench.ours:
            seed = stack.enter_context(bench.seed(model))
            session, our_map = bench.info(seed)
            turns.append(lambda: bench.sample("unpooled", tensors, "mooncake from rfork",
                                              lambda: read(session, our_map), seed.pid))  # fmt: skip
        alternate(min(bench.arguments.rounds, 3), turns)
    bench.times("their unpooled reader from our seed to from their own", "unpooled", tensors, "mooncake",
                "mooncake from rfork", UNPOOLED.get(tensors))  # fmt: skip


def publish(bench: Bench) -> None:
    """How soon a rank of 100,000 tensors can be read: what te adds to a start, up to the whole answer with the map."""
    theirs = bench.mooncake("")
    try:
        files = te_peer.weights(bench.model(16000, "48MiB"))
        seconds = theirs.ask("load", files=files, register="each", seconds=300)["seconds"]
        bench.row("Mooncake registers 16000 buffers", seconds, "s")
    finally:
        theirs.close()
    if not bench.ours:
        return
    model = bench.model(100_000, "128MiB")
    with_te, without, answers = [], [], []
    for _ in range(bench.arguments.rounds):
        begin = time.monotonic()
        with bench.starting(model, te_peer.START_SEED) as seed:
            ready = time.monotonic()
            body = seed.get(f"{te_peer.NEW_PATH}?rank=0", timeout=60)[2]
            end = time.monotonic()
            tensors = len(json.loads(body)["remote_instance_transfer_engine_info"][1])
        with_te.append(end - begin)
        answers.append(end - ready)
        begin = time.monotonic()
        with bench.starting(model):
            without.append(time.monotonic() - begin)
    seconds = statistics.median(with_te) - statistics.median(without)
    note = (f"start to answer {statistics.median(with_te):.3f} s, start without te {statistics.median(without):.3f} s, "
            f"the answer alone {statistics.median(answers):.3f} s")  # fmt: skip
    bench.row(f"publish {tensors} tensors, with an answer", seconds, "s", at_most=PUBLISH_SECONDS, note=note)
    bench.samples.append({"part": "publish", "tensors": tensors, "with_te": with_te, "without": without,
                          "answers": answers})  # fmt: skip


def handshakes(bench: Bench) -> None:
    """1,000 handshakes at once among 100 connections that never finish theirs."""
    model = bench.model(400, "64MiB")
    clients = bench.program("peer_raw.py")
    theirs = bench.mooncake("")
    try:
        theirs.hold(*te_peer.weights(model))
        report = clients.ask("handshakes", session=theirs.session, count=1, idle=1)
        bench.row("Mooncake: 1 handshake, 1 idle connection", max(report["seconds"], default=None), "s",
                  note=" ".join(report["failed"]))  # fmt: skip
        if bench.ours:
            with bench.seed(model) as seed:
                session, _ = bench.info(seed)
                report = clients.ask("handshakes", session=session, count=1000, idle=100)
                worst = None if report["failed"] else max(report["seconds"])
                bench.row("slowest of 1000 handshakes, 100 idle connections", worst, "s", at_most=HANDSHAKE_SECONDS,
                          note=f"{len(report['seconds'])} answered {' '.join(report['failed'][:2])}")  # fmt: skip
                if report["failed"]:
                    bench.rows[-1]["passed"] = False
    finally:
        clients.close()
        theirs.close()


# ---- the program ----


def table(rows: list[dict]) -> Iterator[str]:
    """The rows for people."""
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.3f} {row['unit']}"
        bound = ""
        if row["at_least"] is not None:
            bound = f"at least {row['at_least']:g}"
        if row["at_most"] is not None:
            bound = f"at most {row['at_most']:.3g}"
        verdict = {True: "pass", False: "MISS", None: ""}[row["passed"]]
        yield f"{row['what']:<74} {value:>14}  {bound:<14} {verdict:<5} {row['note']}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="1GiB", help="of the model that is moved")
    parser.add_argument("--tensors", default="400,4000,16000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS")
    parser.add_argument("--baselines", action="store_true", help="without rfork: only what it is compared with")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"there are the parts {', '.join(PARTS)}")
    te_peer.require()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=os.environ["RFORK_BUILD"]) as folder:
        bench = Bench(arguments, Path(folder))
        for tensors in map(int, arguments.tensors.split(",")):
            if "move" in parts:
                bench.say(f"move, {tensors} tensors")
                move(bench, tensors)
            if "unpooled" in parts and tensors in UNPOOLED:
                bench.say(f"unpooled, {tensors} tensors")
                unpooled(bench, tensors)
        if "publish" in parts:
            bench.say("publish")
            publish(bench)
        if "handshakes" in parts:
            bench.say("handshakes")
            handshakes(bench)
    if arguments.json:
        print(json.dumps({"bytes": arguments.bytes, "rounds": arguments.rounds, "rfork": bench.ours, "rows": bench.rows,
                          "samples": bench.samples}, indent=1))  # fmt: skip
    else:
        print("\n".join(table(bench.rows)))
    return 1 if any(row["passed"] is False for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
