"""Fakes of the software on the other side, for tests of forking from a seed that is not ours: FakeEngine speaks
Mooncake's protocol over TCP (handshake and data plane, both framings), FakeServer answers SGLang's info routes.

They are written from the protocol's description, and can lie in every way that a test asks for. That the real software
behaves like this is what tests/peers shows.
"""

import http.server
import json
import socket
import struct
import threading
from urllib.parse import parse_qs, urlsplit

TIMEOUT = 60
OLD, NEW, BOOTSTRAP = (
    "/get_remote_instance_transfer_engine_info", "/remote_instance_transfer_engine_info", "/get_transfer_engine_info",
)


def receive(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return data


class Listener:
    """Serves each connection to an address of this host on a thread of its own, until close()."""

    def __init__(self, serve, host="127.0.0.1"):
        self.serve = serve
        self.socket = socket.create_server((host, 0), backlog=1024)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.run, args=(connection,), daemon=True).start()

    def run(self, connection):
        connection.settimeout(TIMEOUT)
        with connection:
            try:
                while self.serve(connection):
                    pass
            except (OSError, ConnectionError, struct.error):
                pass

    def close(self):
        # Closing alone does not wake a thread that waits in accept().
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()


class FakeEngine:
    """A registered memory of {address: bytes}. version 2 frames as releases from 0.3.12 on do; pooled: connections
    take more than one request; data_host: where its data plane is, and that it says so."""

    def __init__(self, buffers=None, version=2, data_host=None, descriptor=None, pooled=True):
        self.buffers = dict(buffers or {})
        self.version = version
        self.data_host = data_host
        self.descriptor = descriptor or {}
        self.pooled = pooled
        self.reads = 0
        self.handshake = Listener(self.answer)
        self.data = Listener(self.send, data_host or "127.0.0.1")
        self.session = f"127.0.0.1:{self.handshake.port}"

    def describe(self):
        said = {
            "name": self.session, "protocol": "tcp", "tcp_data_port": self.data.port,
            "timestamp": "2026-01-01 00:00:00.000000",
            "buffers": [{"name": self.session, "addr": address, "length": len(data)}
                        for address, data in self.buffers.items()],
        }
        if self.version == 2:
            said["tcp_proto_version"] = 2
        if self.data_host is not None:
            said["tcp_data_host"] = self.data_host
        return {**said, **self.descriptor}

    def answer(self, connection):
        (length,) = struct.unpack("<Q", receive(connection, 8))
        kind = receive(connection, length)[0]
        text = json.dumps(self.describe() if kind == 1 else {}).encode() + b"\n"
        connection.sendall(struct.pack("<QB", len(text) + 1, kind) + text)
        return False

    def find(self, address, size):
        for start, data in self.buffers.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return None

    def send(self, connection):
        size, address, operation = struct.unpack("<QQB7x", receive(connection, 24))
        self.reads += 1
        data = self.find(address, size)
        if operation & 0x7F or (data is None and not operation & 0x80):
            return False
        if operation & 0x80:
            connection.sendall(struct.pack("<II", 0 if data is not None else 1, 0x4D435456))
        connection.sendall(data or b"")
        return self.pooled

    def close(self):
        self.handshake.close()
        self.data.close()


class FakeServer:
    """Answers for ranks {rank: (session id, {name: [address, elements, element size]})}.

    paths: the info routes there are; info: what /server_info says (None: no such route); a rank that is not there is
    answered as SGLang's HTTP server does, or, on its own route, its bootstrap server. answers: {path with query:
    (status, bytes)} that come instead."""

    def __init__(self, ranks=None, paths=(OLD, NEW), info=None, answers=None):
        self.ranks = ranks or {}
        self.paths = paths
        self.info = info
        self.answers = answers or {}
        self.asked = []
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                fake.asked.append(self.path)
                status, body = fake.answer(self.path)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, target):
        parts = urlsplit(target)
        if target in self.answers:
            return self.answers[target]
        if parts.path in ("/server_info", "/get_server_info") and self.info is not None:
            return 200, json.dumps(self.info).encode()
        if parts.path not in self.paths:
            return 404, b'{"detail":"Not Found"}'
        rank = int(parse_qs(parts.query)["rank"][0])
        if rank in self.ranks:
            return 200, json.dumps({"rank": rank, "remote_instance_transfer_engine_info": self.ranks[rank]}).encode()
        if parts.path == BOOTSTRAP:
            return 404, json.dumps({"detail": f"No transfer engine info for rank {rank}"}).encode()
        return 400, json.dumps({"error": {"message": f"Failed to get transfer engine info for rank {rank}"}}).encode()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
