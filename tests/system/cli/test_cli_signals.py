"""Ctrl-C and SIGTERM end an embedded run cleanly: what was answered is kept, and the exit code says why it ended."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply

EXPERIMENT = """\
inputs: [quick 1, quick 2, slow 1, slow 2, slow 3]
model: openai/gpt-4.1-mini
prompt: "{{ input }}"
limits: {max_concurrency: 4}
"""


@pytest.fixture
async def provider(shell: Any) -> AsyncIterator[FakeProvider]:
    """Answers quick questions; slow ones are never answered."""
    never = asyncio.Event()

    def answer(request: ProviderRequest) -> Reply:
        return Reply("ok", until=never if "slow" in request.question else None)

    async with FakeProvider(answer) as provider:
        shell.env["OPENAI_BASE_URL"] = provider.base_url
        yield provider


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_signal_stops_calls_and_keeps_what_was_answered(
    shell: Any, tmp_path: Path, provider: FakeProvider, signum: signal.Signals, code: int
) -> None:
    (tmp_path / "promptlooper.yaml").write_text(EXPERIMENT)
    run = await shell.start("run")
    await provider.eventually(lambda p: p.calls["slow 3"] == 1 and p.open == 3)
    run.send_signal(signum)
    _, stderr = await run.communicate()
    assert run.returncode == code
    assert b"Traceback" not in stderr
    assert f"Stopped by {signum.name}".encode() in stderr
    assert b"promptlooper run --resume " in stderr
    assert b"promptlooper show" in stderr
    await provider.eventually(lambda p: p.open == 0)

    show = await shell.start("show", "latest", "--json")
    stdout, _ = await show.communicate()
    assert json.loads(stdout)["counts"]["completed"] == 2


async def test_second_signal_leaves_at_once(shell: Any, tmp_path: Path, provider: FakeProvider) -> None:
    (tmp_path / "promptlooper.yaml").write_text(EXPERIMENT)
    run = await shell.start("run")
    await provider.eventually(lambda p: p.open == 3)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGINT)
    await run.communicate()
    assert run.returncode == 130


@pytest.mark.parametrize("first", [0, 1])
async def test_only_the_last_process_that_works_on_an_experiment_says_that_it_was_stopped(
    shell: Any, tmp_path: Path, provider: FakeProvider, first: int
) -> None:
    (tmp_path / "promptlooper.yaml").write_text(EXPERIMENT)
    run = await shell.start("run")
    await provider.eventually(lambda p: p.calls["slow 3"] == 1 and p.open == 3)
    resumed = await shell.start("run", "--resume", "latest")
    assert b"2/5 runs" in await resumed.stderr.readline()
    processes = [run, resumed]
    for process, said in (
        (processes.pop(first), b"Stopped watching by SIGINT; experiment "),
        (processes.pop(), b"Stopped by SIGINT. "),
    ):
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
        assert process.returncode == 130
        assert said in stderr
        assert (b" goes on in another process.\n  promptlooper watch " in stderr) is (b"watching" in said)


async def test_interrupted_experiment_can_be_cancelled_and_deleted(
    shell: Any, tmp_path: Path, provider: FakeProvider
) -> None:
    (tmp_path / "promptlooper.yaml").write_text(EXPERIMENT)
    run = await shell.start("run")
    await provider.eventually(lambda p: p.open == 3)
    run.send_signal(signal.SIGINT)
    await run.communicate()
    for command in (["cancel", "latest"], ["delete", "latest", "--yes"]):
        process = await shell.start(*command)
        _, stderr = await process.communicate()
        assert process.returncode == 0, stderr


async def test_reader_that_leaves_early_is_no_fault(shell: Any, tmp_path: Path, provider: FakeProvider) -> None:
    rows = "\n".join(f"  - quick {i}" for i in range(300))
    (tmp_path / "promptlooper.yaml").write_text(f"inputs:\n{rows}\nmodel: mock/echo\nprompt: '{{{{ input }}}}'\n")
    run = await shell.start("run", "-q")
    await run.communicate()
    assert run.returncode == 0
    export = await shell.start("export")
    assert export.stdout is not None
    assert export.stderr is not None
    assert json.loads(await export.stdout.readline())["run_index"] == 0
    export.stdout._transport.close()
    assert b"Traceback" not in await export.stderr.read()
    await export.wait()
