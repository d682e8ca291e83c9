#!/usr/bin/env python3
"""Readers that vanish, at whatever stage: the seed keeps neither descriptors, threads, connections nor memory of them.

They are written here, from docs/wire-protocol.md, so that hundreds cost little and each ends where it is meant to;
test_cli_serve.py kills real ones.
"""

import array
import contextlib
import json
import os
import signal
import socket
import struct
import unittest

import util

BYTES = 8 << 20
ROUNDS = 3 if util.SANITIZED else 12
SOME_BYTES = 3 << 20 # for what an allocator keeps


def hello(magic, token, tail=b"", versions=(1, 1)):
    return magic + struct.pack("<HHI", *versions, 0) + token + tail


def read_frame(request_id, offset, count, ranges=1):
    """A READ of `count` bytes, from offset on, asked for `ranges` times."""
    body = struct.pack("<II", 0, ranges) + struct.pack("<QQQQ", offset, count, 0, 1) * ranges
    return struct.pack("<BBHIQ", 1, 0, 0, len(body), request_id) + body


def receive(sock, count):
    got = b""
    while len(got) < count:
        piece = sock.recv(count - len(got))
        if not piece:
            raise AssertionError(f"{len(got)} of {count} bytes, then the end")
        got += piece
    return got


def vanish(sock, at_once):
    """Closes as a killed process does: with a reset when bytes are unread, or when asked."""
    if at_once:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---- how far readers get over tcp: each takes an open socket and the token ----


def silent(sock, token):
    pass


def half_a_hello(sock, token):
    sock.sendall(hello(b"rfork/1\n", token)[:20])


def a_wrong_token(sock, token):
    sock.sendall(hello(b"rfork/1\n", bytes(32)))
    receive(sock, 32)


def another_version(sock, token):
    sock.sendall(hello(b"rfork/1\n", token, versions=(7, 9)))
    receive(sock, 32)


def welcomed(sock, token):
    sock.sendall(hello(b"rfork/1\n", token))
    assert struct.unpack("<H", receive(sock, 32)[10:12]) == (0,)


def half_a_read(sock, token):
    welcomed(sock, token)
    sock.sendall(read_frame(1, 0, BYTES)[:30])


def asked_and_gone(sock, token):
    welcomed(sock, token)
    sock.sendall(b"".join(read_frame(i, 0, BYTES) for i in range(1, 9)))


def in_the_middle(sock, token):
    asked_and_gone(sock, token)
    receive(sock, 200_000)


def many_ranges(sock, token):
    welcomed(sock, token)
    sock.sendall(read_frame(1, 100, 2000, ranges=4096))
    receive(sock, 100_000)


def garbage(sock, token):
    welcomed(sock, token)
    sock.sendall(b"\xff" * 100)


def one_complete(sock, token):
    welcomed(sock, token)
    sock.sendall(read_frame(5, 1000, 5000))
    receive(sock, 16 + 5000)


TCP_STAGES = [silent, half_a_hello, a_wrong_token, another_version, welcomed, half_a_read, asked_and_gone, in_the_middle,
              many_ranges, garbage, one_complete]


# ---- and over the Unix socket of map ----


def map_half_a_hello(sock, token):
    sock.sendall(hello(b"rfmap/1\n", token)[:20])


def map_wrong_token(sock, token):
    sock.sendall(hello(b"rfmap/1\n", bytes(32), struct.pack("<I", 0)))
    receive(sock, 32)


def map_wrong_rank(sock, token):
    sock.sendall(hello(b"rfmap/1\n", token, struct.pack("<I", 99)))
    receive(sock, 32)


def map_asked_and_gone(sock, token):
    sock.sendall(hello(b"rfmap/1\n", token, struct.pack("<I", 0)))


def map_granted(sock, token):
    """Takes the descriptors, closes them, and keeps the connection until it vanishes."""
    map_asked_and_gone(sock, token)
    fds = array.array("i")
    data, ancillary, _, _ = sock.recvmsg(32, socket.CMSG_LEN(64 * fds.itemsize))
    for _, _, piece in ancillary:
        fds.frombytes(piece[: len(piece) - len(piece) % fds.itemsize])
    for fd in fds:
        os.close(fd)
    assert data[:8] == b"rfmap/1\n" and struct.unpack("<H", data[10:12]) == (0,) and fds


