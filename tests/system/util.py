"""What the system tests stand on: small models, the program as a process, and waiting with deadlines.

Nothing here sleeps to let something happen: whatever is waited for is asked for, until a deadline. Under sanitizers
deadlines are longer (SLOW), and a report of theirs on stderr fails the test that caused it.

A test file needs:

    import unittest
    import util

    class Serving(util.Case):
        def test_something(self):
            model = self.model()                        # a folder with a small random model
            with self.seed("--model-path", model) as seed:
                done = self.rfork("fork", seed.url, "-o", self.path("copy"))
                self.assertEqual(done.returncode, 0, done.stderr)

    if __name__ == "__main__":
        unittest.main()
"""

import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from urllib.parse import urlsplit

SOURCE = Path(os.environ.get("RFORK_SOURCE", Path(__file__).resolve().parents[2]))
RFORK = os.environ.get("RFORK", str(SOURCE / "build/rfork"))
SANITIZED = bool(os.environ.get("RFORK_SANITIZE"))
SLOW = 6 if SANITIZED else 1

# Exit codes: enum rf_code.
OK, FAILED, INVAL, SYS, FORMAT, PROTO, MISMATCH, CORRUPT = range(8)
UNREACHABLE, TIMEOUT, DENIED, NOMEM, CANCELLED, UNSUPPORTED, CHANGED = range(8, 15)

# ---- waiting ----


class Late(AssertionError):
    """Something did not happen in time."""


def wait_until(condition, seconds=10, what="the condition", pause=0.01):
    """Asks until the answer is true and returns it; Late after `seconds` (times SLOW)."""
    end = time.monotonic() + seconds * SLOW
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Late(f"{what}: not within {seconds * SLOW} s")
        time.sleep(pause)


# ---- safetensors in pure Python ----

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}


def tensor_bytes(dtype, shape):
    elements = 1
    for size in shape:
        elements *= size
    assert elements * DTYPE_BITS[dtype] % 8 == 0
    return elements * DTYPE_BITS[dtype] // 8


class Tensor:
    """dtype, shape and bytes; random bytes unless given."""

    def __init__(self, dtype, shape, data=None, rng=random):
        self.dtype = dtype
        self.shape = list(shape)
        self.data = rng.randbytes(tensor_bytes(dtype, shape)) if data is None else data
        assert len(self.data) == tensor_bytes(dtype, shape)


def safetensors_bytes(tensors, metadata=None):
    """A whole file for {name: Tensor}, in the order given."""
    header = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + len(tensor.data)]}
        at += len(tensor.data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in tensors.values())


def read_safetensors(path):
    """{name: Tensor} and the metadata of a file."""
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = Tensor(entry["dtype"], entry["shape"], raw[8 + length + begin : 8 + length + end])
    return tensors, metadata


def random_tensors(seed=0, layers=3, width=64):
    """Something like a small transformer: {name: Tensor}, the same for the same seed."""
    rng = random.Random(seed)
    tensors = {"model.embed_tokens.weight": Tensor("BF16", [500, width], rng=rng)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}self_attn.{name}.weight"] = Tensor("BF16", [width, width], rng=rng)
        tensors[prefix + "mlp.up_proj.weight"] = Tensor("BF16", [4 * width, width], rng=rng)
        tensors[prefix + "input_layernorm.weight"] = Tensor("F32", [width], rng=rng)
    tensors["model.norm.weight"] = Tensor("F32", [width], rng=rng)
    return tensors


