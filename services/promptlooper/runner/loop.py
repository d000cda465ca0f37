"""One experiment on this Runner: turns one after another, and between them the calls that they started."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from promptlooper.completion import ModelCheck
from promptlooper.errors import ExperimentNotFound, ServiceUnavailable, StoreUnavailable
from promptlooper.experiment import ExperimentSpec, InputRow
from promptlooper.run import RunError, RunState, StageResult
from promptlooper.runner.execution import Plan, RunExecutor
from promptlooper.runner.outcomes import Outcome, RunEnded, RunReturned, StageDone
from promptlooper.runner.spec.expand import Shape, stage_model, variants
from promptlooper.runner.store import leases, repository
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds
from promptlooper.runner.store.turns import TurnRequest, TurnResult, turn
from promptlooper.runner.turn import Claim

if TYPE_CHECKING:
    from promptlooper.runner.engine import Engine, EngineParts

log = logging.getLogger("runner.loop")
TURN_INTERVAL = 0.025  # seconds: a turn costs about the same for 1 outcome as for 50
TURN_OUTCOMES = 128
CHUNKS_KEPT = 8
STARTED_AT_ONCE = 16
AFTER_OUTAGE = 0.5  # seconds


class InputRows:
    """The rows of an experiment's inputs; chunks are read when needed and the last few kept."""

    def __init__(self, database: Database, experiment_id: str) -> None:
        self._database, self._experiment_id = database, experiment_id
        self._chunks: OrderedDict[int, list[InputRow]] = OrderedDict()

    async def of(self, indexes: Iterable[int]) -> dict[int, InputRow]:
        wanted = list(indexes)
        for number in sorted({index // repository.INPUTS_PER_CHUNK for index in wanted} - self._chunks.keys()):
            read = partial(repository.input_chunk, experiment_id=self._experiment_id, chunk=number)
            self._chunks[number] = await self._database.read(read)
        rows = {}
        for index in wanted:
            number, offset = divmod(index, repository.INPUTS_PER_CHUNK)
            self._chunks.move_to_end(number)
            rows[index] = self._chunks[number][offset]
        while len(self._chunks) > CHUNKS_KEPT:
            self._chunks.popitem(last=False)
        return rows


class ExperimentLoop:
    """Takes turns for one experiment while there is something to do. The engine sets `share` and hints."""

    def __init__(self, experiment_id: str, parts: EngineParts, engine: Engine) -> None:
        self.experiment_id, self._parts, self._engine = experiment_id, parts, engine
        self.share = 0
        self._outcomes: list[Outcome] = []
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._claims: dict[int, Claim] = {}  # what this Runner holds, tasks or not
        self._rows: dict[int, InputRow] = {}
        self._results: dict[int, tuple[StageResult, ...]] = {}
        self._cancelled_runs: set[int] = set()
        self._wake, self._full = asyncio.Event(), asyncio.Event()
        self._cancelling = self._stopping = self._hand_back = False
        self._timer: asyncio.TimerHandle | None = None  # for the next run that came back
        self._checkpoint: asyncio.TimerHandle | None = None  # for last stages whose scores are not there yet
        self._earliest = 0.0  # monotonic time of the next turn

    @property
    def in_flight(self) -> int:
        return len(self._claims)

    def look(self, pending: int) -> None:
        """Wakes the loop where it could start something or must stop something."""
        if self._cancelling or (pending and self._timer is None and self.share > self.in_flight):
            self._wake.set()

    def check(self) -> None:
        """Something about the experiment changed elsewhere: take a turn, which sees it."""
        self._wake.set()

    def cancel(self) -> None:
        """The experiment is CANCELLING: stops what runs, each run ends as CANCELLED."""
        if not self._cancelling:
            self._cancelling = True
            for task in self._tasks.values():
                task.cancel()
            self._wake.set()

    def cancel_run(self, run_index: int) -> None:
        if (task := self._tasks.get(run_index)) is not None:
            self._cancelled_runs.add(run_index)
            task.cancel()

    def stop(self, *, hand_back: bool) -> None:
        """Ends the loop: its calls are stopped, and the runs handed back where this Runner still holds them."""
        self._stopping, self._hand_back = True, hand_back
        for task in self._tasks.values():
            task.cancel()
        self._wake.set()

    async def run(self) -> None:
        try:
            await self._run()
        except ExperimentNotFound:
            log.info("experiment %s was deleted", self.experiment_id)
        except Exception:
            log.exception("experiment %s can't be run", self.experiment_id)
            now_us = microseconds(self._parts.clock.now())
            reason = "internal error; see the Runner's log"
            fail = partial(repository.fail, experiment_id=self.experiment_id, reason=reason, now_us=now_us)
            await self._parts.database.write(fail)
        finally:
            for timer in (self._timer, self._checkpoint):
                if timer is not None:
                    timer.cancel()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self) -> None:
        parts = self._parts
        spec, total = await parts.database.read(partial(repository.spec_of, experiment_id=self.experiment_id))
        plan = await self._plan(spec, total)
        if plan is None:
            return
        executor = RunExecutor(plan, parts.answers, parts.scores, parts.renderer, parts.clock, self._report)
        inputs = InputRows(parts.database, self.experiment_id)
        variant_ids = [variant.variant_id for variant in plan.variants]
        uncertain = False
        while True:
            await self._next_turn()
            if self._stopping:
                await self._hand_over(variant_ids, spec.repeats)
                return
            sent = self._outcomes
            self._outcomes = []
            self._full.clear()
            self._wake.clear()
            try:
                if uncertain:
                    sent, adopted = await self._adopt(sent)
                    uncertain = False
                    await self._start(adopted, inputs, executor)
                request = TurnRequest(
                    self.experiment_id, self._engine.runner_id, sent, self._free(sent), variant_ids, spec.repeats
                )
                result = await self._turn_or_isolate(request)
            except StoreUnavailable as error:
                log.warning("experiment %s: %s; trying again", self.experiment_id, error)
                self._outcomes = [*sent, *self._outcomes]
                uncertain = True
                await asyncio.sleep(AFTER_OUTAGE)
                self._wake.set()
                continue
            self._settle(sent, result)
            if result.ledger.ended:
                return
            await self._start([*result.claims, *result.continuing], inputs, executor)
            self._wait_until(result.next_due_us)

    async def _plan(self, spec: ExperimentSpec, total: int) -> Plan | None:
        """Prices and endpoints of the models, once. Waits for an Adapter that can't be reached; None when stopped."""
        chosen = variants(spec)
        grid = Shape(total // (spec.repeats * len(chosen)), spec.repeats, len(chosen))
        models = sorted({stage_model(v, stage) for v in chosen for stage in v.pipeline.stages})
        while not self._stopping:
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
        pause = self._earliest - self._parts.clock.monotonic()
        if pause > 0 and len(self._outcomes) < TURN_OUTCOMES and not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for may swallow a cancellation
                    await self._full.wait()
        self._earliest = self._parts.clock.monotonic() + TURN_INTERVAL

    def _report(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        if not (isinstance(outcome, StageDone) and outcome.last):
            self._wake.set()
        elif self._checkpoint is None:  # mostly its score is there at once, and one turn takes both
            self._checkpoint = asyncio.get_running_loop().call_later(TURN_INTERVAL, self._checkpoint_due)
        if len(self._outcomes) >= TURN_OUTCOMES:
            self._full.set()

    def _checkpoint_due(self) -> None:
        self._checkpoint = None
        if self._outcomes:
            self._wake.set()

    def _free(self, sent: list[Outcome]) -> int:
        """How many runs may be claimed: this experiment's share and the Runner's slots, less what goes on after the
        turn."""
        ending = len({o.run_index for o in sent if isinstance(o, RunEnded | RunReturned)})
        if self._cancelling:
            return 0
        return max(0, min(self.share - self.in_flight, self._engine.slots - self._engine.in_flight()) + ending)

    async def _turn(self, request: TurnRequest) -> TurnResult:
        parts = self._parts
        now_us = microseconds(parts.clock.now())
        parts.failpoints.hit("turn_before")
        result = await parts.database.write(partial(turn, request=request, now_us=now_us, failpoints=parts.failpoints))
        parts.failpoints.hit("turn_after_commit")
        parts.hub.advanced(self.experiment_id)
        return result

    async def _turn_or_isolate(self, request: TurnRequest) -> TurnResult:
        """A turn; where the database refuses something in it, a turn per run, and only the run that can't be stored
        fails."""
        try:
            return await self._turn(request)
        except (StoreUnavailable, ExperimentNotFound):
            raise
        except Exception:
            if not request.outcomes:
                raise
            log.exception("experiment %s: a turn failed, its runs are stored one by one", self.experiment_id)
        outcomes: dict[int, list[Outcome]] = {}
        for outcome in request.outcomes:
            outcomes.setdefault(outcome.run_index, []).append(outcome)
        results: list[TurnResult] = []
        for run_index, said in outcomes.items():
            alone = replace(request, outcomes=said, slots=0)
            try:
                results.append(await self._turn(alone))
            except (StoreUnavailable, ExperimentNotFound):
                raise
            except Exception as error:
                told = f"the result could not be stored ({type(error).__name__}); see the Runner's log"
                failed = RunEnded(
                    run_index, said[0].lease_epoch, said[0].facts, RunState.FAILED, error=RunError("INTERNAL", told)
                )
                results.append(await self._turn(replace(request, outcomes=[failed], slots=0)))
        continuing = [claim for result in results for claim in result.continuing]
        refused = [run_index for result in results for run_index in result.refused]
        return replace(results[-1], continuing=continuing, refused=refused)

    def _settle(self, sent: list[Outcome], result: TurnResult) -> None:
        """Forgets the runs that ended or went back, and keeps the results of those that go on."""
        for outcome in sent:
            if isinstance(outcome, StageDone):
                kept = self._results.get(outcome.run_index, ())
                self._results[outcome.run_index] = (*kept, outcome.result)
            else:
                self._forget(outcome.run_index)
        if result.refused:
            log.warning(
                "experiment %s: %d outcomes refused, the runs belong to another: %s",
                self.experiment_id,
                len(result.refused),
                result.refused[:10],
            )
        going_on = {claim.run_index for claim in result.continuing}
        for outcome in sent:
            if isinstance(outcome, StageDone) and not outcome.last and outcome.run_index not in going_on:
                self._forget(outcome.run_index)
        if not result.alive:
            log.error("experiment %s: this Runner's lease is gone", self.experiment_id)

    def _forget(self, run_index: int) -> None:
        for place in (self._claims, self._rows, self._results):
            place.pop(run_index, None)
        self._cancelled_runs.discard(run_index)

    async def _start(self, claims: list[Claim], inputs: InputRows, executor: RunExecutor) -> None:
        if not claims:
            return
        unknown = {
            c.run_index: executor.place_of(c.run_index).input_index for c in claims if c.run_index not in self._rows
        }
        rows = await inputs.of(sorted(set(unknown.values())))
        for number, claim in enumerate(claims):
            if number % STARTED_AT_ONCE == 0:
                # Spreads a burst: what starts together ends together, and then all slots idle at once.
                await asyncio.sleep(0)
            index = claim.run_index
            if index in unknown:
                self._rows[index] = rows[unknown[index]]
                self._results[index] = claim.results
            self._claims[index] = claim
            step = executor.step(claim, self._rows[index], self._results[index])
            self._tasks[index] = task = asyncio.create_task(step)
            task.add_done_callback(partial(self._step_done, claim, executor, self._rows[index]))
        if self._stopping or self._cancelling:
            for claim in claims:
                self._tasks[claim.run_index].cancel()

    def _step_done(self, claim: Claim, executor: RunExecutor, row: InputRow, task: asyncio.Task[None]) -> None:
        """A step reports its own outcome; one that was stopped, perhaps before it began, is reported here."""
        index = claim.run_index
        if self._tasks.get(index) is task:
            del self._tasks[index]
        if not task.cancelled():
            return
        facts = executor.facts_of(index, row)
        if self._cancelling or index in self._cancelled_runs:
            self._report(RunEnded(index, claim.lease_epoch, facts, RunState.CANCELLED))
        else:
            self._report(RunReturned(index, claim.lease_epoch, facts))

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
        """After a commit whose answer was lost: what the database says this Runner holds and it does not know is taken
        up, and outcomes that were stored are not sent again."""
        read = partial(leases.owned_claims, experiment_id=self.experiment_id, runner_id=self._engine.runner_id)
        held = {claim.run_index: claim for claim in await self._parts.database.write(read)}
        adopted: list[Claim] = []
        kept: list[Outcome] = []
        waiting = {outcome.run_index for outcome in sent}
        for outcome in sent:
            claim = held.get(outcome.run_index)
            if claim is not None and _stored(outcome, claim):
                self._results[outcome.run_index] = claim.results
                adopted.append(claim)
            else:
                kept.append(outcome)
        for index, claim in held.items():
            if index not in waiting and index not in self._tasks:
                adopted.append(claim)
        if adopted:
            log.info("experiment %s: adopted %d runs after an uncertain commit", self.experiment_id, len(adopted))
        return kept, adopted

    async def _hand_over(self, variant_ids: list[str], repeats: int) -> None:
        """Waits for the stopped calls and gives their runs back in a last turn that claims nothing."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if not self._hand_back or not self._outcomes:
            return
        request = TurnRequest(self.experiment_id, self._engine.runner_id, self._outcomes, 0, variant_ids, repeats)
        self._outcomes = []
        try:
            await self._turn(request)
        except StoreUnavailable as error:
            log.warning(
                "experiment %s: runs could not be handed back, a lease must run out: %s", self.experiment_id, error
            )


def _stored(outcome: Outcome, claim: Claim) -> bool:
    """Whether a stage after which the run goes on is in the database already."""
    return isinstance(outcome, StageDone) and not outcome.last and claim.next_stage > outcome.result.stage_index
