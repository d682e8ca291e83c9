#!/usr/bin/env python3
"""SGLang's arguments in `rfork serve`: what they mean, how they are spelt, when they fall back, what is refused and what
is ignored; each wrong value ends with a line that names it.
"""

import json
import re
import shlex
import socket
import unittest
from pathlib import Path

import util

LOADER = "--remote-instance-weight-loader-"
IP, PORT = LOADER + "seed-instance-ip", LOADER + "seed-instance-service-port"
BACKEND, GROUP_PORTS = LOADER + "backend", LOADER + "send-weights-group-ports"
START_SEED = LOADER + "start-seed-via-transfer-engine"

# The node commands of SGLang's document on R-Fork: MODEL is a path, node-N-addr are hosts.
DOCUMENT = """--model-path MODEL --tp 16 --trust-remote-code  --mem-frac 0.85 --host 0.0.0.0 --port 30000
--dist-init-addr node-0-addr:5000 --nnodes 2 --node-rank RANK --remote-instance-weight-loader-start-seed-via-transfer-engine
--node-hosts '{"0":"node-0-addr","1":"node-1-addr"}' --inter-node-transfer-engine-info-port 15036"""


def low_ports(count):
    """A JSON list of ports below the range that the kernel gives to connections."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return json.dumps(list(range(first - count, first)))


class Case(util.Case):
    def serve(self, *arguments, code, says, last=True, **more):
        """`rfork serve` ends with this code; the last line, or the whole of stderr, says so."""
        done = self.rfork("serve", "--port", "0", *arguments, **more)
        self.assertEqual(done.returncode, code, done.stderr)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("Try 'rfork")]
        self.assertRegex(lines[-1] if last else done.stderr, says)
        return done.stderr

    def usage(self, *arguments, says, **more):
        return self.serve(*arguments, code=util.INVAL, says=says, **more)

    def refused(self, *arguments, says):
        return self.serve(*arguments, code=util.UNSUPPORTED, says="^rfork: not available here: " + says)

    def parsed(self, *arguments, says=None):
        """The command line is good: what it ends with is that its model does not exist."""
        text = self.serve("--model-path", self.path("none"), *arguments, code=util.SYS, says="No such file or directory")
        if says is not None:
            self.assertRegex(text, says)
        return text

    def where(self, url):
        """A seed's URL as SGLang's two arguments."""
        host, port = url.removeprefix("http://").rsplit(":", 1)
        return IP, host, PORT, port


class Spelling(Case):
    def test_other_names_of_ours(self):
        model = self.model()
        with self.seed("--model", model, "--served-model-name", "some/name", "--tp-size", 1, "--ep-size=1") as seed:
            self.assertEqual(seed.instance()["model"], "some/name")
            self.assertNotIn("ignored", seed.stderr)
        for tp in ("--tp", "--tp-size", "--tensor-parallel-size", "--tensor-parallel", "--tp-s"):
            self.usage("--model-path", model, tp, 0, says=f"{tp}: 0 is not in 1")
        for ep in ("--ep", "--ep-size", "--expert-parallel-size", "--expert-p"):
            self.usage("--model-path", model, ep, 0, says=f"{ep}: 0 is not in 1")
        self.usage("--nccl-init-addr", "x", "--model", model, says="--dist-init-addr: ")

    def test_beginnings_of_sglang_s_names(self):
        self.parsed("--mem-frac", 0.85, says="ignored.*: --mem-fraction-static\n")
        self.parsed("--mem-frac=0.85", says="--mem-fraction-static\n")
        self.parsed("--trust-rem", says="--trust-remote-code\n")
        self.usage("--remote-instance-weight-loader-seed-instance-s=0", says="0 is not in 1 ... 65535")
        self.usage("--nnod", "x", says='--nnod: "x" is not a whole number')

    def test_levels_of_the_log_as_python_has_them(self):
        for level in ("critical", "error", "warning", "info", "debug"):
            self.parsed("--log-level", level)
        self.usage("--log-level", "warnin", says="is none of error")

    def test_a_beginning_of_several_is_ambiguous(self):
        self.usage("--remote-instance-weight-loader-s=1",
                   says=f"may be the beginning of more than one: .*{START_SEED}")
        self.usage("--pp", 2, says="--pp may be the beginning of more than one: .*--pp-max-micro-batch-size.*--pp-size")
        self.usage("--", says="nothing to serve")
        self.usage("--=1", says="more than one")

    def test_a_whole_name_is_not_ambiguous(self):
        self.parsed("--log-requests", says="ignored.*: --log-requests\n")
        self.parsed("--speculative-draft-model-path", "x", says="--speculative-draft-model-path is not honoured")
        self.parsed("--speculative-draft-model", "x", says="--speculative-draft-model is not honoured")

    def test_our_own_names_are_not_shortened(self):
        self.usage("--drain", "1s", says="no such option: --drain; did you mean --drain-timeout")
        self.usage("--chunk-s", "1MiB", says="no such option: --chunk-s; did you mean --chunk-size")

    def test_unknown_names_are_errors(self):
        self.usage("--trust-remote-cod", "--trst-remote-code", says="--trst-remote-code; did you mean --trust-remote-code")
        self.usage("--mem_fraction_static", "1", says="did you mean --mem-fraction-static")
        self.usage("--xyzzy-plugh", says="no such option: --xyzzy-plugh$")
        self.rfork_fails(util.INVAL, "fork", "--trust-remote-code", "u", says="no such option: --trust-remote-code")


class Ignored(Case):
    def test_they_are_named_in_one_line(self):
        text = self.parsed("--trust-remote-code", "--mem-fraction-static", "0.8", "--context-length=4096",
                           "--attention-backend", "triton", "--trust-remote-code")
        line = "rfork: ignored, as without bearing on weights: --trust-remote-code, --mem-fraction-static, " \
               "--context-length, --attention-backend"
        self.assertIn(line + "\n", text)
        self.assertEqual(text.count("ignored"), 1)

    def test_each_takes_as_many_values_as_in_sglang(self):
        # Were one word too many left, it would be an operand, and there are none.
        self.parsed("--cuda-graph-bs", 1, 2, 4, "--trust-remote-code", "--numa-node", "-1", "0")
        self.parsed("--lora-target-modules", "--allowed-media-domains", "a", "b")
        self.parsed("--model-checksum", "--enable-metrics", "--model-checksum", "sums.json")
        self.parsed("--random-seed", "-1", "--schedule-conservativeness", "-.5")
        self.parsed("--enable-tf32-matmul", "--no-enable-tf32-matmul")
        self.parsed("--completion-template", "")
        self.usage("--trust-remote-code", "yes", says='one argument too many: "yes"')
        self.usage("--model-checksum", "a", "b", says='one argument too many: "b"')
        self.usage("--cuda-graph-bs=1", "2", says='one argument too many: "2"')
        self.usage("--context-length", 1, 2, says='one argument too many: "2"')

    def test_wrong_numbers_of_values(self):
        self.usage("--mem-fraction-static", says="--mem-fraction-static needs a value")
        self.usage("--mem-frac", "--trust-remote-code", says="--mem-fraction-static needs a value")
        self.usage("--trust-remote-code=yes", says="--trust-remote-code takes no value")

    def test_a_secret_is_not_printed(self):
        for name in ("--ssl-keyfile-password", "--api-key", "--admin-api-key"):
            done = self.rfork("serve", "--model-path", self.path("none"), "--port", "0", name, "s3cr3t")
            self.assertNotIn("s3cr3t", done.stderr)
            self.assertIn(name, done.stderr)

    def test_very_many_of_them(self):
        names = re.findall(r'"([a-z0-9-]+)"', (util.SOURCE / "src/cli/sglang_args.c").read_text().partition("sglang_value_names")[0])
        flags = [f"--{name}" for name in names if not name.startswith("remote-instance")]
        self.assertGreater(len(flags), 150)
        done = self.rfork("serve", "--model-path", self.path("none"), "--port", "0", *flags)
        self.assertEqual(done.returncode, util.UNSUPPORTED, done.stderr)
        done = self.rfork("serve", "--model-path", self.path("none"), "--port", "0",
                          *[flag for flag in flags if flag.startswith("--disable")] * 5,
                          *[flag for flag in flags if flag.startswith("--enable-f") or flag.startswith("--log")])
        self.assertEqual(done.returncode, util.SYS, done.stderr)

    def test_those_that_change_something_are_said(self):
        for arguments, says in (
            (["--revision", "main"], "no hub is asked"),
            (["--dp-size", 2], "all replicas have the same weights"),
            (["--dp", 2], "all replicas have the same weights"),
            (["--speculative-algorithm", "EAGLE"], "draft model"),
            (["--lora-paths", "a", "b"], "adapters are not served"),
            (["--enable-lora"], "adapters are not served"),
            (["--model-checksum"], "rfork verify"),
            (["--delete-ckpt-after-loading"], "files are left"),
            (["--enforce-shared-experts-fusion"], "--layout sglang-shared-fused"),
            (["--fastapi-root-path", "/api"], "begin at /"),
        ):
            with self.subTest(arguments):
                self.parsed(*arguments, says=f"is not honoured: .*{says}")

    def test_those_that_ask_for_nothing_are_not(self):
        text = self.parsed("--pp-size", 1, "--dp-size=1", "--attn-dp-size", 1, "--json-model-override-args", "{}",
                           "--model-impl", "auto", "--init-expert-location", "trivial", "--fastapi-root-path", "",
                           "--model-loader-extra-config", "{}")
        self.assertNotIn("honoured", text)


class Refused(Case):
    def test_what_would_serve_other_weights(self):
        for arguments, says in (
            (["--pp-size", 2], "--pp-size 2: pipeline stages .*--tp"),
            (["--pipeline-parallel-size=2"], "--pipeline-parallel-size 2: "),
            (["--attn-dp-size", 2], "--attn-dp-size 2: "),
            (["--dp-size", 2, "--enable-dp-attention"], "--enable-dp-attention: "),
            (["--moe-dense-tp-size", 1], "--moe-dense-tp-size: "),
            (["--enable-eplb"], "--enable-eplb: .*--ep"),
            (["--ep-num-redundant-experts", 2], "--ep-num-redundant-experts 2: "),
            (["--torchao-config", "int4wo"], "--torchao-config: .*as they are stored"),
            (["--modelopt-quant", "fp8"], "--modelopt-quant: "),
            (["--json-model-override-args", '{"a": 1}'], '--json-model-override-args {"a": 1}: .*config.json'),
            (["--model-impl", "transformers"], "--model-impl transformers: "),
            (["--config", "x.yaml"], "--config: no file of options is read"),
        ):
            with self.subTest(arguments):
                self.refused("--model-path", self.path("none"), *arguments, says=says)

    def test_what_would_be_less_safe_than_asked(self):
        for name in ("--api-key", "--admin-api-key"):
            self.refused(name, "x", says=f"{name}: whoever reaches the port")
        for name in ("--ssl-keyfile", "--ssl-certfile"):
            self.refused(name, "x", says=f"{name}: there is no TLS")

    def test_load_formats(self):
        for name in ("pt", "npcache", "gguf", "dummy", "bitsandbytes", "mistral", "sharded_state", "presharded", "remote",
                     "flash_rl", "expert_pack", "private"):
            self.refused("--model-path", self.path("none"), "--load-format", name, says=f"--load-format {name}: ")
        for name in ("layered", "fastsafetensors", "instanttensor", "runai_streamer"):
            with self.seed("--model-path", self.model(name), "--load-format", name) as seed:
                self.assertIn(f"rfork: --load-format {name} is taken as safetensors", seed.stderr)
        for name in ("ipc_cache", "AUTO", "x"):
            self.usage("--load-format", name, says=f'"{name}" is none of auto')
        self.usage("--load-format", "layered", says="needs --model-path")


class Checkpoint(Case):
    def config(self, **more):
        folder = Path(self.model())
        (folder / "config.json").write_text(json.dumps(more))
        return folder

    def test_the_dtype_must_be_the_checkpoint_s(self):
        for key in ("dtype", "torch_dtype"):
            model = self.config(**{key: "bfloat16"})
            for good in ("auto", "bfloat16"):
                with self.seed("--model-path", model, "--dtype", good) as seed:
                    self.assertNotIn("dtype", seed.stderr)
            for bad in ("half", "float16", "float", "float32"):
                self.refused("--model-path", model, "--dtype", bad, says=f"--dtype {bad}: .* are BF16")
        with self.seed("--model-path", self.config(dtype="float16"), "--dtype", "half"):
            pass
        with self.seed("--model-path", self.config(dtype="float32"), "--dtype", "float"):
            pass
        with self.seed("--model-path", self.config(), "--dtype", "half") as seed:
            self.assertRegex(seed.stderr, "--dtype half is compared with nothing")
        self.usage("--dtype", "int8", says='"int8" is none of auto')

    def test_the_quantisation_must_be_the_checkpoint_s(self):
        for stored, asked in (("fp8", "fp8"), ("awq", "awq"), ("awq", "awq_marlin")):
            with self.seed("--model-path", self.config(quantization_config={"quant_method": stored}), "--quantization", asked):
                pass
        self.refused("--model-path", self.config(quantization_config={"quant_method": "awq"}), "--quantization", "fp8",
                     says="--quantization fp8: that of .* is awq")
        model = self.config(dtype="bfloat16")
        self.refused("--model-path", model, "--quantization", "fp8", says="--quantization fp8: that of .* is none")
        self.refused("--model-path", model, "--quantization", "none_marlin2", says="--quantization none_marlin2")
        with self.seed("--model-path", model, "--quantization", "unquant"):
            pass
        with self.seed("--model-path", model) as seed, self.seed("--from", seed.url, "--quantization", "fp8", "--dtype", "half") as fork:
            self.assertRegex(fork.stderr, "--quantization fp8 is compared with nothing")
            self.assertRegex(fork.stderr, "--dtype half is compared with nothing")

    def test_a_config_that_cannot_be_read(self):
        model = self.config()
        for text in ("", "{", "[]", '{"dtype": 7}', '{"dtype": ["bfloat16"]}'):
            (model / "config.json").write_text(text)
            self.refused("--model-path", model, "--quantization", "fp8", says="--quantization fp8: that of .* is (unknown|none)")

    def test_experts_over_all_ranks(self):
        self.usage("--model-path", "x", "--tp", 8, "--moe-a2a-backend", "deepep", says="deepep .*add --ep 8")
        self.usage("--model-path", "x", "--tp", 8, "--ep", 4, "--moe-a2a-backend", "mooncake", says="add --ep 8")
        self.parsed("--moe-a2a-backend", "deepep")
        self.parsed("--tp", 8, "--moe-a2a-backend", "none")
        self.parsed("--tp", 8, "--ep", 8, "--moe-a2a-backend", "deepep")


class Fallback(Case):
    def test_without_a_seed_remote_instance_is_auto(self):
        model = self.model()
        for given, missing in (
            ([], "the seed's ip and service port are missing"),
            ([IP, "10.0.0.5"], "the seed's service port is missing"),
            ([PORT, 30000], "the seed's ip is missing"),
        ):
            for backend in ("nccl", "transfer_engine"):
                with self.subTest(given=given, backend=backend):
                    arguments = ["--load-format", "remote_instance", BACKEND, backend, *given]
                    with self.seed("--model-path", model, *arguments) as seed:
                        self.assertEqual(seed.fields["source"], "disk")
                        self.assertRegex(seed.stderr, f"remote_instance is taken as auto, as in SGLang: {missing}")
                    self.usage(*arguments, says=f"nothing to serve: {missing}; give --model-path DIR, or --from")

    def test_nccl_without_group_ports_is_auto(self):
        model = self.model()
        with self.seed("--model-path", model) as seed:
            arguments = ["--load-format", "remote_instance", *self.where(seed.url)]
            with self.seed(*arguments) as fork:
                self.assertEqual(fork.fields["source"], seed.url)
                self.assertRegex(fork.stderr, "taken as auto, as in SGLang, for backend nccl has no "
                                              "...-send-weights-group-ports: from the seed by rfork's own transports\n")
        gone = ["--load-format", "remote_instance", *self.where(f"http://127.0.0.1:{util.free_port()}")]
        with self.seed(*gone, "--model-path", model) as fork:
            self.assertEqual(fork.fields["source"], "disk")
            self.assertRegex(fork.stderr, "own transports, else from --model-path\n")
        self.serve(*gone, code=util.UNREACHABLE, says="127.0.0.1")

    def test_nccl_with_group_ports_is_not_available(self):
        for more in ([], ["--model-path", self.model()]):
            self.refused("--load-format", "remote_instance", IP, "10.0.0.5", PORT, 30000, GROUP_PORTS, low_ports(1), *more,
                         says=f"{BACKEND} nccl: drop .*group-ports .*or give .*transfer_engine")
        self.refused("--load-format", "remote_instance", "--from", "http://10.0.0.5:1", GROUP_PORTS, low_ports(1),
                     says=f"{BACKEND} nccl")

    def test_modelexpress_is_not_available(self):
        self.refused("--load-format", "remote_instance", BACKEND, "modelexpress", says=f"{BACKEND} modelexpress: ")
        self.refused("--load-format", "remote_instance", BACKEND, "modelexpress", IP, "10.0.0.5", PORT, 30000,
                     "--model-path", "x", says=f"{BACKEND} modelexpress: ")

    def test_no_other_backend(self):
        for bad in ("NCCL", "mooncake", "nccl|transfer_engine"):
            self.usage(BACKEND, bad, says="is none of nccl.transfer_engine.modelexpress")

    def test_the_memory_saver_excludes_transfer_engine(self):
        model = self.model()
        with self.seed("--model-path", model) as seed:
            for load_format in ("remote_instance", "auto"):
                with self.seed("--load-format", load_format, *self.where(seed.url), BACKEND, "transfer_engine",
                               "--enable-memory-saver", "--transport", "tcp") as fork:
                    self.assertEqual(fork.fields["source"], seed.url)
                    self.assertEqual(fork.fields["transport"], "tcp")
                    self.assertRegex(fork.stderr, "taken as auto, as in SGLang, for --enable-memory-saver excludes")
        with self.seed("--model-path", model, START_SEED, "--enable-memory-saver") as seed:
            self.assertRegex(seed.stderr, f"{START_SEED} is taken back, as in SGLang")

    def test_transfer_engine_is_the_transport_te(self):
        done = self.rfork("fork", "--transport", "te", "http://127.0.0.1:1")
        if done.returncode == util.INVAL:
            self.skipTest(f"this build has no transport te: {done.stderr.splitlines()[0]}")
        where = self.where(f"http://127.0.0.1:{util.free_port()}")
        self.serve("--load-format", "remote_instance", *where, BACKEND, "transfer_engine", code=util.UNREACHABLE, says="127.0.0.1")

    def test_a_seed_at_an_address_of_ipv6(self):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            self.skipTest(f"no IPv6 here: {error}")
        with self.seed("--model-path", self.model(), "--host", "::1", START_SEED, "--engine-info-bootstrap-port",
                       util.free_port()) as seed:
            port = seed.url.rsplit(":", 1)[1]
            for ip in ("::1", "[::1]"):
                with self.seed("--load-format", "remote_instance", IP, ip, PORT, port, BACKEND, "transfer_engine") as fork:
                    self.assertEqual((fork.fields["source"], fork.fields["transport"]), (f"http://[::1]:{port}", "te"))

    def test_a_transport_that_is_given_counts(self):
        with self.seed("--model-path", self.model()) as seed:
            with self.seed("--load-format", "remote_instance", *self.where(seed.url), BACKEND, "transfer_engine",
                           "--transport", "tcp") as fork:
                self.assertEqual(fork.fields["transport"], "tcp")

    def test_an_extra_config_is_none_of_remote_instance(self):
        self.usage("--load-format", "remote_instance", "--model-path", "x", "--model-loader-extra-config", '{"a": 1}',
                   says="--model-loader-extra-config: --load-format remote_instance takes none")
        self.parsed("--model-loader-extra-config", '{"a": 1}', says="ignored.*--model-loader-extra-config")


class Ports(Case):
    def test_a_port_for_each_rank(self):
        self.parsed("--tp", 4, GROUP_PORTS, low_ports(4))
        self.parsed(GROUP_PORTS, low_ports(1))

    def test_wrong_ports_are_named(self):
        for tp, ports, says in (
            (2, "[50000]", "1 port for 2 ranks: one for each is needed"),
            (1, "[]", "0 ports for 1 rank"),
            (2, "[7,7]", "port 7 is in the list twice"),
            (2, "[0,1]", "0 is not in 1 ... 65535"),
            (2, "[1,65536]", "65536 is not in 1 ... 65535"),
            (1, '["50000"]', "no whole number"),
            (1, "[1.5]", "no whole number"),
            (2, "50000,50001", "not a JSON list"),
            (1, "50000", "not a JSON list"),
            (1, "{}", "not a JSON list"),
            (1, "[1", "not a JSON list"),
        ):
            with self.subTest(ports=ports):
                self.usage("--model-path", "x", "--tp", tp, GROUP_PORTS, ports, says=f"{GROUP_PORTS}: .*{re.escape(says)}")
        self.usage(GROUP_PORTS, "", says="the value is empty")

    def test_ports_that_the_kernel_gives_away_are_warned_of(self):
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        for port in (first, last):
            self.parsed(GROUP_PORTS, f"[{port}]", says=f"port {port} is one of {first} ... {last}, which the kernel gives")
        self.assertNotIn("kernel", self.parsed(GROUP_PORTS, f"[{first - 1}]"))

    def test_other_ports(self):
        for name in ("--engine-info-bootstrap-port", "--inter-node-transfer-engine-info-port", PORT):
            for bad in ("0", "65536", "-1", "x", "1.5"):
                self.usage(f"{name}={bad}", says=f"{name}: ")
        self.assertRegex(" ".join(self.rfork_ok("serve", "--help").stdout.split()),
                         r"--engine-info-bootstrap-port PORT [^-]* Default: 6789\.")


class Nodes(Case):
    def document(self, rank, model):
        return shlex.split(DOCUMENT.replace("MODEL", str(model)).replace("RANK", str(rank)))

    def test_the_commands_of_the_document(self):
        # With a model that is not there, and another port at the end: the rest is no business of the command line.
        for rank in (0, 1):
            text = self.serve(*self.document(rank, self.path("none")), "--port", util.free_port(), code=util.SYS,
                              says="No such file or directory")
            self.assertIn("ignored, as without bearing on weights: --trust-remote-code, --mem-fraction-static\n", text)

    def test_each_node_holds_its_ranks(self):
        for node, held in enumerate(("0,1/4", "2,3/4")):
            with self.seed("--model-path", self.llama(), "--tp", 4, "--nnodes", 2, "--node-rank", node,
                           "--dist-init-addr", "127.0.0.1:5000") as seed:
                self.assertEqual(seed.fields["ranks"], held)

    def llama(self):
        """A model whose architecture has a plan."""
        config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
                  "head_dim": 16, "num_hidden_layers": 1, "intermediate_size": 128, "vocab_size": 128,
                  "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
        shapes = {"model.embed_tokens.weight": [128, 64], "lm_head.weight": [128, 64], "model.norm.weight": [64]}
        layer = "model.layers.0."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{layer}self_attn.{name}.weight"] = [64, 64]
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}mlp.{name}.weight"] = [128, 64]
        shapes[layer + "mlp.down_proj.weight"] = [64, 128]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{name}.weight"] = [64]
        folder = Path(self.model("llama", tensors={name: util.Tensor("BF16", shape) for name, shape in shapes.items()}))
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_wrong_combinations(self):
        model = ["--model-path", "x"]
        addr = ["--dist-init-addr", "10.0.0.1:5000"]
        for arguments, says in (
            (["--node-rank", 1], "--node-rank: node 1 does not exist: with --nnodes 1 there is 0 alone"),
            (["--tp", 4, "--nnodes", 2, "--node-rank", 2, *addr], "--node-rank: node 2 does not exist: with --nnodes 2"),
            (["--nnodes", 0], "--nnodes: 0 is not in 1"),
            (["--nnodes", "two"], '--nnodes: "two" is not a whole number'),
            (["--nnodes", 1025], "--nnodes: 1025 is not in 1"),
            (["--node-rank", -1], "--node-rank"),
            (["--nnodes", 2, *addr], "--nnodes 2 divides the ranks of --tp: give it, a multiple of 2"),
            (["--tp", 3, "--nnodes", 2, *addr], "--nnodes: 3 ranks cannot be divided equally among 2 nodes"),
            (["--tp", 1, "--nnodes", 2, *addr], "1 rank cannot be divided equally among 2 nodes"),
            (["--tp", 4, "--nnodes", 2], "--nnodes 2: nobody knows where the others are: give --dist-init-addr .*--node-hosts"),
            (["--tp", 4, "--nnodes", 2, "--ranks", "0-1", *addr], "--ranks and --nnodes both say"),
        ):
            with self.subTest(arguments):
                self.usage(*model, *arguments, says=says)
        self.parsed("--tp", 4, "--ranks", "0-1", "--nnodes", 1)
        self.parsed("--tp", 4, "--nnodes", 4, "--node-rank", 3, *addr)
        self.parsed("--tp", 4, "--nnodes", 2, "--node-hosts", '{"0":"127.0.0.1","1":"127.0.0.2"}')

    def test_wrong_addresses(self):
        for bad in ("10.0.0.1", "10.0.0.1:", ":5000", "10.0.0.1:0", "10.0.0.1:65536", "::1:5000", "http://10.0.0.1:5000", "a b:1"):
            self.usage("--model-path", "x", "--dist-init-addr", bad, says="--dist-init-addr: ")
        for good in ("10.0.0.1:5000", "node-0-addr:5000", "[::1]:5000"):
            self.parsed("--dist-init-addr", good)

    def test_wrong_node_hosts(self):
        for hosts, says in (
            ("{", "not a JSON object"),
            ("node-0,node-1", "not a JSON object"),
            ('["a","b"]', "not a JSON object"),
            ('{"0":"a"}', "the address of node 1 is missing"),
            ('{"0":"a","1":"b","2":"c"}', "node 2 does not exist: there are 2 nodes"),
            ('{"0":"a","01":"b"}', '"01" is no node'),
            ('{"0":"a","x":"b"}', '"x" is no node'),
            ('{"0":"a","0":"b"}', "duplicate"),
            ('{"0":"a","1":7}', "node 1: its address is no string"),
            ('{"0":"a","1":""}', "the address is empty"),
            ('{"0":"a","1":"b:5000"}', "without a port"),
            ('{"0":"a","1":"http://b"}', "is no address"),
        ):
            with self.subTest(hosts):
                self.usage("--model-path", "x", "--tp", 2, "--nnodes", 2, "--node-hosts", hosts, says=f"--node-hosts: .*{says}")
        self.usage("--model-path", "x", "--tp", 3, "--nnodes", 3, "--node-hosts", '{"0":"a","1":"b","2":"b"}',
                   says="nodes 1 and 2 have the same address, b")


if __name__ == "__main__":
    unittest.main()
