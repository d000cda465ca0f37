"""An embedded run that was stopped, by a signal or by force, and resumed gives what an uninterrupted one gives."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply

AT_ONCE = 3
INPUTS = 8
EXPERIMENT = """\
name: chain
inputs: [1, 2, 3, 4, 5, 6, 7, 8]
model: fake/m
params: {max_tokens: 20}
pipelines:
  chain:
    - {name: think, prompt: "think about {{ input }}"}
    - {prompt: "{{ prev_output }}, so what is {{ input }}?"}
scorers: [{contains: "{{ input }}"}]
limits: {max_concurrency: 3}
cache: CACHE
"""
PRICES = "{m: {input_usd_per_mtok: 1000, output_usd_per_mtok: 5000}}"
_OF_TIME = ("created_at", "started_at", "completed_at", "latency_ms", "duration_ms", "ttft_ms", "attempts")
_OF_THIS = ("experiment_id", "run_id", "generation")
_OF_CALLS_GIVEN_UP = ("cost_uncertain_usd",)


class Metered:
    """Answers as many questions as it may, and leaves the others open."""

    def __init__(self) -> None:
        self.left: int | None = 0  # None: all
        self.answered: Counter[str] = Counter()
        self._more = asyncio.Event()

    def allow(self, more: int | None) -> None:
        self.left = more
        self._more.set()
        self._more = asyncio.Event()

    async def __call__(self, request: ProviderRequest) -> Reply:
        while self.left == 0:
            await self._more.wait()
        if self.left is not None:
            self.left -= 1
        self.answered[request.question] += 1
        return Reply(f"answer to {request.question}")


@pytest.fixture
def meter() -> Metered:
    return Metered()


@pytest.fixture
async def provider(shell: Any, meter: Metered) -> AsyncIterator[FakeProvider]:
    async with FakeProvider(meter) as provider:
        entry = f"{{name: fake, type: openai, base_url: '{provider.base_url}', prices: {PRICES}}}"
        (shell.folder / "providers.yaml").write_text(f"providers: [{entry}]\n")
        shell.env["PROMPTLOOPER_PROVIDERS"] = "providers.yaml"
        yield provider


async def interrupted(shell: Any, provider: FakeProvider, meter: Metered, answers: int, *args: str) -> Any:
    """A command whose next questions after `answers` are left open: nothing that was answered is uncommitted then."""
    asked = len(provider.requests)
    process = await shell.start(*args)
    meter.allow(answers)
    await provider.eventually(lambda p: len(p.requests) == asked + answers + AT_ONCE and p.open == AT_ONCE)
    return process


async def results(shell: Any) -> tuple[list[Any], dict[str, Any]]:
    """Rows and summary without what differs between any two experiments."""
    rows = [json.loads(line) for line in (await shell("export")).out.splitlines()]
    summary = json.loads((await shell("show", "latest", "--json")).out)
    for row in rows:
        for part in (row, *row["stages"]):
            for key in part.keys() & {*_OF_THIS, *_OF_TIME}:
                part.pop(key)
    for key in summary.keys() & {*_OF_THIS, *_OF_TIME, *_OF_CALLS_GIVEN_UP}:
        summary.pop(key)
    for variant in summary["variants"]:
        variant.pop("latency_ms")
    return rows, summary


@pytest.fixture(scope="module")
def quiet() -> dict[str, Any]:
    """Results of uninterrupted runs, by experiment file."""
    return {}


async def quiet_results(quiet: dict[str, Any], shell: Any, meter: Metered) -> Any:
    """Of the same experiment, run from its start to its end in a home of its own."""
    text = (shell.folder / "promptlooper.yaml").read_text()
    if text not in quiet:
        meter.allow(None)
        other = type(shell)(shell.folder, {**shell.env, "PROMPTLOOPER_HOME": "quiet"})
        ran = await other("run", "-q")
        assert ran.code == 0, ran.err
        quiet[text] = await results(other)
    return quiet[text]


@pytest.mark.parametrize(
    ("signum", "cache", "budget_usd"),
    [
        (signal.SIGINT, "off", None),
        (signal.SIGTERM, "read_write", 50),
        (signal.SIGKILL, "off", 50),
        (signal.SIGKILL, "read_write", None),
    ],
)
async def test_resumed_experiment_is_as_one_that_was_never_interrupted(
    shell: Any,
    provider: FakeProvider,
    meter: Metered,
    quiet: dict[str, Any],
    signum: signal.Signals,
    cache: str,
    budget_usd: int | None,
) -> None:
    """A budget that is large enough changes nothing, though calls that were given up count against it."""
    text = EXPERIMENT.replace("CACHE", cache)
    if budget_usd is not None:
        text = text.replace("{max_concurrency: 3}", f"{{max_concurrency: 3, budget_usd: {budget_usd}}}")
    (shell.folder / "promptlooper.yaml").write_text(text)
    run = await interrupted(shell, provider, meter, 7, "run")
    run.send_signal(signum)
    _, stderr = await run.communicate()
    assert run.returncode == (-signum if signum is signal.SIGKILL else 128 + signum)
    await provider.eventually(lambda p: p.open == 0)
    answered = meter.answered.copy()
    assert answered.total() == 7

    listed = await shell("list")
    assert "RUNNING (interrupted)" in listed.out
    name = listed.out.splitlines()[1].split()[0]
    assert f"`promptlooper run --resume {name}` goes on" in listed.err
    if signum is not signal.SIGKILL:
        assert f"\n  promptlooper run --resume {name}\n" in stderr.decode()

    meter.allow(None)
    resumed = await shell("run", "--resume", "latest", "promptlooper.yaml", "-o", "rows.jsonl")
    assert resumed.code == 0, resumed.err
    assert "8 runs, 8 completed, 0 failed" in resumed.out
    assert len((shell.folder / "rows.jsonl").read_text().splitlines()) == INPUTS
    assert all(provider.calls[question] == 1 for question in answered), "an answer was asked for again"
    assert provider.calls.total() == 2 * INPUTS + AT_ONCE
    assert await results(shell) == await quiet_results(quiet, shell, meter)


@pytest.mark.timeout(300)
async def test_ten_kills_lose_and_repeat_nothing_that_was_answered(
    shell: Any, provider: FakeProvider, meter: Metered, quiet: dict[str, Any]
) -> None:
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", "off"))
    for kill in range(10):
        run = await interrupted(shell, provider, meter, 1, *("run", *(["--resume", "latest"] if kill else [])))
        run.kill()
        await run.communicate()
        await provider.eventually(lambda p: p.open == 0)
    meter.allow(None)
    resumed = await shell("run", "--resume", "latest")
    assert resumed.code == 0, resumed.err
    assert set(meter.answered.values()) == {1}
    repeated = provider.calls.total() - meter.answered.total()
    assert repeated <= 10 * AT_ONCE, "a kill repeats what was under way, once"
    print(f"10 kills: {meter.answered.total()} answers, none asked for twice; {repeated} calls under way repeated")
    assert await results(shell) == await quiet_results(quiet, shell, meter)


async def test_resume_of_a_completed_experiment_prints_its_report_and_asks_nobody(
    shell: Any, provider: FakeProvider, meter: Metered
) -> None:
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", "off"))
    meter.allow(None)
    first = await shell("run", "-q")
    for command in (["run", "--resume", "latest", "-q"], ["resume", "latest", "-q"], ["retry", "latest", "-q"]):
        again = await shell(*command)
        assert (again.code, again.out) == (0, first.out)
    assert provider.calls.total() == 2 * INPUTS


async def test_the_same_request_id_goes_on_with_what_was_interrupted(
    shell: Any, provider: FakeProvider, meter: Metered
) -> None:
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", "off"))
    run = await interrupted(shell, provider, meter, 4, "run", "--request-id", "once")
    run.send_signal(signal.SIGINT)
    await run.communicate()
    meter.allow(None)
    again = await shell("run", "-q", "--request-id", "once")
    assert again.code == 0, again.err
    assert provider.calls.total() == 2 * INPUTS + AT_ONCE
    assert len(json.loads((await shell("list", "--json")).out)) == 1


async def test_other_file_is_not_resumed(shell: Any, provider: FakeProvider, meter: Metered) -> None:
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", "off"))
    run = await interrupted(shell, provider, meter, 1, "run")
    run.send_signal(signal.SIGTERM)
    await run.communicate()
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", "read_only"))
    other = await shell("run", "promptlooper.yaml", "--resume", "latest")
    assert other.code == 2
    assert "made of something else" in other.err
    assert provider.open == 0


async def test_watch_in_another_process_ends_when_the_run_is_killed(
    shell: Any, provider: FakeProvider, meter: Metered
) -> None:
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", "off"))
    run = await interrupted(shell, provider, meter, 2, "run")
    watch = await shell.start("watch", "latest")
    assert b"RUNNING" in await watch.stdout.readline()
    run.kill()
    await run.communicate()
    _, stderr = await watch.communicate()
    assert watch.returncode == 1
    assert b"was interrupted: no process works on it. `promptlooper run --resume " in stderr


async def test_paused_run_waits_and_another_process_resumes_it(
    shell: Any, provider: FakeProvider, meter: Metered
) -> None:
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", "off"))
    run = await interrupted(shell, provider, meter, 2, "run")
    paused = await shell("pause", "latest", "--json")
    assert json.loads(paused.out)["state"] == "PAUSED"
    assert "PAUSED  " in (await shell("list")).out
    meter.allow(None)
    resumed = await shell("resume", "latest", "-q")
    assert resumed.code == 0, resumed.err
    assert "8 runs, 8 completed, 0 failed" in resumed.out
    await run.communicate()
    assert run.returncode == 0
    assert set(provider.calls.values()) == {1}
    kinds = [json.loads(line)["kind"] for line in (await shell("events", "latest", "--json")).out.splitlines()]
    assert [kind for kind in kinds if kind.startswith("experiment.")] == [
        *("experiment.created", "experiment.started", "experiment.paused"),
        *("experiment.resumed", "experiment.completed"),
    ]


async def test_retry_asks_only_the_stage_that_failed(shell: Any, provider: FakeProvider, meter: Metered) -> None:
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("CACHE", "off"))
    meter.allow(None)
    provider.answer = lambda r: (
        Reply("no", status=400) if "so what is 3" in r.question else Reply(f"answer {r.question}")
    )
    failed = await shell("run", "-q")
    assert failed.code == 1
    name = json.loads((await shell("show", "latest", "--json")).out)["experiment_id"]
    assert f"\n  promptlooper retry {name}\n" in failed.out
    before = provider.calls.copy()
    provider.answer = meter
    meter.allow(None)
    retried = await shell("retry", "latest", "--json", "-q")
    assert retried.code == 0, retried.err
    document = json.loads(retried.out)
    assert (document["generation"], document["counts"]["completed"]) == (2, INPUTS)
    assert list(provider.calls - before) == ["answer think about 3, so what is 3?"]
