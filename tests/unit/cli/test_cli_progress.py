"""Progress on stderr."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from promptlooper.cli.progress import LiveBar, Pace, PlainLines, Silence, bar_text, progress_for, progress_line
from promptlooper.experiment import ExperimentState, RunCounts
from promptlooper.run import Event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def running(make: Any, completed: int, failed: int = 0, total: int = 100) -> Any:
    counts = RunCounts(total=total, pending=total - completed - failed, completed=completed, failed=failed)
    return make.experiment(state=ExperimentState.RUNNING, counts=counts, cost_nanousd=2_500_000)


def failure(make: Any, index: int) -> Event:
    detail = {"error_reason": "PROVIDER_UNAVAILABLE", "error_message": "the provider\nis down"}
    return Event("abc123", index, "default", "run.failed", make.experiment().created_at, 1, index, detail)


def test_pipe_gets_lines_and_terminal_a_bar_and_quiet_nothing() -> None:
    assert isinstance(progress_for(False, io.StringIO()), PlainLines)
    assert isinstance(progress_for(False, Terminal()), LiveBar)
    assert isinstance(progress_for(True, Terminal()), Silence)


def test_rate_and_time_left_come_from_the_last_half_minute() -> None:
    pace = Pace()
    assert pace.rate is None
    for at, ended in [(0.0, 0), (10.0, 10), (40.0, 40), (50.0, 90)]:
        pace.saw(at, ended)
    assert pace.rate == 5.0
    assert pace.left(10) == 2.0


def test_plain_lines_come_at_most_every_five_seconds_and_at_the_end(make: Any) -> None:
    now = [0.0]
    out = io.StringIO()
    lines = PlainLines(out, lambda: now[0])
    for second, completed in [(0, 0), (1, 10), (2, 20), (5, 50)]:
        now[0] = second
        lines.update(running(make, completed))
    now[0] = 6
    lines.update(make.experiment(counts=RunCounts(total=100, completed=100)))
    assert out.getvalue().splitlines() == [
        "capitals: 0/100 runs, 0 failed, 0 cached, spent $0.0025",
        "capitals: 50/100 runs, 0 failed, 0 cached, spent $0.0025, 10.0 runs/s, 5.0 s left",
        "capitals: 100/100 runs, 0 failed, 0 cached, spent $0.000003, 16.7 runs/s",
    ]


def test_a_plain_line_of_what_is_paused_comes_once(make: Any) -> None:
    now, out = [0.0], io.StringIO()
    lines = PlainLines(out, lambda: now[0])
    for second, completed in [(0, 10), (10, 10), (20, 11), (30, 11)]:  # a call that was under way ends
        now[0] = second
        lines.update(replace(running(make, completed), state=ExperimentState.PAUSED))
    assert out.getvalue().splitlines() == [
        "capitals: paused, 10/100 runs, 0 failed, 0 cached, spent $0.0025",
        "capitals: paused, 11/100 runs, 0 failed, 0 cached, spent $0.0025",
    ]


def test_what_it_may_cost_in_all_is_said_where_it_can_be_guessed(make: Any) -> None:
    now = replace(running(make, 10), cost_remaining_nanousd=7_500_000, budget_nanousd=20_000_000)
    assert progress_line(now, Pace()) == (
        "capitals: 10/100 runs, 0 failed, 0 cached, spent $0.0025 of about $0.01, budget $0.02"
    )
    assert bar_text(now, Pace(), 43) == "10/100 · 0 failed · $0.0025 of about $0.01"
    assert bar_text(now, Pace(), 41) == "10/100 · 0 failed · $0.0025"
    assert "about" not in progress_line(replace(now, state=ExperimentState.COMPLETED), Pace())


def test_pause_is_said_instead_of_a_rate(make: Any) -> None:
    pace = Pace()
    pace.saw(0.0, 0)
    pace.saw(1.0, 20)
    paused = replace(running(make, 18), state=ExperimentState.PAUSED)
    assert bar_text(paused, pace) == "paused · 18/100 · 0 failed · $0.0025"


def test_failures_are_listed_up_to_a_handful(make: Any) -> None:
    out = io.StringIO()
    lines = PlainLines(out)
    for index in range(20):
        lines.failure(failure(make, index))
    assert out.getvalue().splitlines()[0] == "run 0 failed: PROVIDER_UNAVAILABLE: the provider is down"
    assert len(out.getvalue().splitlines()) == 6


def test_bar_says_count_failures_spend_rate_and_time_left(make: Any) -> None:
    pace = Pace()
    pace.saw(0.0, 0)
    pace.saw(1.0, 20)
    assert bar_text(running(make, 18, failed=2), pace) == "20/100 · 2 failed · $0.0025 · 20.0/s · 4.0 s left"


def test_live_bar_opens_with_the_first_counts_and_leaves_nothing_behind(make: Any) -> None:
    out = Terminal()
    bar = LiveBar(out)
    bar.close()
    assert out.getvalue() == ""
    bar.update(running(make, 10))
    bar.failure(failure(make, 3))
    bar.close()
    assert "run 3 failed: PROVIDER_UNAVAILABLE" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()


def test_runs_that_were_cancelled_did_not_end(make: Any) -> None:
    counts = RunCounts(total=60, completed=10, failed=2, cancelled=48)
    out = io.StringIO()
    PlainLines(out).update(make.experiment(state=ExperimentState.CANCELLED, reason="BUDGET", counts=counts))
    assert out.getvalue() == "capitals: 12/60 runs, 2 failed, 48 cancelled, 0 cached, spent $0.000003\n"
    assert bar_text(make.experiment(counts=counts), Pace()) == "12/60 · 2 failed · 48 cancelled · $0.000003"
