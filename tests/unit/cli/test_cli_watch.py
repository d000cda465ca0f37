"""`promptlooper watch`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from promptlooper.experiment import ExperimentState


@pytest.fixture
def running(runner: Any, make: Any, monkeypatch: pytest.MonkeyPatch, promptlooper: Any) -> Any:
    """On a server, where the command line looks."""
    monkeypatch.setenv("PROMPTLOOPER_SERVER", "127.0.0.1:7051")
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING)]
    return runner


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
    assert [list(line)[:2] for line in lines] == [["resume_token", "event_seq"]] * 3
    assert [list(line)[2] for line in lines] == ["snapshot", "event", "terminal"]
    assert lines[1]["event"]["kind"] == "run.failed"
    assert lines[1]["event"]["run_id"] == "abc123-0"


def test_watch_of_a_good_experiment_exits_0(promptlooper: Any, running: Any) -> None:
    assert promptlooper("watch", "latest").exit_code == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_watch_and_says_how_to_go_on(
    promptlooper: Any, running: Any, signum: signal.Signals, code: int
) -> None:
    running.hold = asyncio.Event()
    running.on_watch = lambda: os.kill(os.getpid(), signum)
    result = promptlooper("watch", "abc", "--server", "127.0.0.1:7051")
    assert result.exit_code == code
    assert "promptlooper watch abc --server 127.0.0.1:7051" in result.stderr
    assert running.cancelled == []
