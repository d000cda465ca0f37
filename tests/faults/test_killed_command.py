"""B2: one embedded process on SQLite that is killed, and goes on with `run --resume latest`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fault_checks import (
    Told,
    answer_problems,
    calls_of,
    check,
    committed_by_clock,
    event_problems,
    result_problems,
    row_problems,
    told,
    total_problems,
)
from fault_lab import Death, answering, inherited_environment, priced

from promptlooper.embedded.composition import embedded
from promptlooper.experiments import ExperimentFilter
from promptlooper.testing.provider import FakeProvider

RUNS, KILLS, AT_ONCE = 300, 10, 24
pytestmark = pytest.mark.timeout(600)
EXPERIMENT = f"""
name: kills
inputs: [{", ".join(f"{{n: {n}}}" for n in range(RUNS))}]
model: openai/any
pipelines:
  direct:
    - prompt: "first {{{{ input.n }}}}"
    - {{name: middle, prompt: "second {{{{ input.n }}}} after {{{{ prev_output }}}}"}}
    - prompt: "third {{{{ input.n }}}} after {{{{ stages.middle.output }}}}"
scorers:
  - {{type: contains, name: third, value: "third {{{{ input.n }}}}", threshold: 1}}
limits: {{max_concurrency: {AT_ONCE}}}
cache: CACHE
"""


class Command:
    """`promptlooper` in a folder of its own."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self.folder = folder
        folder.mkdir()
        asking = {"PROMPTLOOPER_PROVIDERS": priced(folder, base_url), "OPENAI_API_KEY": "command"}
        self._env = inherited_environment() | asking

    @asynccontextmanager
    async def running(self, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "promptlooper.cli.main", *args),
            cwd=self.folder,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def ran(self, *args: str) -> str:
        async with self.running(*args) as process:
            said, _ = await process.communicate()
            assert process.returncode == 0, said.decode()
        return said.decode()

    async def told(self) -> Told:
        async with embedded(self.folder / ".promptlooper") as core:
            (experiment,) = (await core.list_experiments(ExperimentFilter())).experiments
            return await told(core, experiment.experiment_id)

    async def summary(self) -> dict[str, object]:
        shown = json.loads(await self.ran("show", "latest", "--json"))
        return {
            name: shown[name] for name in ("state", "counts", "tokens_in", "tokens_out", "cost_usd", "cost_saved_usd")
        }


def written(folder: Path, cache: str) -> None:
    (folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", cache))


@pytest.mark.parametrize("cache", ["off", "read_write"])
async def test_ten_kills_of_an_embedded_run_change_no_result(seed: int, tmp_path: Path, cache: str) -> None:
    chance = random.Random(seed)
    deaths: list[Death] = []
    async with FakeProvider(answering(seed, 0.01, 0.1)) as provider:
        quiet, killed = (Command(tmp_path / name, provider.base_url) for name in ("quiet", "killed"))
        for command in (quiet, killed):
            written(command.folder, cache)
        await quiet.ran("run", "-q")
        provider.history.clear()
        resume: tuple[str, ...] = ()
        for _ in range(KILLS):
            until = len(provider.history) + chance.randrange(5, RUNS * 3 // KILLS)  # not past the end, if none repeats
            async with killed.running("run", "-q", *resume) as process:
                await provider.eventually(lambda p, until=until: len(p.history) >= until)  # type: ignore[misc]
                now = time.monotonic()
                deaths.append(Death("command", now, now))
                process.kill()
                await process.communicate()
            resume = ("--resume", "latest")
        await killed.ran("run", "-q", *resume)
        undisturbed, known = await quiet.told(), await killed.told()
        totals = await quiet.summary(), await killed.summary()
    calls = calls_of(provider.history, deaths, known.runs, committed_by_clock(known.events))
    check(
        event_problems(known.events),
        row_problems(known),
        result_problems(known.runs, undisturbed.runs),
        total_problems(known.experiment, undisturbed.experiment),
        answer_problems(known.runs),
        calls.problems,
    )
    if cache == "off":
        assert totals[0] == totals[1]
    else:
        assert without_what_was_cached(totals[0]) == without_what_was_cached(totals[1])
    print(
        f"cache {cache}: {len(deaths)} kills; {calls.questions} questions, {calls.calls} calls: {calls.repeated}"
        f" repeated, {calls.bound} were in flight or not committed at a kill"
    )


def without_what_was_cached(summary: dict[str, object]) -> dict[str, object]:
    """An answer that the cache kept and the database did not is counted as cached, and its cost as saved."""
    counts = summary["counts"]
    assert isinstance(counts, dict)
    return {**summary, "counts": {**counts, "cached": 0}, "cost_usd": None, "cost_saved_usd": None}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_prints_the_command_that_resumes_it(
    seed: int, tmp_path: Path, number: signal.Signals
) -> None:
    async with FakeProvider(answering(seed, 0.01, 0.1)) as provider:
        command = Command(tmp_path / "interrupted", provider.base_url)
        written(command.folder, "off")
        async with command.running("run", "-q") as process:
            await provider.eventually(lambda p: len(p.history) >= 50)
            os.kill(process.pid, number)
            said, _ = await process.communicate()
        assert process.returncode == 128 + number
        found = re.search(r"promptlooper (run --resume [a-z0-9-]+)", said.decode())
        assert found is not None, said.decode()
        await command.ran(*found[1].split(), "-q")
        known = await command.told()
    check(event_problems(known.events), row_problems(known))
    print(f"{number.name}: it printed {found[0]!r}, and that gave {known.experiment.counts.completed} completed runs")
