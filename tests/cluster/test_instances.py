#!/usr/bin/env python3
"""Several hosts: instances that fork from each other, and many that fork from one."""

import unittest

import hosts
import util


def setUpModule():
    hosts.require()


class Chain(hosts.Case):
    def test_a_chain_over_three_hosts_is_one_model_also_without_its_first(self):
        a, b, c = self.hosts("a", "b", "c")
        model = self.model(shards=2, tensors=util.big_tensors(24 << 20), side_files={"vocab.txt": b"a\nb\n"})
        first = self.seed_on(a, "--model-path", model)
        root = first.root_digest()
        second = self.seed_on(b, "--from", first.url)
        self.assertEqual((second.fields["source"], second.fields["transport"]), (first.url, "tcp"))
        first.kill()
        third = self.seed_on(c, "--from", second.url)
        self.assertEqual((third.fields["source"], third.fields["transport"]), (second.url, "tcp"))
        self.assertEqual(third.root_digest(), root)
        self.assertEqual(second.root_digest(), root)
        self.rfork_ok_on(a, "fork", third.url, "-o", self.path("copy"))
        self.assert_same_files(model, self.path("copy"))
        self.rfork_ok_on(a, "verify", third.url, "--against", root)
        for seed in (second, third):
            self.assertEqual(seed.stop(), util.OK, seed.stderr)

    def test_its_second_link_starts_while_the_first_is_not_ready(self):
        a, b, c = self.hosts("a", "b", "c")
        b.limit("10mbps")
        model = self.model(tensors=util.big_tensors(16 << 20))
        with self.seed_on(a, "--model-path", model) as first:
            second = self.seed_on(b, "--from", first.url, ready=False)
            third = self.seed_on(c, "--from", second.url, "--wait-ready", "60s", ready=False)
            second.wait_ready(60)
            third.wait_ready(60)
            self.assertEqual(third.root_digest(), first.root_digest())


class Crowd(hosts.Case):
    def test_ten_forks_at_a_time_are_all_verified(self):
        a, b, c = self.hosts("a", "b", "c")
        model = self.model(shards=2, tensors=util.big_tensors(16 << 20))
        with self.seed_on(a, "--model-path", model, "--chunk-size", "1MiB") as seed:
            readers = []
            for i in range(10):
                arguments = ["-o", self.path(f"copy-{i}")] if i % 3 == 0 else []
                readers.append(self.start_on((b, c)[i % 2], "fork", seed.url, "--json", *arguments))
            for reader in readers:
                done = self.finished(reader, 120)
                self.assertTrue(done["verified"])
                self.assertEqual(done["root_digest"], seed.root_digest())
            for i in range(0, 10, 3):
                self.assert_same_files(model, self.path(f"copy-{i}"))
            self.assertEqual(seed.sent_bytes(), 10 * int(seed.fields["bytes"]))
            util.wait_until(lambda: seed.connections() == 0, 20, "no connections")
            util.wait_until(lambda: seed.metrics()["rfork_leases"] == 0, 20, "no leases")

    def test_ten_instances_at_a_time_become_seeds(self):
        a, b = self.hosts("a", "b")
        with self.seed_on(a, "--model-path", self.model()) as seed:
            root = seed.root_digest()
            copies = [self.seed_on(b, "--from", seed.url, ready=False) for _ in range(10)]
            for copy in copies:
                copy.wait_ready(60)
                self.assertEqual(copy.root_digest(), root)
            for copy in copies:
                self.assertEqual(copy.stop(), util.OK, copy.stderr)


if __name__ == "__main__":
    unittest.main()
