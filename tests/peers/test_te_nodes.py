"""Two nodes with 16 ranks, by the seed document's commands: SGLang's own client takes ranks of both from the first.

The nodes are network namespaces. The information of the second node reaches the first by the ZeroMQ service of the seed
document, or by SGLang's bootstrap server; one of the nodes may also be SGLang's.

ctest: timeout=600
"""

import hashlib
import json
import unittest
from pathlib import Path

import te_peer

PORT, BOOTSTRAP_PORT, ZMQ_PORT = 30000, 6789, 15036
TP = 16


def setUpModule() -> None:
    te_peer.require()


class Nodes(te_peer.Case):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        import sglang_models

        cls.model = cls.shared / "moonlight"
        sglang_models.moonlight().write(cls.model)
        cls.client = cls.sglang(cls.theirs)

    def node(self, host: te_peer.hosts.Host, rank: int, head: te_peer.hosts.Host, *more: str) -> te_peer.util.Process:
        """`rfork serve` as the seed document has it; ended with the test."""
        with host.inside():
            process = te_peer.util.Process(
                self.folder, "serve", "--model-path", str(self.model), "--tp", str(TP), "--trust-remote-code",
                "--mem-frac", "0.85", "--host", "0.0.0.0", "--port", str(PORT),
                "--dist-init-addr", f"{head.address}:5000", "--nnodes", "2", "--node-rank", str(rank),
                te_peer.START_SEED, *more,
            )  # fmt: skip
        self.addCleanup(te_peer.util.Process.__exit__, process, None, None, None)
        return process

    def ask(self, host: te_peer.hosts.Host, rank: int) -> tuple[int, dict]:
        """Status and body of what a node says of a rank."""
        with host.inside():
            url = f"http://{host.address}:{PORT}"
            status, _, body = te_peer.util.http_get(url, f"{te_peer.OLD_PATH}?rank={rank}", timeout=60)
        return status, json.loads(body)

    def assert_ranks_load(self, head: te_peer.hosts.Host, ranks: list[int]) -> None:
        """SGLang's load_model, as these ranks, from a head."""
        for rank in ranks:
            with self.subTest(rank=rank):
                report = self.client.ask("load", host=self.theirs.address, seed_host=head.address, seed_port=PORT,
                                         folder=str(self.model), rank=rank, size=TP)  # fmt: skip
                self.assertEqual((report["parameters"], report["different"]), (38, []))

    def two_nodes(self, *more: str) -> None:
        head, second = self.ours, self.theirs.network.host("second")
        processes = [self.node(head, 0, head, *more), self.node(second, 1, head, *more)]
        for process in processes:
            process.wait_for(r"^rfork: ready ", 60, "stdout")
        sessions = {self.ask(head, rank)[1]["remote_instance_transfer_engine_info"][0] for rank in range(TP)}
        self.assertEqual({session.rpartition(":")[0] for session in sessions}, {head.address, second.address})
        self.assertEqual(self.ask(head, TP)[0], 400)
        self.assert_ranks_load(head, [0, 7, 8, 15])

    def test_the_library_takes_ranks_of_both_from_the_first(self) -> None:
        head, second = self.ours, self.theirs.network.host("other")
        for process in [self.node(head, 0, head), self.node(second, 1, head)]:
            process.wait_for(r"^rfork: ready ", 60, "stdout")
        library = te_peer.Program(self.theirs, te_peer.HERE / "library_program.py", self.folder, te_peer.NEWEST, {})
        self.addCleanup(library.close)
        for rank, (host, there) in {3: (head, 3), 8: (second, 0), 15: (second, 7)}.items():
            with self.subTest(rank=rank):
                report = library.ask("rank", url=f"http://{head.address}:{PORT}", transport="te", rank=rank)
                self.assertEqual(len(report["digests"]), 38)
                for name, digest in report["digests"].items():
                    with host.inside():
                        url = f"http://{host.address}:{PORT}"
                        status, _, body = te_peer.util.http_get(url, f"/v1/tensors/{name}?rank={there}")
                    self.assertEqual((status, hashlib.sha256(body).hexdigest()), (200, digest), name)
        with self.assertRaisesRegex(te_peer.PeerError, "rank 16: .* has 16 of them"):
            library.ask("rank", url=f"http://{head.address}:{PORT}", transport="te", rank=TP)

    def test_by_the_zeromq_service_of_the_seed_document(self) -> None:
        hosts = {"0": self.ours.address, "1": f"10.213.{len(self.theirs.network.hosts) + 1}.1"}
        self.two_nodes("--node-hosts", json.dumps(hosts), "--inter-node-transfer-engine-info-port", str(ZMQ_PORT))

    def test_by_the_bootstrap_server_of_sglang(self) -> None:
        self.two_nodes()

    def test_a_node_of_sglangs_registers_with_our_head(self) -> None:
        head, second = self.ours, self.theirs.network.host("sglang")
        self.node(head, 0, head, "--wait-nodes", "0").wait_for(r"^rfork: ready ", 60, "stdout")
        self.assertEqual(self.ask(head, TP - 1)[0], 400)
        process = te_peer.Program(second, te_peer.HERE / "sglang_program.py", Path(self.folder), te_peer.NEWEST, {})
        self.addCleanup(process.close)
        held = process.ask("seed", host=second.address, folder=str(self.model), rank=TP - 1, size=TP, head=head.address,
                           head_port=BOOTSTRAP_PORT)  # fmt: skip
        status, body = self.ask(head, TP - 1)
        self.assertEqual(status, 200)
        self.assertEqual(body["remote_instance_transfer_engine_info"][0], held["session"])
        self.assert_ranks_load(head, [0, 15])


if __name__ == "__main__":
    unittest.main()
