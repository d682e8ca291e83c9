#!/usr/bin/env python3
"""What goes wrong on the command line or in a file ends with one clear line and a documented code; and what --help, the
man pages and the parser say is the same.
"""

import json
import os
import re
import select
import socket
import struct
import subprocess
import unittest
from pathlib import Path

import util
from util import Tensor

COMMANDS = ["serve", "fork", "inspect", "diff", "verify", "bench", "doctor"]


def options_of_help(text):
    """{"--model-path", "--no-direct", ...} of what --help prints."""
    found = set()
    for switch, name in re.findall(r"^  (?:-\w, |    )--(\[no-\])?([a-z0-9-]+)", text, re.M):
        found.add("--" + name)
        if switch:
            found.add("--no-" + name)
    return found


def options_of_man(text):
    found = set()
    for line in re.findall(r"^\.It Fl (.*)$", text, re.M):
        found |= {"--" + name for name in re.findall(r"(?:^|Fl )-([a-z0-9-]+)", line)}
    return found


class Documentation(util.Case):
    def help(self, command):
        return self.rfork_ok(command, "--help").stdout

    def man(self, page):
        path = util.SOURCE / "docs/man" / f"{page}.1"
        self.assertTrue(path.exists(), path)
        return path.read_text()

    def test_help_and_man_pages_have_the_same_options(self):
        for command in COMMANDS:
            with self.subTest(command):
                self.assertEqual(options_of_help(self.help(command)), options_of_man(self.man(f"rfork-{command}")))

    def test_defaults_and_variables_are_in_the_man_pages(self):
        for command in COMMANDS:
            with self.subTest(command):
                page, text = self.man(f"rfork-{command}"), " ".join(self.help(command).split())
                for value in re.findall(r"Default: (\S+)\.(?: |$)", text):
                    if value not in ("on", "off"):
                        self.assertIn(value.split("/")[-1], page)
                self.assertEqual(set(re.findall(r"Environment: (\w+)\.", text)), set(re.findall(r"^\.It Ev (\w+)", page, re.M)))

    def test_help_fits_a_terminal_and_is_complete(self):
        for command in COMMANDS:
            with self.subTest(command):
                text = self.help(command)
                self.assertTrue(all(len(line) <= 80 for line in text.splitlines()), text)
                self.assertTrue(text.startswith(f"usage: rfork {command} "))
                self.assertIn("\nExamples:\n", text)
                self.assertIn("\nExit codes", text)
                self.assertEqual(text, self.rfork_ok("help", command).stdout)
                self.assertEqual(text, self.rfork_ok(command, "-h").stdout)

    def test_the_front_page(self):
        text = self.rfork_ok("--help").stdout
        self.assertEqual(text, self.rfork_ok("help").stdout)
        for command in COMMANDS:
            self.assertRegex(text, rf"(?m)^  {command} ")
            self.assertIn(f".Xr rfork-{command} 1", self.man("rfork"))
        self.assertTrue(all(len(line) <= 80 for line in text.splitlines()))

    def test_exit_codes_are_those_of_the_man_page(self):
        said = dict(re.findall(r"^ +(\d+)  (.*)$", self.rfork_ok("help", "exit-codes").stdout, re.M))
        page = self.man("rfork")
        status = page[page.index(".Sh EXIT STATUS") : page.index(".Sh EXAMPLES")]
        self.assertEqual(set(re.findall(r"^\.It (\d+)$", status, re.M)), set(said))
        header = (util.SOURCE / "include/rfork/base.h").read_text()
        header = header[header.index("enum rf_code {") :]
        codes = {number for number in re.findall(r"RF_\w+ = (\d+),", header[: header.index("};")]) if number != "100"}
        self.assertEqual(codes, set(said))

    def test_version(self):
        text = self.rfork_ok("version").stdout
        self.assertRegex(text, r"^rfork \d+\.\d+\.\d+\n$")
        self.assertEqual(text, self.rfork_ok("--version").stdout)


