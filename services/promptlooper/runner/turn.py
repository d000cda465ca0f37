"""The turn: what one short transaction does with an experiment, decided without touching the database.

A `Ledger` is the experiment's progress row while its lock is held. A `Turn` takes the outcomes of calls, refuses those
of runs that are no longer ours, claims what may start, and collects the rows and events to write. `store.turns` reads
before it and writes after it; the protocol is docs/design/execution.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptlooper.experiment import ExperimentState
from promptlooper.run import RunError, RunState, Score, StageResult
from promptlooper.runner.claims import MOST_IN_BATCH, Claim
from promptlooper.runner.event_facts import FAILURES, NewEvent, experiment_facts, waiting_facts
from promptlooper.runner.ledger import Ledger, RunRow
from promptlooper.runner.outcomes import BatchQuestion, Outcome, RunEnded, RunReturned, StageDone


@dataclass(slots=True)
class Turn:
    """One turn's decisions. Call `take` with the outcomes, `claim` with what may start, then `settle`."""

    ledger: Ledger
    runner_id: str
    now_us: int
    run_timeout_us: int | None = None
    alive: bool = True  # False: this Runner's lease is gone, others gave its runs back
    going_on: bool = True  # False: runs go back after their stage, as this Runner is leaving
    touched: dict[int, RunRow] = field(default_factory=dict)  # existing rows to update
    created: list[RunRow] = field(default_factory=list)  # rows to insert
    stage_results: list[tuple[RunRow, StageResult]] = field(default_factory=list)
    scores: list[tuple[RunRow, tuple[Score, ...]]] = field(default_factory=list)
    questions: list[tuple[RunRow, BatchQuestion]] = field(default_factory=list)  # for batches
    events: list[NewEvent] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    continuing: list[Claim] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    blocked: bool = False  # something could start, and the budgets do not admit it

    def take(self, outcomes: Sequence[Outcome], rows: Mapping[int, RunRow]) -> None:
        """Applies outcomes in order. Those of runs that this Runner no longer holds at that epoch are refused; one that
        is already stored counts as accepted and changes nothing."""
        for outcome in outcomes:
            row = rows.get(outcome.run_index)
            if row is None or row.owner != self.runner_id or row.lease_epoch != outcome.lease_epoch:
                if row is None or not (self.alive and self._stored_before(outcome, row)):
                    self.refused.append(outcome.run_index)
                continue
            if isinstance(outcome, StageDone):
                if outcome.position == row.next_stage and row.state == RunState.RUNNING.value:
                    self._stage_done(outcome, row)
            elif row.state == RunState.RUNNING.value:
                if isinstance(outcome, RunEnded):
                    self._run_ended(outcome, row)
                else:
                    self._run_returned(outcome, row)

    @staticmethod
    def _stored_before(outcome: Outcome, row: RunRow) -> bool:
        """An ended or returned run has no owner: its own outcome sent again after an uncertain commit."""
        return row.owner is None and row.lease_epoch == outcome.lease_epoch and row.state != RunState.RUNNING.value

    def _stage_done(self, outcome: StageDone, row: RunRow) -> None:
        result, ledger = outcome.result, self.ledger
        self.touched[row.run_index] = row
        cost = result.cost_nanousd
        row.next_stage += 1
        row.deadline_us = None
        row.tokens_in += result.tokens_in or 0
        row.tokens_out += result.tokens_out or 0
        row.tokens_reasoning += result.tokens_reasoning or 0
        row.tokens_cached_in += result.tokens_cached_in or 0
        row.cost_nanousd += cost or 0
        row.cost_unknown_calls += cost is None
        row.cost_saved_nanousd += result.cost_saved_nanousd or 0
        row.latency_ms += result.latency_ms
        row.attempts += result.attempts
        row.paid_calls += not result.cached
        # Where nobody can say what a call cost or counted, its reservation is taken for spent: a budget must hold.
        ledger.spent_nanousd += row.reserved_nanousd if cost is None else cost
        tokens_known = result.tokens_in is not None and result.tokens_out is not None
        if not result.cached:
            ledger.spent_tokens += (
                (result.tokens_in or 0) + (result.tokens_out or 0) if tokens_known else row.reserved_tokens
            )
        ledger.tokens_in += result.tokens_in or 0
        ledger.tokens_out += result.tokens_out or 0
        ledger.cost_unknown_calls += cost is None
        ledger.cost_saved_nanousd += result.cost_saved_nanousd or 0
        ledger.release(row)
        self.stage_results.append((row, result))
        self._run_event(
            "run.stage_completed",
            outcome,
            stage_index=result.stage_index,
            tokens_in=result.tokens_in or 0,
            tokens_out=result.tokens_out or 0,
            cost_nanousd=cost,
            cached=result.cached,
            latency_ms=result.latency_ms,
        )
        if outcome.last:
            return
        if self._is_cancelled(row):
            self._end(row, RunState.CANCELLED)
            self._run_event("run.cancelled", outcome)
        elif self.alive and self.going_on and ledger.state != ExperimentState.PAUSED.value and ledger.fits(row):
            ledger.reserve(row)
            self.continuing.append(self.claim_of(row))
        else:
            self._give_back(row)

    def _run_ended(self, outcome: RunEnded, row: RunRow) -> None:
        if outcome.maybe_paid:
            self.ledger.keep_reservation(row)
        self._end(row, outcome.state)
        row.error, row.score, row.passed = outcome.error, outcome.score, outcome.passed
        row.attempts += outcome.error.attempts if outcome.error else 0
        if outcome.failed_stage is not None:
            self.stage_results.append((row, outcome.failed_stage))
        if outcome.scores:
            self.scores.append((row, outcome.scores))
        cached = row.cached_before and not row.paid_calls and not row.attempts
        if outcome.state is RunState.COMPLETED:
            self.ledger.cached += cached
            self._run_event("run.completed", outcome, score=outcome.score, passed=outcome.passed, cached=cached)
        elif outcome.state is RunState.FAILED:
            error = outcome.error or RunError("INTERNAL", "")
            self._run_event(
                "run.failed",
                outcome,
                stage_index=error.stage_index,
                error_reason=error.reason,
                error_message=FAILURES.get(error.reason, "the run failed"),
            )
        else:
            self._run_event("run.cancelled", outcome)

    def _run_returned(self, outcome: RunReturned, row: RunRow) -> None:
        ledger = self.ledger
        row.attempts += outcome.attempts
        if outcome.maybe_paid:
            ledger.keep_reservation(row)
        if self._is_cancelled(row):
            self._end(row, RunState.CANCELLED)
            self._run_event("run.cancelled", outcome)
            return
        if outcome.item is not None:  # the run keeps its reservation: its question may be answered, and paid, meanwhile
            ledger.in_batch += 1
            self._back(row, outcome.not_before_us or 0)
            row.in_batch, row.deadline_us = True, None
            self.questions.append((row, outcome.item))
            self._run_event("run.waiting", outcome, **waiting_facts(outcome.why, "batch"))
            return
        needs_more = bool(outcome.need_nanousd or outcome.need_tokens)
        if needs_more and self._topped_up(outcome, row):
            return
        run_deadline_us = row.run_deadline_us if needs_more or outcome.not_before_us is not None else None
        self._give_back(row, outcome.not_before_us or 0)
        row.run_deadline_us = run_deadline_us
        row.reserved_nanousd, row.reserved_tokens = outcome.need_nanousd, outcome.need_tokens
        row.deadline_us = None
        if outcome.not_before_us is not None:
            row.deadline_us = outcome.deadline_us
            facts = waiting_facts(outcome.why, outcome.waits_for)
            self._run_event("run.waiting", outcome, not_before_us=outcome.not_before_us, **facts)

    def _topped_up(self, outcome: RunReturned, row: RunRow) -> bool:
        """A run that needs a larger reservation keeps its place where the budget admits that. The epoch says that it
        was granted: what asked for it counts once, also where it is sent again after an uncertain commit."""
        ledger = self.ledger
        ledger.release(row)
        row.reserved_nanousd, row.reserved_tokens = outcome.need_nanousd, outcome.need_tokens
        if not (self.alive and self.going_on) or ledger.state == ExperimentState.PAUSED.value or not ledger.fits(row):
            row.reserved_nanousd = row.reserved_tokens = 0  # nothing is reserved any more
            return False
        ledger.reserve(row)
        row.lease_epoch += 1
        row.deadline_us = outcome.deadline_us
        self.touched[row.run_index] = row
        self.continuing.append(self.claim_of(row))
        return True

    def _is_cancelled(self, row: RunRow) -> bool:
        return row.cancel_requested or self.ledger.state == ExperimentState.CANCELLING.value

    def _end(self, row: RunRow, state: RunState) -> None:
        self.ledger.release(row)
        self.ledger.running -= 1
        if state is RunState.COMPLETED:
            self.ledger.completed += 1
        elif state is RunState.FAILED:
            self.ledger.failed += 1
        else:
            self.ledger.cancelled += 1
        row.state, row.owner, row.ended_us, row.not_before_us = state.value, None, self.now_us, 0
        self.touched[row.run_index] = row

    def _give_back(self, row: RunRow, not_before_us: int = 0) -> None:
        self.ledger.release(row)
        self._back(row, not_before_us)
        row.run_deadline_us = None  # a run that was interrupted gets its time anew

    def _back(self, row: RunRow, not_before_us: int) -> None:
        self.ledger.running -= 1
        self.ledger.returned += 1
        row.state, row.owner, row.not_before_us = RunState.PENDING.value, None, not_before_us
        self.touched[row.run_index] = row

    def take_back(self, rows: Sequence[RunRow]) -> None:
        """Gives back the runs of a dead Runner; a later outcome of it is refused, as the next claim raises the
        epoch. What they reserved stays counted: calls may have been under way."""
        for row in rows:
            self.ledger.keep_reservation(row)
            if self._is_cancelled(row):
                self._end(row, RunState.CANCELLED)
                self.events.append(NewEvent("run.cancelled", row.run_index, {}))
            else:
                self._give_back(row)
                row.deadline_us = None  # its stage has not lost the time in which nobody worked on it

    def room(self, slots: int) -> int:
        """How many runs may be claimed, budgets aside: free slots, the experiment's cap, and what waits."""
        ledger = self.ledger
        if ledger.ended or ledger.state in (ExperimentState.CANCELLING.value, ExperimentState.PAUSED.value):
            return 0
        return max(0, min(slots, ledger.max_concurrency - ledger.running, ledger.pending))

    def claim_returned(self, rows: Sequence[RunRow]) -> None:
        """Claims runs that came back and may start now, those that the budgets admit."""
        for row in rows:
            if not row.in_batch and not self.ledger.fits(row):
                self.blocked = True
                continue
            row.state, row.owner, row.lease_epoch = RunState.RUNNING.value, self.runner_id, row.lease_epoch + 1
            self.ledger.returned -= 1
            self._claim(row)
            row.not_before_us = 0
            self.touched[row.run_index] = row
        self._started()

    def claim_new(self, count: int, variant_ids: Sequence[str], repeats: int) -> None:
        """Creates the rows of the next runs of the grid. Expansion is the claim: a run has no row before."""
        ledger, variants = self.ledger, len(variant_ids)
        count = min(count, MOST_IN_BATCH - ledger.in_batch)
        for run_index in range(ledger.next_index, min(ledger.next_index + count, ledger.total)):
            variant_index = run_index % variants
            row = RunRow(run_index, variant_index, RunState.RUNNING.value, self.runner_id, 1, 0)
            if not ledger.fits(row):
                self.blocked = True
                break
            ledger.next_index += 1
            self._claim(row)
            self.created.append(row)
            facts = {"variant_id": variant_ids[variant_index], "repeat": run_index // variants % repeats}
            self.events.append(NewEvent("run.started", run_index, facts))
        self._started()

    def _claim(self, row: RunRow) -> None:
        self.ledger.running += 1
        self.ledger.leave_batch(row)  # what it held is what it reserves
        self.ledger.reserve(row)
        row.generation = self.ledger.generation
        if self.run_timeout_us is not None and row.run_deadline_us is None:
            row.run_deadline_us = self.now_us + self.run_timeout_us
        self.claims.append(self.claim_of(row))

    def claim_of(self, row: RunRow) -> Claim:
        return Claim(
            row.run_index,
            row.lease_epoch,
            row.next_stage,
            None if self.ledger.budget_nanousd is None else row.reserved_nanousd,
            None if self.ledger.budget_tokens is None else row.reserved_tokens,
            row.deadline_us,
            row.run_deadline_us,
        )

    def _started(self) -> None:
        if self.claims and self.ledger.state == ExperimentState.PENDING.value:
            self.ledger.state = ExperimentState.RUNNING.value
            self.ledger.started_us = self.now_us
            self.ledger.set_deadline(self.now_us)
            first = next((i for i, event in enumerate(self.events) if event.kind == "run.started"), len(self.events))
            self.events.insert(first, NewEvent("experiment.started", None, experiment_facts(self.ledger)))

    def settle(self, waiting: Callable[[], Sequence[RunRow]], *, parked: bool = False) -> bool:
        """Ends the experiment where nothing runs and nothing may start. Returns whether it ended in this turn.
        `waiting` gives the rows that came back and are cancelled with it; `parked` says that some may start later."""
        ledger = self.ledger
        if ledger.running or ledger.ended or (ledger.state == ExperimentState.PAUSED.value and ledger.pending):
            return False
        if ledger.state == ExperimentState.CANCELLING.value:
            self._cancelled(ledger.reason or "USER", waiting())
        elif not ledger.pending:
            ledger.state, kind = ExperimentState.COMPLETED.value, "experiment.completed"
            ledger.ended_us = self.now_us
            self.events.append(NewEvent(kind, None, experiment_facts(ledger)))
        elif self.blocked and not parked and not self.given_back:
            self._cancelled("BUDGET", waiting())
        else:
            return False
        return True

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.touched or self.created or self.events)

    @property
    def given_back(self) -> list[RunRow]:
        """Runs that came back in this turn; a later one may claim them."""
        return [row for row in self.touched.values() if row.state == RunState.PENDING.value]

    def fail(self, rows: Sequence[RunRow], reason: str) -> None:
        """Ends an experiment that cannot be run, with the given waiting and running rows."""
        ledger = self.ledger
        for row in rows:
            if row.state == RunState.RUNNING.value:
                self._end(row, RunState.CANCELLED)
                self.events.append(NewEvent("run.cancelled", row.run_index, {}))
        self._never_started([row for row in rows if row.state == RunState.PENDING.value])
        ledger.state, ledger.reason, ledger.ended_us = ExperimentState.FAILED.value, reason, self.now_us
        self.events.append(NewEvent("experiment.failed", None, experiment_facts(ledger)))

    def _cancelled(self, reason: str, waiting: Sequence[RunRow]) -> None:
        ledger = self.ledger
        self._never_started(waiting)
        ledger.state, ledger.reason, ledger.ended_us = ExperimentState.CANCELLED.value, reason, self.now_us
        self.events.append(NewEvent("experiment.cancelled", None, experiment_facts(ledger)))

    def _never_started(self, waiting: Sequence[RunRow]) -> None:
        """Cancels what waits. Runs that were never started have no row and no event, only a count."""
        ledger = self.ledger
        ledger.cancelled += ledger.pending
        ledger.next_index, ledger.returned = ledger.total, 0
        for row in waiting:
            ledger.drop(row)
            row.state, row.ended_us, row.not_before_us = RunState.CANCELLED.value, self.now_us, 0
            self.touched[row.run_index] = row
            self.events.append(NewEvent("run.cancelled", row.run_index, {}))

    def _run_event(self, kind: str, outcome: Outcome, **detail: Any) -> None:
        facts = outcome.facts
        values = {"variant_id": facts.variant_id, "input_id": facts.input_id, "repeat": facts.repeat}
        values.update((name, value) for name, value in detail.items() if value is not None)
        self.events.append(NewEvent(kind, outcome.run_index, values))
