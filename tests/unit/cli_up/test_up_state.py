"""The state file and the lock by which `status` and `down` find a stack."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptlooper.cli.stack import planned_parts
from promptlooper.cli.stack_state import (
    STATE_FILE,
    AlreadyRunning,
    Process,
    is_owned,
    ownership,
    planned_state,
    process_of,
    read_state,
    remove_state,
    write_state,
)

PARTS = planned_parts({}, 7051)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Lives until its stdin is closed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_written_state_is_read_back(tmp_path: Path) -> None:
    state = planned_state(PARTS, tmp_path / "up.log").with_process("nats", process_of(os.getpid()))
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert state.server == "127.0.0.1:7051"


def test_no_file_and_a_file_of_something_else_are_no_state(tmp_path: Path) -> None:
    assert read_state(tmp_path / "absent") is None
    for text in ("", "[]", "{}", '{"phase": "ready", "supervisor": 1}'):
        (tmp_path / STATE_FILE).write_text(text)
        assert read_state(tmp_path) is None


def test_removing_a_state_twice_is_no_error(tmp_path: Path) -> None:
    remove_state(tmp_path)
    remove_state(tmp_path)


def test_a_reused_pid_is_not_taken_for_the_process_that_had_it(child: subprocess.Popen[bytes]) -> None:
    now = process_of(child.pid)
    assert now is not None
    assert now.alive()
    assert not Process(now.pid, now.started - 3600).alive()


def test_a_process_that_ended_is_not_alive_even_before_it_is_reaped(child: subprocess.Popen[bytes]) -> None:
    process = process_of(child.pid)
    assert process is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert not process.alive()
    child.wait()
    assert not process.alive()
    assert process_of(child.pid) is None


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    assert not is_owned(tmp_path)
    with ownership(tmp_path):
        assert is_owned(tmp_path)
        with pytest.raises(AlreadyRunning, match="already running"), ownership(tmp_path):
            pass
    assert not is_owned(tmp_path)


def test_a_killed_owner_leaves_the_folder_free(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from promptlooper.cli.stack_state import ownership\n"
        "with ownership(pathlib.Path(sys.argv[1])):\n"
        "    print('mine', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"mine\n"
        assert is_owned(tmp_path)
        owner.kill()
        owner.wait()
    assert not is_owned(tmp_path)
