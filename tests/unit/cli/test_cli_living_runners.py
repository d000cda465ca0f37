"""Embedded processes know each other's deaths by locked files, whatever another one does at the same moment."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptlooper.embedded.composition import LivingRunners
from promptlooper.embedded.home import RUNNERS

HOLD_AND_DIE = """
import os, pathlib, signal, sys
from promptlooper.embedded.composition import LivingRunners
LivingRunners(pathlib.Path(sys.argv[1])).hold("a")
os.kill(os.getpid(), signal.SIGKILL)
"""


def dead(runners: LivingRunners) -> list[str]:
    with runners.dead() as found:
        return found


def files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / RUNNERS).iterdir())


def test_runner_is_alive_until_it_leaves(tmp_path: Path) -> None:
    mine, other = LivingRunners(tmp_path), LivingRunners(tmp_path)
    mine.hold("a")
    mine.hold("b")
    assert files(tmp_path) == ["a.lock", "b.lock"]
    assert dead(other) == []
    mine.release()
    assert files(tmp_path) == []
    assert dead(other) == []


def test_what_a_killed_process_held_is_dead_once(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", HOLD_AND_DIE, tmp_path], check=False)
    assert files(tmp_path) == ["a.lock"]
    runners = LivingRunners(tmp_path)
    assert dead(runners) == ["a"]
    assert dead(runners) == []
    assert files(tmp_path) == []


class Meanwhile:
    """Something that happens just before the next call of a function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def before(self, module: Any, name: str, happens: Callable[[], None]) -> None:
        function = getattr(module, name)

        def late(*args: Any) -> Any:
            self._monkeypatch.undo()
            happens()
            return function(*args)

        self._monkeypatch.setattr(module, name, late)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    return Meanwhile(monkeypatch)


def test_runner_that_is_looked_for_while_it_makes_its_file_is_not_dead(tmp_path: Path, meanwhile: Meanwhile) -> None:
    mine, other = LivingRunners(tmp_path), LivingRunners(tmp_path)
    seen = []
    meanwhile.before(fcntl, "flock", lambda: seen.append(dead(other)))
    mine.hold("a")
    assert seen == [[]]
    assert files(tmp_path) == ["a.lock"]
    assert dead(other) == []


def test_two_runners_that_make_their_files_at_once_both_have_one(tmp_path: Path, meanwhile: Meanwhile) -> None:
    mine, other = LivingRunners(tmp_path), LivingRunners(tmp_path)
    meanwhile.before(fcntl, "flock", lambda: other.hold("b"))
    mine.hold("a")
    assert files(tmp_path) == ["a.lock", "b.lock"]
    assert dead(LivingRunners(tmp_path)) == []


@pytest.mark.parametrize(("module", "name"), [(os, "open"), (fcntl, "flock")], ids=["opens", "locks"])
def test_runner_that_leaves_while_another_looks_is_passed_over(
    tmp_path: Path, meanwhile: Meanwhile, module: Any, name: str
) -> None:
    mine, other = LivingRunners(tmp_path), LivingRunners(tmp_path)
    mine.hold("a")
    meanwhile.before(module, name, mine.release)
    assert dead(other) == []


def test_file_that_a_process_did_not_finish_is_removed_by_the_next(tmp_path: Path) -> None:
    runners = LivingRunners(tmp_path)
    (tmp_path / RUNNERS / "a.new").touch()
    assert dead(runners) == []
    runners.hold("b")
    assert files(tmp_path) == ["b.lock"]


def test_file_that_a_process_is_just_making_is_left_alone(tmp_path: Path) -> None:
    runners = LivingRunners(tmp_path)
    with (tmp_path / RUNNERS / "a.new").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        runners.hold("b")
        assert files(tmp_path) == ["a.new", "b.lock"]
