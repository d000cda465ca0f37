"""NATS and Redis on this machine."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

from promptlooper.backing.programs import find_nats_server, find_redis_server
from promptlooper.backing.server import HOST, Server


class NatsServer(Server):
    """NATS with JetStream. `durable`: what it acknowledged is on disk; by default NATS writes it there much later."""

    name = "nats"

    def __init__(self, data: Path, port: int = 0, *, durable: bool = True) -> None:
        super().__init__(data, port)
        self._durable = durable
        self._label = f"promptlooper-{secrets.token_hex(6)}"

    @property
    def url(self) -> str:
        return f"nats://{HOST}:{self.port}"

    def _command(self) -> Sequence[str | Path]:
        config = self.data / "nats.conf"
        sync = "sync_interval: always" if self._durable else "sync_interval: 2m"
        store = str(self.data / "jetstream").replace("\\", "\\\\").replace('"', '\\"')
        listen = f'listen: "{HOST}:{self.port}"\nserver_name: "{self._label}"\n'
        config.write_text(f'{listen}jetstream {{ store_dir: "{store}", {sync} }}\n')
        return [find_nats_server(), "-c", config]

    def _answers(self, connection: socket.socket, pid: int) -> bool:
        said = connection.recv(4096)
        return said.startswith(b"INFO {") and self._label.encode() in said


class RedisServer(Server):
    """Redis or Valkey as a cache: over `max_memory`, what was long unused goes. `durable`: it outlives restarts."""

    name = "redis"

    def __init__(self, data: Path, port: int = 0, *, durable: bool = True, max_memory: str = "512mb") -> None:
        super().__init__(data, port)
        self._durable = durable
        self._max_memory = max_memory

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def _command(self) -> Sequence[str | Path]:
        options = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(self.data),
            "save": "",
            "appendonly": "yes" if self._durable else "no",
            "maxmemory": self._max_memory,
            "maxmemory-policy": "allkeys-lru",
        }
        return [find_redis_server(), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _answers(self, connection: socket.socket, pid: int) -> bool:
        connection.sendall(b"PING\r\n")
        if not connection.recv(64).startswith(b"+PONG"):  # it is loading
            return False
        connection.sendall(b"INFO server\r\n")
        return f"\r\nprocess_id:{pid}\r\n".encode() in connection.recv(65536)
