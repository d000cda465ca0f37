"""An experiment's books while its lock is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promptlooper.experiment import ExperimentState
from promptlooper.run import RunError


@dataclass(slots=True)
class Ledger:
    """The progress row, as it will be written back."""

    experiment_id: str
    state: str
    reason: str
    generation: int
    total: int
    next_index: int
    running: int
    returned: int
    completed: int
    failed: int
    cancelled: int
    cached: int
    max_concurrency: int
    budget_nanousd: int | None
    spent_nanousd: int
    uncertain_nanousd: int
    reserved_nanousd: int
    unit_nanousd: int
    budget_tokens: int | None
    spent_tokens: int
    uncertain_tokens: int
    reserved_tokens: int
    unit_tokens: int
    tokens_in: int
    tokens_out: int
    cost_unknown_calls: int
    cost_saved_nanousd: int
    event_seq: int
    started_us: int | None
    ended_us: int | None
    timeout_us: int | None  # limits.experiment_timeout
    deadline_us: int | None  # when the experiment's time is over
    first_event_seq: int  # events before it are not kept
    in_batch: int = 0  # runs that wait for a batch, and that none has woken: part of the returned ones

    @property
    def pending(self) -> int:
        """Runs that wait, with a row or without."""
        return self.total - self.next_index + self.returned

    @property
    def ended(self) -> bool:
        return ExperimentState(self.state).ended

    def restart(self, now_us: int) -> None:
        """Begins another generation, with all the time that the experiment may take."""
        self.generation += 1
        self.state = (ExperimentState.RUNNING if self.started_us is not None else ExperimentState.PENDING).value
        self.reason, self.ended_us = "", None
        self.set_deadline(now_us)

    def set_deadline(self, now_us: int) -> None:
        if self.timeout_us is not None and self.started_us is not None:
            self.deadline_us = now_us + self.timeout_us

    def fits(self, run: RunRow) -> bool:
        """Whether the budgets admit one more call of this run: its unit, or what the run said it needs."""
        need_nanousd, need_tokens = (
            max(self.unit_nanousd, run.reserved_nanousd),
            max(self.unit_tokens, run.reserved_tokens),
        )
        nanousd = self.spent_nanousd + self.uncertain_nanousd + self.reserved_nanousd + need_nanousd
        tokens = self.spent_tokens + self.uncertain_tokens + self.reserved_tokens + need_tokens
        return (self.budget_nanousd is None or nanousd <= self.budget_nanousd) and (
            self.budget_tokens is None or tokens <= self.budget_tokens
        )

    def reserve(self, run: RunRow) -> None:
        run.reserved_nanousd = 0 if self.budget_nanousd is None else max(self.unit_nanousd, run.reserved_nanousd)
        run.reserved_tokens = 0 if self.budget_tokens is None else max(self.unit_tokens, run.reserved_tokens)
        self.reserved_nanousd += run.reserved_nanousd
        self.reserved_tokens += run.reserved_tokens

    def release(self, run: RunRow) -> None:
        self.reserved_nanousd -= run.reserved_nanousd
        self.reserved_tokens -= run.reserved_tokens
        run.reserved_nanousd = run.reserved_tokens = 0

    def leave_batch(self, run: RunRow) -> None:
        """A run does not wait for its batch any more; what it held is what it needs."""
        if run.in_batch:
            run.in_batch = False
            self.in_batch -= run.not_before_us > 0
            self.reserved_nanousd -= run.reserved_nanousd
            self.reserved_tokens -= run.reserved_tokens

    def wake(self, run: RunRow) -> None:
        """Lets a run that waits for its batch go on."""
        run.not_before_us = 0
        self.in_batch -= 1

    def drop(self, run: RunRow) -> None:
        """A run that waits is given up. One that waits for a batch may be answered and billed all the same."""
        if run.in_batch:
            self.keep_reservation(run)
            self.leave_batch(run)
        run.reserved_nanousd = run.reserved_tokens = 0

    def keep_reservation(self, run: RunRow) -> None:
        """A call was given up after it was sent, and nobody knows whether it is billed: what it reserved counts against
        the budget, which must hold, and not as cost."""
        self.uncertain_nanousd += run.reserved_nanousd
        self.uncertain_tokens += run.reserved_tokens

    def as_row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class RunRow:
    """A run's row while the lock is held. Totals are what this turn adds to the stored ones."""

    run_index: int
    variant_index: int
    state: str
    owner: str | None
    lease_epoch: int
    next_stage: int
    reserved_nanousd: int = 0  # of a PENDING run: what it needs, and nothing is reserved
    reserved_tokens: int = 0
    not_before_us: int = 0  # 0: at once
    deadline_us: int | None = None  # of a stage that was parked: when its time is over
    run_deadline_us: int | None = None  # where limits.run_timeout is set
    cancel_requested: bool = False
    in_batch: bool = False  # PENDING, holds what it reserved: waits for a batch, or was woken (not_before_us 0)
    generation: int = 1  # in which it was claimed last
    cached_before: bool = True  # no call was made, paid or not, before this turn
    error: RunError | None = None
    score: float | None = None
    passed: bool | None = None
    ended_us: int | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_reasoning: int = 0
    tokens_cached_in: int = 0
    cost_nanousd: int = 0
    cost_unknown_calls: int = 0
    cost_saved_nanousd: int = 0
    latency_ms: int = 0
    attempts: int = 0
    paid_calls: int = 0
