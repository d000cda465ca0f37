"""A hundred thousand runs, and several Runners on one experiment, on PostgreSQL.

`python -m benchmarks.scale [big] [spread]` (default: both). Whole stacks, as `promptlooper up` starts them. CPU is user
+ system of whole processes; where several Runners are compared, each does its share of the same load, so the ratios
say more than the rates, which two cores bound.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.run import CLI, cpu_of, provider, tree_cpu_of
from promptlooper.clients.runner import RunnerClient, connected
from promptlooper.experiment import (
    ExperimentSpec,
    InputRow,
    Limits,
    MessageTemplate,
    ModelEntry,
    Pipeline,
    ScorerSpec,
    Stage,
)
from promptlooper.testing.servers import postgres_server

OURS = ("runner", "adapter", "cache", "scorer")
BIG_INPUTS, BIG_REPEATS, BIG_CONCURRENCY = 1_000, 100, 100
SPREAD_SLOTS, SPREAD_DELAY, SPREAD_RUNS = 20, 0.2, 2_000  # runs per Runner
KILL_AT = 0.9


def spec_of(inputs: int, repeats: int, concurrency: int, series: str = "a series") -> ExperimentSpec:
    prompt = f"Capital of {{{{ input.country }}}}? Question {{{{ input.n }}}} of {series}; answer with one word."
    return ExperimentSpec(
        "scale",
        (Pipeline("direct", (Stage((MessageTemplate("user", prompt),)),), (ModelEntry("fast", "openai/fast"),)),),
        tuple(InputRow("", {"country": "France", "n": n}, "Paris") for n in range(inputs)),
        params={"max_tokens": 16, "temperature": 0},
        repeats=repeats,
        scorers=(ScorerSpec("contains", "contains", "{{ expected }}"),),
        limits=Limits(max_concurrency=concurrency),
    )


@dataclass(frozen=True)
class Stack:
    """A stack that is up."""

    data: Path
    postmaster: int

    def parts(self) -> list[dict[str, object]]:
        words = [CLI, "status", "--json", "--data", str(self.data)]
        told = subprocess.run(words, check=False, capture_output=True)  # 1: a part is down
        parts: list[dict[str, object]] = json.loads(told.stdout)
        return parts

    def pids(self, kind: str) -> list[int]:
        return [int(str(part["pid"])) for part in self.parts() if part["kind"] == kind]

    def server(self) -> str:
        return ",".join(str(part["address"]) for part in self.parts() if part["kind"] == "runner")

    def cpu(self) -> dict[str, float]:
        """Seconds by kind of part, so far."""
        spent = {kind: sum(cpu_of(pid) for pid in self.pids(kind)) for kind in (*OURS, "nats", "redis")}
        return {**spent, "postgres": tree_cpu_of(self.postmaster)}


@contextmanager
def stack(folder: Path, runners: int, slots: int, delay: float) -> Iterator[Stack]:
    with provider(delay) as url, postgres_server() as postgres:
        assert postgres.process is not None
        data = folder / f"up-{runners}-{slots}"
        env = {**os.environ, "OPENAI_BASE_URL": url, "PROMPTLOOPER_SLOTS": str(slots)}
        env["PROMPTLOOPER_PROVIDERS"] = str(Path(__file__).with_name("providers.yaml"))
        words = ["--port-base", "0", "--data", str(data), "--database-url", postgres.url, "--runners", str(runners)]
        subprocess.run([CLI, "up", "-d", *words], env=env, check=True, stdout=subprocess.DEVNULL)
        try:
            yield Stack(data, postgres.process.pid)
        finally:
            subprocess.run([CLI, "down", "--data", str(data)], check=True, stdout=subprocess.DEVNULL)


def said(title: str, before: dict[str, float], after: dict[str, float], runs: int) -> float:
    """Prints who used how much CPU; returns the milliseconds of ours per run."""
    per_run = {kind: (after[kind] - before[kind]) / runs * 1e3 for kind in before}
    ours = sum(per_run[kind] for kind in OURS)
    shown = ", ".join(f"{kind} {ms:.2f}" for kind, ms in per_run.items())
    print(f"  {title}: {ours:.2f} ms CPU per run over our processes ({shown})")
    return ours


async def started_after(client: RunnerClient, experiment_id: str, event_seq: int) -> float:
    """Unix time of the first run.started after an event."""
    while True:
        page = await client.list_events(experiment_id, event_seq, 1, kinds=["run.started"])
        if page.events:
            return page.events[0].event_time.timestamp()
        await asyncio.sleep(0.02)


async def ended(client: RunnerClient, experiment_id: str) -> float:
    """Waits for the end; returns the experiment's duration in seconds."""
    async for message in client.watch(experiment_id, kinds=["experiment.completed"]):
        if message.terminal is not None:
            assert message.terminal.counts.completed == message.terminal.counts.total, message.terminal
            return message.terminal.duration_ms / 1e3
    raise AssertionError("the watch ended without a terminal message")


async def reached(client: RunnerClient, experiment_id: str, runs: int) -> None:
    async for message in client.watch(experiment_id, kinds=["experiment.completed"], bookmark_interval=0.2):
        seen = message.snapshot or message.bookmark or message.terminal
        if seen is not None and seen.counts.completed >= runs:
            return


