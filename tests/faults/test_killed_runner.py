"""A Runner that is killed again and again, on PostgreSQL: every run ends once, and little is asked twice.

Takes minutes: a dead Runner's lease must run out each time. `make faults` runs it.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from runner_lab import experiment, stage
from stack_lab import CommandLine

from promptlooper.backing import free_port
from promptlooper.clients.runner import RunnerClient, connected
from promptlooper.errors import ServiceUnavailable
from promptlooper.experiment import ExperimentSpec, ModelEntry, Pipeline, ScorerSpec
from promptlooper.run import RunState
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply
from promptlooper.testing.servers import fresh_database, postgres_server

KILLS, RUNS = 3, 120
pytestmark = pytest.mark.timeout(600)


def three_stages() -> ExperimentSpec:
    spec = experiment(
        "first {{ input.n }}",
        stage("second {{ input.n }} after {{ prev_output }}", "middle"),
        "third {{ input.n }} after {{ stages.middle.output }}",
        rows=[{"n": n} for n in range(RUNS)],
        limits={"max_concurrency": 8},
        scorers=(ScorerSpec("third", "contains", "third {{ input.n }}", threshold=1),),
    )
    pipeline = Pipeline("direct", spec.pipelines[0].stages, (ModelEntry("m", "openai/any"),))
    return ExperimentSpec(
        name="kills", pipelines=(pipeline,), inputs=spec.inputs, limits=spec.limits, scorers=spec.scorers
    )


class Runner:
    """A Runner process on a port of its own that can be killed and started again."""

    def __init__(self, own: CommandLine, database_url: str) -> None:
        addresses = {row["kind"]: row["address"] for row in own.status()}
        self.address = f"127.0.0.1:{free_port()}"
        self._env = {
            **own.env,
            **{f"PROMPTLOOPER_{k.upper()}_ADDRESS": addresses[k] for k in ("adapter", "cache", "scorer")},
            "PROMPTLOOPER_NATS_URL": f"nats://{addresses['nats']}",
            "PROMPTLOOPER_LISTEN": self.address,
            "PROMPTLOOPER_HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
            "PROMPTLOOPER_DATABASE_URL": database_url,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "promptlooper.runner"]
        self._process = subprocess.Popen(words, env=self._env, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@asynccontextmanager
async def stack(folder: Path, database_url: str, base_url: str) -> AsyncIterator[Runner]:
    """A stack whose own Runner is replaced by one that this test may kill."""
    own = CommandLine(folder, {"OPENAI_BASE_URL": base_url})
    told = await asyncio.to_thread(own, "up", "-d", "--port-base", "0", "--database-url", database_url)
    assert told.returncode == 0, told.stderr
    runner = await asyncio.to_thread(Runner, own, database_url)
    rows = await asyncio.to_thread(own.status)
    os.kill(next(row["pid"] for row in rows if row["kind"] == "runner"), 9)
    try:
        yield runner
    finally:
        runner.kill()
        await asyncio.to_thread(own, "down")


async def test_a_runner_that_is_killed_again_and_again_ends_every_run_once(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def answer(request: ProviderRequest) -> Reply:
        await asyncio.sleep(chance.uniform(0.02, 0.3))
        return Reply(f"<{request.question.split(' after ')[0]}>")

    with postgres_server() as postgres:
        url = fresh_database(postgres)
        async with FakeProvider(answer) as provider, stack(tmp_path, url, provider.base_url) as runner:
            runner.start()
            async with connected(runner.address, reconnect_for=120) as client:
                created = await eventually(lambda: started(client), within=60)
                seqs: list[int] = []
                kills, last = 0, None
                async for message in client.watch(created):
                    last = message
                    if message.event is not None:
                        seqs.append(message.event.event_seq)
                    share = len(seqs) / (RUNS * 5)
                    if kills < KILLS and share > (kills + chance.random()) / (KILLS + 1):
                        kills += 1
                        runner.kill()
                        runner.start()
                assert last is not None
                assert last.terminal is not None
                runs = [run async for run in client.export(created)]
            assert kills == KILLS
            assert [run.state for run in runs] == [RunState.COMPLETED] * RUNS
            assert [run.output for run in runs] == [f"<third {n}>" for n in range(RUNS)]
            assert all(run.passed for run in runs)
            assert seqs == list(range(seqs[0], last.terminal.event_seq + 1))
            assert last.terminal.tokens_out == sum(run.tokens_out for run in runs)
            repeated = sum(provider.calls.values()) - 3 * RUNS
            print(f"{kills} kills, {3 * RUNS} questions, {repeated} asked again")
            assert repeated <= kills * 8
            assert max(provider.calls.values()) <= 1 + kills


async def started(client: RunnerClient) -> str:
    try:
        return (await client.create(three_stages(), "kills")).experiment_id
    except ServiceUnavailable as error:
        raise AssertionError(str(error)) from error
