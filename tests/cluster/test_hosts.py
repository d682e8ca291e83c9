#!/usr/bin/env python3
"""Seed and fork on two hosts: which path is taken, under which address, and what is said when there is none.

Two network namespaces of one machine have the same boot id, so that `map` is tried, and must find out that the seed's
abstract Unix socket is not of this network.
"""

import re
import signal
import subprocess
import time
import unittest
from pathlib import Path

import hosts
import util


def setUpModule():
    hosts.require()


class Paths(hosts.Case):
    def test_a_folder_comes_over_the_network_byte_for_byte(self):
        a, b = self.hosts("a", "b")
        model = self.model(shards=3, tensors=util.big_tensors(20 << 20), side_files={"tokenizer/vocab.txt": b"a\nb\n"})
        with self.seed_on(a, "--model-path", model) as seed:
            done = self.rfork_json_on(b, "fork", seed.url, "-o", self.path("copy"), "--transport", "tcp")
            self.assertEqual((done["transport"], done["verified"]), ("tcp", True))
            self.assertEqual(done["wire_bytes"], int(seed.fields["bytes"]))
            self.assertEqual(done["root_digest"], seed.root_digest())
            self.assert_same_files(model, self.path("copy"))
            self.assertEqual(seed.sent_bytes(), done["bytes"])

    def test_from_the_page_cache_too(self):
        a, b = self.hosts("a", "b")
        model = self.model(shards=2)
        with self.seed_on(a, "--model-path", model, "--mmap", "--digest", "sha256") as seed:
            self.rfork_ok_on(b, "fork", seed.url, "-o", self.path("copy"))
            self.assert_same_files(model, self.path("copy"))

    def test_auto_takes_tcp_and_says_why_not_map(self):
        a, b = self.hosts("a", "b")
        why_not = "not map: same host, but nobody listens on @.* here: .*its own network"
        with self.seed_on(a, "--model-path", self.model()) as seed:
            self.assertEqual(seed.fields["transports"], "map,tcp")
            done = self.rfork_json_on(b, "fork", seed.url, timeout=20)
            self.assertEqual((done["transport"], done["verified"]), ("tcp", True))
            self.assertRegex(done["reason"], why_not)
            # On the seed's own host, in the same run, it is map.
            self.assertEqual(self.rfork_json_on(a, "fork", seed.url)["transport"], "map")

            facts = self.rfork_json_on(b, "doctor", seed.url, timeout=20)["seed"]
            self.assertEqual(facts["choice"], "tcp")
            self.assertRegex(facts["reason"], why_not)
            self.assertFalse(facts["transports"]["map"]["usable"])
            self.assertRegex(facts["transports"]["map"]["reason"], "same host, but nobody listens")
            self.assertTrue(facts["transports"]["tcp"]["usable"])
            self.assertRegex(self.rfork_ok_on(b, "doctor", seed.url).stdout, "a fork would take tcp: .*" + why_not)

            line = self.rfork_fails_on(b, util.UNSUPPORTED, "fork", seed.url, "--transport", "map", timeout=20)
            self.assertRegex(line, "nobody listens on @")

    def test_a_socket_in_a_shared_folder_reaches_across_networks(self):
        a, b = self.hosts("a", "b")
        with self.seed_on(a, "--model-path", self.model(), "--socket", self.path("map.sock")) as seed:
            done = self.rfork_json_on(b, "fork", seed.url, "--verify")
            self.assertEqual((done["transport"], done["mapped"], done["verified"]), ("map", True, True))
            self.assertEqual(done["root_digest"], seed.root_digest())


class Addresses(hosts.Case):
    def test_an_ipv4_wildcard_stands_for_the_host_that_was_dialled(self):
        a, b = self.hosts("a", "b")
        model = self.model()
        with self.seed_on(a, "--model-path", model, bind="0.0.0.0") as seed:
            done = self.rfork_json_on(b, "fork", seed.url, "-o", self.path("copy"))
            self.assertEqual(done["transport"], "tcp")
            self.assert_same_files(model, self.path("copy"))
            endpoints = self.rfork_json_on(b, "inspect", seed.url)["endpoints"]
            address = next(e["address"] for e in endpoints if e["transport"] == "tcp")
            self.assertTrue(address.startswith(f"{a.address}:"), address)
            self.assertIn(a.address, self.rfork_ok_on(b, "inspect", seed.url).stdout)
            # The seed's own host may dial another of its addresses.
            done = self.rfork_json_on(a, "fork", f"http://127.0.0.1:{seed.port}", "--transport", "tcp")
            self.assertTrue(done["verified"])

    def test_an_ipv6_wildcard_stands_for_either_address(self):
        a, b = self.hosts("a", "b")
        if not b.has_ipv6():
            self.skipTest("no IPv6 here")
        model = self.model()
        with self.seed_on(a, "--model-path", model, bind="::") as seed:
            for name, url in (("v4", seed.url), ("v6", seed.url6)):
                with self.subTest(name):
                    done = self.rfork_json_on(b, "fork", url, "-o", self.path(name), "--transport", "tcp")
                    self.assertTrue(done["verified"])
                    self.assert_same_files(model, self.path(name))
            endpoints = self.rfork_json_on(b, "inspect", seed.url6)["endpoints"]
            address = next(e["address"] for e in endpoints if e["transport"] == "tcp")
            self.assertTrue(address.startswith(f"[{a.address6}]:"), address)

    def test_an_ipv6_address_alone(self):
        a, b = self.hosts("a", "b")
        if not b.has_ipv6():
            self.skipTest("no IPv6 here")
        with self.seed_on(a, "--model-path", self.model(), bind=a.address6) as seed:
            self.assertEqual(seed.own_url, seed.url6)
            done = self.rfork_json_on(b, "fork", seed.url6)
            self.assertEqual((done["transport"], done["verified"]), ("tcp", True))
            self.rfork_fails_on(b, util.UNREACHABLE, "fork", seed.url)

    def test_a_wildcard_instance_forks_from_another(self):
        a, b = self.hosts("a", "b")
        with self.seed_on(a, "--model-path", self.model(), bind="0.0.0.0") as seed:
            with self.seed_on(b, "--from", seed.url, bind="0.0.0.0") as fork:
                self.assertEqual((fork.fields["source"], fork.fields["transport"]), (seed.url, "tcp"))
                self.assertEqual(fork.root_digest(), seed.root_digest())
                self.assertEqual(self.rfork_json_on(a, "fork", fork.url)["transport"], "tcp")


