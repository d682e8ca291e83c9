"""Real TransferEngine peers for the tests in this folder: Mooncake engines and SGLang processes on hosts of their own.

    class Reading(te_peer.Case):
        def test_something(self):
            a, b = self.hosts("a", "b")                       # network namespaces, gone with the test
            engine = self.mooncake(b, "0.3.9")                # a process there, with that release
            report = engine.ask("read", session=..., map=..., files=[...], batch=1000)

What can be asked is in mooncake_program.py and sglang_program.py. Mooncake binds all addresses, so that it runs nowhere
but in a namespace.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import rfork_program

sys.path.insert(0, str(rfork_program.SOURCE / "tests/cluster"))
import hosts  # noqa: E402
import util  # noqa: E402

HERE = Path(__file__).resolve().parent
PEERS = Path(os.environ.get("RFORK_PEERS", rfork_program.SOURCE / "build/peers"))
NEWEST = "0.3.13.post1"
START_SEED = "--remote-instance-weight-loader-start-seed-via-transfer-engine"
VERSIONS = ("0.3.6", "0.3.9", "0.3.12.post1", NEWEST)
IPV6_VERSIONS = VERSIONS[1:]  # the oldest knows IPv4 alone
# Without these the newest release refuses more than 2048 tensors at once; a longer wait is for busy machines.
TUNED = {
    "MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": "65535",
    "MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER": "65535",
    "MC_TCP_ADMISSION_TIMEOUT_MS": "60000",
}
MODES = {"": {}, "unpooled": {"MC_TCP_ENABLE_CONNECTION_POOL": "0"}, "v1": {"MC_TCP_PROTO": "1"}, "tuned": TUNED}
OLD_PATH, NEW_PATH = "/get_remote_instance_transfer_engine_info", "/remote_instance_transfer_engine_info"


def require() -> None:
    """For setUpModule(): skips where hosts cannot be made, or Mooncake is not there."""
    hosts.require()
    missing = [version for version in VERSIONS if version != NEWEST and not folder_of(version).exists()]
    if missing:
        raise unittest.SkipTest(f"Mooncake {', '.join(missing)} is not in {PEERS}; scripts/peers.py makes it")


def folder_of(version: str) -> Path:
    """Where a release that is not in the environment is."""
    return PEERS / f"mooncake-{version}"


class Program:
    """A process that answers lines of JSON; its standard error goes to a file in `folder`."""

    def __init__(self, host: hosts.Namespace, program: Path, folder: Path, version: str, env: dict[str, str]):
        self.words = f"{program.name} with Mooncake {version} {env or ''}"
        self.log = tempfile.NamedTemporaryFile("w+", prefix="peer-", dir=folder)
        path = [] if version == NEWEST else [str(folder_of(version))]
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("MC_", "SGLANG_"))}
        mine |= {"PYTHONPATH": os.pathsep.join([*path, str(HERE)]), "PYTHONUNBUFFERED": "1", **env}
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            mine.pop(name, None)
            mine.pop(name.upper(), None)
        with host.inside():
            self.process = subprocess.Popen(
                [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                env=mine,
            )  # fmt: skip
        self.host = host
        self.rest = b""

    def send(self, command: str, **arguments: object) -> None:
        """Asks without waiting for the answer; .answer() is next."""
        line = json.dumps({"do": command, **arguments}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise AssertionError(self.last_words("has ended")) from None

    def answer(self, seconds: float = 120) -> dict:
        """The answer to what was asked; AssertionError when it is an error or does not come."""
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            readable, _, _ = select.select([self.process.stdout], [], [], max(end - time.monotonic(), 0))
            more = os.read(self.process.stdout.fileno(), 1 << 20) if readable else b""
            if not more:
                raise AssertionError(self.last_words("has ended" if readable else f"no answer in {seconds} s"))
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(self.last_words(answer["error"]))
        return answer

    def ask(self, command: str, seconds: float = 120, **arguments: object) -> dict:
        """Asks and waits for the answer."""
        self.send(command, **arguments)
        return self.answer(seconds)

    def last_words(self, what: str) -> str:
        """A message with the end of what the process said."""
        return f"{self.words}: {what} (exit code {self.process.poll()})\n{self.stderr[-4000:]}"

    @property
    def stderr(self) -> str:
        """All that it has said."""
        return Path(self.log.name).read_text(errors="replace")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return cpu_seconds(self.process.pid)

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


class PeerError(AssertionError):
    """A peer answered that it could not do it."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Mooncake(Program):
    """One engine, started: .session is where it can be reached."""

    def __init__(
        self, host: hosts.Host, folder: Path, version: str = NEWEST, env: dict[str, str] | None = None, ipv6: bool = False
    ):
        env = {**(env or {}), **({"MC_USE_IPV6": "1"} if ipv6 else {})}
        super().__init__(host, HERE / "mooncake_program.py", folder, version, env)
        try:
            facts = self.ask("start", host=f"[{host.address6}]" if ipv6 else host.address)
            if facts["version"] != version:
                raise AssertionError(f"Mooncake {facts['version']} was loaded instead of {version}")
            self.session = facts["session"]
        except BaseException:
            self.close()
            raise

    def hold(self, *files: Path, register: str = "merged") -> dict[str, list[int]]:
        """Holds the tensors of files; returns their map."""
        self.ask("load", files=[str(path) for path in files], register=register)
        return self.ask("map")["map"]

    def publish(self) -> str:
        """Answers SGLang's HTTP routes for what it holds; returns the URL."""
        return self.ask("publish", host=self.host.address, session=self.session)["url"]


