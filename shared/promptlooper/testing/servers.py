"""Real servers on free ports, with data that goes away."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from promptlooper.backing import NatsServer, PostgresServer, RedisServer, Server

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
