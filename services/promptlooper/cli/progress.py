"""How an experiment goes, on stderr: a live bar on a terminal, plain lines in a pipe, or nothing."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from promptlooper.cli.wording import money, one_line, seconds, spent
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.run import Event

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_WINDOW = 30.0  # seconds that the rate looks back
_SHOWN_FAILURES = 5
_BAR = 14  # columns
_SIGNS = 4  # columns of the spinner and of spaces between
_LINE_EVERY = 5.0  # seconds between two plain lines
_HALTED = (ExperimentState.PAUSED, ExperimentState.CANCELLING)


class Progress(Protocol):
    bookmark_interval: float  # seconds between two looks at the counts

    def update(self, experiment: Experiment) -> None: ...

    def failure(self, event: Event) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def progress_for(quiet: bool, stream: TextIO | None = None) -> Progress:
    stream = stream or sys.stderr
    if quiet:
        return Silence()
    return LiveBar(stream) if stream.isatty() else PlainLines(stream)


class Pace:
    """Runs per second over the last half minute, and what that means for the rest."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def saw(self, at: float, ended: int) -> None:
        self._seen.append((at, ended))
        while len(self._seen) > 2 and at - self._seen[0][0] > _WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        if len(self._seen) < 2:
            return None
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start) if end > start and last > first else None

    def left(self, remaining: int) -> float | None:
        """Seconds; None where nothing has ended yet."""
        return remaining / self.rate if self.rate else None


def ended(experiment: Experiment) -> int:
    """Runs that came to their own end: not those that were cancelled."""
    return experiment.counts.completed + experiment.counts.failed


def failure_line(event: Event) -> str:
    reason = event.detail.get("error_reason") or "failed"
    return one_line(f"run {event.run_index} failed: {reason}: {event.detail.get('error_message') or ''}")


class Silence:
    bookmark_interval = 5.0

    def update(self, experiment: Experiment) -> None:
        pass

    def failure(self, event: Event) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class PlainLines:
    """A line at the start, then one every few seconds, for logs."""

    bookmark_interval = 1.0

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._pace = Pace()
        self._next = 0.0
        self._said = ""
        self._failures = 0

    def update(self, experiment: Experiment) -> None:
        at = self._now()
        self._pace.saw(at, ended(experiment))
        if at < self._next and not experiment.state.ended:
            return
        self._next = at + _LINE_EVERY
        line = progress_line(experiment, self._pace)
        still = experiment.state.ended or experiment.state is ExperimentState.PAUSED
        if not still or line != self._said:  # what had ended before is heard of twice, what is paused again and again
            self.note(line)
        self._said = line

    def failure(self, event: Event) -> None:
        self._failures += 1
        if self._failures <= _SHOWN_FAILURES:
            self.note(failure_line(event))
        elif self._failures == _SHOWN_FAILURES + 1:
            self.note("more failures are counted, not listed")

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        pass


def progress_line(experiment: Experiment, pace: Pace) -> str:
    counts = experiment.counts
    parts = [
        *_halted(experiment),
        f"{ended(experiment)}/{counts.total} runs",
        f"{counts.failed} failed",
        *([f"{counts.cancelled} cancelled"] if counts.cancelled else []),
        f"{counts.cached} cached",
        *([f"{counts.in_batch} in batches"] if counts.in_batch else []),
        f"spent {spent(experiment.cost_nanousd, experiment.cost_unknown_calls)}{_in_all(experiment)}",
        *_budget(experiment),
        *_pace_parts(experiment, pace, " runs/s"),
    ]
    return f"{one_line(experiment.name, 60)}: {', '.join(parts)}"


def bar_text(experiment: Experiment, pace: Pace, room: int | None = None) -> str:
    """What stands beside the bar. Without the guess at the whole cost where that does not fit into `room` columns."""
    counts = experiment.counts
    cost = spent(experiment.cost_nanousd, experiment.cost_unknown_calls)
    before = [
        *_halted(experiment),
        f"{ended(experiment)}/{counts.total}",
        f"{counts.failed} failed",
        *([f"{counts.cancelled} cancelled"] if counts.cancelled else []),
        *([f"{counts.in_batch} in batches"] if counts.in_batch else []),
    ]
    after = _pace_parts(experiment, pace, "/s")
    text = " · ".join([*before, cost + _in_all(experiment), *after])
    return text if room is None or len(text) <= room else " · ".join([*before, cost, *after])


def _halted(experiment: Experiment) -> list[str]:
    return [experiment.state.value.lower()] if experiment.state in _HALTED else []


def _in_all(experiment: Experiment) -> str:
    """What it may cost to its end, as far as that can be guessed."""
    if experiment.state.ended or not experiment.cost_remaining_nanousd:
        return ""
    return f" of about {money(experiment.cost_nanousd + experiment.cost_remaining_nanousd)}"


def _budget(experiment: Experiment) -> list[str]:
    return [] if experiment.budget_nanousd is None else [f"budget {money(experiment.budget_nanousd)}"]


def _pace_parts(experiment: Experiment, pace: Pace, unit: str) -> list[str]:
    if experiment.state in _HALTED:
        return []
    left = pace.left(experiment.counts.total - ended(experiment) - experiment.counts.cancelled)
    rate = [] if pace.rate is None else [f"{pace.rate:.1f}{unit}"]
    return rate if left is None or experiment.state.ended else [*rate, f"{seconds(left)} left"]


class LiveBar:
    bookmark_interval = 0.25

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._pace = Pace()
        self._failures = 0
        self._bar: RichProgress | None = None

    def _opened(self) -> RichProgress:
        """Opened with the first counts, so that a refused experiment never flashes a bar."""
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=_BAR),
                TextColumn("{task.fields[state]}", markup=False),
                console=Console(file=self._stream, highlight=False),
                transient=True,
                refresh_per_second=8,
            )
            self._bar.add_task("", total=None, state="")
        return self._bar

    def update(self, experiment: Experiment) -> None:
        bar = self._opened()
        name = one_line(experiment.name, 16)
        self._pace.saw(self._now(), ended(experiment))
        bar.update(
            bar.task_ids[0],
            description=name,
            total=experiment.counts.total,
            completed=ended(experiment),
            state=bar_text(experiment, self._pace, bar.console.width - len(name) - _BAR - _SIGNS),
        )
        bar.start()

    def failure(self, event: Event) -> None:
        self._failures += 1
        if self._failures <= _SHOWN_FAILURES:
            self.note(failure_line(event))

    def note(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
