"""An embedded experiment whose process has gone stays RUNNING: commands say that nobody works on it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptlooper.experiment import ExperimentState, RunCounts

WHAT_TO_DO = "Nothing works on experiment abc123 any more: run its file again"


@pytest.fixture
def home(tmp_path: Path, runner: Any, make: Any) -> Path:
    counts = RunCounts(total=5, completed=2, pending=3)
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING, counts=counts), make.experiment("old")]
    home = tmp_path / ".promptlooper"
    (home / "runners").mkdir(parents=True)
    (home / "promptlooper.db").touch()
    return home


@pytest.fixture
def working(home: Path) -> Iterator[None]:
    """Another process that works in the home."""
    descriptor = os.open(home / "runners" / "other.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def test_list_and_show_say_that_it_was_interrupted(promptlooper: Any, home: Path) -> None:
    lines = promptlooper("list").stdout.splitlines()
    assert "RUNNING (interrupted)" in lines[1]
    assert "COMPLETED  " in lines[2]
    shown = promptlooper("show", "abc").stdout
    assert "RUNNING (interrupted) in" in shown
    assert WHAT_TO_DO in shown
    assert "`promptlooper cancel abc123`" in shown
    assert "interrupted" not in promptlooper("show", "old").stdout


def test_documents_keep_the_state(promptlooper: Any, home: Path) -> None:
    assert json.loads(promptlooper("show", "abc", "--json").stdout)["state"] == "RUNNING"
    assert json.loads(promptlooper("list", "--json").stdout)[0]["state"] == "RUNNING"


def test_export_says_it_beside_the_rows(promptlooper: Any, home: Path) -> None:
    result = promptlooper("export", "abc")
    assert result.exit_code == 0
    assert WHAT_TO_DO in result.stderr


def test_watch_ends_instead_of_waiting_for_nobody(promptlooper: Any, home: Path, runner: Any) -> None:
    runner.hold = asyncio.Event()
    result = promptlooper("watch", "abc")
    assert result.exit_code == 1
    assert WHAT_TO_DO in result.stderr
    assert json.loads(promptlooper("watch", "abc", "--json").stdout)["error"]["reason"] == "INTERRUPTED"
    runner.hold = None
    assert promptlooper("watch", "old").exit_code == 0


@pytest.mark.usefixtures("working")
def test_nothing_of_that_is_said_while_a_process_works(promptlooper: Any, home: Path) -> None:
    assert "interrupted" not in promptlooper("list").stdout
    assert "interrupted" not in promptlooper("show", "abc").stdout
    assert "goes on: 3 runs not ended yet" in promptlooper("export", "abc").stderr
    assert promptlooper("watch", "abc").exit_code == 0


def test_experiments_of_a_server_are_never_called_interrupted(promptlooper: Any, home: Path) -> None:
    assert "interrupted" not in promptlooper("list", "--server", "127.0.0.1:7051").stdout
