"""Real servers for tests: one of each kind for the whole session, started when the first test asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptlooper.backing import NatsServer, PostgresServer, RedisServer
from promptlooper.testing.servers import (
    drop_database,
    fresh_database,
    nats_server,
    postgres_server,
    redis_server,
)

# Before grpc is imported: its handlers of fork crash one child in ten, as its threads run on in us.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# On a machine that does much else, an answer of Redis that comes late would be an answer that is paid for twice.
os.environ["PROMPTLOOPER_REDIS_TIMEOUT"] = "0.5"
# Output is for a pipe. Workers inherit the size of a terminal that there is none of: readline in pytest sets it.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    """NATS with JetStream, shared: use streams and subjects of your own, and don't stop it."""
    with nats_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """Redis, shared: use keys of your own, and don't stop it."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL, shared: use `database_url` or `fresh_database`, and don't stop it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that is new for each test; the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'promptlooper.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = fresh_database(server)
    yield url
    drop_database(server, url)
