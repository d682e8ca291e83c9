"""Our seed, their readers: Mooncake of four releases, and SGLang's own load_model, take all from `rfork serve`.

All of them are the real programs (mooncake_program.py, sglang_program.py), on a host of their own. What they read is
compared with the model's files, byte for byte.

ctest: timeout=900
"""

import contextlib
import json
import re
import unittest
from collections.abc import Iterator
from pathlib import Path

import rfork_program
import te_peer

# Releases and settings of a reader: the newest keeps connections unless told otherwise, the others have one a request.
READERS = [(version, "") for version in te_peer.VERSIONS] + [(te_peer.NEWEST, "unpooled"), (te_peer.NEWEST, "v1")]
# Family of sglang_models, tensor-parallel size, ranks.
SAMPLES = [("llama", 1, [0]), ("qwen2", 2, [0, 1]), ("qwen3-moe", 4, [0, 3]), ("llama", 8, [0, 5, 7]),
           ("deepseek", 2, [1]), ("qwen3-moe-fp8", 2, [0])]  # fmt: skip
ROUTES = (te_peer.NEW_PATH, te_peer.OLD_PATH)


def setUpModule() -> None:
    te_peer.require()


class Case(te_peer.Case):
    """Seeds of ours on self.ours; whoever reads from them is on self.theirs."""

    @contextlib.contextmanager
    def serving(self, model: Path, *arguments: str, layout: str = "checkpoint") -> Iterator[te_peer.hosts.HostSeed]:
        """`rfork serve` with the te transport, ready; it must end well."""
        how = ("--model-path", str(model), te_peer.START_SEED, "--layout", layout)
        with self.seed_on(self.ours, *how, *arguments, seconds=120) as seed:
            yield seed

    def info(self, seed: te_peer.hosts.HostSeed, rank: int = 0) -> tuple[str, dict[str, list[int]]]:
        """Session and map of a rank, as a client asks for them."""
        status, _, body = seed.get(f"{te_peer.OLD_PATH}?rank={rank}", timeout=60)
        self.assertEqual(status, 200, body[:500])
        session, tensors = json.loads(body)["remote_instance_transfer_engine_info"]
        return session, tensors