class Unreachable(hosts.Case):
    def ends(self, codes, seconds, *arguments):
        """The fork ends with one of these codes, and within this time; returns its line."""
        begin = time.monotonic()
        process = self.start_on(*arguments)
        self.assertIn(process.wait(seconds + 20), codes, process.stderr)
        self.assertLess(time.monotonic() - begin, (seconds + 5) * util.SLOW, process.stderr)
        self.assertRegex(process.stderr, r"^rfork: .*\n$")
        return process.stderr

    def test_a_seed_on_its_loopback(self):
        a, b = self.hosts("a", "b")
        with self.seed_on(a, "--model-path", self.model(), bind="127.0.0.1") as seed:
            self.rfork_ok_on(a, "fork", seed.own_url)
            for url in (seed.url, seed.own_url):
                line = self.ends([util.UNREACHABLE], 0, b, "fork", url, "-o", self.path("copy"))
                self.assertIn(url, line)
            self.rfork_fails_on(b, util.UNREACHABLE, "doctor", seed.url)
            self.rfork_fails_on(b, util.UNREACHABLE, "serve", "--port", "0", "--from", seed.url)
            self.assert_nothing_left(self.path("copy"))

    def test_an_address_that_nobody_has(self):
        (b,) = self.hosts("b")
        self.ends([util.UNREACHABLE, util.TIMEOUT], 1, b, "fork", "http://10.213.99.99:30000", "--timeout", "1s")

    def test_a_network_without_a_way_there(self):
        (b,) = self.hosts("b")
        self.ends([util.UNREACHABLE], 0, b, "fork", "http://192.0.2.1:30000")

    def swallow(self, host, port):
        """What this port of a host answers never arrives."""
        try:
            host.ip(f"rule add priority 100 ipproto tcp sport {port} blackhole")
        except subprocess.CalledProcessError as error:
            self.skipTest(f"no rules about ports here: {error.stderr.strip()}")

    def test_a_firewall_that_swallows_the_data_port(self):
        a, b = self.hosts("a", "b")
        with self.seed_on(a, "--model-path", self.model(), "--data-port", 30001) as seed:
            self.swallow(a, 30001)
            line = self.ends([util.TIMEOUT], 1, b, "fork", seed.url, "-o", self.path("copy"), "--timeout", "1s",
                             "--retries", "0")
            self.assertRegex(line, rf"{a.address}:30001: connecting took longer than 1000 ms")
            self.assert_nothing_left(self.path("copy"))
            util.wait_until(lambda: seed.metrics()["rfork_leases"] == 0, 10, "no lease left")

    def test_it_is_a_timeout_also_when_the_kernel_notices_first(self):
        a, b = self.hosts("a", "b")
        with self.seed_on(a, "--model-path", self.model(), "--data-port", 30001) as seed:
            self.swallow(a, 30001)
            reader = self.start_on(b, "fork", seed.url, "--timeout", "1s", "--retries", "0")

            def connecting(): # a socket of b towards port 30001 in SYN_SENT
                return re.search(r":7531 02 ", Path(f"/proc/{reader.pid}/net/tcp").read_text())

            util.wait_until(connecting, 20, "the reader connecting", pause=0.001)
            reader.send(signal.SIGSTOP)
            util.wait_until(lambda: not connecting(), 20, "the kernel giving up")
            reader.send(signal.SIGCONT)
            self.assertEqual(reader.wait(20), util.TIMEOUT, reader.stderr)
            self.assertRegex(reader.stderr, rf"{a.address}:30001: connecting took longer than 1000 ms")

    def test_a_silent_seed_is_not_waited_for_when_there_are_files(self):
        a, b = self.hosts("a", "b")
        model = self.model()
        with self.seed_on(a, "--model-path", model) as seed:
            a.cut()
            with self.seed_on(b, "--from", seed.url, "--timeout", "500ms", "--model-path", model) as other:
                self.assertEqual(other.fields["source"], "disk")
                self.assertRegex(other.stderr, rf"no weights from the seed \(.*{a.address}")


if __name__ == "__main__":
    unittest.main()
