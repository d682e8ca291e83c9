"""Their seeds, our reader: `rfork fork` and `rfork serve` take models from Mooncake engines and from SGLang's seed.

All of them are the real programs (mooncake_program.py, sglang_program.py), on a host of their own. What arrives is
compared with the model's files, byte for byte.

ctest: timeout=900
"""

import json
import unittest
import urllib.parse
from pathlib import Path

import rfork_program
import te_peer


def setUpModule() -> None:
    te_peer.require()


class Case(te_peer.Case):
    """Seeds on self.theirs, rfork on self.ours."""

    def assert_forks(self, url: str, model: Path, *arguments: str) -> dict:
        """`rfork fork` makes a folder with the bytes of the model's files; returns what it reported."""
        copy = self.path("copy")
        done = self.rfork_json_on(self.ours, "fork", url, "-o", copy, *arguments, timeout=300)
        self.assertEqual(done["transport"], "te")
        found, wanted = te_peer.contents(copy), te_peer.contents(model)
        self.assertEqual(found.keys(), wanted.keys())
        self.assertEqual([name for name, data in wanted.items() if found[name] != data], [])
        return done

    def assert_refused(self, url: str, words: str, *arguments: str) -> str:
        """`rfork fork` fails, says why in one line, and leaves no folder behind."""
        done = self.rfork_on(self.ours, "fork", url, "-o", self.path("copy"), *arguments)
        self.assertNotIn(done.returncode, (0, 2), done.stdout)
        self.assertGreater(done.returncode, 0, "killed by a signal")
        line = done.stderr.splitlines()[-1]
        self.assertRegex(line, f"^rfork: .*{words}")
        self.assertFalse(Path(self.path("copy")).exists())
        return line


class Mooncake(Case):
    def fork(self, version: str, register: str, model: Path, mode: str = "") -> None:
        seed = self.mooncake(self.theirs, version, mode)
        seed.hold(*te_peer.weights(model), register=register)
        self.assert_forks(seed.publish(), model)
        seed.close()

    def test_over_ipv6(self) -> None:
        self.require_ipv6()
        model = rfork_program.model("minilm")
        for version in te_peer.IPV6_VERSIONS:
            with self.subTest(version=version):
                seed = self.mooncake(self.theirs, version, ipv6=True)
                seed.hold(*te_peer.weights(model))
                self.assertTrue(seed.session.startswith(f"[{self.theirs.address6}]:"), seed.session)
                # The HTTP side is on IPv4: what an engine is called is not where its name was heard.
                url = seed.publish()
                self.assert_forks(url, model)
                seed.close()
                Path(self.path("copy")).rename(self.path(f"copy-{version}"))


def add_release(version: str, register: str, name: str, mode: str = "") -> None:
    """Gives Mooncake the test of one release, with one way to register, one model, and settings."""

    def test(self: Mooncake) -> None:
        self.fork(version, register, rfork_program.model(name), mode)

    setattr(Mooncake, f"test_{name}_from_{version.replace('.', '_')}_{register}{mode and '_' + mode}", test)


for release in te_peer.VERSIONS:
    add_release(release, "merged", "minilm")
    add_release(release, "each", "smollm2")
for setting in ("unpooled", "v1"):
    add_release(te_peer.NEWEST, "each", "minilm", setting)


class Library(Case):
    def test_forks_into_memory_of_an_engine(self) -> None:
        model = rfork_program.model("minilm")
        library = te_peer.Program(self.ours, te_peer.HERE / "library_program.py", self.folder, te_peer.NEWEST, {})
        self.addCleanup(library.close)
        for version in te_peer.VERSIONS:
            with self.subTest(version=version):
                seed = self.mooncake(self.theirs, version)
                seed.hold(*te_peer.weights(model), register="each")
                report = library.ask(
                    "read", url=seed.publish(), files=te_peer.weights(model), transport="te", verify=True
                )
                self.assertEqual((report["transport"], report["different"]), ("te", []))
                seed.close()


class Sizes(Case):
    def test_4000_registered_buffers(self) -> None:
        model = self.generated("many", "--tensors", "4000", "--bytes", "32MiB")
        for version in ("0.3.6", te_peer.NEWEST):
            with self.subTest(version=version):
                seed = self.mooncake(self.theirs, version)
                seed.hold(*te_peer.weights(model), register="each")
                done = self.rfork_json_on(self.ours, "fork", seed.publish(), timeout=300)
                self.assertEqual(done["transport"], "te")
                seed.close()

    def test_100000_tensors_in_one_buffer(self) -> None:
        model = self.generated("very-many", "--tensors", "100000", "--bytes", "128MiB")
        seed = self.mooncake(self.theirs)
        seed.hold(*te_peer.weights(model))
        self.assert_forks(seed.publish(), model)