def weights(folder: Path | str) -> list[str]:
    """The safetensors files of a model folder."""
    return [str(path) for path in sorted(Path(folder).glob("*.safetensors"))]


def contents(folder: Path | str) -> dict[str, bytes]:
    """The bytes of all tensors of a model folder."""
    return {name: t.data for path in weights(folder) for name, t in util.read_safetensors(path)[0].items()}


class Case(hosts.Case):
    """Two hosts for all tests of a class, self.theirs and self.ours; processes end with the test or with the class."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.shared = cls.enterClassContext(rfork_program.scratch())
        network = hosts.Network()
        cls.addClassCleanup(network.close)
        cls.theirs = network.host("theirs")
        cls.ours = network.host("ours")

    def require_ipv6(self) -> None:
        """Skips where hosts have none."""
        if not (self.ours.has_ipv6() and self.theirs.has_ipv6()):
            self.skipTest("no IPv6 here")

    @classmethod
    def generated(cls, name: str, *arguments: str) -> Path:
        """A model folder made by generate.py, once for the class."""
        folder = cls.shared / name
        if not folder.exists():
            program = rfork_program.SOURCE / "tools/models/generate.py"
            subprocess.run([sys.executable, str(program), "--out", str(folder), *arguments], check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
        return folder

    def mooncake(
        self, host: hosts.Host, version: str = NEWEST, mode: str = "", *, ipv6: bool = False, **env: str
    ) -> Mooncake:
        """An engine on a host, ended with the test."""
        engine = Mooncake(host, self.folder, version, {**MODES[mode], **env}, ipv6)
        self.addCleanup(engine.close)
        return engine

    @classmethod
    def sglang(cls, host: hosts.Host, version: str = NEWEST) -> Program:
        """A process with SGLang's code, ended with the class: it takes long to start."""
        program = Program(host, HERE / "sglang_program.py", cls.shared, version, {})
        cls.addClassCleanup(program.close)
        return program

    def assert_all_equal(self, report: dict, tensors: int | None = None) -> None:
        """A read went well, and every tensor is as in the files."""
        self.assertEqual((report["rc"], report.get("mismatch")), (0, None), report)
        self.assertEqual(report["different"], [])
        if tensors is not None:
            self.assertEqual(report["tensors"], tensors)
