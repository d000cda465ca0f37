"""One experiment on this Runner: turns one after another, and between them the calls that they started."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from promptlooper import tracing
from promptlooper.completion import ModelCheck
from promptlooper.errors import ExperimentNotFound, ServiceUnavailable, StoreUnavailable
from promptlooper.experiment import ExperimentSpec, ExperimentState
from promptlooper.runner.adoption import adopted
from promptlooper.runner.claims import Claim
from promptlooper.runner.execution import Plan, RunExecutor
from promptlooper.runner.fairness import Portion
from promptlooper.runner.held import Held, HeldRuns, InputRows
from promptlooper.runner.outcomes import Outcome, RunEnded, RunReturned, StageDone
from promptlooper.runner.pace import SHORTEST, Pace
from promptlooper.runner.spec.expand import Shape, stage_model, variants
from promptlooper.runner.store import control, leases, repository
from promptlooper.runner.store.rows import microseconds
from promptlooper.runner.store.turns import TurnRequest, TurnResult
from promptlooper.runner.taking import Turns
from promptlooper.runner.traces import RunTraces
from promptlooper.telemetry import work_on

if TYPE_CHECKING:
    from promptlooper.runner.engine import Engine, EngineParts

log = logging.getLogger("runner.loop")
T = TypeVar("T")
TURN_OUTCOMES = 128
OUTCOMES_AT_MOST = 2_000  # in one turn: PostgreSQL takes at most 65,535 parameters
AFTER_OUTAGE = 0.5  # seconds
LOOK_AT_LEAST = 1.0  # seconds between turns while runs wait for a time and others could start


class ExperimentLoop:
    """Takes turns for one experiment while there is something to do. The engine sets `share` and hints."""

    def __init__(self, experiment_id: str, parts: EngineParts, engine: Engine) -> None:
        self.experiment_id, self._parts, self._engine = experiment_id, parts, engine
        self.share = 0
        self._room = 0
        self._turned = 0.0  # monotonic time of the last turn
        self.asking = 0  # slots that the turn under way may take
        self._portion = Portion(parts.clock.monotonic())
        self._outcomes: list[Outcome] = []
        self._wake, self._full = asyncio.Event(), asyncio.Event()
        self._cancelling = self._stopping = self._hand_back = self._draining = self._changed_elsewhere = False
        self._timer: asyncio.TimerHandle | None = None  # for the next run that came back
        self._checkpoint: asyncio.TimerHandle | None = None  # for last stages whose scores are not there yet
        self._pace = Pace()
        self._turns = Turns(experiment_id, parts)
        self._held = HeldRuns(
            InputRows(experiment_id, self._read),
            self._report,
            may_begin=lambda: not self._stopping and not self._cancelling and engine.may_call,
            cancelling=lambda: self._cancelling,
            ended=self._ended,
            traceparent_of=self._traceparent_of,
        )
        self._traces: RunTraces | None = None
        self._generation = 1

    @property
    def in_flight(self) -> int:
        return len(self._held)

    def wanted(self, experiment: repository.Active, living: int) -> int:
        """How many runs this Runner wants of it, `living` Runners being there."""
        return self._portion.wanted(experiment, living, self.in_flight, self._parts.clock.monotonic())

    def look(self, share: int, room: int) -> None:
        """Wakes the loop where it could start something or must stop something. `room` is how many more runs could run,
        over all Runners. Where runs wait for a time, only a larger share or more room is news."""
        # Retried runs, a new budget and slots that others gave up are not seen from here.
        stale = self._parts.clock.monotonic() - self._turned >= LOOK_AT_LEAST
        news = share > self.share or room > self._room or self._timer is None or stale
        self.share, self._room = share, room
        if self._cancelling or (room and share > self.in_flight and news):
            self._wake.set()

    def wake(self) -> None:
        """Runs that waited may go on."""
        self._wake.set()

    def drain(self) -> None:
        """Starts nothing more: calls under way end, and their runs go back after the stage."""
        self._draining = True
        self._wake.set()

    def check(self) -> None:
        """The experiment is not active any more: take a turn, which sees why."""
        self._changed_elsewhere = True
        self._wake.set()

    def uncancel(self) -> None:
        """The experiment is not CANCELLING any more: it was resumed before this loop saw its end."""
        self._cancelling = False

    def cancel(self) -> None:
        """The experiment is CANCELLING: stops what runs, each run ends as CANCELLED."""
        if not self._cancelling:
            self._cancelling = True
            self._held.stop()
            self._wake.set()

    def cancel_run(self, run_index: int) -> None:
        """Stops one run, now or before its next stage."""
        self._held.cancel(run_index)

    def stop(self, *, hand_back: bool) -> None:
        """Ends the loop: its calls are stopped, and the runs handed back where this Runner still holds them."""
        self._stopping, self._hand_back = True, hand_back
        self._held.stop()
        self._wake.set()

    async def run(self) -> None:
        work_on(self.experiment_id)
        try:
            await self._run()
        except ExperimentNotFound:
            log.info("experiment %s was deleted", self.experiment_id)
        except StoreUnavailable as error:
            log.warning("experiment %s: left as it is: %s", self.experiment_id, error)
        except Exception:
            log.exception("experiment %s can't be run", self.experiment_id)
            await self._fail("internal error; see the Runner's log")
        finally:
            for timer in (self._timer, self._checkpoint):
                if timer is not None:
                    timer.cancel()
            self._held.stop()
            await self._held.stopped()

    async def _fail(self, reason: str) -> None:
        """Ends the experiment as FAILED; in an outage when the database is back, as its runs are still held."""
        now_us = microseconds(self._parts.clock.now())
        fail = partial(control.fail, experiment_id=self.experiment_id, reason=reason, now_us=now_us)
        while not self._stopping:
            try:
                await self._parts.database.write(fail)
                return
            except StoreUnavailable as error:
                log.warning("experiment %s: %s; trying again", self.experiment_id, error)
                await asyncio.sleep(AFTER_OUTAGE)

    async def _read(self, fn: Callable[[sa.Connection], T]) -> T:
        """Reads, and in an outage again until the database is back or the loop is stopped."""
        while True:
            try:
                return await self._parts.database.read(fn, urgent=True)
            except StoreUnavailable as error:
                if self._stopping:
                    raise
                log.warning("experiment %s: %s; trying again", self.experiment_id, error)
                await asyncio.sleep(AFTER_OUTAGE)

    async def _run(self) -> None:
        parts = self._parts
        spec, total = await self._read(partial(repository.spec_of, experiment_id=self.experiment_id))
        if tracing.is_on():
            trace_of = partial(repository.trace_of, experiment_id=self.experiment_id)
            self._traces = RunTraces(self.experiment_id, *await self._read(trace_of))
        plan = await self._plan(spec, total)
        if plan is None:
            return
        executor = RunExecutor(
            plan, parts.answers, parts.scores, parts.renderer, parts.clock, self._report, parts.failpoints
        )
        variant_ids = [variant.variant_id for variant in plan.variants]
        run_timeout = spec.limits.run_timeout
        basis = TurnRequest(
            self.experiment_id,
            self._engine.runner_id,
            (),
            0,
            variant_ids,
            spec.repeats,
            None if run_timeout is None else int(run_timeout * 1e6),
            batch=spec.execution.is_batch,
        )
        uncertain = True  # a loop before this one may have left runs that this Runner still holds
        while True:
            await self._next_turn()
            if self._draining and not self._held and not self._outcomes:
                return
            basis = replace(basis, runner_id=self._engine.runner_id, going_on=not self._draining)
            if self._stopping:
                await self._hand_over(basis)
                return
            sent, self._outcomes = self._outcomes[:OUTCOMES_AT_MOST], self._outcomes[OUTCOMES_AT_MOST:]
            self._full.clear()
            self._wake.clear()
            if self._outcomes:
                self._wake.set()
            try:
                if uncertain:
                    sent, claims = await self._adopt(sent)
                    uncertain = False
                    await self._held.start(claims, executor)
                result = await self._turns.take_or_isolate(replace(basis, outcomes=sent, slots=self._free(sent)))
            except StoreUnavailable as error:
                self.asking = 0
                log.warning("experiment %s: %s; trying again", self.experiment_id, error)
                self._outcomes = [*sent, *self._outcomes]
                uncertain = True
                await asyncio.sleep(AFTER_OUTAGE)
                self._wake.set()
                continue
            self._generation = result.ledger.generation
            self._settle(sent, result)
            if result.ledger.ended:
                return
            if result.ledger.state == ExperimentState.CANCELLING.value:
                self.cancel()
            await self._held.start([*result.claims, *result.continuing], executor)
            self.asking, self._turned = 0, parts.clock.monotonic()
            self._wait_until(result.next_due_us)
            if self._draining and not self._held:
                self._wake.set()

    async def _plan(self, spec: ExperimentSpec, total: int) -> Plan | None:
        """Prices and endpoints of the models, once. Waits for an Adapter that can't be reached; None when stopped."""
        chosen = variants(spec)
        grid = Shape(total // (spec.repeats * len(chosen)), spec.repeats, len(chosen))
        models = sorted({stage_model(v, stage) for v in chosen for stage in v.pipeline.stages})
        while not (self._stopping or self._draining or self._changed_elsewhere):
            try:
                checks = await self._parts.gateway.check_models(models)
                return Plan(self.experiment_id, spec, chosen, grid, {check.model: check for check in checks})
            except ServiceUnavailable as error:
                log.warning("experiment %s waits: %s", self.experiment_id, error)
                await asyncio.sleep(AFTER_OUTAGE)
                if self._cancelling:
                    return Plan(self.experiment_id, spec, chosen, grid, {m: ModelCheck(m) for m in models})
        return None

    async def _next_turn(self) -> None:
        """Until there is something to do, and not sooner than the interval after the last turn unless many outcomes
        wait."""
        await self._wake.wait()
        pause = self._pace.pause(self._parts.clock.monotonic())
        if pause > 0 and len(self._outcomes) < TURN_OUTCOMES and not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for may swallow a cancellation
                    await self._full.wait()
        self._pace.turn_begins(self._parts.clock.monotonic())

    def _report(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        if isinstance(outcome, StageDone) and not outcome.result.cached:
            self._pace.answered(outcome.result.latency_ms / 1e3)
        if not (isinstance(outcome, StageDone) and outcome.last):
            self._wake.set()
        elif self._checkpoint is None:  # mostly its score is there at once, and one turn takes both
            self._checkpoint = asyncio.get_running_loop().call_later(SHORTEST, self._checkpoint_due)
        if len(self._outcomes) >= TURN_OUTCOMES:
            self._full.set()

    def _checkpoint_due(self) -> None:
        self._checkpoint = None
        if self._outcomes:
            self._wake.set()

    def _free(self, sent: list[Outcome]) -> int:
        """How many runs may be claimed: this experiment's share and the Runner's slots, less what goes on after the
        turn."""
        self.asking = 0
        ending = len({o.run_index for o in sent if isinstance(o, RunEnded) or _leaves(o)})
        if self._cancelling or self._draining or not self._engine.may_call:
            return 0
        free = min(self.share - self.in_flight, self._engine.slots - self._engine.in_flight() - self._engine.asking())
        self.asking = max(0, free)
        return max(0, free + ending)

    def _settle(self, sent: list[Outcome], result: TurnResult) -> None:
        """Forgets the runs that ended or went back, and keeps the results of those that go on."""
        if result.refused:
            log.warning(
                "experiment %s: %d outcomes refused, the runs belong to another: %s",
                self.experiment_id,
                len(result.refused),
                result.refused[:10],
            )
        self._held.settle(sent, {claim.run_index for claim in result.continuing})
        if not result.alive:
            log.error("experiment %s: this Runner's lease is gone", self.experiment_id)

    def _ended(self, held: Held, outcome: RunEnded) -> None:
        seconds = time.monotonic() - held.began
        self._parts.counts.run_seconds.add(seconds)
        if self._traces is not None and held.traceparent:
            self._traces.ended(held.traceparent, outcome, seconds)

    def _traceparent_of(self, run_index: int) -> str:
        return "" if self._traces is None else self._traces.of_run(run_index, self._generation)

    def _wait_until(self, due_us: int | None) -> None:
        """Wakes the loop when the next run that came back may start."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_us is not None:
            delay = max(0.0, (due_us - microseconds(self._parts.clock.now())) / 1e6)
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        self._wake.set()

    async def _adopt(self, sent: list[Outcome]) -> tuple[list[Outcome], list[Claim]]:
        """After a commit whose answer was lost; see `adopted`."""
        read = partial(leases.owned_claims, experiment_id=self.experiment_id, runner_id=self._engine.runner_id)
        stored = await self._parts.database.write(read)
        # Only now: calls have ended while the database was asked.
        kept, claims = adopted(sent, self._outcomes, stored, self._held)
        if claims:
            log.info("experiment %s: adopted %d runs after an uncertain commit", self.experiment_id, len(claims))
        return kept, claims

    async def _hand_over(self, basis: TurnRequest) -> None:
        """Waits for the stopped calls and gives their runs back in a last turn that claims nothing."""
        await self._held.stopped()
        if not self._hand_back or not self._outcomes:
            return
        request = replace(basis, outcomes=self._outcomes, going_on=False)
        self._outcomes = []
        try:
            await self._turns.take_or_isolate(request)
        except StoreUnavailable as error:
            log.warning(
                "experiment %s: runs could not be handed back, a lease must run out: %s", self.experiment_id, error
            )


def _leaves(outcome: Outcome) -> bool:
    """Whether a run certainly goes back; one that needs a larger reservation may keep its place."""
    return isinstance(outcome, RunReturned) and not (outcome.need_nanousd or outcome.need_tokens)
