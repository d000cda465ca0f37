"""Two replicas of every service on one PostgreSQL: they share the work, and those that die come back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stack_lab import CommandLine

from promptlooper.backing import PostgresServer
from promptlooper.clients.runner import connected
from promptlooper.testing.eventually import eventually
from promptlooper.testing.servers import drop_database, fresh_database

SERVICES = ("cache", "scorer", "adapter", "runner")
PARTS = ["nats", "redis", *(f"{kind}-{replica}" for kind in SERVICES for replica in (0, 1))]
EXPERIMENT = """\
inputs: {file: rows.jsonl}
model: mock/echo
prompt: "What of {{ input.n }}, {{ config.who }}?"
scorers: [{contains: "{{ input.n }}", threshold: 1}]
"""


@pytest.fixture(scope="module")
def replicas(postgres: PostgresServer) -> Iterator[CommandLine]:
    """A stack that is up: on SQLite `--runners 2` is refused, so the database is new in a PostgreSQL."""
    folder = Path(tempfile.mkdtemp(prefix="promptlooper-replicas-"))
    own, url = CommandLine(folder), fresh_database(postgres)
    (folder / "promptlooper.yaml").write_text(EXPERIMENT)
    (folder / "rows.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(60)))
    words = [word for kind in SERVICES for word in (f"--{kind}s", "2")]
    try:
        started = own("up", "-d", "--port-base", "0", "--database-url", url, *words)
        assert started.returncode == 0, started.stderr
        (folder / "started.txt").write_text(started.stdout)
        yield own
    finally:
        own("down")
        drop_database(postgres, url)
        shutil.rmtree(folder)


def log_of(own: CommandLine) -> str:
    return (own.data / "logs" / "up.log").read_text()


def runners(own: CommandLine) -> list[str]:
    return [row["address"] for row in own.status() if row["kind"] == "runner"]


def completed(own: CommandLine, who: str) -> dict[str, Any]:
    """The summary of an experiment that was run through the addresses of all Runners."""
    ran = own("run", "--server", ",".join(runners(own)), "--var", f"who={who}", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    summary: dict[str, Any] = json.loads(ran.stdout)
    assert summary["counts"]["completed"] == summary["counts"]["total"] == 60
    return summary


def test_all_replicas_are_healthy_and_up_prints_the_addresses_of_all_runners(replicas: CommandLine) -> None:
    rows = replicas.status()
    assert [row["name"] for row in rows] == PARTS
    assert all(row["healthy"] for row in rows)
    assert len({row["pid"] for row in rows}) == len(PARTS)
    said = (replicas.folder / "started.txt").read_text()
    assert f"promptlooper run FILE --server {','.join(runners(replicas))}\n" in said


async def test_an_experiment_through_the_list_of_addresses_is_known_to_every_runner(replicas: CommandLine) -> None:
    experiment_id = completed(replicas, "you")["experiment_id"]
    for address in runners(replicas):
        async with connected(address) as client:
            assert (await client.get(experiment_id)).counts.completed == 60
            runs = [run async for run in client.export(experiment_id)]
            assert [run.run_index for run in runs] == list(range(60))


async def test_replicas_and_nats_that_are_killed_come_back_and_an_experiment_completes(replicas: CommandLine) -> None:
    killed = {"nats", "cache-1", "scorer-0", "adapter-1", "runner-0"}
    before = {row["name"]: int(row["pid"]) for row in replicas.status()}
    for name in killed:
        os.kill(before[name], signal.SIGKILL)

    def after() -> dict[str, int]:
        rows = replicas.status()
        assert all(row["healthy"] for row in rows), rows
        return {row["name"]: int(row["pid"]) for row in rows}

    pids = await eventually(after, within=60)
    assert {name for name in PARTS if pids[name] != before[name]} == killed
    for name in killed:
        again = f"| {name} is healthy again, as process {pids[name]}\n"
        await eventually(lambda again=again: again in log_of(replicas))
        assert f"| {name} was ended by SIGKILL; it is started again in 0.2 s\n" in log_of(replicas)
    completed(replicas, "all")