class Mooncake(Case):
    def read_by_all(self, model: Path, batches: tuple[int, ...]) -> None:
        files = te_peer.weights(model)
        with self.serving(model) as seed:
            session, tensors = self.info(seed)
            for version, mode in READERS:
                reader = self.mooncake(self.theirs, version, mode)
                for batch in batches:
                    with self.subTest(version=version, mode=mode, batch=batch):
                        report = reader.ask("read", session=session, map=tensors, files=files, batch=batch)
                        self.assert_all_equal(report, len(tensors))
                reader.close()

    def test_every_release_reads_every_tensor_of_minilm(self) -> None:
        self.read_by_all(rfork_program.model("minilm"), (0, 1, 7, 1000))

    def test_every_release_reads_every_tensor_of_smollm2(self) -> None:
        self.read_by_all(rfork_program.model("smollm2"), (1000,))

    def test_batches_up_to_2000_as_shipped(self) -> None:
        model = self.generated("many", "--tensors", "16000", "--bytes", "48MiB")
        files = te_peer.weights(model)
        with self.serving(model) as seed:
            session, tensors = self.info(seed)
            for version, mode in READERS:
                reader = self.mooncake(self.theirs, version, mode)
                for batch, limit in ((1, 300), (2000, 2000)):
                    with self.subTest(version=version, mode=mode, batch=batch):
                        report = reader.ask("read", session=session, map=tensors, files=files, batch=batch, limit=limit)
                        self.assert_all_equal(report, limit)
                reader.close()

    def test_16000_at_once_with_the_readers_limits_raised(self) -> None:
        model = self.generated("many", "--tensors", "16000", "--bytes", "48MiB")
        with self.serving(model) as seed:
            session, tensors = self.info(seed)
            reader = self.mooncake(self.theirs, mode="tuned")
            report = reader.ask("read", session=session, map=tensors, files=te_peer.weights(model), batch=16000)
            self.assertEqual(report["calls"], -(-len(tensors) // 16000))
            self.assert_all_equal(report, len(tensors))

    def test_a_rank_of_100000_tensors(self) -> None:
        model = self.generated("very-many", "--tensors", "100000", "--bytes", "128MiB")
        files = te_peer.weights(model)
        with self.serving(model) as seed:
            session, tensors = self.info(seed)
            self.assertGreaterEqual(len(tensors), 100_000)
            for mode, batch in (("", 2000), ("tuned", 16000)):
                with self.subTest(mode=mode):
                    reader = self.mooncake(self.theirs, mode=mode)
                    report = reader.ask("read", session=session, map=tensors, files=files, batch=batch)
                    self.assert_all_equal(report, len(tensors))
            with self.subTest(version="0.3.6"):
                reader = self.mooncake(self.theirs, "0.3.6")
                report = reader.ask("read", session=session, map=tensors, files=files, batch=2000, limit=4000)
                self.assert_all_equal(report, 4000)

    def test_over_ipv6(self) -> None:
        self.require_ipv6()
        model = rfork_program.model("minilm")
        files = te_peer.weights(model)
        for bind in ("::", self.ours.address6):
            with self.seed_on(self.ours, "--model-path", str(model), te_peer.START_SEED, "--layout", "checkpoint",
                              bind=bind, seconds=120) as seed:  # fmt: skip
                with self.theirs.inside():
                    _, _, body = te_peer.util.http_get(seed.url6, f"{te_peer.OLD_PATH}?rank=0")
                session, tensors = json.loads(body)["remote_instance_transfer_engine_info"]
                self.assertTrue(session.startswith(f"[{self.ours.address6}]:"), session)
                for version in te_peer.IPV6_VERSIONS:
                    with self.subTest(bind=bind, version=version):
                        reader = self.mooncake(self.theirs, version, ipv6=True)
                        report = reader.ask("read", session=session, map=tensors, files=files, batch=1000)
                        self.assert_all_equal(report, len(tensors))
                        reader.close()

    def test_several_readers_at_once(self) -> None:
        model = rfork_program.model("minilm")
        files = te_peer.weights(model)
        with self.serving(model) as seed:
            session, tensors = self.info(seed)
            readers = [self.mooncake(self.theirs, version, mode) for version, mode in READERS]
            for reader in readers:
                reader.send("read", session=session, map=tensors, files=files, batch=50)
            for reader in readers:
                self.assert_all_equal(reader.answer(), len(tensors))

    def test_writes_are_refused_in_both_framings_and_change_nothing(self) -> None:
        model = rfork_program.model("minilm")
        files = te_peer.weights(model)
        with self.serving(model) as seed:
            session, tensors = self.info(seed)
            name = max(tensors, key=lambda name: tensors[name][1])
            address, count, element = tensors[name]
            calls = ["transfer_sync_write", "batch_transfer_sync_write"]
            reader = self.mooncake(self.theirs, mode="unpooled")
            for version, mode in (("0.3.6", ""), ("0.3.12.post1", ""), *((te_peer.NEWEST, m) for m in te_peer.MODES)):
                writer = self.mooncake(self.theirs, version, mode)
                for size in (1, 1 << 16, count * element):
                    with self.subTest(version=version, mode=mode, size=size):
                        report = writer.ask("write", session=session, address=address, size=size, calls=calls)
                        # Without a status in the protocol (v1) a writer cannot know that nothing became of it.
                        if version != "0.3.6" and mode != "v1":
                            self.assertTrue(all(code < 0 for code in report["rc"].values()), report)
                        report = reader.ask("read", session=session, map=tensors, files=files, batch=1000)
                        self.assert_all_equal(report, len(tensors))
                writer.close()

    def test_reads_beyond_what_is_published_are_refused(self) -> None:
        model = rfork_program.model("minilm")
        files = te_peer.weights(model)
        with self.serving(model) as seed:
            session, tensors = self.info(seed)
            begin = min(address for address, _, _ in tensors.values())
            end = max(address + count * element for address, count, element in tensors.values())
            name, (_, count, element) = max(tensors.items(), key=lambda item: item[1][1])
            size = count * element
            for version in te_peer.VERSIONS:
                reader = self.mooncake(self.theirs, version)
                for address in (end - size + 1, end, begin - 1, begin - size, 4096, 2**64 - size, 2**64 - 1):
                    with self.subTest(version=version, address=hex(address)):
                        wrong = {**tensors, name: [address, count, element]}
                        report = reader.ask("read", session=session, map=wrong, files=files, batch=1000)
                        self.assertNotEqual(report["rc"], 0)
                report = reader.ask("read", session=session, map=tensors, files=files, batch=1000)
                self.assert_all_equal(report, len(tensors))
                reader.close()


class Published(Case):
    def test_both_paths_answer_the_same_and_name_every_tensor_of_the_files(self) -> None:
        model = rfork_program.model("minilm")
        wanted = te_peer.util.read_safetensors(te_peer.weights(model)[0])[0]
        with self.serving(model) as seed:
            answers = [seed.get(f"{path}?rank=0") for path in ROUTES]
            self.assertEqual([answer[0] for answer in answers], [200, 200])
            self.assertEqual(*(json.loads(answer[2]) for answer in answers))
            body = json.loads(answers[0][2])
            self.assertEqual(list(body), ["rank", "remote_instance_transfer_engine_info"])
            session, tensors = body["remote_instance_transfer_engine_info"]
            self.assertRegex(session, rf"^{re.escape(self.ours.address)}:[0-9]+$")
            described = {name: count * element for name, (_, count, element) in tensors.items()}
            self.assertEqual(described, {name: len(tensor.data) for name, tensor in wanted.items()})
            elements = {name: element for name, (_, _, element) in tensors.items()}
            bits = te_peer.util.DTYPE_BITS
            self.assertEqual(elements, {name: bits[tensor.dtype] // 8 for name, tensor in wanted.items()})

    def test_addresses_are_not_those_of_memory(self) -> None:
        with self.serving(rfork_program.model("minilm")) as seed:
            _, tensors = self.info(seed)
            maps = Path(f"/proc/{seed.pid}/maps").read_text()
            mapped = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps.splitlines()]
            for name, (address, count, element) in tensors.items():
                inside = [range for range in mapped if range[0] < address + count * element and address < range[1]]
                self.assertEqual(inside, [], name)


class Sglang(Case):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.client = cls.sglang(cls.theirs)

    def load(self, seed: te_peer.hosts.HostSeed, model: Path, **how: object) -> dict:
        """SGLang's load_model from a seed."""
        return self.client.ask("load", host=self.theirs.address, seed_host=self.ours.address, seed_port=seed.port,
                               folder=str(model), **how)  # fmt: skip

    def test_load_model_into_transformers_models(self) -> None:
        for name, parameters in (("minilm", 103), ("smollm2", 272)):
            model = rfork_program.model(name)
            with self.subTest(model=name), self.serving(model) as seed:
                report = self.load(seed, model, shape="transformers")
                self.assertEqual(report, {"parameters": parameters, "different": []})

    def test_load_model_into_sglangs_own_models(self) -> None:
        import sglang_models

        for family, size, ranks in SAMPLES:
            model = self.shared / family
            if not model.exists():
                sglang_models.FAMILIES[family]().write(model)
            with self.serving(model, "--tp", str(size), layout="sglang") as seed:
                for rank in ranks:
                    with self.subTest(family=family, size=size, rank=rank):
                        report = self.load(seed, model, rank=rank, size=size)
                        self.assertGreater(report["parameters"], 10)
                        self.assertEqual(report["different"], [])

    def test_a_rank_that_is_not_there_and_a_model_that_is_another(self) -> None:
        model = rfork_program.model("minilm")
        with self.serving(model) as seed:
            with self.assertRaisesRegex(te_peer.PeerError, "Failed to load weights from remote instance"):
                self.load(seed, model, shape="transformers", rank=1, size=2)
            self.assertIn("request.get failed: 400", self.client.stderr)
            with self.assertRaisesRegex(te_peer.PeerError, "Failed to load weights from remote instance"):
                self.load(seed, rfork_program.model("smollm2"), shape="transformers")
            self.assertIn("Cannot find weight info for model.", self.client.stderr)

    def test_wrong_questions_are_answered_as_sglang_answers_them(self) -> None:
        model = rfork_program.model("minilm")
        real = self.client.ask("seed", host=self.theirs.address, folder=str(model), shape="transformers")
        with self.serving(model) as seed:
            for query in ("", "?rank=", "?rank=-1", "?rank=1", "?rank=x", "?rank=1.5", "?rank=4294967296", "?Rank=0",
                          "?rank=1.0", "?rank=1_0", "?rank=0&rank=1", "?rank=0&rank=x"):  # fmt: skip
                for path in ROUTES:
                    with self.subTest(path=path, query=query):
                        with self.theirs.inside():
                            wanted = te_peer.util.http_get(real["url"], path + query)
                        found = seed.get(path + query)
                        self.assertEqual(found[0], wanted[0], found[2])
                        found, wanted = json.loads(found[2]), json.loads(wanted[2])
                        if "detail" in wanted:  # FastAPI's own, with more in it than anyone reads
                            self.assertEqual(found["detail"][0]["type"], wanted["detail"][0]["type"])
                        else:  # in the same words, perhaps with a reason after them
                            self.assertEqual([list(found), list(found["error"])], [["error"], ["message"]])
                            self.assertTrue(found["error"]["message"].startswith(wanted["error"]["message"]), found)

    def test_the_bootstrap_server_answers_as_sglangs_own(self) -> None:
        model = rfork_program.model("minilm")
        real = self.client.ask("seed", host=self.theirs.address, folder=str(model), shape="transformers", early=True)
        info = {"session_id": "10.0.0.1:15000", "weights_info_dict": {"w": [4096, 2, 4], "empty.\u00e9": [8192, 0, 4]}}
        puts = [{"tp_rank": 3, "transfer_engine_info": info},
                {"tp_rank": 5, "protocol": "tcp", "transfer_engine_info": {**info, "fabric_identity": None}}]  # fmt: skip
        wrong = [{}, {"tp_rank": 3}, {"tp_rank": 3, "transfer_engine_info": {}}, {"tp_rank": 3, "transfer_engine_info": 7},
                 {"tp_rank": 3, "transfer_engine_info": {"session_id": "h:1"}}]  # fmt: skip
        no_object = ("", " ", "[]", "7", "-1.5", '"x"', "null", "true", '[1,"a",null,{"b":2}]', "{", '{"a"', '{"a":1}x', "[1",
                     '{"a":1,}', "{'a':1}", "nonsense", '"\\q"', '{"a":"x', b"\xe9", b'{"a":"\xff"}')  # fmt: skip
        queries = ("", "?rank=", "?rank=-1", "?rank=x", "?rank=1.5", "?rank=99", "?rank=+3", "?rank=03", "?rank=3",
                   "?rank=5", "?rank=4294967296", "?rank=99999999999999999999999", "?rank=3.0", "?rank=3.00", "?rank=3.",
                   "?rank=.0", "?rank=3.5", "?rank=3.0_0", "?rank=0_3", "?rank=1_0", "?rank=1__0", "?rank=_1", "?rank=1_",
                   "?rank=-1_0.0", "?rank=-03", "?rank=++3", "?rank=+-3", "?rank=3+", "?rank=%203%20", "?rank=3e0",
                   "?rank=0x3", "?rank=3&rank=5", "?rank=x&rank=3", "?rank=3&rank=x", "?rank", "?&rank=3&&x")  # fmt: skip
        methods = [(method, path) for path in ("/health", "/register_transfer_engine_info", "/get_transfer_engine_info", "/",
                                               "/x", "//health", "/v1/instance")
                   for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW")
                   if (method, path) not in (("GET", "/health"), ("PUT", "/register_transfer_engine_info"))]  # fmt: skip
        with self.serving(model):

            def both(path: str, **more: object) -> list[tuple[int, str, bytes]]:
                """Status, type and body: SGLang's and ours."""
                urls = (f"http://127.0.0.1:{real['bootstrap']}", f"http://{self.ours.address}:6789")
                with self.theirs.inside():
                    answers = [te_peer.util.http_get(url, path, **more) for url in urls]
                return [(answer[0], *(v for k, v in answer[1].items() if k.lower() == "content-type"), answer[2])
                        for answer in answers]  # fmt: skip

            def put(body: object) -> list[tuple[int, str, bytes]]:
                headers = {"Content-Type": "application/json"}
                return both("/register_transfer_engine_info", method="PUT", headers=headers, body=json.dumps(body))

            for body in puts:
                self.assertEqual(*put(body))
            for body in wrong:
                with self.subTest(body=body):
                    theirs, ours = put(body)
                    self.assertEqual(ours[:2], theirs[:2])
                    self.assertEqual([list(json.loads(ours[2])), ours[0]], [["detail"], 400])
            for body in no_object:
                with self.subTest(body=body):
                    headers = {"Content-Type": "application/json"}
                    theirs, ours = both("/register_transfer_engine_info", method="PUT", headers=headers, body=body)
                    self.assertEqual(ours[:2], theirs[:2])
                    found, wanted = json.loads(ours[2]), json.loads(theirs[2])
                    if "ctx" in wanted["detail"][0]:  # what is wrong, and where, in our words
                        for answer in (found, wanted):
                            self.assertEqual(list(answer["detail"][0].pop("ctx")), ["error"])
                            self.assertIsInstance(answer["detail"][0]["loc"].pop(), int)
                    self.assertEqual(found, wanted)
            for method, path in methods:
                with self.subTest(method=method, path=path):
                    theirs, ours = both(path, method=method)
                    self.assertEqual(ours, theirs)
            self.assertEqual(*both("/health"))
            for query in queries:
                with self.subTest(query=query):
                    theirs, ours = both(f"/get_transfer_engine_info{query}")
                    self.assertEqual(ours[:2], theirs[:2])
                    self.assertEqual(json.loads(ours[2]), json.loads(theirs[2]))


del Case

if __name__ == "__main__":
    unittest.main()