class Sglang(Case):
    def port(self, held: dict) -> str:
        return str(urllib.parse.urlsplit(held["url"]).port)

    def test_seed_of_sglang(self) -> None:
        model = rfork_program.model("minilm")
        for version, layouts in ((te_peer.NEWEST, ("merged", "each")), ("0.3.6", ("merged",))):
            process = self.sglang(self.theirs, version)
            for layout in layouts:
                with self.subTest(version=version, layout=layout):
                    held = process.ask("seed", host=self.theirs.address, folder=str(model), shape="transformers",
                                       layout=layout)  # fmt: skip
                    copy = self.path(f"{version}-{layout}")
                    self.rfork_ok_on(self.ours, "fork", held["url"], "-o", copy)
                    wanted = te_peer.contents(model)
                    del wanted["embeddings.position_ids"]  # a buffer; only parameters are published
                    found = te_peer.contents(copy)
                    self.assertEqual(found.keys(), wanted.keys())
                    self.assertEqual([name for name, data in wanted.items() if found[name] != data], [])

    def test_the_checkpoint_comes_back_from_two_ranks_of_sglang(self) -> None:
        import sglang_models

        for family in ("qwen3", "moonlight"):
            model = self.shared / family
            sglang_models.FAMILIES[family]().write(model)
            first, second = self.sglang(self.theirs), self.sglang(self.theirs)
            held = first.ask("seed", host=self.theirs.address, folder=str(model), rank=0, size=2)
            second.ask("seed", host=self.theirs.address, folder=str(model), rank=1, size=2, head="127.0.0.1",
                       head_port=held["bootstrap"])  # fmt: skip
            with self.subTest(family=family):
                self.assert_forks(held["url"], model, "--model-path", str(model))
                Path(self.path("copy")).rename(self.path(family))

    def test_seeds_that_cannot_be_read(self) -> None:
        model = str(rfork_program.model("minilm"))
        process = self.sglang(self.theirs)
        for layout in ("none", "half"):
            with self.subTest(layout=layout):
                held = process.ask("seed", host=self.theirs.address, folder=model, shape="transformers", layout=layout)
                self.assert_refused(held["url"], "register")
        with self.subTest("not loaded yet"):
            held = process.ask("seed", host=self.theirs.address, folder=model, shape="transformers", early=True)
            self.assert_refused(held["url"], "rank 0")


class Chain(Case):
    def test_serve_from_their_seed_and_be_read_by_theirs(self) -> None:
        model = rfork_program.model("minilm")
        files = te_peer.weights(model)
        seed = self.mooncake(self.theirs, "0.3.12.post1")
        seed.hold(*files)
        url = urllib.parse.urlsplit(seed.publish())
        prefix = "--remote-instance-weight-loader"
        arguments = ("--load-format", "remote_instance", f"{prefix}-backend", "transfer_engine",
                     f"{prefix}-seed-instance-ip", url.hostname,
                     f"{prefix}-seed-instance-service-port", str(url.port), "--model-path", str(model),
                     te_peer.START_SEED)  # fmt: skip
        with self.seed_on(self.ours, *arguments, seconds=120) as ours:
            _, _, body = ours.get(f"{te_peer.NEW_PATH}?rank=0")
            session, tensors = json.loads(body)["remote_instance_transfer_engine_info"]
            reader = self.mooncake(self.theirs)
            report = reader.ask("read", session=session, map=tensors, files=files, batch=1000)
            self.assert_all_equal(report, len(te_peer.contents(model)))


class Wrong(Case):
    """Seeds that publish what they do not have."""

    def setUp(self) -> None:
        super().setUp()
        self.model = rfork_program.model("minilm")
        self.seed = self.mooncake(self.theirs)
        self.held = self.seed.hold(*te_peer.weights(self.model))
        self.name = next(iter(self.held))

    def published(self, session: str | None = None, **changed: list[int]) -> str:
        """The URL of a seed that answers this session and these entries of the map."""
        answers = {"0": [session or self.seed.session, {**self.held, **changed}]}
        return self.seed.ask("publish", host=self.theirs.address, answers=answers)["url"]

    def test_an_address_outside_of_what_is_registered(self) -> None:
        _, count, element = self.held[self.name]
        for address in (4096, 2**64 - count * element, 2**64 - 1, 2**53 + 1):
            with self.subTest(address=hex(address)):
                self.assert_refused(self.published(**{self.name: [address, count, element]}), self.name)

    def test_a_map_of_an_engine_that_has_ended(self) -> None:
        gone = self.mooncake(self.theirs)
        gone.close()
        self.assert_refused(self.published(gone.session), gone.session)

    def test_a_map_of_another_engine(self) -> None:
        other = self.mooncake(self.theirs)
        other.hold(*te_peer.weights(self.model), register="none")
        self.assert_refused(self.published(other.session), "register")

    def test_sizes_that_cannot_be(self) -> None:
        address, count, element = self.held[self.name]
        for entry in ([address, 2**62, element], [address, 2**53 + 1, element], [address, -1, element],
                      [address, count, 0], [address, count], "none"):  # fmt: skip
            with self.subTest(entry=entry):
                self.assert_refused(self.published(**{self.name: entry}), self.name)

    def test_a_model_that_lacks_a_tensor(self) -> None:
        url = urllib.parse.urlsplit(self.published())
        short = {name: entry for name, entry in self.held.items() if name != self.name}
        self.seed.ask("publish", host=self.theirs.address, answers={"0": [self.seed.session, short]})
        prefix = "--remote-instance-weight-loader"
        done = self.rfork_on(self.ours, "serve", "--load-format", "remote_instance", f"{prefix}-backend",
                             "transfer_engine", f"{prefix}-seed-instance-ip", url.hostname,
                             f"{prefix}-seed-instance-service-port", str(url.port), "--model-path", str(self.model),
                             "--host", self.ours.address, "--port", "0")  # fmt: skip
        self.assertGreater(done.returncode, 0)
        self.assertRegex(done.stderr.splitlines()[-1], f"^rfork: .*{self.name}")


del Case

if __name__ == "__main__":
    unittest.main()
