from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from promptlooper.errors import InvalidArgument, ServiceUnavailable, StoreUnavailable
from promptlooper.failpoints import NAMES, Failpoints, InjectedFault, failpoints_from

ROOT = Path(__file__).parents[3]


def test_nothing_is_set_by_default() -> None:
    for points in (Failpoints(), failpoints_from(""), failpoints_from(" ; ")):
        assert points.actions == {}
        for name in NAMES:
            points.hit(name)


STEPS = ["create", "claim", "render", "lookup", "call", "store", "checkpoint", "publish", "ack", "score", "terminal"]


def test_every_step_of_a_run_has_one_before_and_one_after() -> None:
    """Creating is what inserts an experiment."""
    for step in STEPS:
        named = [name for name in NAMES if name.startswith(f"{step}_")]
        assert any("_before" in name for name in named), step
        assert any("_after" in name for name in named), step


def test_the_code_passes_those_that_are_listed_and_no_others() -> None:
    code = "".join(path.read_text() for path in ROOT.glob("services/promptlooper/**/*.py"))
    assert sorted(set(re.findall(r'failpoints\.hit\("(\w+)"\)', code))) == sorted(NAMES)


def test_an_error_is_raised_at_every_hit_or_only_at_one() -> None:
    points = failpoints_from("call_before=error; turn_before = error @ 2")
    for _ in range(2):
        with pytest.raises(InjectedFault, match="call_before"):
            points.hit("call_before")
    points.hit("turn_before")
    with pytest.raises(InjectedFault):
        points.hit("turn_before")
    points.hit("turn_before")
    points.hit("call_after")


def test_an_injected_fault_is_a_lost_connection_to_everyone() -> None:
    assert issubclass(InjectedFault, StoreUnavailable)
    assert issubclass(InjectedFault, ServiceUnavailable)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("call_befor=kill", "there is no failpoint 'call_befor'; there are create_before_insert, "),
        ("call_before=explode", "a failpoint can't 'explode'; it can kill, error, stop"),
        ("call_before", "'call_before' is not NAME=ACTION or NAME=ACTION@N, as in call_before=kill@3"),
        ("call_before=kill@0", "counts from 1"),
        ("call_before=kill@x", "is not NAME=ACTION"),
        ("call_before=kill;call_before=error", "'call_before' is set twice"),
    ],
)
def test_what_is_unknown_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        failpoints_from(text)
    assert says in raised.value.message


def test_kill_ends_the_process_at_the_hit_that_was_asked_for() -> None:
    program = (
        "from promptlooper.failpoints import failpoints_from\n"
        "points = failpoints_from('turn_before=kill@2')\n"
        "for n in range(3):\n"
        "    print(n, flush=True)\n"
        "    points.hit('turn_before')\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == -signal.SIGKILL
    assert told.stdout.split() == ["0", "1"]
    assert "failpoint turn_before: kill at hit 2" in told.stderr


def test_a_runner_with_a_wrong_failpoint_does_not_start() -> None:
    env = {"PROMPTLOOPER_FAILPOINTS": "nowhere=kill"}
    words = [sys.executable, "-m", "promptlooper.runner"]
    told = subprocess.run(words, capture_output=True, text=True, check=False, env=env, timeout=60)
    assert told.returncode == 2
    assert "PROMPTLOOPER_FAILPOINTS is 'nowhere=kill': there is no failpoint 'nowhere'" in told.stderr
