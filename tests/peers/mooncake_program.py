"""One real Mooncake engine as a process of its own: a seed, a reader or a writer, told by lines of JSON.

Which release it is is decided by PYTHONPATH (te_peer.py does that). It needs nothing but Mooncake and the standard
library. A line of standard input is one command, {"do": NAME, ...}; its answer is one line of standard output: a JSON
object, or {"error": TEXT}. What Mooncake itself prints goes to standard error. The end of standard input ends it.

Mooncake binds all addresses of the network that it finds itself in: run it in a namespace.
"""

import ctypes
import hashlib
import http.server
import importlib.metadata
import json
import mmap
import os
import struct
import sys
import threading
import time
import traceback
import urllib.parse

ALIGNMENT = 512  # as the CUDA allocator places tensors
SKIPPED = 0x5A  # what a reader's memory holds where nothing has been written
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
LIBC = ctypes.CDLL(None)
LIBC.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def address_of(buffer: object) -> int:
    """Where a writable buffer begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Memory:
    """Anonymous memory whose pages are there from the beginning."""

    def __init__(self, size: int):
        self.map = mmap.mmap(-1, max(size, 1))
        self.view = memoryview(self.map)
        self.address = address_of(self.map)
        self.size = size
        self.fill()

    def fill(self, offset: int = 0, size: int | None = None) -> None:
        """Writes SKIPPED over it, or over a part of it."""
        ctypes.memset(self.address + offset, SKIPPED, self.size if size is None else size)


class File:
    """A safetensors file: where the tensors are in it."""

    def __init__(self, path: str):
        self.path = path
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self.start = 8 + length
        self.tensors = {
            name: (self.start + at[0], at[1] - at[0], BITS.get(entry["dtype"], 8) // 8)
            for name, entry in header.items()
            for at in [entry["data_offsets"]]
        }  # name -> offset in the file, bytes, bytes an element


class Held:
    """What a seed holds: tensors of files in memory, and their map as SGLang publishes it."""

    def __init__(self, files: list[File]):
        # Last first: neither by name nor as in the file, so that nobody gets by on order.
        self.places = {}
        self.map = {}
        end = 0
        for file in files:
            for name in reversed(file.tensors):
                self.places[name] = end
                end += -(-file.tensors[name][1] // ALIGNMENT) * ALIGNMENT
        self.memory = Memory(end)
        for file in files:
            read_tensors(file, self.places, self.memory)
            for name, (_, size, element) in file.tensors.items():
                self.map[name] = [self.memory.address + self.places[name], size // element, element]

    def digest(self) -> str:
        return hashlib.sha256(self.memory.view).hexdigest()


def read_tensors(file: File, places: dict[str, int], memory: Memory) -> None:
    """Reads a file's tensors to their places in memory."""
    with open(file.path, "rb", buffering=0) as source:
        for name, (offset, size, _) in file.tensors.items():
            source.seek(offset)
            view, done = memory.view[places[name] : places[name] + size], 0
            while done < size:
                got = source.readinto(view[done:])
                if not got:
                    raise OSError(f"{file.path}: ends too early")
                done += got


def laid_out(files: list[File]) -> tuple[dict[str, int], int]:
    """Where a reader puts the tensors: end to end, in the order of the files. And how many bytes that is."""
    places, end = {}, 0
    for file in files:
        for name, (_, size, _) in file.tensors.items():
            places[name] = end
            end += size
    return places, end


def different(files: list[File], places: dict[str, int], memory: Memory, names: set[str]) -> list[str]:
    """Those of these tensors that are in memory not as they are in the files."""
    found = []
    for file in files:
        with open(file.path, "rb") as source, mmap.mmap(source.fileno(), 0, mmap.MAP_PRIVATE) as content:
            start = address_of(content)
            for name, (offset, size, _) in file.tensors.items():
                if name in names and LIBC.memcmp(memory.address + places[name], start + offset, size) != 0:
                    found.append(name)
    return found


