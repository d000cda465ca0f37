"""An embedded experiment whose process has gone stays RUNNING: commands say that nobody works on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptlooper.embedded.working import FOLDER, worked_on, working_on
from promptlooper.experiment import ExperimentState, RunCounts

WHAT_TO_DO = "Experiment abc123 was interrupted: no process works on it. `promptlooper run --resume abc123` goes on"


@pytest.fixture
def home(tmp_path: Path, runner: Any, make: Any) -> Path:
    counts = RunCounts(total=5, completed=2, pending=3)
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING, counts=counts), make.experiment("old")]
    return tmp_path / ".promptlooper"


@pytest.fixture
def working(home: Path) -> Iterator[None]:
    """A process that works on it."""
    with working_on(home, "abc123"):
        yield


def test_list_and_show_say_that_it_was_interrupted(promptlooper: Any, home: Path) -> None:
    listed = promptlooper("list")
    lines = listed.stdout.splitlines()
    assert "RUNNING (interrupted)" in lines[1]
    assert "COMPLETED  " in lines[2]
    assert WHAT_TO_DO in listed.stderr
    shown = promptlooper("show", "abc").stdout
    assert "RUNNING (interrupted) in" in shown
    assert WHAT_TO_DO in shown
    assert "`promptlooper cancel abc123`" in shown
    assert "interrupted" not in promptlooper("show", "old").stdout


def test_list_of_several_interrupted_ones_says_it_once(promptlooper: Any, home: Path, runner: Any, make: Any) -> None:
    runner.experiments.append(make.experiment("more", state=ExperimentState.PENDING))
    said = promptlooper("list").stderr
    assert said.startswith("2 experiments were interrupted: `promptlooper run --resume ID` goes on with one")
    assert len(said.splitlines()) == 1


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


def test_watch_ends_when_the_process_that_worked_on_it_dies(promptlooper: Any, home: Path, runner: Any) -> None:
    work = working_on(home, "abc123")
    work.__enter__()

    def die() -> None:
        work.__exit__(None, None, None)

    runner.on_watch = die
    result = promptlooper("watch", "abc")
    assert result.exit_code == 1
    assert result.stdout.startswith("abc123: RUNNING")
    assert WHAT_TO_DO in result.stderr


@pytest.mark.usefixtures("working")
def test_nothing_of_that_is_said_while_a_process_works(promptlooper: Any, home: Path) -> None:
    listed = promptlooper("list")
    assert "interrupted" not in listed.stdout + listed.stderr
    assert "interrupted" not in promptlooper("show", "abc").stdout
    assert "goes on: 3 runs not ended yet" in promptlooper("export", "abc").stderr
    assert promptlooper("watch", "abc").exit_code == 0


def test_a_process_that_works_on_another_experiment_does_not_count(promptlooper: Any, home: Path) -> None:
    with working_on(home, "old"):
        assert "RUNNING (interrupted)" in promptlooper("list").stdout


def test_experiments_of_a_server_are_never_called_interrupted(promptlooper: Any, home: Path) -> None:
    assert "interrupted" not in promptlooper("list", "--server", "127.0.0.1:7051").stdout


def test_paused_experiment_is_not_called_interrupted_but_nobody_waits_for_it(
    promptlooper: Any, home: Path, runner: Any
) -> None:
    runner.experiments[0] = replace(runner.experiments[0], state=ExperimentState.PAUSED)
    said = "Experiment abc123 is paused: `promptlooper resume abc123` goes on with it."
    listed = promptlooper("list")
    assert "PAUSED  " in listed.stdout
    assert listed.stderr == ""
    assert said in promptlooper("show", "abc").stdout
    assert said in promptlooper("export", "abc").stderr
    watched = promptlooper("watch", "abc")
    assert (watched.exit_code, watched.stderr) == (1, f"Error: {said}\n")


def test_who_works_on_what_is_known_until_it_leaves(tmp_path: Path) -> None:
    assert worked_on(tmp_path) == frozenset()
    with working_on(tmp_path, "one"), working_on(tmp_path, "two"), working_on(tmp_path, "one"):
        assert worked_on(tmp_path) == {"one", "two"}
    assert worked_on(tmp_path) == frozenset()
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_what_a_dead_process_left_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "one.dead.lock").touch()
    assert worked_on(tmp_path) == frozenset()
    assert list((tmp_path / FOLDER).iterdir()) == []
