#!/usr/bin/env python3
"""The HTTP API of `rfork serve` as others use it: curl, ranges, scripts, monitoring; and while clients misbehave.

ctest: timeout=600
"""

import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import resource
import shutil
import socket
import struct
import subprocess
import time
import unittest
from pathlib import Path
from urllib.parse import quote

import util


def curl(*arguments):
    """(exit code, stdout bytes, stderr text) of the command line curl."""
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", str(30 * util.SLOW), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60 * util.SLOW)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


@unittest.skipUnless(shutil.which("curl"), "no curl")
class Curl(util.Case):
    """What the documentation shows, typed by a person."""

    def setUp(self):
        super().setUp()
        self.tensors = util.random_tensors()
        self.folder_path = self.model(tensors=self.tensors, shards=2, side_files={"sub/a file.txt": b"text\n"})

    def get(self, *arguments):
        code, out, err = curl(*arguments)
        self.assertEqual(code, 0, err)
        return out

    def test_files_come_byte_for_byte(self):
        with self.seed("--model-path", self.folder_path) as seed:
            listed = json.loads(self.get(seed.url + "/v1/files"))["files"]
            names = sorted(str(p.relative_to(self.folder_path)) for p in Path(self.folder_path).rglob("*") if p.is_file())
            self.assertEqual(sorted(entry["name"] for entry in listed), names)
            for name in names:
                body = self.get(f"{seed.url}/v1/files/{quote(name)}")
                self.assertEqual(body, Path(self.folder_path, name).read_bytes(), name)

    def test_a_rank_is_a_safetensors_file(self):
        with self.seed("--model-path", self.folder_path) as seed:
            whole = self.get(seed.url + "/v1/ranks/0.safetensors")
            path = self.path("rank.safetensors")
            Path(path).write_bytes(whole)
            got, _ = util.read_safetensors(path)
            self.assertEqual(set(got), set(self.tensors))
            for name, tensor in self.tensors.items():
                self.assertEqual((got[name].dtype, got[name].shape), (tensor.dtype, tensor.shape), name)
                self.assertEqual(got[name].data, tensor.data, name)
            # It is a model by itself.
            self.rfork_ok("inspect", path)
            (header,) = struct.unpack("<Q", whole[:8])
            for begin, end in ((0, 7), (8 + header - 1, 8 + header + 100), (len(whole) - 5, len(whole) - 1)):
                part = self.get("-r", f"{begin}-{end}", seed.url + "/v1/ranks/0.safetensors")
                self.assertEqual(part, whole[begin : end + 1])
            self.assertEqual(self.get("-r", "-1000", seed.url + "/v1/ranks/0.safetensors"), whole[-1000:])

    def test_an_interrupted_download_is_resumed(self):
        with self.seed("--model-path", self.folder_path) as seed:
            whole = self.get(seed.url + "/v1/ranks/0.safetensors")
            path = Path(self.path("part"))
            path.write_bytes(whole[:70000])
            self.get("-C", "-", "-o", str(path), seed.url + "/v1/ranks/0.safetensors")
            self.assertEqual(path.read_bytes(), whole)

    def test_tensors_are_raw_bytes(self):
        with self.seed("--model-path", self.folder_path) as seed:
            name = "model.layers.1.self_attn.q_proj.weight"
            head = self.path("head")
            body = self.get("-D", head, f"{seed.url}/v1/tensors/{name}")
            self.assertEqual(body, self.tensors[name].data)
            headers = Path(head).read_text()
            self.assertIn("X-Rfork-Dtype: BF16", headers)
            self.assertIn("X-Rfork-Shape: [64,64]", headers)
            part = self.get("-r", "100-199", f"{seed.url}/v1/tensors/{name}")
            self.assertEqual(part, self.tensors[name].data[100:200])

    def test_a_wrong_request_says_what_is_right(self):
        with self.seed("--model-path", self.folder_path) as seed:
            for path, status, words in (
                ("/nowhere", 404, "/v1/ranks/R.safetensors"),
                ("/v1/files/nope", 404, "config.json"),
                ("/v1/tensors/model.norm", 404, "model.norm.weight"),
                ("/v1/ranks/7.safetensors", 404, "0.safetensors"),
                ("/v1/digests?rank=9", 400, "rank 9: there are 1"),
                ("/v1/manifest?fromat=json", 400, "unknown argument fromat"),
            ):
                out = self.get("-w", "%{http_code}", seed.url + path).decode()
                self.assertEqual(out[-3:], str(status), path)
                self.assertIn(words, json.loads(out[:-3])["error"]["message"], path)


class Names(util.Case):
    def test_any_name_can_be_asked_for(self):
        rng = util.random.Random(1)
        names = ["plain", "with space", "sla/sh", "ünïcödé/模型", "100%", "q?a&b=c#d", "semi;colon", "a" * 300, "%41", "+"]
        tensors = {name: util.Tensor("U8", [10 + i], rng=rng) for i, name in enumerate(names)}
        with self.seed("--model-path", self.model(tensors=tensors)) as seed:
            for name, tensor in tensors.items():
                status, headers, body = seed.get("/v1/tensors/" + quote(name))
                self.assertEqual((status, body), (200, tensor.data), name)
                self.assertEqual(headers["X-Rfork-Shape"], f"[{len(tensor.data)}]")
            for path in ("/v1/tensors/%41%00", "/v1/tensors/%", "/v1/tensors/%ff"):
                self.assertEqual(seed.get(path)[0], 400, path)


