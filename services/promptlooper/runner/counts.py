"""What a Runner counts of its work, and what it knows of the queue from its own looks at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from promptlooper.counting import ANSWERS, CALLS, Histogram
from promptlooper.run import RunState, StageResult
from promptlooper.runner.outcomes import Outcome, StageDone
from promptlooper.runner.store.repository import Active
from promptlooper.runner.store.turns import TurnResult


@dataclass(slots=True)
class Queue:
    """All experiments of the database that have not ended, as of the last look: the same from every Runner."""

    claimable: int = 0  # runs that could start now, budgets aside
    pending: int = 0  # runs that wait, also for a cap, a pause or a time
    states: Counter[str] = field(default_factory=Counter)  # experiments by state
    runners: int = 0  # that live
    _unmoved: dict[str, tuple[int, float]] = field(default_factory=dict)  # by experiment: (pending, since)

    def look(self, active: Iterable[Active], runners: int, now: float) -> None:
        self.claimable = self.pending = 0
        self.runners, self.states, unmoved = runners, Counter(), {}
        for one in active:
            self.states[one.state.value] += 1
            self.pending += one.pending
            if one.room:
                self.claimable += one.room
                before = self._unmoved.get(one.experiment_id)
                moved = before is None or one.pending < before[0]
                unmoved[one.experiment_id] = (one.pending, now if moved or before is None else before[1])
        self._unmoved = unmoved

    def age(self, now: float) -> float:
        """Seconds for which some experiment has had runs to claim and none of them was claimed."""
        return max((now - since for _, since in self._unmoved.values()), default=0.0)


@dataclass(slots=True)
class EventLag:
    """Events that are committed and not published; known to the Runner whose relay publishes, 0 elsewhere."""

    unpublished: int = 0
    published: int = 0  # so far
    _since: float | None = None

    def behind(self, unpublished: int, now: float) -> None:
        self.unpublished = unpublished
        if not unpublished:
            self._since = None
        elif self._since is None:
            self._since = now

    def seconds(self, now: float) -> float:
        """Since when there have always been some that wait."""
        return 0.0 if self._since is None else now - self._since


@dataclass(slots=True)
class RunnerCounts:
    queue: Queue = field(default_factory=Queue)
    events: Counter[str] = field(default_factory=Counter)  # that were committed here, by kind
    claimed: int = 0
    refused: int = 0  # outcomes of runs that another had taken
    taken_back: int = 0  # runs of dead Runners
    leases_lost: int = 0
    in_flight: int = 0  # as of the last look
    executing: int = 0  # runs under way for callers who wait
    executed: Counter[str] = field(default_factory=Counter)  # the same when they had ended, by state
    answers: Counter[str] = field(default_factory=Counter)  # of stages: "cache" or "model"
    saved_nanousd: int = 0
    cache_failures: int = 0
    turn_seconds: Histogram = field(default_factory=lambda: Histogram(CALLS))
    run_seconds: Histogram = field(default_factory=lambda: Histogram(ANSWERS))

    def turned(self, outcomes: Sequence[Outcome], result: TurnResult, seconds: float) -> None:
        self.turn_seconds.add(seconds)
        self.events.update(result.kinds)
        self.claimed += len(result.claims)
        self.refused += len(result.refused)
        for outcome in outcomes:
            if isinstance(outcome, StageDone) and outcome.run_index not in result.refused:
                self.answered(outcome.result)

    def answered(self, result: StageResult) -> None:
        self.answers["cache" if result.cached else "model"] += 1
        self.saved_nanousd += result.cost_saved_nanousd or 0

    def has_executed(self, state: RunState, seconds: float) -> None:
        self.executed[state.value.lower()] += 1
        self.run_seconds.add(seconds)
