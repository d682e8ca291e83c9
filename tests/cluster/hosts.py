"""Hosts for the tests in this folder: network namespaces at one switch, made by the test, and seeds and forks in them.

A namespace here has no name: a descriptor of the test holds it, so that it is gone when the test is, however it ends.
The interfaces, addresses and routes of the machine itself are not touched.

    class Two(hosts.Case):
        def test_something(self):
            a, b = self.hosts("a", "b")
            seed = self.seed_on(a, "--model-path", self.model())     # seed.url is what b can reach
            done = self.rfork_ok_on(b, "fork", seed.url)
            b.cut()                                                   # b's cable is pulled out
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))
import util  # noqa: E402

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
FAULT_SLOW = "fault:7,kind=delay:tcp" # some milliseconds more for each piece


def _checked(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _own_namespace():
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def require():
    """For setUpModule(): skips where hosts cannot be made."""
    if os.geteuid() != 0:
        raise unittest.SkipTest("network namespaces need root")
    try:
        network = Network()
        try:
            network.host("a")
        finally:
            network.close()
    except (OSError, subprocess.CalledProcessError) as error:
        raise unittest.SkipTest(f"no network namespaces here: {error}") from None


class Namespace:
    def __init__(self):
        before = _own_namespace()
        try:
            _checked(LIBC.unshare(CLONE_NEWNET))
            self.fd = _own_namespace()
            _checked(LIBC.setns(before, CLONE_NEWNET))
        finally:
            os.close(before)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.ip("link set lo up")

    def close(self):
        os.close(self.fd)

    @contextlib.contextmanager
    def inside(self):
        """Sockets made and processes started meanwhile are this host's."""
        before = _own_namespace()
        try:
            _checked(LIBC.setns(self.fd, CLONE_NEWNET))
            try:
                yield self
            finally:
                _checked(LIBC.setns(before, CLONE_NEWNET))
        finally:
            os.close(before)

    def _batch(self, program, lines):
        with self.inside():
            subprocess.run([program, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True,
                           capture_output=True)

    def ip(self, *lines):
        """Runs lines of ip(8) in it."""
        self._batch("ip", lines)

    def tc(self, *lines):
        self._batch("tc", lines)


class Host(Namespace):
    """One of several at a switch: eth0 with .address and, with IPv6, .address6."""

    def __init__(self, network, number):
        super().__init__()
        self.network = network
        self.number = number
        self.port = f"port{number}"
        self.address = f"10.213.{number}.1"
        self.address6 = f"fd00:213::{number}"
        try:
            self.ip(f"link add eth0 type veth peer name {self.port} netns {network.switch.path}",
                    f"address add {self.address}/16 dev eth0", "link set eth0 up")
            network.switch.ip(f"link set {self.port} master br0", f"link set {self.port} up")
        except BaseException:
            self.close()
            raise
        with contextlib.suppress(subprocess.CalledProcessError): # a kernel without IPv6
            self.ip(f"address add {self.address6}/64 dev eth0 nodad")

    def has_ipv6(self):
        with self.inside():
            return self.address6 in subprocess.run(["ip", "-6", "address"], capture_output=True, text=True).stdout

    def cut(self):
        """Pulls the cable out, at the switch: nobody is told."""
        self.network.switch.ip(f"link set {self.port} down")

    def mend(self):
        self.network.switch.ip(f"link set {self.port} up")

    def limit(self, rate):
        """What goes towards this host goes at `rate` ("50mbps": megabytes per second)."""
        self.network.switch.tc(f"qdisc replace dev {self.port} root tbf rate {rate} burst 256kb latency 50ms")


class Network:
    """A switch and the hosts at it."""

    def __init__(self):
        self.hosts = []
        self.switch = Namespace()
        try:
            self.switch.ip("link add br0 type bridge mcast_snooping 0", "link set br0 up")
        except BaseException:
            self.switch.close()
            raise

    def host(self, name):
        host = Host(self, len(self.hosts) + 1)
        host.name = name
        self.hosts.append(host)
        return host

    def close(self):
        for namespace in (*self.hosts, self.switch):
            namespace.close()


class HostSeed(util.Seed):
    """A seed on a host: .url is the one that other hosts use, and what the test asks it asks on its own host."""

    def __init__(self, host, folder, *arguments, bind=None, **more):
        self.host = host
        with host.inside():
            super().__init__(folder, "--host", bind or host.address, *arguments, **more)
        self.own_url = self.url
        self.port = int(self.url.rsplit(":", 1)[1])
        self.url = f"http://{host.address}:{self.port}"
        self.url6 = f"http://[{host.address6}]:{self.port}"

    def get(self, path, **more):
        with self.host.inside():
            return util.http_get(self.url if self.own_url.startswith("http://0.0.0.0:") else self.own_url, path, **more)

    def connections(self):
        return self.metrics()["rfork_connections"]

    def sent_bytes(self):
        return self.metrics()['rfork_sent_bytes_total{transport="tcp"}']


class Case(util.Case):
    def hosts(self, *names):
        """Makes a network with these hosts; removed when the test ends, after its processes."""
        self.network = Network()
        self.addCleanup(self.network.close)
        return [self.network.host(name) for name in names]

    def seed_on(self, host, *arguments, **more):
        seed = HostSeed(host, self.folder, *arguments, **more)
        self.addCleanup(util.Process.__exit__, seed, None, None, None)
        return seed

    def start_on(self, host, *arguments, **more):
        with host.inside():
            return self.start(*arguments, **more)

    def rfork_on(self, host, *arguments, **more):
        with host.inside():
            return self.rfork(*arguments, **more)

    def rfork_ok_on(self, host, *arguments, **more):
        with host.inside():
            return self.rfork_ok(*arguments, **more)

    def rfork_json_on(self, host, *arguments, **more):
        return json.loads(self.rfork_ok_on(host, *arguments, "--json", **more).stdout)

    def rfork_fails_on(self, host, code, *arguments, **more):
        with host.inside():
            return self.rfork_fails(code, *arguments, **more)

    def finished(self, process, seconds=60):
        """What a background `rfork ... --json` printed; it must have succeeded."""
        self.assertEqual(process.wait(seconds), util.OK, process.stderr)
        return json.loads(process.stdout)
