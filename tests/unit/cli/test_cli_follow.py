"""Watching goes on where it was after a lost connection."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from promptlooper.cli import follow as follow_module
from promptlooper.cli.follow import follow
from promptlooper.errors import DomainError, Draining, ExperimentNotFound, ResumeTokenExpired, ServiceUnavailable
from promptlooper.experiment import ExperimentState


@pytest.fixture
def running(runner: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(follow_module, "_LONGEST_WAIT", 0.0)
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING)]
    return runner


async def kinds_of(source: Any) -> list[str]:
    names = ("snapshot", "event", "bookmark", "terminal")
    return [next(name for name in names if getattr(message, name) is not None) async for message in source]


async def test_watch_ends_after_the_terminal_message(running: Any) -> None:
    assert await kinds_of(follow(running, "abc123")) == ["snapshot", "bookmark", "terminal"]


async def test_lost_connection_goes_on_from_the_last_token_and_is_said_once(running: Any) -> None:
    running.watch_errors = [ServiceUnavailable("gone"), ServiceUnavailable("still gone")]
    said: list[DomainError] = []
    await kinds_of(follow(running, "abc123", on_lost=said.append))
    assert [token for _, token, _ in running.watches] == ["", "t1", "t1"]
    assert [error.message for error in said] == ["gone"]


async def test_expired_token_starts_over_without_one(running: Any) -> None:
    running.watch_errors = [Draining("later"), ResumeTokenExpired("too old")]
    await kinds_of(follow(running, "abc123"))
    assert [token for _, token, _ in running.watches] == ["", "t1", ""]


async def test_server_that_was_never_reached_is_an_error_at_once(running: Any) -> None:
    running.unreachable = ServiceUnavailable("nothing answers")
    with pytest.raises(ServiceUnavailable):
        await kinds_of(follow(running, "abc123"))
    assert len(running.watches) == 1


async def test_server_that_stays_away_is_given_up(running: Any) -> None:
    running.watch_errors = [ServiceUnavailable("gone")] * 100
    with pytest.raises(ServiceUnavailable):
        await kinds_of(follow(running, "abc123"))
    assert len(running.watches) == 61


async def test_unknown_experiment_is_an_error(running: Any) -> None:
    with pytest.raises(ExperimentNotFound):
        await kinds_of(follow(running, "nope"))


def test_watch_prints_events_and_the_end(promptlooper: Any, running: Any) -> None:
    running.failed_runs = 1
    result = promptlooper("watch", "latest")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("abc123: RUNNING")
    assert "run.failed  run 0  stage 0  PROVIDER_UNAVAILABLE: the provider is down" in lines[1]
    assert lines[-1].startswith("abc123: COMPLETED")


def test_watch_json_is_a_document_per_line_with_a_token(promptlooper: Any, running: Any) -> None:
    running.failed_runs = 1
    lines = [json.loads(line) for line in promptlooper("watch", "latest", "--json").stdout.splitlines()]
    assert [list(line)[:2] for line in lines] == [["resume_token", "event_seq"]] * 4
    assert [list(line)[2] for line in lines] == ["snapshot", "event", "bookmark", "terminal"]
    assert lines[1]["event"]["kind"] == "run.failed"
    assert lines[1]["event"]["run_id"] == "abc123-0"


def test_watch_of_a_good_experiment_exits_0(promptlooper: Any, running: Any) -> None:
    assert promptlooper("watch", "latest").exit_code == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_watch_and_says_how_to_go_on(
    promptlooper: Any, running: Any, signum: signal.Signals, code: int
) -> None:
    import asyncio

    running.hold = asyncio.Event()
    running.on_watch = lambda: os.kill(os.getpid(), signum)
    result = promptlooper("watch", "abc", "--server", "127.0.0.1:7051")
    assert result.exit_code == code
    assert "promptlooper watch abc --server 127.0.0.1:7051" in result.stderr
    assert running.cancelled == []
