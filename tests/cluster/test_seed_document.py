#!/usr/bin/env python3
"""The commands of SGLang's document on R-Fork as they stand there, with `rfork serve` for `sglang.launch_server`.

Two hosts are called node-0-addr and node-1-addr, in an /etc/hosts that the commands alone see; what the document leaves
open is filled in: [args], the seed's address, and where the model is.
ctest: timeout=600 serial
"""

import ctypes
import json
import os
import shlex
import subprocess
import sys
import unittest

import hosts
import util

GENERATE = util.SOURCE / "tools/models/generate.py"
SHAPE = ("--layers=2", "--hidden=128", "--intermediate=512", "--heads=16", "--kv-heads=4", "--head-dim=32", "--vocab=500")
TP = 16
PORT = 30000
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000

PROGRAM = ("python -m sglang.launch_server", "python3 -m sglang.launch_server")
SEED = """python -m sglang.launch_server [args] \\
  --remote-instance-weight-loader-start-seed-via-transfer-engine"""
CLIENT = """python -m sglang.launch_server [args] \\
  --load-format remote_instance \\
  --remote-instance-weight-loader-seed-instance-ip [seed_instance_ip] \\
  --remote-instance-weight-loader-seed-instance-service-port [seed_instance_service_port] \\
  --remote-instance-weight-loader-backend transfer_engine"""
NCCL_SEED = "python -m sglang.launch_server [args]"
NCCL_CLIENT = """python -m sglang.launch_server [args] \\
  --load-format remote_instance \\
  --remote-instance-weight-loader-seed-instance-ip [seed_instance_ip] \\
  --remote-instance-weight-loader-seed-instance-service-port [seed_instance_service_port] \\
  --remote-instance-weight-loader-send-weights-group-ports [send_weights_nccl_group_ports_list]  \\
  --remote-instance-weight-loader-backend nccl"""
NODES = (
    """python3 -m sglang.launch_server --model-path /data/models/Moonlight-16B-A3B-Instruct --tp 16 --trust-remote-code  --mem-frac 0.85 --host 0.0.0.0 --port 30000 --dist-init-addr node-0-addr:5000 --nnodes 2 --node-rank 0 --remote-instance-weight-loader-start-seed-via-transfer-engine --node-hosts '{"0":"node-0-addr","1":"node-1-addr"}' --inter-node-transfer-engine-info-port 15036""",
    """python3 -m sglang.launch_server --model-path /data/models/Moonlight-16B-A3B-Instruct --tp 16 --trust-remote-code  --mem-frac 0.85 --host 0.0.0.0 --port 30000 --dist-init-addr node-0-addr:5000 --nnodes 2 --node-rank 1 --remote-instance-weight-loader-start-seed-via-transfer-engine --node-hosts '{"0":"node-0-addr","1":"node-1-addr"}' --inter-node-transfer-engine-info-port 15036""",
)  # fmt: skip


def setUpModule():
    hosts.require()
    doctor = subprocess.run([util.RFORK, "doctor", "--json"], capture_output=True, text=True, check=False).stdout
    if '"te"' not in doctor:
        raise unittest.SkipTest("this build has no te transport")