class CommandLine(util.Case):
    def usage(self, *arguments, says, **more):
        line = self.rfork_fails(util.INVAL, *arguments, says=says, **more)
        return line

    def test_no_command(self):
        done = self.rfork()
        self.assertEqual((done.returncode, done.stdout), (util.INVAL, ""))
        self.assertIn("usage: rfork", done.stderr)

    def test_unknown_commands_and_options_name_the_nearest(self):
        self.usage("frok", says="no such command: frok; did you mean fork")
        self.usage("insepct", says="did you mean inspect")
        self.usage("xyzzy", says="no such command: xyzzy$")
        self.usage("--port", says="the command comes first")
        self.usage("serve", "--modle-path", "x", says="--modle-path; did you mean --model-path")
        self.usage("serve", "--model_path", "x", says="did you mean --model-path")
        self.usage("fork", "--out=x", "u", says="did you mean --output")
        self.usage("fork", "--xyzzy", says="no such option: --xyzzy$")
        self.usage("fork", "-x", says="no such option: -x")
        self.usage("help", "frok", says="did you mean fork")

    def test_our_own_names_cannot_be_shortened(self):
        self.usage("serve", "--drain", "x", says="no such option: --drain; did you mean --drain-timeout")
        self.usage("fork", "--conn", "1", "u", says="no such option: --conn; did you mean --connections")

    def test_values(self):
        self.usage("serve", "--model-path", says="--model-path needs a value")
        self.usage("serve", "--model-path", "--mmap", says="--model-path needs a value")
        self.usage("serve", "--model-path=", says="--model-path: the value is empty")
        self.usage("serve", "--mmap=yes", says="--mmap takes no value")
        self.usage("serve", "--no-mmap", says="no such option: --no-mmap; did you mean --mmap")
        for bad in ("-1", "65536", "99999999999999999999999", "8o80", "0x50", " 80", "3e4"):
            self.usage("serve", f"--port={bad}", says="serve: --port: ")
        for bad in ("10", "s", "10 s", "-1s", "1e3s", "10sec", "9999999999s", "1.s", ".5s", "1..5s"):
            self.usage("fork", f"--timeout={bad}", "u", says="--timeout: .*not a duration: write .*10s")
        self.usage("fork", "--timeout=0", "u", says="--timeout: 0 leaves no time")
        for bad in ("1KB", "65MiB", "100000", "8 Mib b", "x", "-8MiB"):
            self.usage("serve", "--model-path=x", f"--chunk-size={bad}", says="--chunk-size: ")
        self.usage("serve", "--digest", "md5", says='"md5" is none of xxh3-128.sha256')
        self.usage("serve", "--load-format", "auto|safetensors", says="is none of")
        self.usage("serve", "--load-format", "aut", says="is none of")
        self.usage("fork", "--transport", "tpc", "u", says="--transport: .*tcp")
        self.usage("fork", "--connections", "0", "u", says="--connections: 0 is not in 1 ... 64")
        self.usage("fork", "u", env={"RFORK_CONNECTIONS": "many"}, says='the variable RFORK_CONNECTIONS: "many"')

    def test_good_values_are_understood(self):
        url = f"http://127.0.0.1:{util.free_port()}"
        for good in ("500ms", "1s", "0.5s", "1min", "1.5min", "1h"):
            self.rfork_fails(util.UNREACHABLE, "fork", url, f"--timeout={good}")
            self.rfork_fails(util.UNREACHABLE, "fork", "--timeout", good, "--", url)

    def test_the_last_one_counts(self):
        url = f"http://127.0.0.1:{util.free_port()}"
        self.rfork_fails(util.UNREACHABLE, "fork", "--transport", "map", url, "--transport=tcp")

    def test_operands(self):
        self.usage("fork", says="an argument is missing: rfork fork URL")
        self.usage("inspect", "a", "b", says='one argument too many: "b"')
        self.usage("diff", "a", says="another argument is missing: rfork diff A B")
        self.usage("serve", "model", says='one argument too many: "model"')
        self.usage("version", "now", says="takes no arguments")

    def test_what_contradicts_itself(self):
        self.usage("serve", says="nothing to serve: give --model-path DIR, or --from")
        self.usage("serve", "--load-format", "remote_instance", says="nothing to serve: the seed's ip and service port are missing")
        self.usage("serve", "--load-format", "safetensors", "--from", "http://h:1", says="drop one")
        self.usage("serve", "--load-format", "safetensors", says="needs --model-path")
        self.usage("serve", "--mmap", "--from", "http://h:1", says="--mmap is about files")
        self.usage("serve", "--remote-instance-weight-loader-seed-instance-ip", "h", says="the second is missing")
        self.usage("serve", "--remote-instance-weight-loader-seed-instance-service-port", "1", says="the first is missing")
        self.usage("serve", "--remote-instance-weight-loader-seed-instance-ip", "h",
                   "--remote-instance-weight-loader-seed-instance-service-port", "1", "--from", "http://h:2", says="twice")
        self.usage("serve", "--from", "http://h:1", "--model-name", "m", says="a fork has its seed's name")
        self.usage("fork", "--verify", "--no-verify", "u", says="contradict")
        self.usage("fork", "--copy", "-o", "x", "u", says="--copy is about weights in memory")
        self.usage("fork", "--no-sync", "u", says="--no-sync is about the files")

    def test_a_letter_with_an_equals_sign(self):
        """Otherwise the folder would be called "=DIR"."""
        self.usage("fork", "-o=copy", "u", says='-o=copy: write -o copy or --output=copy')

    def test_urls(self):
        for url in ("https://127.0.0.1:1", "http://", "http://127.0.0.1:99999", "ftp://127.0.0.1:1", "http://127.0.0.1:1/path",
                    "http://user@127.0.0.1:1", "127.0.0.1"):
            self.rfork_fails(util.INVAL, "fork", url)

    def test_garbage_cannot_hurt_the_terminal(self):
        done = self.rfork("serve", "--\x1b[2Jmodel\n\x07")
        self.assertEqual(done.returncode, util.INVAL)
        self.assertNotRegex(done.stderr.rstrip("\n").replace("\n", "", 1), r"[\x00-\x1f]")
        self.rfork_fails(util.INVAL, "fork", "x" * 100000)
        self.rfork_fails(util.INVAL, "fork", "--" + "x" * 100000)
        self.rfork_fails(util.INVAL, "serve", "--model-path=" + "x" * 1000, "--" + "y" * 5000)

    def test_names_cannot_hurt_the_terminal(self):
        """Neither what a path is called nor what a model's author called a tensor."""
        evil = "a\x1b[31m\n\x9b2J"
        tensors = {evil + name: Tensor("F32", [1 + i]) for i, name in enumerate("xy")}
        one = self.model("one" + evil, tensors)
        other = self.model("other" + evil, {evil + "x": Tensor("F32", [7])})
        for command in (["verify", one], ["inspect", one], ["inspect", "--tensors", one], ["inspect", "--digest", one],
                        ["diff", one, other], ["diff", "--names-only", one, other], ["verify", one + "no"]):
            done = self.rfork(*command)
            for text in (done.stdout, done.stderr):
                self.assertNotRegex(text, r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", command)
            self.assertTrue(done.stdout or done.returncode == util.SYS)
        self.assertEqual(self.rfork("diff", "--names-only", one, other).stdout.count("\n"), 2)
        # For programs it is as it is.
        self.assertEqual({tensor["name"] for tensor in self.rfork_json("inspect", "--tensors", one)["manifest"]["ranks"][0]["tensors"]},
                         set(tensors))

    def test_a_ready_line_that_cannot_be_written_ends_it(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        for more in ([], ["--json"]):
            with open("/dev/full", "w") as full:
                seed = self.start("serve", "--port", "0", "--model-path", self.model(), *more, stdout=full)
            self.assertEqual(seed.wait(), util.SYS)
            self.assertRegex(seed.stderr.splitlines()[-1], "^rfork: the ready line could not be written: stdout: .*No space")

    def test_a_full_stdout_is_an_error(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        with open("/dev/full", "w") as full:
            done = subprocess.run([util.RFORK, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, util.SYS, done.stderr)
        self.assertRegex(done.stderr, "^rfork: stdout: what was printed is not complete: No space left")

    def test_a_reader_of_stdout_that_leaves_is_none(self):
        model = self.model(tensors={f"layer.{i:05}.bias": Tensor("F32", [1]) for i in range(20000)})
        command = [util.RFORK, "inspect", "--tensors", model]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            self.assertTrue(process.stdout.readline().startswith("model "))
            process.stdout.close()
            self.assertEqual(process.wait(20), util.OK)
            self.assertEqual(process.stderr.read(), "")


class Models(util.Case):
    """Folders and files that are no model."""

    def refused(self, code, path, says, command=("serve", "--port", "0", "--model-path")):
        line = self.rfork_fails(code, *command, path, says=says)
        self.rfork_fails(code, "inspect", path, says=says)
        return line

    def file(self, data, name="model.safetensors"):
        path = self.folder / name
        path.write_bytes(data)
        return path

    def header(self, entries, data=b""):
        text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text + data

    def test_nothing_there(self):
        self.refused(util.SYS, self.path("absent"), "absent.*No such file")

    def test_an_empty_folder(self):
        os.mkdir(self.path("empty"))
        self.refused(util.FORMAT, self.path("empty"), "empty")

    def test_files_that_are_no_safetensors(self):
        for name, data, says in (
            ("empty", b"", "0 bytes|empty|too short"),
            ("short", b"\x10\x00", "2 bytes|too short"),
            ("text", b"this is no safetensors file at all", "header"),
            ("huge-header", struct.pack("<Q", 1 << 60) + b"{}", "header"),
            ("truncated", util.safetensors_bytes(util.random_tensors())[:-1], "truncated.safetensors"),
            ("trailing", util.safetensors_bytes(util.random_tensors()) + b"x", "trailing.safetensors"),
            ("overlap", self.header({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                                     "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"xxx"), "[ab]"),
            ("dtype", self.header({"a": {"dtype": "Q8", "shape": [2], "data_offsets": [0, 2]}}, b"xx"), "a.*Q8|Q8"),
            ("shape", self.header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2]}}, b"xx"), "a"),
            ("twice", self.header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                                  b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"xx"), "a"),
            ("utf8", self.header(b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "utf8.safetensors"),
            ("deep", self.header(b'{"__metadata__":' + b"[" * 100000 + b"]" * 100000 + b"}"), "deep.safetensors"),
            ("escape", self.header(b'{"\\u001b[2J":{"dtype":"Q","shape":[1],"data_offsets":[0,1]}}', b"x"), "escape"),
        ):
            with self.subTest(name):
                self.refused(util.FORMAT, self.file(data, f"{name}.safetensors"), says)

    def test_a_missing_shard(self):
        model = Path(self.model(shards=3))
        os.remove(model / "model-00002-of-00003.safetensors")
        self.refused(util.FORMAT, model, "model-00002-of-00003.safetensors")

    def test_tied_tensors_that_are_not_there(self):
        tensors = {"a": Tensor("F32", [4]), "b": Tensor("F32", [4])}
        for name, target, says in (("c", "x", "c is tensor x, which it does not have"), ("c", "c", "does not have"),
                                   ("b", "a", "b is tensor a, and has both"), ("c\0d", "a", "no tensor may have"),
                                   ("n" * 5000, "a", "no tensor may have")):
            model = self.model("tied" + target + name[:2].replace("\0", ""), tensors,
                               metadata={"rfork.alias." + name: target})
            self.refused(util.FORMAT, model, says)

    def test_an_index_that_lies(self):
        model = Path(self.model(shards=2))
        path = model / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        name = "model.norm.weight"
        index["weight_map"][name] = "model-00001-of-00002.safetensors"
        path.write_text(json.dumps(index))
        self.refused(util.FORMAT, model, name)
        for evil in ("../../etc/passwd", "/etc/passwd", ".."):
            index["weight_map"][name] = evil
            path.write_text(json.dumps(index))
            self.refused(util.FORMAT, model, "index.json|passwd")

    def test_it_ends_and_does_not_listen_on(self):
        port = util.free_port()
        self.rfork_fails(util.SYS, "serve", "--port", port, "--model-path", self.path("absent"))
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))


class Ports(util.Case):
    def test_a_port_that_is_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
            self.rfork_fails(util.SYS, "serve", "--port", port, "--model-path", self.model(),
                             says=rf"port {port} on 127.0.0.1 is taken: pass --port 0")

    def test_a_data_port_that_is_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
            self.rfork_fails(util.SYS, "serve", "--port", "0", "--model-path", self.model(), "--data-port", port,
                             says=rf"tcp: .*{port}")

    def test_a_socket_path_that_cannot_be(self):
        self.rfork_fails(util.SYS, "serve", "--port", "0", "--model-path", self.model(), "--socket", "/nonexistent/x",
                         says="map: .*nonexistent")

    def test_an_address_that_is_not_ours(self):
        self.rfork_fails(util.SYS, "serve", "--host", "192.0.2.1", "--port", "0", "--model-path", self.model(), says="192.0.2.1")

    def test_a_star_is_no_address(self):
        self.rfork_fails(util.INVAL, "serve", "--host", "*", "--port", "0", "--model-path", self.model(), says="give 0.0.0.0")

    def test_a_name_that_does_not_exist(self):
        done = self.rfork("serve", "--host", "no-such-host.invalid", "--port", "0", "--model-path", self.model())
        self.assertIn(done.returncode, (util.INVAL, util.SYS), done.stderr)
        self.assertIn("no-such-host.invalid", done.stderr)


class Peers(util.Case):
    """What answers is no seed."""

    def test_another_server(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
            for answer in (b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.0 200 OK\r\n\r\n<html></html>", b"HTTP/1.0 404 Not Found\r\n\r\n",
                           b"\x00" * 1000, b""):
                with self.subTest(answer[:20]):
                    reader = self.start("fork", f"http://127.0.0.1:{port}", "--timeout", "5s")
                    while reader.running():  # it may ask in more than one way
                        if select.select([sock], [], [], 0.05)[0]:
                            peer, _ = sock.accept()
                            peer.recv(4096)
                            peer.sendall(answer)
                            peer.close()
                    self.assertIn(reader.wait(20), (util.UNREACHABLE, util.PROTO), reader.stderr)
                    self.assertRegex(reader.stderr, rf"^rfork: .*{port}.*\n$")

    def test_a_silent_one(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            self.rfork_fails(util.TIMEOUT, "fork", url, "--timeout", "300ms", says=r"300 ms|0\.3 s")

    def test_the_data_port_is_no_control_port(self):
        with self.seed("--model-path", self.model()) as seed:
            address = next(e["address"] for e in seed.instance()["endpoints"] if e["transport"] == "tcp")
            done = self.rfork("fork", f"http://{address}", "--timeout", "5s")
            self.assertIn(done.returncode, (util.UNREACHABLE, util.PROTO), done.stderr)


if __name__ == "__main__":
    unittest.main()
