"""Raw sockets and handshakes by the thousand, for te_peers.py: what a plain program gets out of this machine.

Commands as in tests/peers/mooncake_program.py. Blocking calls of 1 MiB, no protocol, no check on the way.
"""

import contextlib
import json
import selectors
import socket
import struct
import threading
import time

import mooncake_program

CALL = 1 << 20
SECONDS = 60


def send_all(connection: socket.socket, view: memoryview) -> None:
    """One end."""
    with connection, contextlib.suppress(OSError):
        for i in range(0, len(view), CALL):
            connection.sendall(view[i : i + CALL])


def receive_all(host: str, port: int, view: memoryview) -> None:
    """The other end: dials, says which part it wants, takes it."""
    done = 0
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SECONDS, 0))
        connection.sendall(struct.pack("<QQ", *part_of(view)))
        while done < len(view):
            got = connection.recv_into(view[done : done + CALL])
            if not got:
                raise OSError("the sender has closed")
            done += got


def part_of(view: memoryview) -> tuple[int, int]:
    """Offset and size of a part of the destination, which are those in the source too."""
    start = mooncake_program.address_of(view.obj)
    return mooncake_program.address_of(view) - start, len(view)


class Program:
    """The commands."""

    def do_load(self, files: list[str]) -> dict:
        """Holds the files' tensors end to end, and sends parts of them to whoever asks."""
        loaded = [mooncake_program.File(path) for path in files]
        places, size = mooncake_program.laid_out(loaded)
        self.memory = mooncake_program.Memory(size)
        for file in loaded:
            mooncake_program.read_tensors(file, {name: places[name] for name in file.tensors}, self.memory)
        return {"bytes": size}

    def do_listen(self, host: str) -> dict:
        """Starts to answer."""
        listener = socket.create_server((host, 0), backlog=64)

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                offset, size = struct.unpack("<QQ", connection.recv(16, socket.MSG_WAITALL))
                threading.Thread(target=send_all, args=(connection, self.memory.view[offset : offset + size])).start()

        threading.Thread(target=serve, daemon=True).start()
        return {"port": listener.getsockname()[1]}

    def do_read(self, host: str, port: int, files: list[str], connections: int) -> dict:
        """Takes all of it over so many connections at once, into memory that has been touched."""
        if not hasattr(self, "target"):
            self.files = [mooncake_program.File(path) for path in files]
            self.places, size = mooncake_program.laid_out(self.files)
            self.target = mooncake_program.Memory(size)
        self.target.fill()
        cuts = [self.target.size * i // connections for i in range(connections + 1)]
        parts = [self.target.view[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        threads = [threading.Thread(target=receive_all, args=(host, port, part)) for part in parts]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begin
        names = set(self.places)
        return {"rc": 0, "seconds": seconds, "bytes": self.target.size,
                "different": mooncake_program.different(self.files, self.places, self.target, names)}  # fmt: skip

    def do_handshakes(self, session: str, count: int, idle: int) -> dict:
        """`count` handshakes begun at once, while `idle` connections that never finish theirs are open.

        Answers how long each took, from connecting to the last byte of the reply.
        """
        host, _, port = session.rpartition(":")
        half = (
            b"",
            b"\x10",
            struct.pack("<Q", 1 << 20),
            struct.pack("<Q", 64) + b"\x01{",
            struct.pack("<Q", 3) + b"\x01",
        )
        hostile = []
        for i in range(idle):
            connection = socket.create_connection((host, int(port)), timeout=10)
            connection.sendall(half[i % len(half)])
            hostile.append(connection)
        time.sleep(0.2)  # they are to be known to the seed before the others come
        try:
            seconds, failed = shake(host, int(port), count)
        finally:
            for connection in hostile:
                connection.close()
        return {"seconds": seconds, "failed": failed}


class Handshake:
    """One of many, without blocking."""

    REQUEST = b'{"name":"127.0.0.1:1","protocol":"tcp","buffers":[],"tcp_data_port":1}'

    def __init__(self, host: str, port: int):
        self.begin = time.monotonic()
        self.reply = bytearray()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex((host, port))

    def write(self) -> None:
        self.socket.sendall(struct.pack("<QB", len(self.REQUEST) + 1, 1) + self.REQUEST)

    def read(self) -> bool:
        """True when the reply is complete; OSError when there will be none."""
        more = self.socket.recv(1 << 16)
        self.reply += more
        if len(self.reply) >= 8 and len(self.reply) >= 8 + struct.unpack_from("<Q", self.reply)[0]:
            json.loads(bytes(self.reply[9:]))
            return True
        if not more:
            raise ConnectionError("closed before the reply was complete")
        return False


def shake(host: str, port: int, count: int) -> tuple[list[float], list[str]]:
    """Seconds of those handshakes that succeeded, and what went wrong with the others."""
    selector = selectors.DefaultSelector()
    seconds: list[float] = []
    failed: list[str] = []
    for _ in range(count):
        handshake = Handshake(host, port)
        selector.register(handshake.socket, selectors.EVENT_WRITE, handshake)
    end = time.monotonic() + SECONDS
    while len(seconds) + len(failed) < count and time.monotonic() < end:
        for key, events in selector.select(1):
            handshake = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    handshake.write()
                    selector.modify(handshake.socket, selectors.EVENT_READ, handshake)
                elif handshake.read():
                    seconds.append(time.monotonic() - handshake.begin)
                    selector.unregister(handshake.socket)
                    handshake.socket.close()
            except (OSError, ValueError) as error:
                failed.append(f"{type(error).__name__}: {error}")
                selector.unregister(handshake.socket)
                handshake.socket.close()
    missing = count - len(seconds) - len(failed)
    return seconds, failed + [f"no answer in {SECONDS} s"] * missing


if __name__ == "__main__":
    mooncake_program.answer_commands(Program())