class Document(hosts.Case):
    def setUp(self):
        super().setUp()
        self.model_path = self.path("model")
        subprocess.run([sys.executable, str(GENERATE), "--out", self.model_path, "--shards=2", *SHAPE], check=True,
                       stdout=subprocess.DEVNULL, timeout=60 * util.SLOW)
        self.first, self.second, self.client, self.fourth = self.hosts("first", "second", "client", "fourth")
        self.names = self.folder / "hosts"
        self.names.write_text(f"127.0.0.1 localhost\n{self.first.address} node-0-addr\n{self.second.address} node-1-addr\n")

    def with_names(self):
        """In the child: our file is /etc/hosts, for it alone."""
        libc = ctypes.CDLL(None, use_errno=True)
        for done in (libc.unshare(CLONE_NEWNS), libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
                     libc.mount(os.fsencode(self.names), b"/etc/hosts", None, MS_BIND, None)):
            if done != 0:
                raise OSError(ctypes.get_errno(), "no mount namespace for /etc/hosts")

    def command(self, text, *more, args=(), ports="[]"):
        """A command of the document as the words after `rfork`."""
        for program in PROGRAM:
            text = text.replace(program, "serve")
        words = []
        for word in shlex.split(text.replace("\\\n", " ").replace("/data/models/Moonlight-16B-A3B-Instruct", self.model_path)):
            filled = {"[seed_instance_ip]": "node-0-addr", "[seed_instance_service_port]": str(PORT),
                      "[send_weights_nccl_group_ports_list]": ports}.get(word, word)  # fmt: skip
            words += args if word == "[args]" else [filled]
        return [*words, *more]

    def start_on(self, host, words):
        with host.inside():
            process = util.Process(self.folder, *words, preexec_fn=self.with_names)
        self.addCleanup(util.Process.__exit__, process, None, None, None)
        return process

    def ready(self, process):
        """The fields of its ready line."""
        line = process.wait_for(r"^rfork: ready .*", 60, "stdout")[0]
        return dict(word.split("=", 1) for word in line.split()[2:])

    def args(self, host, *more, tp=TP):
        return ["--model-path", self.model_path, "--tp", str(tp), "--host", host.address, "--port", str(PORT), *more]

    def tensors(self, host, rank):
        """The bytes of a rank that an instance on a host has, as a safetensors file."""
        with host.inside():
            status, _, body = util.http_get(f"http://{host.address}:{PORT}", f"/v1/ranks/{rank}.safetensors", timeout=60)
        self.assertEqual(status, 200, body[:500])
        return body

    def content(self, host, rank):
        path = self.folder / "rank.safetensors"
        path.write_bytes(self.tensors(host, rank))
        return {name: tensor.data for name, tensor in util.read_safetensors(path)[0].items()}

    def assert_same_ranks(self, host, ranks):
        """{rank of an instance: (host of the seed, rank there)}: the tensors are the same."""
        for rank, (seed, there) in ranks.items():
            self.assertEqual(self.content(host, rank), self.content(seed, there), f"rank {rank}")

    def test_a_seed_and_a_client_by_transfer_engine(self):
        seed = self.start_on(self.first, self.command(SEED, args=self.args(self.first)))
        self.assertEqual(self.ready(seed)["layout"], "sglang")
        client = self.ready(self.start_on(self.client, self.command(CLIENT, args=self.args(self.client))))
        self.assertEqual((client["transport"], client["ranks"], client["layout"]), ("te", "0-15/16", "sglang"))
        self.assert_same_ranks(self.client, {rank: (self.first, rank) for rank in (0, 7, 15)})

    def test_by_nccl_it_says_what_is_not_there(self):
        self.ready(self.start_on(self.first, self.command(NCCL_SEED, args=self.args(self.first, tp=4))))
        words = self.command(NCCL_CLIENT, args=self.args(self.client, tp=4), ports=json.dumps([20000, 20001, 20002, 20003]))
        client = self.start_on(self.client, words)
        self.assertEqual(client.wait(), util.UNSUPPORTED)
        self.assertRegex(client.stderr, "(?m)^rfork: not available here: --remote-instance-weight-loader-backend nccl: ")

    def two_nodes(self):
        nodes = [self.start_on(host, self.command(text)) for host, text in zip((self.first, self.second), NODES, strict=True)]
        self.assertEqual([self.ready(node)["ranks"] for node in nodes], ["0-7/16", "8-15/16"])
        self.assertNotIn("warning", nodes[0].stderr)
        for node in nodes:
            self.assertIn("ignored, as without bearing on weights: --trust-remote-code, --mem-fraction-static\n", node.stderr)
        return nodes

    def seed_of(self, rank):
        """Where a rank of the two nodes is: host, and which one of its ranks it is."""
        return (self.first, self.second)[rank // (TP // 2)], rank % (TP // 2)

    def test_all_ranks_of_two_nodes_are_forked_from_the_first(self):
        self.two_nodes()
        url = f"http://{self.first.address}:{PORT}"
        copy = self.path("copy")
        for number, how in enumerate((["--seed-api", "sglang"], ["--transport", "te"])):
            with self.subTest(how=how):
                out = f"{copy}-{number}"
                done = self.rfork_json_on(self.client, "fork", url, *how, "--model-path", self.model_path, "-o", out)
                self.assertEqual(done["transport"], "te")
                self.assertEqual(util.folder_content(out), util.folder_content(self.model_path))

    def test_a_client_takes_all_ranks_of_two_nodes(self):
        self.two_nodes()
        client = self.start_on(self.client, self.command(CLIENT, args=self.args(self.client)))
        fields = self.ready(client)
        self.assertEqual((fields["transport"], fields["ranks"]), ("te", "0-15/16"))
        self.assertIn("not verified: ", client.stderr)
        self.assert_same_ranks(self.client, {rank: self.seed_of(rank) for rank in range(TP)})

    def test_a_client_on_two_nodes_takes_the_ranks_of_each_node(self):
        self.two_nodes()
        for number, host in enumerate((self.client, self.fourth)):
            more = ["--dist-init-addr", f"{self.client.address}:5000", "--nnodes", "2", "--node-rank", str(number)]
            client = self.start_on(host, self.command(CLIENT, args=self.args(host, *more)))
            fields = self.ready(client)
            self.assertEqual((fields["transport"], fields["ranks"]), ("te", ("0-7/16", "8-15/16")[number]))
            self.assert_same_ranks(host, {rank: self.seed_of(rank + number * TP // 2) for rank in range(TP // 2)})

    def test_a_node_that_is_missing_ends_a_client_with_its_name_and_the_rank(self):
        first = self.start_on(self.first, self.command(NODES[0], "--wait-nodes", "0"))
        self.ready(first)
        client = self.start_on(self.client, self.command(CLIENT, args=self.args(self.client)))
        self.assertNotIn(client.wait(60), (0, 2))
        self.assertRegex(client.stderr.splitlines()[-1], r"^rfork: .*rank 8\b.*node 1 \(.*15036\)")


if __name__ == "__main__":
    unittest.main()
