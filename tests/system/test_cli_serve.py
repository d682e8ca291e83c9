#!/usr/bin/env python3
"""`rfork serve`: its life from "loading" to the end, and what it promises its readers meanwhile.

ctest: timeout=600
"""

import json
import os
import signal
import socket
import struct
import unittest
from pathlib import Path

import util

STALL = "fault:1,kind=stall,after=64KiB:tcp" # a reader that takes a little and then nothing


class SilentServer:
    """Accepts connections and never answers."""

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        return self

    def __exit__(self, *exception):
        self.socket.close()


class Ready(util.Case):
    def test_the_ready_line_says_what_is_served(self):
        model = self.model()
        with self.seed("--model-path", model) as seed:
            fields = seed.fields
            self.assertEqual(fields["url"], seed.url)
            self.assertEqual(int(fields["bytes"]), sum(len(t.data) for t in util.random_tensors().values()))
            self.assertEqual(int(fields["tensors"]), len(util.random_tensors()))
            self.assertGreaterEqual(float(fields["seconds"]), 0)
            self.assertEqual(fields["source"], "disk")
            self.assertEqual(fields["transports"], "map,tcp")
            self.assertEqual(seed.stdout.count("\n"), 1, "one line on stdout")

    def test_the_ready_line_as_json(self):
        with self.seed("--model-path", self.model(), "--json") as seed:
            fields = json.loads(seed.stdout)
            self.assertEqual(fields["state"], "ready")
            self.assertEqual(fields["url"], seed.url)
            self.assertEqual(fields["transports"], "map,tcp")
            self.assertEqual(fields["pid"], seed.pid)

    def test_memory_is_named_before_it_is_taken(self):
        with self.seed("--model-path", self.model("tiny-model")) as seed:
            said = seed.wait_for(r"rfork: tiny-model: \S+ \S?B in (\d+) tensors, 1 file; taking (\S+ \S?B) of shared "
                                 r"memory, \S+ \S?B available")
            self.assertEqual(int(said[1]), len(util.random_tensors()))

    def test_a_model_name_may_be_given(self):
        with self.seed("--model-path", self.model(), "--model-name", "my/model") as seed:
            self.assertEqual(seed.instance()["model"], "my/model")

    def test_a_single_file_is_a_model(self):
        model = Path(self.model())
        with self.seed("--model-path", model / "model.safetensors") as seed:
            self.assertEqual(int(seed.fields["tensors"]), len(util.random_tensors()))

    def test_the_port_given_is_taken(self):
        port = util.free_port()
        with self.seed("--model-path", self.model(), "--port", port) as seed:
            self.assertEqual(seed.url, f"http://127.0.0.1:{port}")

    def test_data_port_and_socket_are_where_readers_are_told(self):
        port, path = util.free_port(), self.path("map.sock")
        with self.seed("--model-path", self.model(), "--data-port", port, "--socket", path) as seed:
            addresses = {e["transport"]: e["address"] for e in seed.instance()["endpoints"]}
            self.assertEqual(addresses["tcp"], f"127.0.0.1:{port}")
            self.assertEqual(addresses["map"], path)
            for transport in ("map", "tcp"):
                self.rfork_ok("fork", seed.url, "--transport", transport)
        self.assertFalse(os.path.exists(path), "the socket is removed")

    def test_chunk_size_and_digest_are_as_asked(self):
        with self.seed("--model-path", self.model(), "--chunk-size", "64KiB", "--digest", "sha256") as seed:
            self.assertTrue(seed.root_digest().startswith("sha256:"))
            self.assertEqual(seed.instance()["chunk_bytes"], 64 << 10)
            done = self.rfork_json("fork", seed.url, "--transport", "tcp")
            self.assertGreater(done["chunks"], 3)
            self.assertTrue(done["verified"])
            self.assertEqual(done["root_digest"], seed.root_digest())

    def test_while_it_loads_it_says_so(self):
        with SilentServer() as silent:
            seed = self.seed("--from", silent.url, "--timeout", "60s", ready=False)
            status, _, body = seed.get("/healthz")
            self.assertEqual(status, 503, body)
            self.assertEqual(seed.instance()["state"], "loading")
            self.rfork_fails(util.UNREACHABLE, "fork", seed.url, says="loading")
            self.rfork_fails(util.UNREACHABLE, "fork", seed.url, "--wait-ready", "300ms", says="loading")

    def test_what_cannot_fit_is_refused(self):
        # A file of 8 TiB that takes no room on the disk.
        size = 8 << 40
        header = json.dumps({"huge": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        path = self.path("huge.safetensors")
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            try:
                file.truncate(8 + len(header) + size)
            except OSError as error:
                self.skipTest(f"no sparse file of 8 TiB here: {error}")
        self.rfork_fails(util.NOMEM, "serve", "--port", "0", "--model-path", path, says=r"needs \S+ TB.*--mmap")
        # From the page cache it can be served all the same.
        with self.seed("--model-path", path, "--mmap", "--chunk-size", "64MiB") as seed:
            self.assertEqual(int(seed.fields["bytes"]), size)

    def test_a_closed_stdout_does_not_stop_it(self):
        reader, writer = os.pipe()
        os.close(reader)
        seed = util.Seed(self.folder, "--model-path", self.model(), ready=False, stdout=writer)
        os.close(writer)
        with seed:
            util.wait_until(lambda: seed.instance()["state"] == "ready", 20, "ready")
            self.rfork_ok("fork", seed.url)


class Ending(util.Case):
    def test_sigterm_and_sigint_end_it_in_order(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                seed = self.seed("--model-path", self.model())
                seed.send(number)
                self.assertEqual(seed.wait(), util.OK, seed.stderr)

    def test_sigint_while_loading_from_disk(self):
        model = self.model(tensors=util.big_tensors(768 << 20))
        process = self.start("serve", "--port", "0", "--model-path", model)
        process.wait_for("taking .* of shared memory")
        process.send(signal.SIGINT)
        code = process.wait(10)
        if code == util.OK and "rfork: ready" in process.stdout:
            self.skipTest("it was ready before the signal came")
        self.assertEqual(code, util.CANCELLED, process.stderr)
        self.assertEqual(process.stdout, "")

    def test_sigint_while_forking(self):
        with SilentServer() as silent:
            seed = self.seed("--from", silent.url, "--timeout", "60s", ready=False)
            seed.send(signal.SIGINT)
            self.assertEqual(seed.wait(5), util.CANCELLED, seed.stderr)
            self.assertEqual(seed.stdout, "")

    def stalled_reader(self, seed):
        reader = self.start("fork", seed.url, "--transport", STALL, "--timeout", "120s")
        util.wait_until(lambda: seed.metrics()["rfork_connections"] > 0, 20, "the reader's connection")
        return reader

    def test_readers_may_finish_before_it_ends(self):
        model = self.model(tensors=util.big_tensors(64 << 20))
        seed = self.seed("--model-path", model, "--chunk-size", "64KiB")
        # Delays make it last about a second.
        reader = self.start("fork", seed.url, "-o", self.path("copy"), "--transport", "fault:7,kind=delay:tcp",
                            "--connections", "1")
        util.wait_until(lambda: seed.metrics()["rfork_connections"] > 0, 20, "the reader's connection")
        seed.send(signal.SIGTERM)
        self.assertEqual(reader.wait(), util.OK, reader.stderr)
        self.assertEqual(seed.wait(), util.OK, seed.stderr)
        self.assert_same_files(model, self.path("copy"))

    def test_a_stalled_reader_delays_the_end_until_the_deadline_alone(self):
        seed = self.seed("--model-path", self.model(tensors=util.big_tensors(32 << 20)), "--chunk-size", "64KiB",
                         "--drain-timeout", "700ms")
        self.stalled_reader(seed)
        seed.send(signal.SIGTERM)
        self.rfork_fails(util.UNREACHABLE, "fork", seed.url)
        self.assertEqual(seed.wait(8), util.OK, seed.stderr)

    def test_a_second_signal_ends_it_at_once(self):
        seed = self.seed("--model-path", self.model(tensors=util.big_tensors(32 << 20)), "--chunk-size", "64KiB",
                         "--drain-timeout", "10min")
        self.stalled_reader(seed)
        seed.send(signal.SIGTERM)
        util.wait_until(lambda: seed.instance()["state"] == "draining", 10, "draining")
        seed.send(signal.SIGTERM)
        self.assertEqual(seed.wait(5), -signal.SIGTERM)


class PageCache(util.Case):
    def test_it_serves_files_without_memory_of_its_own(self):
        model = self.model(tensors=util.big_tensors(96 << 20))
        with self.seed("--model-path", model, "--mmap") as seed:
            self.assertEqual(seed.fields["source"], "page-cache")
            self.assertEqual(seed.fields["transports"], "tcp")
            seed.root_digest()
            if not util.SANITIZED:
                self.assertLess(seed.resident_bytes(), 48 << 20)
            self.rfork_ok("fork", seed.url, "-o", self.path("copy"))
            self.assertRegex(seed.instance()["refused_transports"], "map: ")
        self.assert_same_files(model, self.path("copy"))

    def check_end(self, seed):
        self.assertEqual(seed.wait(20), util.CHANGED, seed.stderr)
        self.assertRegex(seed.stderr.splitlines()[-1], "rfork: stopped serving: .*model.safetensors")

    def test_a_file_that_shrinks_ends_serving(self):
        model = self.model(tensors=util.big_tensors(32 << 20))
        seed = self.seed("--model-path", model, "--mmap")
        os.truncate(Path(model, "model.safetensors"), 1 << 20)
        self.check_end(seed)

    def test_a_file_that_changes_ends_serving(self):
        model = self.model()
        seed = self.seed("--model-path", model, "--mmap")
        with open(Path(model, "model.safetensors"), "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        self.check_end(seed)

    def test_a_file_that_shrinks_while_it_is_read_fails_the_reader(self):
        model = self.model(tensors=util.big_tensors(64 << 20))
        seed = self.seed("--model-path", model, "--mmap", "--chunk-size", "64KiB")
        reader = self.start("fork", seed.url, "-o", self.path("copy"), "--transport", "fault:7,kind=delay:tcp",
                            "--connections", "1", "--timeout", "20s")
        util.wait_until(lambda: seed.metrics()['rfork_sent_bytes_total{transport="tcp"}'] > 1 << 20, 20, "some bytes")
        os.truncate(Path(model, "model.safetensors"), 1 << 20)
        self.assertIn(reader.wait(15), (util.CHANGED, util.UNREACHABLE), reader.stderr)
        self.assert_nothing_left(self.path("copy"))
        self.check_end(seed)

    def test_a_file_that_is_replaced_keeps_the_old_one_served(self):
        # rename() over it leaves the old file as it is: what was opened is still right.
        tensors = util.random_tensors(1)
        model = self.model(tensors=tensors)
        seed = self.seed("--model-path", model, "--mmap")
        digest = seed.root_digest()
        other = Path(self.model("other", util.random_tensors(2)))
        os.rename(other / "model.safetensors", Path(model, "model.safetensors"))
        done = self.rfork("fork", seed.url, "--transport", "tcp", "--json")
        if done.returncode == util.OK:
            self.assertEqual(json.loads(done.stdout)["root_digest"], digest)
        else: # a new ctime of the old file may count as a change
            self.assertIn(done.returncode, (util.CHANGED, util.UNREACHABLE), done.stderr)
        seed.kill()


class Forking(util.Case):
    def test_a_chain_of_instances_is_one_model(self):
        model = self.model(shards=3, tensors=util.random_tensors(5), side_files={"tokenizer/vocab.txt": b"a\nb\n"})
        last = self.seed("--model-path", model)
        root = last.root_digest()
        seeds = [last]
        for extra in (["--transport", "map"], ["--transport", "tcp"], ["--copy"], ["--transport", "map", "--verify"],
                      ["--transport", "tcp", "--no-verify"]):
            last = self.seed("--from", last.url, *extra)
            seeds.append(last)
            self.assertEqual(last.root_digest(), root, extra)
            self.assertEqual(last.fields["source"], seeds[-2].url)
            self.assertEqual(last.fields["transports"], "map,tcp", extra)
        self.rfork_ok("fork", last.url, "-o", self.path("copy"))
        self.assert_same_files(model, self.path("copy"))
        for seed in seeds:
            self.assertEqual(seed.stop(), util.OK, seed.stderr)

    def test_a_fork_outlives_its_seed(self):
        model = self.model()
        for transport in ("map", "tcp"):
            with self.subTest(transport):
                first = self.seed("--model-path", model)
                second = self.seed("--from", first.url, "--transport", transport)
                first.kill()
                copy = self.path(f"copy-{transport}")
                self.rfork_ok("fork", second.url, "-o", copy)
                self.assert_same_files(model, copy)
                self.assertEqual(second.stop(), util.OK, second.stderr)

    def test_a_mapped_fork_takes_no_memory_of_its_own(self):
        with self.seed("--model-path", self.model(tensors=util.big_tensors(128 << 20))) as seed:
            with self.seed("--from", seed.url) as fork:
                self.assertEqual(fork.fields["transport"], "map")
                self.assertRegex(fork.stderr, "sharing its memory")
                if not util.SANITIZED:
                    self.assertLess(fork.resident_bytes("RssAnon"), 48 << 20)

    def test_by_the_arguments_of_sglang(self):
        with self.seed("--model-path", self.model()) as seed:
            host, port = seed.url.removeprefix("http://").rsplit(":", 1)
            with self.seed("--load-format", "remote_instance",
                           "--remote-instance-weight-loader-seed-instance-ip", host,
                           f"--remote-instance-weight-loader-seed-instance-service-port={port}") as fork:
                self.assertEqual(fork.fields["source"], seed.url)
                self.assertEqual(fork.root_digest(), seed.root_digest())

    def test_auto_takes_the_seed_when_it_answers(self):
        model = self.model()
        with self.seed("--model-path", model) as seed:
            with self.seed("--from", seed.url, "--model-path", model) as fork:
                self.assertEqual(fork.fields["source"], seed.url)

    def test_auto_falls_back_to_the_files_and_says_so(self):
        url = f"http://127.0.0.1:{util.free_port()}"
        with self.seed("--from", url, "--model-path", self.model()) as seed:
            self.assertEqual(seed.fields["source"], "disk")
            self.assertRegex(seed.stderr, rf"no weights from the seed \(.*{url[7:]}.*\); loading .*model instead")

    def test_auto_falls_back_from_a_silent_seed(self):
        with SilentServer() as silent:
            with self.seed("--from", silent.url, "--timeout", "500ms", "--model-path", self.model()) as seed:
                self.assertEqual(seed.fields["source"], "disk")

    def test_remote_instance_does_not_fall_back(self):
        url = f"http://127.0.0.1:{util.free_port()}"
        self.rfork_fails(util.UNREACHABLE, "serve", "--port", "0", "--load-format", "remote_instance", "--from", url,
                         "--model-path", self.model())

    def test_it_waits_for_a_seed_that_is_still_loading(self):
        with SilentServer() as silent:
            # The first one loads from disk when its own seed has stayed silent for half a second.
            first = self.seed("--from", silent.url, "--timeout", "500ms", "--model-path", self.model(), ready=False)
            with self.seed("--from", first.url, "--wait-ready", "20s") as second:
                self.assertEqual(second.fields["source"], first.url)
            self.assertEqual(first.stop(), util.OK, first.stderr)

    def test_the_digest_is_equal_however_it_was_loaded(self):
        tensors = util.random_tensors(9)
        backwards = dict(reversed(list(tensors.items())))
        roots = set()
        for name, more in (("one", {}), ("three", {"shards": 3}), ("seven", {"shards": 7})):
            model = self.model(name, tensors, **more)
            for extra in ([], ["--mmap"], ["--no-direct"]):
                with self.seed("--model-path", model, *extra) as seed:
                    roots.add(seed.root_digest())
        with self.seed("--model-path", self.model("backwards", backwards)) as seed:
            roots.add(seed.root_digest())
            with self.seed("--from", seed.url, "--transport", "tcp") as fork:
                roots.add(fork.root_digest())
        self.assertEqual(len(roots), 1, roots)


class BadReaders(util.Case):
    def test_hundreds_of_killed_readers_leak_nothing(self):
        kills = 60 if util.SANITIZED else 300
        model = self.model(tensors=util.big_tensors(16 << 20))
        with self.seed("--model-path", model, "--max-readers", "1000", "--chunk-size", "64KiB") as seed:
            self.rfork_ok("fork", seed.url, "--transport", "tcp")
            self.rfork_ok("fork", seed.url, "--transport", "map")
            util.wait_until(lambda: seed.metrics()["rfork_connections"] == 0, 10, "no connections")
            fds, threads = seed.fds(), seed.threads()
            for i in range(kills // 10):
                readers = [self.start("fork", seed.url, "--timeout", "60s", "--transport", STALL,
                                      *(["-o", self.path(f"out-{i}-{k}")] if k % 2 else [])) for k in range(10)]
                util.wait_until(lambda: seed.metrics()["rfork_connections"] >= 10, 60, "ten readers' connections")
                for reader in readers:
                    reader.kill()
                util.wait_until(lambda: seed.metrics()["rfork_connections"] == 0, 20, "no connections after the kills")
            util.wait_until(lambda: seed.fds() <= fds + 2, 20, f"{fds} descriptors again")
            util.wait_until(lambda: seed.threads() <= threads + 1, 20, f"{threads} threads again")
            done = self.rfork_json("fork", seed.url, "--transport", "tcp")
            self.assertTrue(done["verified"])

    def test_a_stopped_reader_does_not_hold_up_another(self):
        model = self.model(tensors=util.big_tensors(64 << 20))
        with self.seed("--model-path", model, "--chunk-size", "64KiB", "--drain-timeout", "200ms") as seed:
            readers = [self.start("fork", seed.url, "-o", self.path(f"stopped-{i}"), "--transport", STALL, "--timeout",
                                  "60s") for i in range(6)]
            util.wait_until(lambda: seed.metrics()["rfork_connections"] >= 6, 30, "six readers' connections")
            for reader in readers:
                reader.send(signal.SIGSTOP)
            done = self.rfork_json("fork", seed.url, "--transport", "tcp", timeout=20)
            self.assertTrue(done["verified"])

    def test_more_readers_than_allowed_are_told_to_come_back(self):
        with self.seed("--model-path", self.model(tensors=util.big_tensors(8 << 20)), "--max-readers", "1",
                       "--chunk-size", "64KiB", "--drain-timeout", "200ms") as seed:
            self.start("fork", seed.url, "--transport", STALL, "--timeout", "60s")
            util.wait_until(lambda: seed.metrics()["rfork_leases"] == 1, 20, "the reader")
            self.rfork_fails(util.NOMEM, "fork", seed.url, says="1 readers.*max-readers")


if __name__ == "__main__":
    unittest.main()