class Info(http.server.BaseHTTPRequestHandler):
    """Answers the two routes that SGLang's clients ask; server.answers is {rank: [session, map]}."""

    PATHS = ("/remote_instance_transfer_engine_info", "/get_remote_instance_transfer_engine_info")

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        rank = urllib.parse.parse_qs(url.query).get("rank", [""])[0]
        if url.path not in self.PATHS:
            self.answer(404, {"detail": "Not Found"})
        elif not rank.isdigit():
            self.answer(400, {"error": {"message": "Missing or invalid rank parameter"}})
        elif int(rank) not in self.server.answers:
            self.answer(400, {"error": {"message": f"Failed to get transfer engine info for rank {rank}"}})
        else:
            info = self.server.answers[int(rank)]
            self.answer(200, {"rank": int(rank), "remote_instance_transfer_engine_info": info})

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Program:
    """The commands; each method do_X takes the keys of {"do": "X", ...} and returns what is answered."""

    def __init__(self) -> None:
        self.engine = None
        self.held: Held | None = None
        self.server: http.server.ThreadingHTTPServer | None = None
        self.readers: dict[str, tuple] = {}

    def do_start(self, host: str) -> dict:
        """Makes the engine, which binds a port of its own choice."""
        from mooncake.engine import TransferEngine

        self.engine = TransferEngine()
        if self.engine.initialize(host, "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("initialize() failed")
        versions = [d.version for d in importlib.metadata.distributions() if d.name.startswith("mooncake-transfer")]
        return {"session": f"{host}:{self.engine.get_rpc_port()}", "version": versions[0], "pid": os.getpid()}

    def do_load(self, files: list[str], register: str) -> dict:
        """Puts the files' tensors into memory, registered as "merged", "each", "none" or "half" (the first half)."""
        self.held = held = Held([File(path) for path in files])
        begin = time.monotonic()
        if register == "each":
            regions = [(address, count * element) for address, count, element in held.map.values()]
        else:
            regions = {
                "merged": [(held.memory.address, held.memory.size)],
                "half": [(held.memory.address, held.memory.size // 2)],
                "none": [],
            }[register]
        for address, size in regions:
            if self.engine.register_memory(address, size) != 0:
                raise RuntimeError(f"register_memory({address:#x}, {size}) failed")
        return {"buffers": len(regions), "seconds": time.monotonic() - begin, "bytes": held.memory.size}

    def do_map(self) -> dict:
        """The map of what is held."""
        return {"map": self.held.map}

    def do_publish(self, host: str, answers: dict[str, list] | None = None, session: str | None = None) -> dict:
        """Serves the information of rank 0 over HTTP, or whatever the caller wants answered; may be called again."""
        wanted = {0: [session, self.held.map]} if answers is None else {int(k): v for k, v in answers.items()}
        if self.server is None:
            self.server = http.server.ThreadingHTTPServer((host, 0), Info)
            threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.server.answers = wanted
        return {"url": f"http://{host}:{self.server.server_address[1]}"}

    def do_digest(self) -> dict:
        """A digest of all that is held: whether somebody has written into it."""
        return {"digest": self.held.digest()}

    def prepared(self, files: list[str]) -> tuple[list[File], dict[str, int], Memory]:
        """Memory for the tensors of these files, kept for the next read of the same ones, registered as a whole."""
        key = json.dumps(files)
        if key not in self.readers:
            loaded = [File(path) for path in files]
            places, end = laid_out(loaded)
            memory = Memory(end)
            if self.engine.register_memory(memory.address, max(memory.size, 1)) != 0:
                raise RuntimeError("register_memory() of the destination failed")
            for _, _, old in self.readers.values():
                self.engine.unregister_memory(old.address)
            self.readers = {key: (loaded, places, memory)}
        return self.readers[key]

    def do_read(
        self,
        session: str,
        map: dict[str, list[int]],
        files: list[str],
        batch: int,
        limit: int = 0,
        compare: bool = True,
    ) -> dict:
        """Reads the tensors of a map, `batch` with one call, and compares them with the files' bytes.

        With batch 0 each is read by a call for a single one. At most `limit` tensors, if it is not 0. Answers {"rc": of
        the first call that failed, or 0, "different": names of tensors that are not as in the files}.
        """
        loaded, places, memory = self.prepared(files)
        memory.fill()
        wanted = {name: (size, element) for file in loaded for name, (_, size, element) in file.tensors.items()}
        described = {name: (count * element, element) for name, (_, count, element) in map.items()}
        names = list(map)[: limit or len(map)]
        if described != wanted:
            return {"rc": None, "mismatch": sorted(set(described.items()) ^ set(wanted.items()))[:10]}
        local = [memory.address + places[name] for name in names]
        remote = [map[name][0] for name in names]
        sizes = [wanted[name][0] for name in names]
        code, calls, before, begin = 0, 0, time.process_time(), time.monotonic()
        for i in range(0, len(names), batch or 1):
            j = i + (batch or 1)
            if batch:
                code = self.engine.batch_transfer_sync_read(session, local[i:j], remote[i:j], sizes[i:j])
            else:
                code = self.engine.transfer_sync_read(session, local[i], remote[i], sizes[i])
            calls += 1
            if code != 0:
                break
        report = {"seconds": time.monotonic() - begin, "cpu_seconds": time.process_time() - before}
        return {"rc": code, "calls": calls, "tensors": len(names), "bytes": sum(sizes), **report,
                "different": different(loaded, places, memory, set(names)) if compare else None}  # fmt: skip

    def do_write(self, session: str, address: int, size: int, calls: list[str]) -> dict:
        """Tries to write `size` bytes at an address of the peer's, by each of these calls; answers their codes."""
        memory = Memory(size)
        if self.engine.register_memory(memory.address, memory.size) != 0:
            raise RuntimeError("register_memory() of the source failed")
        codes = {}
        for call in calls:
            if call.startswith("batch_"):
                codes[call] = getattr(self.engine, call)(session, [memory.address], [address], [size])
            else:
                codes[call] = getattr(self.engine, call)(session, memory.address, address, size)
        self.engine.unregister_memory(memory.address)
        return {"rc": codes}


def answer_commands(program: object) -> None:
    """Answers the commands on standard input, each by the program's method do_NAME, until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(program, f"do_{command.pop('do')}")(**command)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # Mooncake's destructor may wait for peers


if __name__ == "__main__":
    answer_commands(Program())
