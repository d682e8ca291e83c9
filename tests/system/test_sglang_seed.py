"""Forking from a seed that is not ours: SGLang's info routes in front of TransferEngines, both as fakes of ours
(fake_sglang.py); the real ones are in tests/peers."""

# ctest: timeout=600

import json
import threading
import unittest
from pathlib import Path

import util
from fake_sglang import BOOTSTRAP, NEW, OLD, FakeEngine, FakeServer
from test_tp_fork import llama

BASE = 0x7F0000000000  # as addresses of a process look


def elements(tensor):
    size = util.DTYPE_BITS[tensor.dtype] // 8
    return [len(tensor.data) // size, size]


class Foreign(util.Case):
    def engine(self, tensors, rank=0, step=512, **more):
        """An engine that holds {name: Tensor}, as one buffer, and its map."""
        at, memory, places = BASE + (rank << 36), b"", {}
        for name, tensor in tensors.items():
            places[name] = [at + len(memory), *elements(tensor)]
            memory += tensor.data + bytes(-len(tensor.data) % step)
        engine = FakeEngine({at: memory}, **more)
        self.addCleanup(engine.close)
        return engine, places

    def server(self, ranks, **more):
        server = FakeServer(ranks, **more)
        self.addCleanup(server.close)
        return server

    def foreign(self, *ranks, info=True, **more):
        """A server in front of an engine for each rank's {name: Tensor}."""
        published = {}
        for rank, tensors in enumerate(ranks):
            engine, places = self.engine(tensors, rank)
            published[rank] = [engine.session, places]
        said = {"tp_size": len(ranks), "pp_size": 1, "model_path": "/models/fake-7b/"} if info else None
        return self.server(published, info=said, **more)

    def ranks_of(self, model, tp, layout="sglang"):
        """What ranks of a folder hold: [{name: Tensor}], as a seed of ours makes them."""
        ranks = []
        with self.seed("--model-path", model, "--tp", tp, "--layout", layout) as seed:
            for rank in range(tp):
                path = self.path(f"rank-{rank}.safetensors")
                Path(path).write_bytes(seed.get(f"/v1/ranks/{rank}.safetensors")[2])
                ranks.append(util.read_safetensors(path)[0])
        return ranks

    def llama(self, name="llama", **more):
        tensors, config = llama(**more)
        return self.model(name, tensors, shards=2, config=config, side_files={"tokenizer.json": b'{"a": 1}'})

    def refused(self, code, words, *arguments):
        done = self.rfork(*arguments)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertRegex(done.stderr, words)
        return done


class MapAlone(Foreign):
    """Names and sizes are all there is."""

    def test_a_rank_becomes_one_file_with_the_bytes_of_each_tensor(self):
        tensors = util.random_tensors()
        server = self.foreign(tensors)
        done = self.rfork_json("fork", server.url, "-o", self.path("out"))
        self.assertFalse(done["verified"])
        self.assertIn("no digests", done["unverified_reason"])
        self.assertEqual(done["model"], "fake-7b")
        self.assertEqual(done["transport"], "te")
        came, _ = util.read_safetensors(self.path("out", "model.safetensors"))
        self.assertEqual({name: tensor.data for name, tensor in came.items()},
                         {name: tensor.data for name, tensor in tensors.items()})
        self.assertEqual(came["model.norm.weight"].shape, [64])
        self.assertEqual(came["model.norm.weight"].dtype, "F32")
        self.assertEqual(came["model.embed_tokens.weight"].dtype, "BF16")

    def test_a_file_for_each_rank(self):
        ranks = [util.random_tensors(seed) for seed in range(3)]
        server = self.foreign(*ranks)
        done = self.rfork_ok("fork", server.url, "-o", self.path("out"))
        self.assertIn("a weight file for each of 3 ranks", done.stdout)
        self.assertIn("not verified", done.stdout)
        for rank, tensors in enumerate(ranks):
            came, _ = util.read_safetensors(self.path("out", f"model-rank-0000{rank}-of-00003.safetensors"))
            self.assertEqual({name: tensor.data for name, tensor in came.items()},
                             {name: tensor.data for name, tensor in tensors.items()})

    def test_more_ranks_than_connections(self):
        ranks = [{"w": util.Tensor("BF16", [100 + rank])} for rank in range(70)]
        server = self.foreign(*ranks)
        self.rfork_ok("fork", server.url, "-o", self.path("out"))
        for rank, tensors in enumerate(ranks):
            came, _ = util.read_safetensors(self.path("out", f"model-rank-{rank:05}-of-00070.safetensors"))
            self.assertEqual(came["w"].data, tensors["w"].data)

    def test_an_engine_that_is_named(self):
        tensors = {"w": util.Tensor("BF16", [100])}
        engine, places = self.engine(tensors)
        server = self.server({0: [f"localhost:{engine.handshake.port}", places]})
        self.rfork_ok("fork", server.url, "-o", self.path("out"))
        came, _ = util.read_safetensors(self.path("out", "model.safetensors"))
        self.assertEqual(came["w"].data, tensors["w"].data)

    def test_ranks_of_one_engine(self):
        ranks = [{"w": util.Tensor("U8", [1000 + rank])} for rank in range(4)]
        memory = {BASE + (rank << 20): tensors["w"].data for rank, tensors in enumerate(ranks)}
        engine = FakeEngine(memory)
        self.addCleanup(engine.close)
        server = self.server({rank: [engine.session, {"w": [BASE + (rank << 20), 1000 + rank, 1]}]
                              for rank in range(4)})
        done = self.rfork_json("fork", server.url, "-o", self.path("out"))
        self.assertIn("4 ranks in 1 engine with 4 registered buffers", done["reason"])
        for rank, tensors in enumerate(ranks):
            came, _ = util.read_safetensors(self.path("out", f"model-rank-0000{rank}-of-00004.safetensors"))
            self.assertEqual(came["w"].data, tensors["w"].data)

    def test_tied_empty_and_overlapping_tensors(self):
        data = util.random_tensors()["model.embed_tokens.weight"].data[:4096]
        engine = FakeEngine({BASE: data})
        self.addCleanup(engine.close)
        server = self.server({0: [engine.session, {
            "embed": [BASE, 2048, 2], "head": [BASE, 2048, 2], "empty": [0, 0, 2], "half": [BASE + 1024, 512, 2],
        }]})
        self.rfork_ok("fork", server.url, "-o", self.path("out"))
        came, _ = util.read_safetensors(self.path("out", "model.safetensors"))
        self.assertEqual(came["embed"].data, data)
        self.assertEqual(came["half"].data, data[1024:2048])
        self.assertEqual(came["empty"].data, b"")
        self.assertNotIn("head", came)

    def test_side_files_of_a_folder_without_weights(self):
        folder = Path(self.path("side"))
        folder.mkdir()
        (folder / "config.json").write_text('{"architectures": ["X"], "torch_dtype": "float16"}')
        (folder / "tokenizer.json").write_text("{}")
        server = self.foreign(util.random_tensors())
        self.rfork_ok("fork", server.url, "--model-path", folder, "-o", self.path("out"))
        self.assertEqual(Path(self.path("out", "tokenizer.json")).read_text(), "{}")
        came, _ = util.read_safetensors(self.path("out", "model.safetensors"))
        self.assertEqual(came["model.embed_tokens.weight"].dtype, "F16")

    def test_an_instance_that_forked_is_a_full_seed(self):
        tensors = util.random_tensors()
        server = self.foreign(tensors)
        with self.seed("--from", server.url) as fork:
            self.assertIn("not verified", fork.stderr)
            fork.root_digest()
            done = self.rfork_json("fork", fork.url, "-o", self.path("out"))
            self.assertTrue(done["verified"])
        came, _ = util.read_safetensors(self.path("out", "model.safetensors"))
        self.assertEqual({name: tensor.data for name, tensor in came.items()},
                         {name: tensor.data for name, tensor in tensors.items()})

    def test_nothing_else_can_be_made_of_it(self):
        server = self.foreign(util.random_tensors())
        for shape in (("--tp", 2), ("--layout", "checkpoint"), ("--tp", 1, "--ranks", "0", "--layout", "checkpoint")):
            self.refused(util.MISMATCH, "nothing but all of its 1 ranks", "fork", server.url, *shape)

    def test_its_own_shape_can_be_asked_for(self):
        tensors = {"w": util.Tensor("BF16", [10])}
        server = self.foreign(tensors, tensors)
        self.assertEqual(self.rfork_json("fork", server.url, "--tp", 2)["ranks"], 2)
        with self.seed("--from", server.url, "--tp", 2, "--layout", "sglang") as fork:
            self.assertEqual(len(fork.json("/v1/manifest?format=json")["ranks"]), 2)

    def test_old_engines(self):
        tensors = util.random_tensors()
        for more in ({"version": 1}, {"version": 1, "pooled": False}, {"version": 2, "pooled": True}):
            with self.subTest(more):
                engine, places = self.engine(tensors, **more)
                server = self.server({0: [engine.session, places]})
                out = self.path(f"out-{more}")
                self.rfork_ok("fork", server.url, "-o", out)
                came, _ = util.read_safetensors(Path(out) / "model.safetensors")
                self.assertEqual(came["model.norm.weight"].data, tensors["model.norm.weight"].data)


class WithFolder(Foreign):
    """The headers of the model's files say what each tensor is."""

    def test_the_original_checkpoint_comes_back(self):
        model = self.llama()
        server = self.foreign(*self.ranks_of(model, 4))
        done = self.rfork_json("fork", server.url, "--model-path", model, "-o", self.path("out"))
        self.assertIn("layout sglang", done["reason"])
        self.assertEqual(util.folder_content(self.path("out")), util.folder_content(model))

    def test_one_rank_in_the_layout_of_the_files(self):
        model = self.model(shards=2)
        tensors = util.random_tensors()
        server = self.foreign(tensors)
        self.rfork_ok("fork", server.url, "--model-path", model, "-o", self.path("out"))
        self.assertEqual(util.folder_content(self.path("out")), util.folder_content(model))

    def test_other_sizes_are_cut_of_it(self):
        model = self.llama()
        server = self.foreign(*self.ranks_of(model, 2))
        with self.seed("--model-path", model, "--tp", 4, "--layout", "sglang") as direct:
            with self.seed("--from", server.url, "--model-path", model, "--load-format", "remote_instance",
                           "--tp", 4) as fork:
                for rank in range(4):
                    path = f"/v1/ranks/{rank}.safetensors"
                    self.assertEqual(fork.get(path)[2], direct.get(path)[2])
                self.assertEqual(fork.root_digest(), direct.root_digest())

    def test_the_same_ranks_have_the_same_root(self):
        model = self.llama()
        server = self.foreign(*self.ranks_of(model, 2))
        with self.seed("--model-path", model, "--tp", 2, "--layout", "sglang") as direct:
            with self.seed("--from", server.url, "--model-path", model, "--load-format", "remote_instance") as fork:
                self.assertEqual(fork.root_digest(), direct.root_digest())

    def test_other_tensors_are_named(self):
        model = self.llama()
        ranks = self.ranks_of(model, 2)
        del ranks[1]["model.norm.weight"]
        ranks[1]["model.extra"] = util.Tensor("BF16", [3])
        ranks[0]["model.norm.weight"] = util.Tensor("F32", [128])
        server = self.foreign(*ranks)
        done = self.refused(util.MISMATCH, "3 differences", "fork", server.url, "--model-path", model)
        self.assertIn("rank 0, model.norm.weight: 128 elements of 4 bytes at the seed, 128 of 2 by the files",
                      done.stderr)
        self.assertIn("rank 1, model.norm.weight: not published by the seed", done.stderr)
        self.assertIn("rank 1, model.extra: not in the files", done.stderr)

    def test_a_way_out_is_said_however_much_differs(self):
        server = self.foreign(*self.ranks_of(self.llama(), 2)[:1])
        folder = util.write_model(self.folder / ("long-" * 12), util.random_tensors())
        self.refused(util.MISMATCH, r"are not what .* makes \(leave it out to take them as they are\): .*differences: .*; \.\.\.$",
                     "fork", server.url, "--model-path", folder)

    def test_a_folder_that_is_not_there(self):
        server = self.foreign(util.random_tensors())
        self.refused(util.SYS, "nowhere", "fork", server.url, "--model-path", self.path("nowhere"))
        with self.seed("--from", server.url, "--load-format", "remote_instance", "--model-path", "hub/model") as fork:
            self.assertIn("hub/model is no folder here", fork.stderr)


class Routes(Foreign):
    def test_each_route_alone(self):
        tensors = {"w": util.Tensor("BF16", [10])}
        for paths in ((OLD,), (NEW,), (BOOTSTRAP,), (OLD, NEW)):
            with self.subTest(paths):
                server = self.foreign(tensors, tensors, paths=paths, info=False)
                self.assertEqual(self.rfork_json("fork", server.url)["ranks"], 2)
                self.assertTrue(server.asked[1].startswith(OLD), server.asked)

    def test_the_number_of_ranks_is_what_the_server_says(self):
        tensors = {"w": util.Tensor("BF16", [10])}
        server = self.foreign(tensors, tensors)
        self.assertEqual(self.rfork_json("fork", server.url)["ranks"], 2)
        self.assertFalse([path for path in server.asked if path.endswith("rank=2")])

    def test_a_rank_that_is_missing_is_named(self):
        tensors = {"w": util.Tensor("BF16", [10])}
        server = self.foreign(tensors, tensors, tensors)
        del server.ranks[2]
        server.info["tp_size"] = 4
        self.refused(util.UNREACHABLE, "publishes 2 of 4 ranks: .*rank 2", "fork", server.url)

    def test_pipeline_stages_are_refused(self):
        server = self.foreign({"w": util.Tensor("BF16", [10])})
        server.info["pp_size"] = 2
        self.refused(util.UNSUPPORTED, "2 pipeline stages", "fork", server.url)

    def test_a_seed_that_publishes_nothing_yet(self):
        server = self.foreign({"w": util.Tensor("BF16", [10])})
        ranks, server.ranks = server.ranks, {}
        self.refused(util.UNREACHABLE, "Failed to get transfer engine info for rank 0.*still loading", "fork", server.url)
        self.refused(util.UNREACHABLE, "still loading", "fork", server.url, "--wait-ready", "0.5s")
        with util.Process(self.folder, "fork", server.url, "--wait-ready", "60s") as waiting:
            util.wait_until(lambda: len(server.asked) > 12, what="some questions")
            server.ranks = ranks
            self.assertEqual(waiting.wait(), util.OK)

    def test_a_key_is_asked_for(self):
        server = self.server({}, answers={"/v1/instance": (401, b'{"error":"Unauthorized"}'),
                                          OLD + "?rank=0": (401, b'{"error":"Unauthorized"}')})
        self.refused(util.DENIED, "API key", "fork", server.url)

    def test_a_rank_that_fails_is_no_end_of_the_ranks(self):
        tensors = {"w": util.Tensor("BF16", [10])}
        server = self.foreign(tensors, tensors, info=False)
        server.answers[OLD + "?rank=1"] = (502, b'{"error":{"message":"node 1 is down"}}')
        self.refused(util.UNREACHABLE, "rank=1: HTTP 502: node 1 is down", "fork", server.url)

    def test_a_server_of_another_kind(self):
        server = self.server({}, paths=())
        self.refused(util.UNREACHABLE, "neither an rfork seed nor an SGLang server", "fork", server.url)
        server.answer = lambda _: (200, b"<html></html>")
        self.refused(util.UNREACHABLE, "neither an rfork seed nor an SGLang server", "fork", server.url)

    def test_ours_alone_if_that_is_wanted(self):
        server = self.foreign({"w": util.Tensor("BF16", [10])})
        self.refused(util.UNREACHABLE, "not an rfork seed", "fork", server.url, "--seed-api", "rfork")
        self.refused(util.INVAL, "none of auto, rfork, sglang", "fork", server.url, "--seed-api", "vllm")

    def test_sglangs_way_alone_if_that_is_wanted(self):
        server = self.foreign({"w": util.Tensor("BF16", [10])})
        self.rfork_ok("fork", server.url, "--seed-api", "sglang")
        self.assertFalse([path for path in server.asked if path.startswith("/v1/")])

    def test_another_transport_is_refused(self):
        server = self.foreign({"w": util.Tensor("BF16", [10])})
        self.refused(util.UNSUPPORTED, "te alone", "fork", server.url, "--transport", "tcp")

    def test_verifying_is_refused(self):
        server = self.foreign({"w": util.Tensor("BF16", [10])})
        self.refused(util.UNSUPPORTED, "no digests", "fork", server.url, "--verify")
        self.refused(util.UNSUPPORTED, "no digests", "verify", server.url)


class OwnSeeds(Foreign):
    """A seed of ours that answers SGLang's clients is one to us, if we ask as they do."""

    def publishing(self, model, *more):
        port = util.free_port()
        seed = self.seed("--model-path", model, "--remote-instance-weight-loader-start-seed-via-transfer-engine",
                         "--engine-info-bootstrap-port", port, *more)
        return seed, f"http://127.0.0.1:{port}"

    def test_its_checkpoint_comes_back(self):
        model = self.llama()
        seed, bootstrap = self.publishing(model, "--tp", 4)
        with seed:
            for number, url in enumerate((seed.url, bootstrap)):
                out = self.path(f"out-{number}")
                done = self.rfork_json("fork", url, "--seed-api", "sglang", "--model-path", model, "-o", out)
                self.assertFalse(done["verified"])
                self.assertEqual(done["transport"], "te")
                self.assertEqual(util.folder_content(out), util.folder_content(model))

    def test_its_ranks_are_the_same(self):
        model = self.llama()
        seed, _ = self.publishing(model, "--tp", 2)
        with seed, self.seed("--from", seed.url, "--seed-api", "sglang", "--model-path", model, "--load-format",
                             "remote_instance") as fork:
            self.assertEqual(fork.root_digest(), seed.root_digest())

    def test_a_bootstrap_server_is_found_by_itself(self):
        model = self.llama()
        seed, bootstrap = self.publishing(model, "--tp", 2)
        with seed:
            self.assertEqual(self.rfork_json("fork", bootstrap)["ranks"], 2)
            self.assertIn("bootstrap server", self.rfork_ok("inspect", bootstrap).stdout)


class Lies(Foreign):
    """What a seed says may be wrong, or an attack."""

    def test_an_engine_that_has_registered_nothing(self):
        engine = FakeEngine({})
        self.addCleanup(engine.close)
        server = self.server({0: [engine.session, {"w": [BASE, 10, 2]}]})
        self.refused(util.MISMATCH, "has registered nothing.*on a CPU", "fork", server.url)

    def test_addresses_that_are_not_registered(self):
        engine = FakeEngine({BASE: bytes(20)})
        self.addCleanup(engine.close)
        for place in ([BASE + 1, 10, 2], [BASE - 1, 10, 2], [BASE, 11, 2], [1 << 63, 10, 2]):
            with self.subTest(place):
                server = self.server({0: [engine.session, {"good": [BASE, 10, 2], "bad.w": place}]})
                self.refused(util.MISMATCH, r"1 of 2 tensors lie in none of the 1 buffers.*bad\.w", "fork", server.url)
        self.assertEqual(engine.reads, 0)

    def test_an_engine_that_is_gone(self):
        port = util.free_port()
        server = self.server({0: [f"127.0.0.1:{port}", {"w": [BASE, 10, 2]}]})
        self.refused(util.UNREACHABLE, f"rank 0's engine at 127.0.0.1:{port}", "fork", server.url)

    def test_an_empty_map(self):
        engine = FakeEngine({BASE: bytes(20)})
        self.addCleanup(engine.close)
        server = self.server({0: [engine.session, {}]})
        self.refused(util.MISMATCH, "names no tensor at all", "fork", server.url)

    def test_another_data_host_is_an_attack_unless_allowed(self):
        tensors = {"w": util.Tensor("BF16", [10])}
        engine, places = self.engine(tensors, data_host="127.0.0.2")
        server = self.server({0: [engine.session, places]})
        self.refused(util.DENIED, "127.0.0.2", "fork", server.url)
        self.assertEqual(engine.reads, 0)
        for allowed in ("127.0.0.2", "10.0.0.1,127.0.0.2", "any"):
            self.rfork_ok("fork", server.url, "--te-data-host", allowed)
        self.refused(util.DENIED, "127.0.0.2", "fork", server.url, "--te-data-host", "10.0.0.1")

    def test_answers_that_are_none(self):
        good = {"rank": 0, "remote_instance_transfer_engine_info": ["127.0.0.1:1", {"w": [BASE, 10, 2]}]}
        for words, body in (
            ("answered for rank 1", json.dumps({**good, "rank": 1}).encode()),
            ("tensor w: its end wraps", json.dumps(good).encode().replace(str(BASE).encode(), str(2**64 - 3).encode())),
            ("tensor w: ", json.dumps(good).encode().replace(b"10,", b"10.5,")),
            ("tensor w: ", json.dumps(good).encode().replace(b"10,", b"-1,")),
            ("at byte", json.dumps(good).encode()[:-10]),
        ):
            with self.subTest(words):
                server = self.server({}, answers={OLD + "?rank=0": (200, body)})
                self.refused(util.PROTO, words, "fork", server.url)

    def test_ranks_without_end_are_not_kept(self):
        places = ",".join(f'"{i}":[{BASE + i},1,1]' for i in range(900_000))
        info = f'"remote_instance_transfer_engine_info":["127.0.0.1:1",{{{places}}}]}}'
        server = self.server({})
        answer = server.answer
        server.answer = lambda path: ((200, f'{{"rank":{path.split("=")[1]},{info}'.encode())
                                      if path.startswith(OLD) else answer(path))
        self.refused(util.PROTO, "4500000 tensors up to rank 4, more than 4000000", "fork", server.url)
        self.assertNotIn(OLD + "?rank=5", server.asked)

    def test_ranks_that_come_slowly_end_by_a_deadline_for_all(self):
        gate = threading.Event()
        self.addCleanup(gate.set)
        info = f'"remote_instance_transfer_engine_info":["127.0.0.1:1",{{"w":[{BASE},1,1]}}]}}'
        server = self.server({})
        answer = server.answer
        server.answer = lambda path: ((gate.wait(0.1), (200, f'{{"rank":{path.split("=")[1]},{info}'.encode()))[1]
                                      if path.startswith(OLD) else answer(path))
        self.refused(util.TIMEOUT, "took longer than 6000 ms", "fork", server.url, "--timeout", "1s")

    def test_engines_that_answer_slowly_end_by_a_deadline_for_all(self):
        gate = threading.Event()
        self.addCleanup(gate.set)
        published = {}
        for rank in range(80):
            engine, places = self.engine({"w": util.Tensor("U8", [16])}, rank)
            answer = engine.handshake.serve
            engine.handshake.serve = lambda connection, answer=answer: (gate.wait(0.1), answer(connection))[1]
            published[rank] = [engine.session, places]
        self.refused(util.TIMEOUT, "engines' answers took longer than 6000 ms", "fork",
                     self.server(published).url, "--timeout", "1s")

    def test_a_server_that_never_answers_ends_by_the_deadline(self):
        gate = threading.Event()
        self.addCleanup(gate.set)
        server = self.foreign({"w": util.Tensor("BF16", [10])})
        answer = server.answer
        server.answer = lambda path: (gate.wait(60), answer(path))[1]
        self.refused(util.TIMEOUT, "within 300 ms", "fork", server.url, "--timeout", "300ms")


class Looking(Foreign):
    """What the other commands say of such a seed."""

    def test_inspect(self):
        server = self.foreign(util.random_tensors(), util.random_tensors(1))
        done = self.rfork_ok("inspect", server.url)
        self.assertIn("2 ranks in 2 engines with 2 registered buffers", done.stdout)
        self.assertIn("no digests", done.stdout)
        said = self.rfork_json("inspect", server.url, "--tensors")
        self.assertEqual(said["ranks"], 2)
        self.assertEqual(said["instance_id"], server.ranks[0][0])
        self.assertIsNone(said["root_digest"])
        self.assertEqual([end["address"] for end in said["endpoints"]], [server.ranks[0][0], server.ranks[1][0]])
        self.refused(util.UNSUPPORTED, "no digests", "inspect", "--digest", server.url)

    def test_each_asks_in_the_way_that_is_wanted(self):
        server = self.foreign(util.random_tensors())
        for command, more, outcome in (("inspect", (), ()), ("doctor", (), ()),
                                       ("diff", (server.url,), (util.UNSUPPORTED, "no digests")),
                                       ("verify", (), (util.UNSUPPORTED, "no digests"))):
            with self.subTest(command):
                self.refused(util.UNREACHABLE, "not an rfork seed", command, server.url, *more, "--seed-api", "rfork")
                self.refused(util.INVAL, "none of auto, rfork, sglang", command, server.url, *more, "--seed-api", "x")
                server.asked.clear()
                if outcome:
                    self.refused(*outcome, command, server.url, *more, "--seed-api", "sglang")
                else:
                    self.rfork_ok(command, server.url, *more, "--seed-api", "sglang")
                self.assertTrue(server.asked)
                self.assertFalse([path for path in server.asked if path.startswith("/v1/")])

    def test_what_is_looked_at_may_be_on_an_allowed_host(self):
        engine, places = self.engine({"w": util.Tensor("BF16", [10])}, data_host="127.0.0.2")
        server = self.server({0: [engine.session, places]})
        for command, more, outcome in (("inspect", (), ()), ("doctor", (), ()),
                                       ("diff", (server.url,), (util.UNSUPPORTED, "no digests")),
                                       ("verify", (), (util.UNSUPPORTED, "no digests"))):
            with self.subTest(command):
                self.refused(util.DENIED, "127.0.0.2", command, server.url, *more)
                if outcome:
                    self.refused(*outcome, command, server.url, *more, "--te-data-host", "127.0.0.2")
                else:
                    self.rfork_ok(command, server.url, *more, "--te-data-host", "127.0.0.2")

    def test_dry_run(self):
        server = self.foreign(util.random_tensors())
        said = self.rfork_json("fork", server.url, "--dry-run")
        self.assertIn("1 registered buffer", said["reason"])
        self.assertEqual(said["transport"], "te")

    def test_doctor(self):
        server = self.foreign(util.random_tensors(), util.random_tensors())
        done = self.rfork_ok("doctor", server.url)
        self.assertIn("a fork would take te", done.stdout)
        self.assertEqual(self.rfork_json("doctor", server.url)["seed"]["choice"], "te")

    def test_diff(self):
        server, same = self.foreign(util.random_tensors()), self.foreign(util.random_tensors())
        self.refused(util.UNSUPPORTED, "no digests", "diff", server.url, same.url)


if __name__ == "__main__":
    unittest.main()