async def big(folder: Path) -> None:
    total = BIG_INPUTS * BIG_REPEATS
    print(f"\n{total:,} runs ({BIG_INPUTS:,} inputs x {BIG_REPEATS} repeats), one Runner, provider 0 ms")
    with stack(folder, 1, 1_000, 0) as up:
        async with connected(up.server(), reconnect_for=120) as client:
            warm = await client.create(spec_of(100, 1, BIG_CONCURRENCY, "the warm-up"))
            await ended(client, warm.experiment_id)
            before, began = up.cpu(), time.time()
            name = (await client.create(spec_of(BIG_INPUTS, BIG_REPEATS, BIG_CONCURRENCY))).experiment_id
            answered = time.time()
            first = await started_after(client, name, 0)
            at_most("create answers after", answered - began, 1, "s")
            at_most("its first run starts after that", first - answered, 1, "s")
            memory = []
            for share in (0.1, 0.5, 1.0):
                await reached(client, name, int(total * share))
                memory.append(_rss_mb(up.pids("runner")[0]))
                print(f"  Runner's memory at {share:.0%}: {memory[-1]:.0f} MB")
            at_most("it grows from 10 % to 100 % by", memory[-1] - memory[0], 10, "MB")
            seconds = await ended(client, name)
            ours = said(f"{total:,} runs in {seconds:.0f} s, {total / seconds:.0f} runs/s", before, up.cpu(), total)
            at_most("CPU per run over our processes", ours, 2.5, "ms")
            await _killed(up, client, total)


async def _killed(up: Stack, client: RunnerClient, total: int) -> None:
    """The same once more (answers come from the cache), with the Runner killed near the end at full concurrency."""
    name = (await client.create(spec_of(BIG_INPUTS, BIG_REPEATS, BIG_CONCURRENCY))).experiment_id
    (killed,) = (psutil.Process(pid) for pid in up.pids("runner"))
    await reached(client, name, int(total * KILL_AT))
    killed.kill()
    psutil.wait_procs([killed])
    at = time.time()
    began = psutil.Process(await _another(up, killed.pid)).create_time()
    assert (await client.get(name)).counts.pending, "it ended before the kill"
    first = await first_start(client, name, at)
    assert first > began, "a run of the killed Runner"
    print(f"  killed at {KILL_AT:.0%}: first run {first - at:.2f} s after the kill, start of a new process included")
    at_most("first run after the new process began", first - began, 2, "s")
    await ended(client, name)


def at_most(what: str, got: float, most: float, unit: str) -> None:
    _held(f"{what}: {got:.2f} {unit} (at most {most:g})", got <= most)


def at_least(what: str, got: float, least: float) -> None:
    _held(f"{what}: {got:.2f} (at least {least:g})", got >= least)


def _held(text: str, held: bool) -> None:
    print(f"  {text}" if held else f"  MISSED {text}")
    if not held:
        missed.append(text)


missed: list[str] = []


async def _another(up: Stack, old: int) -> int:
    while True:
        pids = [part["pid"] for part in up.parts() if part["kind"] == "runner" and part["healthy"]]
        if pids and pids[0] != old:
            return int(str(pids[0]))
        await asyncio.sleep(0.05)


async def first_start(client: RunnerClient, experiment_id: str, at: float) -> float:
    """Unix time of the first run.started after `at`."""
    low, high = 0, (await client.get(experiment_id)).event_seq
    while low < high:  # the first event after `at`: times are in order
        middle = (low + high) // 2
        (event,) = (await client.list_events(experiment_id, middle, 1)).events
        low, high = (low, middle) if event.event_time.timestamp() > at else (middle + 1, high)
    return await started_after(client, experiment_id, low)


async def spread(folder: Path) -> None:
    print(f"\nseveral Runners, {SPREAD_SLOTS} slots each, provider {SPREAD_DELAY * 1e3:.0f} ms")
    rates: dict[int, float] = {}
    costs: dict[int, float] = {}
    for runners in (1, 2, 3):
        runs = SPREAD_RUNS * runners
        with stack(folder, runners, SPREAD_SLOTS, SPREAD_DELAY) as up:
            async with connected(up.server()) as client:
                warm = await client.create(spec_of(100 * runners, 1, SPREAD_SLOTS * runners, "the warm-up"))
                await ended(client, warm.experiment_id)
                before = up.cpu()
                made = await client.create(spec_of(runs, 1, SPREAD_SLOTS * runners))
                seconds = await ended(client, made.experiment_id)
                rates[runners] = runs / seconds
                title = f"{runners} Runners, {runs:,} runs in {seconds:.1f} s, {rates[runners]:.0f} runs/s"
                costs[runners] = said(title, before, up.cpu(), runs)
    for runners, least in ((2, 1.8), (3, 2.6)):
        at_least(f"{runners} Runners do so many times the runs of one", rates[runners] / rates[1], least)
        at_most(f"{runners} Runners' CPU per run by that of one", costs[runners] / costs[1], 1.15, "times")


def _rss_mb(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


def main() -> None:
    known = {"big": big, "spread": spread}
    with tempfile.TemporaryDirectory(prefix="promptlooper-scale-") as folder:
        for name in sys.argv[1:] or list(known):
            asyncio.run(known[name](Path(folder)))
    if missed:
        raise SystemExit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
