"""Every service from a wheel with its own dependencies, as user 10001 without capabilities, on a read-only tree."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from installed import REQUIREMENTS, UID, Installation, build_wheel, install

from promptlooper.backing import NatsServer, PostgresServer, RedisServer, free_port
from promptlooper.cli.probe import is_healthy
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply
from promptlooper.testing.servers import drop_database, fresh_database

SERVICES = ("adapter", "cache", "scorer", "runner")
EXPERIMENT = """\
inputs: [{word: one}, {word: two}, {word: three}]
model: openai/m
prompt: "Say {{ input.word }} as JSON"
scorers:
  - {regex: "said"}
  - {name: shape, type: json-schema, value: {type: object, required: [said]}}
  - {json-path-equals: "{{ input.word }}", path: "$.said"}
  - {levenshtein: "{{ input.word }}"}
"""


@pytest.fixture(scope="module")
def installed() -> Iterator[Mapping[str, Installation]]:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))  # not /tmp, which services have to themselves
    folder.chmod(0o755)
    wheel = build_wheel(folder)
    yield {service: install(service, wheel, folder) for service in SERVICES}
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Running:
    service: str
    process: asyncio.subprocess.Process
    address: str
    health: str

    async def is_healthy(self) -> bool:
        return await is_healthy(self.service, self.address, self.health)

    async def is_leaving(self) -> bool:
        return not await self.is_healthy()


@asynccontextmanager
async def serving(installation: Installation, **settings: str) -> AsyncIterator[Running]:
    """The service once it is healthy."""
    address, health = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    env = installation.env(
        PROMPTLOOPER_LISTEN=address,
        PROMPTLOOPER_HEALTH_LISTEN=health,
        PROMPTLOOPER_METRICS_LISTEN="127.0.0.1:0",
        **settings,
    )
    process = await asyncio.create_subprocess_exec(*installation.command("serve"), env=env)
    running = Running(installation.service, process, address, health)
    try:
        await eventually(running.is_healthy, within=60)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def command_line(*words: str) -> bytes:
    """What the command printed, as from another machine."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTLOOPER_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "promptlooper.cli.main", *words), env=env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out


def assert_confined(process: asyncio.subprocess.Process) -> None:
    status = Path(f"/proc/{process.pid}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(facts["Uid"].split()) == set(facts["Gid"].split()) == {str(UID)}
    assert {facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert facts["NoNewPrivs"] == "1"
    mounts = [line.split() for line in Path(f"/proc/{process.pid}/mounts").read_text().splitlines()]
    (options,) = {options for _, point, _, options, *_ in mounts if point == "/"}
    assert "ro" in options.split(",")


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_installation_has_what_the_service_needs_and_no_more(installed: Mapping[str, Installation]) -> None:
    for service, installation in installed.items():
        (packages,) = installation.path.glob("lib/python3*/site-packages")
        there = {normalized(info.stem.rpartition("-")[0]) for info in packages.glob("*.dist-info")}
        pinned = re.findall(r"^([\w.-]+)==", (REQUIREMENTS / f"{service}.txt").read_text(), re.MULTILINE)
        assert there == {normalized(name) for name in pinned} | {"promptlooper"}


async def test_confined_services_run_an_experiment_and_drain_within_their_grace(
    installed: Mapping[str, Installation],
    postgres: PostgresServer,
    nats: NatsServer,
    redis: RedisServer,
    tmp_path: Path,
) -> None:
    released, held = asyncio.Event(), asyncio.Event()

    async def answer(request: ProviderRequest) -> Reply:
        if "late" in request.question:
            held.set()
            await released.wait()
        return Reply(json.dumps({"said": request.question.split()[1]}))

    url = fresh_database(postgres)
    runner = installed["runner"]
    migrate = await asyncio.create_subprocess_exec(
        *runner.command("migrate"), env=runner.env(PROMPTLOOPER_DATABASE_URL=url)
    )
    assert await migrate.wait() == 0
    experiment, late = tmp_path / "experiment.yaml", tmp_path / "late.yaml"
    experiment.write_text(EXPERIMENT)
    late.write_text(EXPERIMENT.replace("one", "late"))
    async with (
        FakeProvider(answer) as provider,
        serving(installed["adapter"], OPENAI_BASE_URL=provider.base_url) as adapter,
        serving(installed["cache"], PROMPTLOOPER_REDIS_URL=redis.url) as cache,
        serving(installed["scorer"]) as scorer,
        serving(
            runner,
            PROMPTLOOPER_DATABASE_URL=url,
            PROMPTLOOPER_NATS_URL=nats.url,
            PROMPTLOOPER_ADAPTER_ADDRESS=adapter.address,
            PROMPTLOOPER_CACHE_ADDRESS=cache.address,
            PROMPTLOOPER_SCORER_ADDRESS=scorer.address,
        ) as engine,
    ):
        processes = [running.process for running in (engine, adapter, cache, scorer)]
        if os.geteuid() == 0:
            for process in processes:
                assert_confined(process)
        summary = await command_line("run", str(experiment), "--json", "--server", engine.address)
        (variant,) = json.loads(summary)["variants"]
        assert (variant["runs"], variant["failed"]) == (3, 0)
        assert [(score["n"], score["errors"]) for score in variant["scores"].values()] == [(3, 0)] * 4

        await command_line("run", str(late), "--detach", "--server", engine.address)
        await held.wait()
        # The services that have a call under way, then those that have none. 143 would say that the grace was over.
        for leaving in ((engine, adapter), (cache, scorer)):
            for running in leaving:
                running.process.send_signal(signal.SIGTERM)
            await eventually(leaving[-1].is_leaving)
            released.set()
            assert [await running.process.wait() for running in leaving] == [0, 0]
    drop_database(postgres, url)
