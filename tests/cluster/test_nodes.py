#!/usr/bin/env python3
"""One model on two nodes, as SGLang's seed document has it: the first answers for the ranks of both.

What a client does with an answer is done here by hand: Mooncake's handshake, and its reads.
ctest: timeout=600 serial
"""

import concurrent.futures
import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import unittest
from pathlib import Path

import hosts
import util

GENERATE = util.SOURCE / "tools/models/generate.py"
SHAPE = ("--layers=2", "--hidden=128", "--intermediate=512", "--heads=16", "--kv-heads=4", "--head-dim=32", "--vocab=500")
TP = 16
INFO_PORT = 15036
PATHS = ("/remote_instance_transfer_engine_info", "/get_remote_instance_transfer_engine_info")


def setUpModule():
    hosts.require()


# ---- a reader of TransferEngine, version 1 of its data plane ----


def exactly(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {count} bytes")
        data += piece
    return data


def connect(host, port):
    return contextlib.closing(socket.create_connection((host, port), timeout=10 * util.SLOW))


def descriptor(session):
    host, port = session.rsplit(":", 1)
    with connect(host, int(port)) as sock:
        question = b'{"name":"test"}'
        sock.sendall(struct.pack("<QB", len(question) + 1, 1) + question)
        (size,) = struct.unpack("<Q", exactly(sock, 8))
        return json.loads(exactly(sock, size)[1:])


def read_tensors(session, places):
    """{name: bytes}, all over one connection."""
    where = descriptor(session)
    host = where.get("tcp_data_host") or session.rsplit(":", 1)[0]
    out = {}
    with connect(host, where["tcp_data_port"]) as sock:
        for name, (address, elements, element_bytes) in places.items():
            count = elements * element_bytes
            sock.sendall(struct.pack("<QQB7x", count, address, 0))
            out[name] = exactly(sock, count)
    return out


# ---- the nodes ----


class Nodes(hosts.Case):
    def setUp(self):
        super().setUp()
        self.model_path = self.path("qwen3")
        subprocess.run([sys.executable, str(GENERATE), "--out", self.model_path, "--shards=2", *SHAPE], check=True,
                       stdout=subprocess.DEVNULL, timeout=60 * util.SLOW)
        self.first, self.second, self.client = self.hosts("first", "second", "client")

    def node(self, rank, *more, names=True, **options):
        """The command of the seed document, with what the second node is called in it if `names`."""
        addresses = json.dumps({"0": self.first.address, "1": self.second.address})
        named = ["--node-hosts", addresses, "--inter-node-transfer-engine-info-port", INFO_PORT] if names else []
        return self.seed_on(
            (self.first, self.second)[rank], "--model-path", self.model_path, "--tp", TP, "--trust-remote-code",
            "--mem-frac", "0.85", "--dist-init-addr", f"{self.first.address}:5000", "--nnodes", 2, "--node-rank", rank,
            "--remote-instance-weight-loader-start-seed-via-transfer-engine", *named, *more, bind="0.0.0.0", **options)

    def ask(self, seed, rank, path=PATHS[0]):
        """(status, JSON) as a client on a third host gets it."""
        with self.client.inside():
            status, _, body = util.http_get(seed.url, f"{path}?rank={rank}", timeout=20)
        return status, json.loads(body)

    def info(self, seed, rank, path=PATHS[0]):
        status, answer = self.ask(seed, rank, path)
        self.assertEqual(status, 200, answer)
        self.assertEqual(answer["rank"], rank)
        return answer["remote_instance_transfer_engine_info"]

    def refusal(self, seed, rank):
        status, answer = self.ask(seed, rank)
        self.assertEqual(status, 400, answer)
        return answer["error"]["message"]

    def check_rank(self, first, node, rank):
        """Every tensor of the rank, read at its published place, is what the node that has it says it is."""
        session, places = self.info(first, rank)
        self.assertEqual(session.rsplit(":", 1)[0], node.host.address)
        with self.client.inside():
            got = read_tensors(session, places)
        self.assertIn("model.layers.1.self_attn.qkv_proj.weight", got)
        for name, data in got.items():
            status, _, body = node.get(f"/v1/tensors/{name}?rank={rank % (TP // 2)}")
            self.assertEqual(status, 200, body)
            self.assertEqual(data, body, f"rank {rank}: {name}")

    def alone(self, *more, **options):
        """The first, which does not wait for the second."""
        return self.node(0, "--wait-nodes", 0, *more, **options)

    def both(self):
        """The two of them, ready."""
        first = self.node(0, ready=False)
        second = self.node(1)
        first.wait_ready()
        return first, second

    def health(self, seed):
        """(status of SGLang's path, body of ours)"""
        return seed.get("/health")[0], json.loads(seed.get("/healthz")[2])

    def waiting(self, *more, names=True):
        """The first, which waits for the second."""
        first = self.node(0, *more, names=names, ready=False)
        where = rf" \({self.second.address}:{INFO_PORT}\)" if names else ""
        first.wait_for(rf"rfork: waiting up to [0-9]+ s for other nodes: missing are node 1{where}: rank 8-15$", 30)
        reason = "the ranks of other nodes are waited for"
        self.assertEqual(self.health(first), (503, {"status": "loading", "reason": reason}))
        self.assertEqual(json.loads(first.get("/v1/instance")[2])["state"], "loading")
        self.assertEqual(first.metrics()['rfork_state{state="loading"}'], 1)
        self.assertNotIn("rfork: ready", first.stdout)
        return first

    def check_waited(self, first):
        first.wait_ready()
        self.assertEqual(self.health(first), (200, {"status": "ready"}))
        self.assertEqual(first.stderr.count("for other nodes"), 1)
        self.assertNotIn("warning", first.stderr)

    def test_the_first_waits_for_a_late_node_that_registers(self):
        first = self.waiting(names=False)
        second = self.node(1, names=False)
        self.check_waited(first)
        for rank in range(TP // 2, TP):
            self.info(first, rank)
        self.check_rank(first, second, 15)

    def test_the_first_waits_for_a_late_node_that_is_asked(self):
        first = self.waiting()
        second = self.node(1, "--engine-info-bootstrap-port", 6790)
        self.check_waited(first)
        for rank in range(TP // 2, TP):
            self.info(first, rank)
        self.check_rank(first, second, 15)

    def test_a_node_that_never_comes_is_named_when_the_wait_is_over(self):
        named = rf"node 1 \({self.second.address}:{INFO_PORT}\): rank 8-15"
        for time, reason in (("0", ""), ("1s", ""), ("6s", r" \(no answer within 5000 ms\)")):
            with self.subTest(time=time), self.node(0, "--wait-nodes", time) as first:
                self.assertRegex(first.stderr, rf"rfork: warning: ready without other nodes: missing are {named}{reason};")
                self.assertEqual(self.health(first), (200, {"status": "ready"}))
                self.assertEqual("waiting up to" in first.stderr, time != "0")
                self.check_rank(first, first, 3)

    def test_a_signal_ends_the_wait_at_once(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number=number):
                first = self.waiting("--wait-nodes", "10min")
                first.send(number)
                self.assertEqual(first.wait(), util.CANCELLED)
                self.assertEqual(first.stdout, "")

    def test_the_first_answers_for_all_ranks_of_both(self):
        first, second = self.both()
        for rank in range(TP):
            self.check_rank(first, (first, second)[rank // (TP // 2)], rank)
            self.assertEqual(self.info(first, rank), self.info(first, rank, PATHS[1]))
        self.assertIn("Failed to get transfer engine info for rank 16", self.refusal(first, TP))
        with self.client.inside():
            status, _, body = util.http_get(f"http://{self.first.address}:6789", "/get_transfer_engine_info?rank=15")
        self.assertEqual((status, json.loads(body)["rank"]), (200, 15))

    def test_registrations_are_enough(self):
        first = self.alone(names=False)
        self.assertIn("node 1: nobody has registered it", self.refusal(first, 9))
        second = self.node(1, names=False)
        self.check_rank(first, second, 9)

    def test_questions_are_enough(self):
        first = self.alone()
        # Registers where nobody listens, says so, and is ready all the same.
        second = self.node(1, "--engine-info-bootstrap-port", 6790, env={"RFORK_LOG_LEVEL": "warn"})
        self.assertRegex(second.stderr, "ranks are not registered.* reason=.*6790")
        self.check_rank(first, second, 15)

    def test_the_second_may_come_first(self):
        second = self.node(1, ready=False)
        first = self.node(0)
        second.wait_ready()
        self.assertNotIn("warning", first.stderr)
        self.check_rank(first, second, 8)

    def test_a_node_that_is_down_is_named_with_its_rank(self):
        first = self.alone()
        named = rf"rank 12: node 1 \({self.second.address}:{INFO_PORT}\): no answer within 5000 ms"
        self.assertRegex(self.refusal(first, 12), named)
        self.check_rank(first, first, 3)

    def test_a_node_that_stands_still_is_named_with_its_rank(self):
        first = self.alone()
        second = self.node(1, "--engine-info-bootstrap-port", 6790)
        second.send(signal.SIGSTOP)
        self.assertRegex(self.refusal(first, 12), r"rank 12: node 1 \(.*no answer within 5000 ms")
        second.send(signal.SIGCONT)

    def test_a_node_that_is_slow_is_waited_for(self):
        first = self.alone()
        second = self.node(1, "--engine-info-bootstrap-port", 6790)
        second.send(signal.SIGSTOP)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.info, first, 12)
            try:
                util.wait_until(self.node_is_asked, 5, "the first's question")
                self.assertFalse(asked.done())
            finally:
                second.send(signal.SIGCONT)
            session, _ = asked.result(20 * util.SLOW)
        self.assertEqual(session.rsplit(":", 1)[0], second.host.address)

    def node_is_asked(self):
        """Whether somebody is connected to the second node's service: the system answers for it there."""
        with self.second.inside():
            out = subprocess.run(["ss", "-Htn", "state", "established"], capture_output=True, text=True, check=True).stdout
        return f":{INFO_PORT} " in out

    def test_a_node_that_talks_garbage_is_named_with_its_rank(self):
        first = self.alone()
        with self.second.inside():
            listener = socket.create_server((self.second.address, INFO_PORT))
        with contextlib.closing(listener):
            with self.client.inside():
                asked = socket.create_connection((self.first.address, first.port), timeout=20 * util.SLOW)
            with contextlib.closing(asked):
                asked.sendall(b"GET %s?rank=12 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % PATHS[0].encode())
                listener.settimeout(20 * util.SLOW)
                peer, _ = listener.accept()
                with contextlib.closing(peer):
                    with contextlib.suppress(OSError):
                        peer.sendall(bytes(range(256)) * 4096)
                    answer = b""
                    while piece := asked.recv(65536):
                        answer += piece
            self.assertIn(b" 400 ", answer.split(b"\r\n")[0])
            self.assertIn(b"rank 12: node 1", answer)

    def test_listeners_are_where_they_were_told_to_be_and_have_room(self):
        seed = self.seed_on(self.first, "--model-path", self.model_path, "--tp", TP,
                            "--remote-instance-weight-loader-start-seed-via-transfer-engine")
        with self.first.inside():
            out = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
            most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        listeners = {}
        for line in out.splitlines():
            _, _, room, address, *_ = line.split()
            listeners[address] = int(room)
        self.assertEqual({address.rsplit(":", 1)[0] for address in listeners}, {self.first.address})
        session, _ = self.info(seed, 0)
        data = f"{self.first.address}:{self.tcp_data_port(session)}"
        self.assertLessEqual({session, data, f"{self.first.address}:6789"}, set(listeners))
        # A reader may connect for each tensor, all at once.
        self.assertEqual([listeners[session], listeners[data]], [min(4096, most)] * 2)

    def tcp_data_port(self, session):
        with self.client.inside():
            return descriptor(session)["tcp_data_port"]


if __name__ == "__main__":
    unittest.main()