class State(util.Case):
    def test_metrics_count_what_happens(self):
        with self.seed("--model-path", self.model()) as seed:
            bytes_of_model = seed.instance()["bytes"]
            self.rfork_ok("fork", seed.url, "--transport", "tcp")
            metrics = seed.metrics()
            self.assertEqual(metrics['rfork_state{state="ready"}'], 1)
            self.assertEqual(metrics["rfork_model_bytes"], bytes_of_model)
            self.assertEqual(metrics["rfork_leases_opened_total"], 1)
            self.assertEqual(metrics["rfork_leases"], 0, "a fork closes its lease")
            self.assertEqual(metrics['rfork_sent_bytes_total{transport="tcp"}'], bytes_of_model)
            self.assertGreater(metrics["process_resident_memory_bytes"], 1 << 20)
            seed.get("/nowhere")
            self.assertEqual(seed.metrics()['rfork_http_requests_total{status="404"}'], 1)

    def test_a_lease_is_opened_renewed_and_closed(self):
        with self.seed("--model-path", self.model()) as seed:
            status, _, body = seed.get("/v1/lease", method="POST", body=b'{"client":"a script"}')
            self.assertEqual(status, 201, body)
            lease = json.loads(body)
            self.assertRegex(lease["token"], "^[0-9a-f]{64}$")
            self.assertEqual(lease["manifest_id"], seed.instance()["manifest_id"])
            self.assertEqual(lease["sources"], [{"url": seed.url}])
            self.assertEqual({e["transport"] for e in lease["endpoints"]}, {"map", "tcp"})
            mine = {"Authorization": "Bearer " + lease["token"]}
            self.assertEqual(seed.metrics()["rfork_leases"], 1)
            self.assertEqual(seed.get("/v1/lease", method="PUT", headers=mine)[0], 204)
            self.assertEqual(seed.get("/v1/lease", method="DELETE", headers=mine)[0], 204)
            self.assertEqual(seed.get("/v1/lease", method="DELETE", headers=mine)[0], 403)
            self.assertEqual(seed.metrics()["rfork_leases"], 0)
            other = json.dumps({"manifest_id": "0" * 32}).encode()
            self.assertEqual(seed.get("/v1/lease", method="POST", body=other)[0], 409)

    def test_the_wildcard_address_works_and_names_the_one_that_was_dialled(self):
        with self.seed("--model-path", self.model(), "--host", "0.0.0.0") as seed:
            port = seed.url.rsplit(":", 1)[1]
            url = f"http://127.0.0.1:{port}"
            status, _, body = util.http_get(url, "/v1/lease", method="POST")
            self.assertEqual(status, 201)
            self.assertEqual(json.loads(body)["sources"], [{"url": url}])
            self.rfork_ok("fork", url, "--transport", "tcp")

    def test_it_listens_on_ipv6(self):
        try:
            with socket.create_server(("::1", 0), family=socket.AF_INET6):
                pass
        except OSError as error:
            self.skipTest(f"no IPv6 here: {error}")
        with self.seed("--model-path", self.model(), "--host", "::1") as seed:
            self.assertRegex(seed.url, r"^http://\[::1\]:\d+$")
            self.assertEqual(seed.get("/healthz")[0], 200)
            self.rfork_ok("fork", seed.url, "--transport", "tcp")

    def test_digests_are_waited_for_while_they_are_made(self):
        model = self.model(tensors=util.big_tensors(256 << 20))
        with self.seed("--model-path", model, "--chunk-size", "64KiB", "--digest", "sha256") as seed:
            known, rounds = 0, 0
            total = seed.instance()["digest_chunks_total"]
            while known < total:
                status, _, body = seed.get(f"/v1/digests?rank=0&known={known}&from={total - 1}&wait_ms=5000")
                self.assertEqual(status, 200)
                self.assertEqual(body[:4], b"RFDG")
                now = seed.instance()["digest_chunks_known"]
                self.assertGreater(now, known, "an answer without news")
                known, rounds = now, rounds + 1
            self.assertGreater(rounds, 0)
            self.assertEqual(seed.get("/v1/tensor-digests?rank=0&wait_ms=30000")[0], 200)


