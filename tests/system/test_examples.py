#!/usr/bin/env python3
"""The two programs in examples/: an engine that serves weights it computed, one that forks them into a layout of its own;
and both again as a user builds them, from an installed library.
"""

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import unittest
from pathlib import Path

import util
from util import Tensor

BUILD = Path(os.environ.get("RFORK_BUILD", util.SOURCE / "build"))
SEED, FORK = BUILD / "examples/engine_seed", BUILD / "examples/engine_fork"
SKIP = 77

# As in examples/engine_weights.h; the last one is tied to the first.
TENSORS = {
    "model.embed_tokens.weight": ("BF16", [4096, 512]),
    "model.layers.0.attn.weight": ("BF16", [512, 512]),
    "model.layers.0.up.weight": ("BF16", [1536, 512]),
    "model.layers.0.down.weight": ("BF16", [512, 1536]),
    "model.layers.1.attn.weight": ("BF16", [512, 512]),
    "model.layers.1.up.weight": ("BF16", [1536, 512]),
    "model.layers.1.down.weight": ("BF16", [512, 1536]),
    "model.norm.weight": ("F32", [512]),
    "lm_head.weight": ("BF16", [4096, 512]),
}
STREAM_BYTES = sum(util.tensor_bytes(*TENSORS[name]) for name in TENSORS if name != "lm_head.weight")
CHECKED_BYTES = 32 << 10 # of each tensor, computed anew here


def computed(name, count):
    """The first `count` bytes that the engine computes for a tensor."""
    index = 0 if name == "lm_head.weight" else list(TENSORS).index(name)
    mask = (1 << 64) - 1
    state = 0x9E3779B97F4A7C15 * (index + 1) & mask
    out = bytearray()
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) & mask
        out.append(state >> 56)
    return bytes(out)


class Engine(util.Process):
    """engine_seed, serving. It ends when its stdin does."""

    def __init__(self, folder, *arguments, program=SEED, env=None):
        reader, self.stdin = os.pipe()
        try:
            super().__init__(folder, *arguments, program=str(program), env=env, stdin=reader)
        finally:
            os.close(reader)
        self.url = self.wait_for(r"^(http://\S+)$", stream="stdout")[1]

    def end(self):
        """Ends its stdin; returns its exit code."""
        self.close_stdin()
        return self.wait(30)

    def close_stdin(self):
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self.close_stdin()


