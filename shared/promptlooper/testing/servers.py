"""Real servers on free ports, with data that goes away."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from promptlooper.backing import BackingUnavailable, NatsServer, PostgresServer, RedisServer, Server, free_port

S = TypeVar("S", bound=Server)
_numbers = itertools.count(1)


@contextmanager
def nats_server() -> Iterator[NatsServer]:
    """NATS with JetStream, running."""
    with _temporary_folder() as data, _running(NatsServer(data, durable=False)) as server:
        yield server


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """An empty Redis, running; it forgets everything when it is stopped."""
    with _temporary_folder() as data, _running(RedisServer(data, durable=False)) as server:
        yield server


class ClusterNode(RedisServer):
    """A Redis in cluster mode, which knows no other yet and serves no slot."""

    def __init__(self, data: Path) -> None:
        super().__init__(data, durable=False)
        self.bus_port = free_port()

    def _command(self) -> Sequence[str | Path]:
        return [*super()._command(), "--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]


@contextmanager
def redis_cluster(size: int = 3) -> Iterator[list[ClusterNode]]:
    """An empty Redis Cluster of so many servers without replicas. Takes two seconds: that long they take to agree."""
    from redis import Redis  # only here: not everyone who tests with us has it

    with ExitStack() as stack:
        folder = stack.enter_context(_temporary_folder())
        nodes = [stack.enter_context(_running(ClusterNode(folder / str(n)))) for n in range(size)]
        clients = [stack.enter_context(Redis.from_url(node.url, decode_responses=True)) for node in nodes]
        for n, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", _SLOTS * n // size, _SLOTS * (n + 1) // size - 1)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
            client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port, nodes[0].bus_port)
        until = time.monotonic() + 30
        while not all(_knows_all(client, size) for client in clients):
            if time.monotonic() > until:
                raise BackingUnavailable(f"the {size} servers of a Redis Cluster did not agree in time")
            time.sleep(0.02)
        yield nodes


_SLOTS = 16384


def _knows_all(client: Any, size: int) -> bool:
    said = client.execute_command("CLUSTER INFO")
    return said["cluster_state"] == "ok" and int(said["cluster_known_nodes"]) == size


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A new PostgreSQL cluster, running. Takes about a second: use one for many tests, with databases of their own."""
    with _temporary_folder() as data, _running(PostgresServer(data, durable=False)) as server:
        yield server


def fresh_database(server: PostgresServer) -> str:
    """The URL of a new, empty database."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    _execute(server, f'CREATE DATABASE "{name}" TEMPLATE template0')
    return server.url.rsplit("/", 1)[0] + f"/{name}"


def drop_database(server: PostgresServer, url: str) -> None:
    """Deletes a database of `fresh_database`, also under the hands of those connected to it."""
    _execute(server, f'DROP DATABASE IF EXISTS "{url.rsplit("/", 1)[1]}" WITH (FORCE)')


def _execute(server: PostgresServer, sql: str) -> None:
    import psycopg  # only here: not everyone who tests with us has it

    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(sql.encode())


@contextmanager
def _running(server: S) -> Iterator[S]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Not pytest's tmp_path: PostgreSQL may run as another user, who may not enter that."""
    folder = Path(tempfile.mkdtemp(prefix="promptlooper-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