class FromFiles(util.Case):
    """Weights that lie in the page cache (--mmap), where others can change them."""

    def test_bodies_are_right(self):
        tensors = util.random_tensors()
        with self.seed("--model-path", self.model(tensors=tensors), "--mmap") as seed:
            for name, tensor in tensors.items():
                self.assertEqual(seed.get("/v1/tensors/" + name)[2], tensor.data, name)

    def test_a_changed_file_is_no_longer_served(self):
        model = self.model(tensors=util.big_tensors(8 << 20))
        seed = self.seed("--model-path", model, "--mmap")
        self.assertEqual(seed.get("/v1/ranks/0.safetensors")[0], 200)
        with open(Path(model, "model.safetensors"), "r+b") as file:
            file.seek(1 << 20)
            file.write(b"changed")
        # Either it is refused, or the seed has already noticed and gone.
        with contextlib.suppress(ConnectionError):
            status, _, body = seed.get("/v1/ranks/0.safetensors")
            self.assertEqual(status, 503)
            self.assertIn("RF_E_CHANGED", body.decode())
        self.assertEqual(seed.wait(), util.CHANGED)

    def test_a_change_cuts_off_the_answer_under_way(self):
        model = self.model(tensors=util.big_tensors(128 << 20))
        seed = self.seed("--model-path", model, "--mmap")
        connection = http.client.HTTPConnection("127.0.0.1", int(seed.url.rsplit(":", 1)[1]), timeout=20 * util.SLOW)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/ranks/0.safetensors")
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            response.read(1 << 20)
            with open(Path(model, "model.safetensors"), "r+b") as file:
                file.truncate(64 << 20)
            with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
                # Under some buffering much may still arrive, but never all of it.
                response.read()
                if response.length:
                    raise http.client.IncompleteRead(b"")


class Crowd(util.Case):
    """Clients that are slow, idle or many, against the real program."""

    def open_many(self, seed, count):
        """Idle connections, as many as this process may open."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        count = min(count, hard - 200)
        port = int(seed.url.rsplit(":", 1)[1])
        many = []
        self.addCleanup(lambda: [sock.close() for sock in many])
        for _ in range(count):
            many.append(socket.create_connection(("127.0.0.1", port), timeout=10 * util.SLOW))
        return many

    def assert_answers(self, seed):
        begin = time.monotonic()
        self.assertEqual(seed.get("/healthz")[0], 200)
        self.assertLess(time.monotonic() - begin, 2 * util.SLOW)

    def test_3000_idle_connections_keep_nobody_out(self):
        model = self.model(tensors=util.big_tensors(64 << 20))
        with self.seed("--model-path", model) as seed:
            many = self.open_many(seed, 3000)
            for _ in range(10):
                self.assert_answers(seed)
            self.rfork_ok("fork", seed.url, "--transport", "tcp")
            self.assertLess(seed.fds(), 2300)
            for sock in many:
                sock.close()
            util.wait_until(lambda: seed.fds() < 100, 20, "its descriptors are free again")

    def test_few_descriptors_are_enough(self):
        model = self.model()

        def few():
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

        with self.seed("--model-path", model, preexec_fn=few) as seed:
            self.open_many(seed, 600)
            for _ in range(5):
                self.assert_answers(seed)
            self.rfork_ok("fork", seed.url, "--transport", "tcp")

    def test_stalled_downloads_hold_no_thread(self):
        model = self.model(tensors=util.big_tensors(256 << 20))
        with self.seed("--model-path", model) as seed:
            many = self.open_many(seed, 200)
            for sock in many:
                sock.sendall(b"GET /v1/ranks/0.safetensors HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(10):
                self.assert_answers(seed)
            self.rfork_ok("fork", seed.url)

    def test_a_thousand_wait_for_digests(self):
        model = self.model(tensors=util.big_tensors(512 << 20))
        with self.seed("--model-path", model, "--chunk-size", "64KiB", "--digest", "sha256") as seed:
            total = seed.instance()["digest_chunks_total"]
            many = self.open_many(seed, 900)
            ask = f"GET /v1/digests?rank=0&from={total - 1}&wait_ms=30000 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            for sock in many:
                sock.sendall(ask)
            for _ in range(5):
                self.assert_answers(seed)
            for sock in many:
                self.assertTrue(sock.recv(12).startswith(b"HTTP/1.1 200"))

    def test_many_downloads_at_once_are_right(self):
        model = self.model(tensors=util.big_tensors(32 << 20))
        with self.seed("--model-path", model) as seed:
            want = hashlib.sha256(seed.get("/v1/ranks/0.safetensors")[2]).hexdigest()

            def fetch(_):
                return hashlib.sha256(seed.get("/v1/ranks/0.safetensors", timeout=60)[2]).hexdigest()

            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                self.assertEqual(set(pool.map(fetch, range(32))), {want})

    def test_headers_that_never_end_are_cut_off(self):
        with self.seed("--model-path", self.model()) as seed:
            (sock,) = self.open_many(seed, 1)
            sock.settimeout(0.5)
            begin = time.monotonic()
            sock.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
            closed = False
            while not closed:
                with contextlib.suppress(TimeoutError):
                    closed = sock.recv(1) == b""
                with contextlib.suppress(OSError):
                    sock.sendall(b"a")
                self.assertLess(time.monotonic() - begin, 20 * util.SLOW)
            self.assertGreater(time.monotonic() - begin, 8)
            self.assert_answers(seed)


if __name__ == "__main__":
    unittest.main()
