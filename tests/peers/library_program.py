"""librfork.so as an engine would use it: forks a seed into memory of its own, told by lines of JSON.

Commands as in mooncake_program.py. The library is the one in $RFORK_BUILD.
"""

import ctypes
import hashlib
import os
import time

import mooncake_program


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("sys_errno", ctypes.c_int), ("text", ctypes.c_char * 512)]


class Options(ctypes.Structure):
    _fields_ = [
        ("transport", ctypes.c_char_p), ("connections", ctypes.c_uint32), ("no_verify", ctypes.c_bool),
        ("timeout_ms", ctypes.c_uint64), ("wait_ready_ms", ctypes.c_uint64), ("rank", ctypes.c_uint32),
        ("tp_size", ctypes.c_uint32), ("layout", ctypes.c_char_p), ("later", ctypes.c_char * 256),
    ]  # fmt: skip


class Stats(ctypes.Structure):
    _fields_ = [
        ("bytes", ctypes.c_uint64), ("wire_bytes", ctypes.c_uint64), ("chunks", ctypes.c_uint64),
        ("chunks_retried", ctypes.c_uint64), ("connections", ctypes.c_uint32), ("seconds", ctypes.c_double),
        ("verified", ctypes.c_bool), ("transport", ctypes.c_char * 64), ("reason", ctypes.c_char * 1024),
        ("root_digest", ctypes.c_char * 96), ("later", ctypes.c_char * 256),
    ]  # fmt: skip


class Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("dtype", ctypes.c_int), ("ndim", ctypes.c_uint32), ("shape", ctypes.c_void_p),
        ("later", ctypes.c_char * 256),
    ]  # fmt: skip


class Program:
    """The commands."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(os.path.join(os.environ["RFORK_BUILD"], "librfork.so"))
        self.library.rf_fork_bind.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p
        ]  # fmt: skip
        self.error = Error()

    def call(self, function: str, *arguments: object) -> None:
        """RuntimeError with the library's words when it fails."""
        if getattr(self.library, function)(*arguments, ctypes.byref(self.error)) != 0:
            raise RuntimeError(f"{function}: {self.error.text.decode(errors='replace')}")

    def do_read(self, url: str, files: list[str], transport: str, verify: bool) -> dict:
        """Forks a seed: the time is that of rf_fork_run(), and all with rf_fork_open() and binding."""
        if not hasattr(self, "memory"):
            self.files = [mooncake_program.File(path) for path in files]
            self.places, size = mooncake_program.laid_out(self.files)
            self.memory = mooncake_program.Memory(size)
        self.memory.fill()
        fork = ctypes.c_void_p()
        options = Options(transport=transport.encode(), no_verify=not verify)
        begin = time.monotonic()
        self.call("rf_fork_open", url.encode(), ctypes.byref(options), ctypes.byref(fork))
        for file in self.files:
            for name, (_, size, _) in file.tensors.items():
                self.call("rf_fork_bind", fork, name.encode(), self.memory.address + self.places[name], size)
        before, cpu = time.monotonic(), time.process_time()
        self.call("rf_fork_run", fork, None, None)
        end = time.monotonic()
        stats = Stats()
        self.library.rf_fork_get_stats(fork, ctypes.byref(stats))
        self.library.rf_fork_close(fork)
        wrong = mooncake_program.different(self.files, self.places, self.memory, set(self.places))
        return {"rc": 0, "seconds": end - before, "all_seconds": end - begin, "bytes": stats.bytes,
                "cpu_seconds": time.process_time() - cpu, "verified": stats.verified,
                "transport": stats.transport.decode(), "connections": stats.connections,
                "different": wrong}  # fmt: skip


    def do_rank(self, url: str, transport: str, rank: int) -> dict:
        """Takes a rank as the seed has it; answers a digest of each tensor."""
        fork, tensor, size = ctypes.c_void_p(), Tensor(), ctypes.c_uint64()
        options = Options(transport=transport.encode(), rank=rank)
        self.call("rf_fork_open", url.encode(), ctypes.byref(options), ctypes.byref(fork))
        self.library.rf_fork_tensor_count.restype = ctypes.c_uint64
        memory = {}
        for i in range(self.library.rf_fork_tensor_count(fork)):
            self.call("rf_fork_tensor", fork, ctypes.c_uint64(i), ctypes.byref(tensor), ctypes.byref(size))
            memory[tensor.name] = mooncake_program.Memory(size.value)
            self.call("rf_fork_bind", fork, tensor.name, memory[tensor.name].address, size.value)
        self.call("rf_fork_run", fork, None, None)
        self.library.rf_fork_close(fork)
        return {
            "digests": {
                name.decode(): hashlib.sha256(piece.view[: piece.size]).hexdigest() for name, piece in memory.items()
            }
        }


if __name__ == "__main__":
    mooncake_program.answer_commands(Program())
