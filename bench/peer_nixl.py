"""A NIXL agent over UCX and TCP as a process of its own, for te_peers.py. Commands as in mooncake_program.py."""

import base64
import os
import time

import mooncake_program

os.environ["UCX_TLS"] = "tcp"
os.environ.setdefault("UCX_LOG_LEVEL", "error")

from nixl_cu13._api import nixl_agent, nixl_agent_config  # noqa: E402

SECONDS = 120


class Program:
    """The commands; one region each is registered."""

    def do_load(self, files: list[str]) -> dict:
        """Makes the seed: files' tensors in memory, and a thread that answers for it, which spins."""
        self.agent = nixl_agent("seed", nixl_agent_config(enable_prog_thread=True))
        self.held = mooncake_program.Held([mooncake_program.File(path) for path in files])
        self.agent.register_memory([(self.held.memory.address, self.held.memory.size, 0, "")], "DRAM")
        metadata = base64.b64encode(self.agent.get_agent_metadata()).decode()
        return {"metadata": metadata, "map": self.held.map}

    def do_read(self, metadata: str, map: dict[str, list[int]], files: list[str]) -> dict:
        """Reads all tensors with one transfer."""
        if not hasattr(self, "agent"):
            self.agent = nixl_agent("reader", nixl_agent_config(enable_prog_thread=False))
            self.files = [mooncake_program.File(path) for path in files]
            self.places, size = mooncake_program.laid_out(self.files)
            self.memory = mooncake_program.Memory(size)
            self.agent.register_memory([(self.memory.address, size, 0, "")], "DRAM")
            self.peer = self.agent.add_remote_agent(base64.b64decode(metadata))
        self.memory.fill()
        local, remote = [], []
        for name, (address, count, element) in map.items():
            local.append((self.memory.address + self.places[name], count * element, 0))
            remote.append((address, count * element, 0))
        begin = time.monotonic()
        handle = self.agent.initialize_xfer(
            "READ", self.agent.get_xfer_descs(local, "DRAM"), self.agent.get_xfer_descs(remote, "DRAM"), self.peer
        )
        state = self.agent.transfer(handle)
        while state == "PROC" and time.monotonic() - begin < SECONDS:
            state = self.agent.check_xfer_state(handle)
        seconds = time.monotonic() - begin
        self.agent.release_xfer_handle(handle)
        names = set(self.places)
        return {"rc": 0 if state == "DONE" else state, "seconds": seconds, "bytes": self.memory.size,
                "different": mooncake_program.different(self.files, self.places, self.memory, names)}  # fmt: skip


if __name__ == "__main__":
    mooncake_program.answer_commands(Program())