def big_tensors(total_bytes, seed=0, count=8):
    """About that many bytes in `count` tensors; cheap to make."""
    rng = random.Random(seed)
    each = max(total_bytes // count, 1)
    block = rng.randbytes(min(each, 1 << 20))
    tensors = {}
    for i in range(count):
        data = (block * (each // len(block) + 1))[: each - 8] + struct.pack("<Q", i)
        tensors[f"big.{i:03}.weight"] = Tensor("U8", [len(data)], data)
    return tensors


def write_model(folder, tensors, shards=1, config=None, side_files=None, metadata=None):
    """Writes a Hugging Face folder: one file, or shards and their index; returns its path as str."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["TestForCausalLM"], "torch_dtype": "bfloat16"} if config is None else config
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name, data in (side_files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    metadata = {"format": "pt"} if metadata is None else metadata
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, metadata))
        return str(folder)
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        (folder / file).write_bytes(safetensors_bytes({name: tensors[name] for name in part}, metadata))
        weight_map.update(dict.fromkeys(part, file))
    total = sum(len(tensor.data) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def folder_content(folder):
    """{relative name: SHA-256} of all files below a folder."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- the network ----


def free_port():
    """A port that nobody had a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def http_get(url, path="/", headers=None, method="GET", body=None, timeout=10):
    """(status, headers, body) without proxies and redirects."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout * SLOW)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


# ---- processes ----

REPORT = re.compile(r"ERROR: \w+Sanitizer|runtime error:|WARNING: ThreadSanitizer")


def check_report(text):
    """Fails when a sanitizer has found something."""
    if REPORT.search(text):
        raise AssertionError("a sanitizer reports:\n" + text[-8000:])


def environment(extra=None):
    """Ours without what would change the program's defaults, and with a proxy that must not be used."""
    variables = ("RFORK_TRANSPORT", "RFORK_CONNECTIONS", "RFORK_TIMEOUT", "RFORK_LOG_LEVEL",
                 "RFORK_SEED_API")
    mine = {name: value for name, value in os.environ.items() if name not in variables}
    return {**mine, "http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9", **(extra or {})}


class Process:
    """The program running; stdout and stderr go to files, so that it never blocks on us."""

    def __init__(self, folder, *arguments, env=None, preexec_fn=None, stdin=subprocess.DEVNULL, stdout=None,
                 program=None):
        self.arguments = [program or RFORK, *map(str, arguments)]
        self.stderr_path = tempfile.mktemp(prefix="stderr-", dir=folder)
        self.stdout_path = tempfile.mktemp(prefix="stdout-", dir=folder)
        with open(self.stderr_path, "wb") as err, open(self.stdout_path, "wb") as out:
            self.process = subprocess.Popen(
                self.arguments, stdin=stdin, stdout=out if stdout is None else stdout, stderr=err,
                env=environment(env), preexec_fn=preexec_fn,
            )
        self.pid = self.process.pid

    @property
    def stdout(self):
        return Path(self.stdout_path).read_text(errors="replace")

    @property
    def stderr(self):
        return Path(self.stderr_path).read_text(errors="replace")

    def running(self):
        return self.process.poll() is None

    def wait(self, seconds=30):
        """The exit code; Late (and killed) after `seconds` times SLOW."""
        try:
            code = self.process.wait(seconds * SLOW)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Late(f"{' '.join(self.arguments)}: still running after {seconds * SLOW} s\n{self.stderr}") from None
        check_report(self.stderr)
        return code

    def wait_for(self, pattern, seconds=20, stream="stderr"):
        """Waits until a line of stderr (or stdout) matches, and returns the match."""

        def look():
            found = re.search(pattern, getattr(self, stream), re.M)
            if not found and not self.running():
                found = re.search(pattern, getattr(self, stream), re.M)
                if not found:
                    raise AssertionError(f"{' '.join(self.arguments)}: ended with {self.process.returncode} before "
                                         f"/{pattern}/\n{self.stdout}{self.stderr}")
            return found

        return wait_until(look, seconds, f"/{pattern}/ from {' '.join(self.arguments)}")

    def send(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait()

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def resident_bytes(self, field="VmRSS"):
        """VmRSS, RssAnon, RssShmem, ... of /proc/PID/status."""
        return int(re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.M)[1]) * 1024

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        # A stopped process does not end by SIGTERM alone.
        if self.running():
            self.send(signal.SIGCONT)
        self.kill()


class Seed(Process):
    """`rfork serve`, ready. As a context manager it is ended by SIGTERM, which must succeed."""

    def __init__(self, folder, *arguments, ready=True, seconds=30, **more):
        super().__init__(folder, "serve", "--port", "0", *arguments, **more)
        self.fields = {}
        self.expect_exit = OK
        try:
            self.url = self.wait_for(r"listening on (http://\S+?),", seconds)[1]
            if ready:
                self.wait_ready(seconds)
        except BaseException:
            self.kill()
            raise

    def wait_ready(self, seconds=30):
        """The fields of the ready line: {"url": ..., "bytes": ...}."""
        line = self.wait_for(r"^(rfork: ready .*|\{.*\})$", seconds, "stdout")[1]
        if line.startswith("{"):
            self.fields = json.loads(line)
        else:
            self.fields = dict(word.split("=", 1) for word in line.split()[2:])
        return self.fields

    def get(self, path, **more):
        return http_get(self.url, path, **more)

    def json(self, path):
        status, _, body = self.get(path)
        if status != 200:
            raise AssertionError(f"GET {path}: {status} {body[:500]}")
        return json.loads(body)

    def instance(self):
        return self.json("/v1/instance")

    def metrics(self):
        """{"name{labels}": value} of /metrics."""
        status, _, body = self.get("/metrics")
        assert status == 200, status
        lines = [line for line in body.decode().splitlines() if line and not line.startswith("#")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    def root_digest(self, seconds=30):
        """Waits until all digests are made."""
        return wait_until(lambda: self.instance().get("root_digest"), seconds, "the root digest")

    def stop(self, seconds=40):
        """SIGTERM and the exit code."""
        if self.running():
            self.send(signal.SIGTERM)
        return self.wait(seconds)

    def __exit__(self, kind, value, trace):
        if kind is not None or not self.running():
            super().__exit__(kind, value, trace)
            check_report(self.stderr)
            return
        code = self.stop()
        if code != self.expect_exit:
            raise AssertionError(f"the seed ended with {code}, not {self.expect_exit}\n{self.stderr}")


# ---- the test case ----


class Case(unittest.TestCase):
    """A folder of its own, and what is needed to fill and use it."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="rfork-test-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, *parts):
        return str(self.folder.joinpath(*parts))

    def model(self, name="model", tensors=None, **more):
        """Writes a model folder and returns its path; a small random one unless tensors are given."""
        return write_model(self.folder / name, random_tensors() if tensors is None else tensors, **more)

    def rfork(self, *arguments, timeout=60, env=None, **more):
        """Runs the program to its end: CompletedProcess with text."""
        done = subprocess.run([RFORK, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", timeout=timeout * SLOW, env=environment(env), **more)
        check_report(done.stderr)
        return done

    def rfork_ok(self, *arguments, **more):
        done = self.rfork(*arguments, **more)
        self.assertEqual(done.returncode, OK, f"{done.args}\n{done.stdout}{done.stderr}")
        return done

    def rfork_json(self, *arguments, **more):
        """With --json added: what it printed, parsed."""
        done = self.rfork_ok(*arguments, "--json", **more)
        return json.loads(done.stdout)

    def rfork_fails(self, code, *arguments, says=None, **more):
        """It ends with this code and says why in one line (and the usage hint) on stderr, which is returned."""
        done = self.rfork(*arguments, **more)
        self.assertEqual(done.returncode, code, f"{done.args}\n{done.stdout}{done.stderr}")
        lines = [line for line in done.stderr.splitlines() if not line.startswith("Try 'rfork")]
        self.assertTrue(lines and lines[-1].startswith("rfork: "), done.stderr)
        if says is not None:
            self.assertRegex(lines[-1], says)
        return lines[-1]

    def start(self, *arguments, **more):
        """The program in the background; killed when the test ends."""
        process = Process(self.folder, *arguments, **more)
        self.addCleanup(process.__exit__, None, None, None)
        return process

    def seed(self, *arguments, **more):
        """A ready seed on a free port; use it in `with`, or it is killed when the test ends."""
        seed = Seed(self.folder, *arguments, **more)
        self.addCleanup(Process.__exit__, seed, None, None, None)
        return seed

    def assert_same_files(self, one, other):
        self.assertEqual(folder_content(one), folder_content(other))

    def assert_nothing_left(self, output):
        """Neither the folder nor a temporary one beside it."""
        output = Path(output)
        left = [path.name for path in output.parent.iterdir() if output.name in path.name]
        self.assertEqual(left, [])
