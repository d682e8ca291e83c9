"""SGLang's own code for remote instances as a process of its own, on a CPU: a seed and a client, told by lines of JSON.

The protocol is mooncake_program.py's; {"do": "seed", ...} and {"do": "load", ...} may come any number of times.

What runs is SGLang's: RemoteInstanceModelLoader.load_model as a whole, RemoteInstanceWeightTransporter (which makes the
Mooncake engine, registers and publishes), register_memory_region, EngineInfoBootstrapServer, and the two HTTP routes,
taken from the text of its http_server.py, because importing that asks for a dozen packages more. Shims:

- A model is one of SGLang's classes, built as sglang_oracle.py says, or (shape "transformers") the class of
  transformers that config.json names, put in the place of _initialize_model and _get_quantization_config.
- torch.cuda.memory.memory_snapshot, for a seed: there is no CUDA allocator that could tell where the parameters are.
- Client and seed are told their address by SGLANG_HOST_IP, as in production.
"""

import ast
import contextlib
import os
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import mooncake_program
import sglang_oracle

# After the oracle, which has the stand-ins for what these import.
import fastapi  # isort: skip
import requests
import sglang
import starlette.responses
import torch
import transformers
import uvicorn
from sglang.srt.configs.device_config import DeviceConfig
from sglang.srt.configs.load_config import LoadConfig, LoadFormat
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.entrypoints.engine_info_bootstrap_server import EngineInfoBootstrapServer
from sglang.srt.model_executor.model_runner_components.remote_instance_weight_transporter import (
    RemoteInstanceWeightTransporter,
)
from sglang.srt.model_loader import loader

ROUTES = ("get_remote_instance_transfer_engine_info", "remote_instance_transfer_engine_info")
STEP = 512  # between tensors of the CUDA allocator, which is why a whole segment merges into one registered region


def free_port(host: str) -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def replaced(owner: object, **values: object) -> Iterator[None]:
    """Attributes of a module or object are others meanwhile."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


# ---- models ----


def transformers_model(folder: Path) -> torch.nn.Module:
    """An empty model of the class that config.json names, in the dtype that it names."""
    config = transformers.AutoConfig.from_pretrained(folder)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    with torch.device("cpu"):
        return getattr(transformers, config.architectures[0])(config).to(dtype)


@contextlib.contextmanager
def shaped(shape: str, folder: Path) -> Iterator[ModelConfig | types.SimpleNamespace]:
    """What loader._initialize_model makes are models of this shape, poisoned; yields the config to call it with."""
    if shape == "transformers":
        config = types.SimpleNamespace(dtype=torch.float32, quantization=None)
        make = lambda *_: transformers_model(folder)  # noqa: E731
        quantisation = lambda *_: None  # noqa: E731
    else:
        config = ModelConfig(str(folder))
        make = loader._initialize_model
        quantisation = loader._get_quantization_config

    def poisoned(*arguments: object) -> torch.nn.Module:
        model = make(*arguments)
        sglang_oracle.poison(model)
        return model

    with replaced(loader, _initialize_model=poisoned, _get_quantization_config=quantisation):
        yield config


def filled(shape: str, folder: Path) -> torch.nn.Module:
    """A model with the checkpoint's weights: what a seed has."""
    if shape == "transformers":
        model = transformers_model(folder)
        model.load_state_dict(dict(sglang_oracle.stored(folder)), strict=False)
        return model
    with shaped(shape, folder) as config, loader.set_default_torch_dtype(config.dtype), torch.device("cpu"):
        load_config = LoadConfig()
        model = loader._initialize_model(config, load_config, loader._get_quantization_config(config, load_config))
        model.load_weights(sglang_oracle.stored(folder))
        return model


def expected(shape: str, folder: Path, place: sglang_oracle.Place) -> dict[str, bytes]:
    """Bytes of each parameter, without any remote instance: from the files, or as SGLang's load_weights makes them."""
    if shape == "transformers":
        return {name: sglang_oracle.raw(tensor).numpy().tobytes() for name, tensor in sglang_oracle.stored(folder)}
    return {parameter.name: parameter.data for parameter in sglang_oracle.parameters(folder, place)}


# ---- the seed ----