MAP_STAGES = [silent, map_half_a_hello, map_wrong_token, map_wrong_rank, map_asked_and_gone, map_granted]


class Vanishing(util.Case):
    def setUp(self):
        super().setUp()
        self.serving = self.seed("--model-path", self.model(tensors=util.big_tensors(BYTES)), "--chunk-size", "256KiB",
                                 "--max-readers", "1000", "--drain-timeout", "200ms")
        self.serving.root_digest()

    @contextlib.contextmanager
    def lease(self):
        status, _, body = self.serving.get("/v1/lease", method="POST", body="{}",
                                           headers={"Content-Type": "application/json"})
        self.assertEqual(status, 201, body)
        lease = json.loads(body)
        addresses = {endpoint["transport"]: endpoint["address"] for endpoint in lease["endpoints"]}
        try:
            yield addresses, bytes.fromhex(lease["token"])
        finally:
            self.serving.get("/v1/lease", method="DELETE", headers={"Authorization": f"Bearer {lease['token']}"})

    def connect(self, transport, address):
        if transport == "map":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(20 * util.SLOW)
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            return sock
        host, port = address.rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=20 * util.SLOW)

    def round(self, transport, stages):
        """Some readers of each kind are there at a time, then all vanish."""
        with self.lease() as (addresses, token):
            socks = []
            for stage in stages * 4:
                sock = self.connect(transport, addresses[transport])
                socks.append(sock)
                stage(sock, token)
            for i, sock in enumerate(socks):
                vanish(sock, at_once=i % 2 == 0)
        util.wait_until(lambda: self.serving.metrics()["rfork_connections"] == 0, 20, "no connections")

    def facts(self):
        return self.serving.fds(), self.serving.threads(), self.serving.resident_bytes("RssAnon")

    def check(self, transport, stages):
        self.rfork_ok("fork", self.serving.url, "--transport", transport)
        self.round(transport, stages)
        self.round(transport, stages) # what is taken once is there now
        fds, threads, resident = self.facts()
        for _ in range(ROUNDS):
            self.round(transport, stages)
        util.wait_until(lambda: self.serving.fds() <= fds, 20, f"{fds} descriptors again")
        self.assertLessEqual(self.serving.threads(), threads)
        if not util.SANITIZED:
            self.assertLess(self.serving.resident_bytes("RssAnon"), resident + SOME_BYTES)
        self.assertEqual(self.serving.metrics()["rfork_leases"], 0)
        self.assertEqual(self.serving.get("/healthz")[0], 200)
        done = self.rfork_json("fork", self.serving.url, "--transport", transport, "--verify")
        self.assertTrue(done["verified"])
        self.assertEqual(self.serving.stop(), util.OK, self.serving.stderr)

    def test_at_any_stage_of_tcp_they_leave_nothing(self):
        self.check("tcp", TCP_STAGES)

    def test_at_any_stage_of_map_they_leave_nothing(self):
        self.check("map", MAP_STAGES)


class Stopped(util.Case):
    def test_a_stopped_reader_that_shares_the_pages_holds_up_nobody(self):
        model = self.model(tensors=util.big_tensors(16 << 20))
        with self.seed("--model-path", model) as seed:
            instances = [self.seed("--from", seed.url, "--transport", "map") for _ in range(3)]
            for instance in instances:
                instance.send(signal.SIGSTOP)
            for transport in ("map", "tcp"):
                self.assertTrue(self.rfork_json("fork", seed.url, "--transport", transport, "--verify", timeout=20)["verified"])
            # Their pages are theirs as well: the seed may end, and they go on.
            self.assertEqual(seed.stop(), util.OK, seed.stderr)
            for instance in instances:
                instance.send(signal.SIGCONT)
                self.rfork_ok("fork", instance.url, "--transport", "tcp")
                self.assertEqual(instance.stop(), util.OK, instance.stderr)


if __name__ == "__main__":
    unittest.main()
