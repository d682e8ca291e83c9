"""The peers that the te tests stand on, with each other: real Mooncake engines, and SGLang's code with itself.

If these fail, what test_te_seed.py and test_te_reader.py say about rfork means nothing.

ctest: timeout=600
"""

import unittest
import urllib.parse

import rfork_program
import te_peer


def setUpModule() -> None:
    te_peer.require()


class MooncakeWithItself(te_peer.Case):
    def test_newest_reads_from_itself_and_from_the_oldest(self) -> None:
        files = te_peer.weights(rfork_program.model("minilm"))
        reader = self.mooncake(self.ours, mode="unpooled")
        for version, register in ((te_peer.NEWEST, "each"), ("0.3.6", "merged")):
            with self.subTest(seed=version):
                seed = self.mooncake(self.theirs, version)
                held = seed.hold(*files, register=register)
                for batch in (0, 1000):
                    report = reader.ask("read", session=seed.session, map=held, files=files, batch=batch)
                    self.assert_all_equal(report, len(held))

    def test_a_wrong_byte_is_found(self) -> None:
        files = te_peer.weights(rfork_program.model("minilm"))
        seed, reader = self.mooncake(self.theirs), self.mooncake(self.ours)
        held = seed.hold(*files)
        before = seed.ask("digest")
        name = next(iter(held))
        address = held[name][0]
        report = reader.ask("write", session=seed.session, address=address, size=1, calls=["transfer_sync_write"])
        self.assertEqual(report["rc"], {"transfer_sync_write": 0})  # any peer may write into a Mooncake seed
        self.assertNotEqual(seed.ask("digest"), before)
        report = reader.ask("read", session=seed.session, map=held, files=files, batch=1000)
        self.assertEqual((report["rc"], report["different"]), (0, [name]))


class SglangWithItself(te_peer.Case):
    def test_load_model_from_its_own_seed(self) -> None:
        folder = str(rfork_program.model("minilm"))
        seed, client = self.sglang(self.theirs), self.sglang(self.ours)
        for layout in ("merged", "each"):
            with self.subTest(layout=layout):
                held = seed.ask("seed", host=self.theirs.address, folder=folder, shape="transformers", layout=layout)
                port = urllib.parse.urlsplit(held["url"]).port
                report = client.ask("load", host=self.ours.address, seed_host=self.theirs.address, seed_port=port,
                                    folder=folder, shape="transformers")  # fmt: skip
                self.assertEqual(report, {"parameters": 103, "different": []})


if __name__ == "__main__":
    unittest.main()