class Case(util.Case):
    def engine(self, *arguments, **more):
        engine = Engine(self.folder, *arguments, **more)
        self.addCleanup(engine.__exit__, None, None, None)
        return engine

    def engine_fork(self, url, *arguments, program=FORK, env=None):
        done = subprocess.run([program, url, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60 * util.SLOW, env=util.environment(env))
        util.check_report(done.stderr)
        return done

    def check_fork(self, url, *arguments, by, **more):
        """It takes all bytes, which it compares with its own computation, by this transport."""
        done = self.engine_fork(url, *arguments, **more)
        self.assertEqual(done.returncode, util.OK, done.stdout + done.stderr)
        said = re.fullmatch(rf"forked {STREAM_BYTES} bytes by (\S+)(?: \(copy\))? \((.*)\), verified=yes, "
                            r"root (xxh3-128:[0-9a-f]{32})\n", done.stdout)
        self.assertTrue(said, done.stdout)
        self.assertEqual(said[1], by)
        self.assertRegex(done.stderr, rf"(?m)^engine_fork: {STREAM_BYTES} of {STREAM_BYTES} bytes$")
        return said[2], said[3]


class Engines(Case):
    def test_an_engine_takes_weights_by_tcp_into_its_own_layout(self):
        engine = self.engine()
        reason, root = self.check_fork(engine.url, by="tcp")
        self.assertRegex(reason, "connection")
        self.assertEqual(self.check_fork(engine.url, "tcp", by="tcp")[1], root)
        self.assertEqual(engine.end(), util.OK, engine.stderr)
        self.assertRegex(engine.stderr, rf"engine_seed: 2 readers, {2 * STREAM_BYTES} bytes sent")

    def test_shared_memory_is_taken_by_map(self):
        engine = self.engine("--share")
        reason, root = self.check_fork(engine.url, by="map")
        self.assertRegex(reason, "same host")
        self.assertEqual(self.check_fork(engine.url, "map", by="map")[1], root)
        self.assertEqual(self.check_fork(engine.url, "tcp", by="tcp")[1], root)
        self.assertEqual(engine.end(), util.OK, engine.stderr)
        self.assertRegex(engine.stderr, rf"engine_seed: 3 readers, {STREAM_BYTES} bytes sent")

    def test_memory_of_its_own_cannot_be_mapped(self):
        engine = self.engine()
        done = self.engine_fork(engine.url, "map")
        self.assertEqual(done.returncode, util.UNSUPPORTED, done.stderr)
        self.assertRegex(done.stderr, r"^engine_fork: open: .*map")

    def test_engines_and_the_program_understand_each_other(self):
        engine = self.engine()
        instance = self.seed("--from", engine.url)
        root = instance.root_digest()
        self.assertEqual(engine.end(), util.OK, engine.stderr)
        self.assertEqual(self.check_fork(instance.url, "tcp", by="tcp")[1], root)
        self.assertEqual(self.check_fork(instance.url, by="map")[1], root)

    def test_another_model_is_refused_before_a_byte_moves(self):
        with self.seed("--model-path", self.model()) as seed:
            done = self.engine_fork(seed.url)
            self.assertEqual(done.returncode, util.MISMATCH, done.stderr)
            self.assertRegex(done.stderr, r"^engine_fork: not this engine's model: .*\n$")
            self.assertRegex(done.stderr, r"lm_head\.weight|model\.layers\.0\.attn\.weight")
            self.assertEqual(done.stdout, "")
            self.assertEqual(seed.metrics()['rfork_sent_bytes_total{transport="tcp"}'], 0)

    def test_a_tensor_of_another_shape_or_dtype_is_named(self):
        for name, dtype, shape in (("model.norm.weight", "BF16", [512]), ("model.layers.1.up.weight", "BF16", [512, 1536])):
            with self.subTest(name):
                tensors = {n: Tensor(*what) for n, what in {**TENSORS, name: (dtype, shape)}.items()}
                with self.seed("--model-path", self.model(name, tensors)) as seed:
                    done = self.engine_fork(seed.url)
                    self.assertEqual(done.returncode, util.MISMATCH, done.stderr)
                    self.assertIn(name, done.stderr)
                    self.assertNotIn("lm_head", done.stderr)

    def test_other_weights_of_the_same_shapes_are_noticed_by_the_engine(self):
        tensors = {name: Tensor(*what) for name, what in TENSORS.items()}
        with self.seed("--model-path", self.model(tensors=tensors)) as seed:
            done = self.engine_fork(seed.url)
            self.assertEqual(done.returncode, util.CORRUPT, done.stderr)
            self.assertIn("differs", done.stderr)


class Folder(Case):
    """What `rfork` makes of a seed that has no files."""

    def check_model(self, folder):
        """A folder that anyone can load: valid files, the engine's tensors, its config.json."""
        self.assertEqual(json.loads(Path(folder, "config.json").read_text()), {"architectures": ["ToyForCausalLM"]})
        files = sorted(path.name for path in Path(folder).glob("*.safetensors"))
        index = Path(folder, "model.safetensors.index.json")
        found = {}
        for file in files:
            raw = Path(folder, file).read_bytes()
            (length,) = struct.unpack("<Q", raw[:8])
            self.assertEqual(length % 8, 0)
            header = json.loads(raw[8 : 8 + length])
            header.pop("__metadata__", None)
            at = 0
            for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
                self.assertEqual(begin, at, "neither holes nor overlaps")
                at = end
            self.assertEqual(8 + length + at, len(raw))
            tensors, _ = util.read_safetensors(Path(folder, file))
            self.assertFalse(set(found) & set(tensors))
            found |= tensors
            if len(files) > 1:
                weight_map = json.loads(index.read_text())["weight_map"]
                self.assertEqual({name for name, where in weight_map.items() if where == file}, set(tensors))
        self.assertEqual(index.exists(), len(files) > 1)
        # Of tied tensors one is stored, as in Hugging Face's own folders.
        self.assertEqual(set(found), set(TENSORS) - {"lm_head.weight"})
        for name, tensor in found.items():
            self.assertEqual((tensor.dtype, tensor.shape), TENSORS[name], name)
            count = min(len(tensor.data), CHECKED_BYTES)
            self.assertTrue(tensor.data[:count] == computed(name, count), name)
        return files

    def test_the_program_tells_what_an_engine_has(self):
        engine = self.engine()
        facts = self.rfork_json("inspect", engine.url)
        self.assertEqual((facts["model"], facts["architecture"], facts["bytes"]), ("toy", "ToyForCausalLM", STREAM_BYTES))
        text = self.rfork_ok("inspect", engine.url, "--tensors").stdout
        for name in TENSORS:
            self.assertIn(name, text)

    def test_a_folder_is_written_although_the_seed_has_no_files(self):
        engine = self.engine("--share")
        for transport in ("map", "tcp"):
            with self.subTest(transport):
                folder = self.path(transport)
                done = self.rfork_json("fork", engine.url, "-o", folder, "--transport", transport)
                self.assertEqual(self.check_model(folder), ["model.safetensors"])
                self.assertEqual((done["bytes"], done["transport"].split()[0]), (STREAM_BYTES, transport))
                with self.seed("--model-path", folder) as seed:
                    self.assertEqual(self.engine_fork(seed.url).returncode, util.OK)
                self.rfork_ok("diff", engine.url, folder)
                root = self.rfork_json("inspect", "--digest", engine.url)["root_digest"]
                self.assertEqual(self.rfork_json("inspect", "--digest", folder)["root_digest"], root)

    def test_its_rank_file_has_all_and_names_what_is_tied(self):
        engine = self.engine()
        status, _, body = util.http_get(engine.url, "/v1/ranks/0.safetensors")
        self.assertEqual(status, 200)
        path = Path(self.path("rank.safetensors"))
        path.write_bytes(body)
        tensors, metadata = util.read_safetensors(path)
        self.assertEqual(set(tensors), set(TENSORS) - {"lm_head.weight"})
        self.assertEqual(metadata["rfork.alias.lm_head.weight"], "model.embed_tokens.weight")
        status, _, head = util.http_get(engine.url, "/v1/tensors/lm_head.weight")
        self.assertEqual(status, 200)
        self.assertTrue(head == tensors["model.embed_tokens.weight"].data)
        self.rfork_ok("diff", engine.url, path)

    def test_in_several_files_when_asked(self):
        engine = self.engine()
        self.rfork_ok("fork", engine.url, "-o", self.path("copy"), "--shard-size", "4MiB")
        self.assertGreater(len(self.check_model(self.path("copy"))), 2)
        self.rfork_ok("diff", engine.url, self.path("copy"))


class Endings(Case):
    def test_nobody_there(self):
        done = self.engine_fork(f"http://127.0.0.1:{util.free_port()}")
        self.assertEqual(done.returncode, util.UNREACHABLE, done.stderr)
        self.assertRegex(done.stderr, r"^engine_fork: open: http://127.0.0.1:\d+: .*\n$")

    def test_an_engine_that_is_killed_midway_is_named_by_its_forks(self):
        # They ask, take nothing of what comes, and look again when their timeout is over; engine_fork's is 10 s.
        stall = "fault:1,kind=stall:tcp"
        first, second = self.engine(), self.engine()
        forks = [
            (first, self.start(first.url, stall, program=str(FORK))),
            (second, self.start("fork", second.url, "-o", self.path("copy"), "--transport", stall, "--timeout", "2s")),
        ]

        def begun(engine):
            _, _, body = util.http_get(engine.url, "/metrics")
            return re.search(rb'sent_bytes_total\{transport="tcp"\} [1-9]', body)

        for engine, _ in forks:
            util.wait_until(lambda engine=engine: begun(engine), 20, "some bytes")
            engine.kill()
        for engine, process in forks:
            self.assertEqual(process.wait(40), util.UNREACHABLE, process.stderr)
            self.assertEqual(process.stdout, "")
            self.assertRegex(process.stderr.splitlines()[-1], rf"^(engine_fork: run|rfork): .*{engine.url}")
        self.assert_nothing_left(self.path("copy"))


class Installed(Case):
    """As a user has them: `make install` into a staging folder, pkg-config, a C11 compiler."""

    def setUp(self):
        super().setUp()
        if util.SANITIZED:
            self.skipTest("the library needs the sanitizers' runtime")
        tree = next((path for path in (BUILD, BUILD / "release") if (path / "cmake_install.cmake").exists()), None)
        self.compiler = shutil.which("cc")
        for what, tool in (("cmake", shutil.which("cmake")), ("pkg-config", shutil.which("pkg-config")),
                           ("cc", self.compiler), ("a build tree", tree)):
            if not tool:
                self.skipTest(f"no {what}")
        done = subprocess.run(["cmake", "--install", tree, "--prefix", "/opt/rfork"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, env={**os.environ, "DESTDIR": self.path("stage")})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.prefix = Path(self.path("stage/opt/rfork"))
        self.libraries = self.prefix / "lib"

    def pkg_config(self, *arguments):
        folders = [str(path) for path in self.prefix.rglob("pkgconfig")]
        done = subprocess.run(["pkg-config", *arguments], capture_output=True, text=True,
                              env={**os.environ, "PKG_CONFIG_PATH": ":".join(folders)})
        self.assertEqual(done.returncode, 0, done.stderr)
        return shlex.split(done.stdout)

    def compile(self, name, *flags):
        source = shutil.copy(util.SOURCE / f"examples/{name}.c", self.folder)
        shutil.copy(util.SOURCE / "examples/engine_weights.h", self.folder)
        program = self.path(name)
        command = [self.compiler, "-std=c11", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror", source, *flags,
                   *self.pkg_config("--cflags", "--libs", "rfork"), "-o", program]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
        return program

    def test_both_examples_build_and_run_from_an_installed_tree(self):
        seed, fork = self.compile("engine_seed"), self.compile("engine_fork")
        (libraries,) = [flag[2:] for flag in self.pkg_config("--libs-only-L", "rfork")]
        self.assertTrue(Path(libraries).resolve().is_relative_to(Path(self.folder).resolve()), libraries)
        env = {"LD_LIBRARY_PATH": libraries}
        engine = self.engine("--share", program=seed, env=env)
        self.assertIn(str(Path(libraries).resolve()), Path(f"/proc/{engine.pid}/maps").read_text())
        self.check_fork(engine.url, by="map", program=fork, env=env)
        self.check_fork(engine.url, "tcp", by="tcp", program=fork, env=env)
        self.assertEqual(engine.end(), util.OK, engine.stderr)

    def test_the_version_is_the_same_everywhere(self):
        (version,) = self.pkg_config("--modversion", "rfork")
        done = subprocess.run([self.prefix / "bin/rfork", "version"], capture_output=True, text=True)
        self.assertEqual(done.stdout, f"rfork {version}\n", done.stderr)


if __name__ == "__main__":
    if not (SEED.exists() and FORK.exists()):
        print(f"skipped: no {SEED}")
        sys.exit(SKIP)
    unittest.main()