class Arena:
    """Puts a model's parameters into one piece of memory, as the CUDA allocator would, and tells where they are."""

    def __init__(self, model: torch.nn.Module, layout: str):
        gap = 0 if layout == "merged" else STEP
        parameters = [p for _, p in model.named_parameters()]
        sizes = [sglang_oracle.raw(p).numel() for p in parameters]
        steps = [-(-size // STEP) * STEP for size in sizes]
        self.memory = torch.zeros(sum(steps) + gap * len(steps), dtype=torch.uint8)
        blocks, place = [], 0
        for parameter, size, step in zip(parameters, sizes, steps, strict=True):
            target = self.memory[place : place + size].view(parameter.dtype).view(parameter.shape)
            target.copy_(parameter.data)
            parameter.data = target
            block_bytes = step if layout == "merged" else size
            blocks.append({"address": target.data_ptr(), "size": block_bytes, "state": "active_allocated"})
            place += step + gap
        one = [{"blocks": blocks}]
        self.segments = one if layout == "merged" else [{"blocks": [block]} for block in blocks]
        if layout == "half":
            self.segments = self.segments[: len(self.segments) // 2]

    def snapshot(self) -> list[dict]:
        """Stands for torch.cuda.memory.memory_snapshot."""
        return self.segments


def info_routes(bootstrap_url: str) -> fastapi.FastAPI:
    """An application with SGLang's two routes, their functions compiled from its own source."""
    source = (Path(sglang.__file__).parent / "srt/entrypoints/http_server.py").read_text()
    found = [node for node in ast.parse(source).body if isinstance(node, ast.AsyncFunctionDef) and node.name in ROUTES]
    assert len(found) == len(ROUTES), [node.name for node in found]
    application = fastapi.FastAPI()
    arguments = types.SimpleNamespace(engine_info_bootstrap_url=bootstrap_url)
    scope = {
        "app": application,
        "auth_level": lambda level: lambda function: function,
        "AuthLevel": types.SimpleNamespace(ADMIN_OPTIONAL=None),
        "HTTPStatus": __import__("http").HTTPStatus,
        "ORJSONResponse": starlette.responses.JSONResponse,
        "logger": types.SimpleNamespace(warning=lambda *_: None),
        "requests": requests,
        "_global_state": types.SimpleNamespace(tokenizer_manager=types.SimpleNamespace(server_args=arguments)),
    }
    exec(compile(ast.Module(found, []), "http_server.py", "exec"), scope)
    return application


def run_web(application: fastapi.FastAPI, host: str, port: int) -> None:
    """Serves it in a thread of its own; returns when it answers."""
    server = uvicorn.Server(uvicorn.Config(application, host=host, port=port, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    wait_for(host, port)


def wait_for(host: str, port: int) -> None:
    """Until somebody listens there; OSError after about ten seconds."""
    for attempt in range(100):
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            if attempt == 99:
                raise
            threading.Event().wait(0.1)


class Program:
    """The commands, as in mooncake_program.Program."""

    def __init__(self) -> None:
        self.kept: list[object] = []  # engines, models: alive as long as the process
        self.engines: dict[str, object] = {}

    def do_seed(
        self, host: str, folder: str, shape: str = "sglang", rank: int = 0, size: int = 1, layout: str = "merged",
        early: bool = False, head: str = "", head_port: int = 0,
    ) -> dict:  # fmt: skip
        """Starts a seed of one rank.

        `layout` is what is registered: "merged" (one region), "each" (one for a parameter), "half" (of those), or
        "none": what SGLang does by itself where there is no CUDA. With `early` it answers, but has not loaded its weights yet.
        With `head` it is on a node that is not the first: it has no HTTP side, and registers with the bootstrap server
        there, at `head_port`.
        """
        os.environ.update(SGLANG_HOST_IP=host, MOONCAKE_PROTOCOL="tcp")
        place = sglang_oracle.Place(rank, size)
        report = {} if head else self.front(host)
        if early:
            return report
        arguments = {"remote_instance_weight_loader_start_seed_via_transfer_engine": True,
                     "engine_info_bootstrap_port": head_port or report["bootstrap"],
                     "dist_init_addr": f"{head}:5000" if head else None}  # fmt: skip
        with sglang_oracle.placed(Path(folder), place, **arguments):
            model = filled(shape, Path(folder))
            transporter = RemoteInstanceWeightTransporter(get_model=lambda: model, gpu_id=0)
            transporter.init_engine()
            with contextlib.ExitStack() as shim:
                if layout != "none":
                    arena = Arena(model, layout)
                    shim.enter_context(replaced(torch.cuda.memory, memory_snapshot=arena.snapshot))
                    self.kept.append(arena)
                transporter.maybe_register_and_publish_weight_info()
        self.kept += [model, transporter]
        return {**report, "session": transporter.session_id, "tensors": len(transporter.weight_info)}

    def front(self, host: str) -> dict:
        """Starts a bootstrap server and the HTTP routes that ask it."""
        bootstrap_port = free_port("127.0.0.1")
        self.kept.append(EngineInfoBootstrapServer("127.0.0.1", bootstrap_port))
        wait_for("127.0.0.1", bootstrap_port)
        port = free_port(host)
        run_web(info_routes(f"http://127.0.0.1:{bootstrap_port}"), host, port)
        return {"url": f"http://{host}:{port}", "bootstrap": bootstrap_port}

    def do_load(
        self,
        host: str,
        seed_host: str,
        seed_port: int,
        folder: str,
        shape: str = "sglang",
        rank: int = 0,
        size: int = 1,
    ) -> dict:
        """SGLang's load_model from a seed; answers which parameters are not as they should be."""
        os.environ.update(SGLANG_HOST_IP=host, MOONCAKE_PROTOCOL="tcp")
        place = sglang_oracle.Place(rank, size)
        with sglang_oracle.placed(Path(folder), place):
            if host not in self.engines:
                transporter = RemoteInstanceWeightTransporter(get_model=lambda: None, gpu_id=0)
                transporter.init_engine()
                self.engines[host] = transporter
            load_config = LoadConfig(
                load_format=LoadFormat.REMOTE_INSTANCE, tp_rank=rank,
                remote_instance_weight_loader_backend="transfer_engine",
                remote_instance_weight_loader_seed_instance_ip=seed_host,
                remote_instance_weight_loader_seed_instance_service_port=seed_port,
                remote_instance_weight_loader_transfer_engine=self.engines[host].engine,
            )  # fmt: skip
            with shaped(shape, Path(folder)) as config:
                chosen = loader.get_model_loader(load_config, None)
                if type(chosen) is not loader.RemoteInstanceModelLoader:
                    raise TypeError(f"SGLang chose {type(chosen)}")
                model = chosen.load_model(model_config=config, device_config=DeviceConfig("cpu"))
        wanted = expected(shape, Path(folder), place)
        found = {name: sglang_oracle.raw(p.data).numpy().tobytes() for name, p in model.named_parameters()}
        different = [name for name, data in found.items() if data != wanted.get(name)]
        return {"parameters": len(found), "different": different}


if __name__ == "__main__":
    sys.stdout.flush()
    mooncake_program.answer_commands(Program())
