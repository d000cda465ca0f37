"""What a Runner holds of an experiment: its claimed runs with what they need to go on, and the calls they make."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from promptlooper.experiment import InputRow
from promptlooper.run import RunError, RunState, StageResult
from promptlooper.runner.claims import Claim
from promptlooper.runner.execution import RunExecutor
from promptlooper.runner.outcomes import Outcome, RunEnded, RunReturned, StageDone
from promptlooper.runner.store import repository
from promptlooper.tracing import current

log = logging.getLogger("runner.held")
CHUNKS_KEPT = 8
STARTED_AT_ONCE = 16


@dataclass(slots=True)
class Held:
    """A claimed run. Between two stages it has no task: a turn stores the one before the other begins."""

    claim: Claim
    row: InputRow
    results: tuple[StageResult, ...]
    task: asyncio.Task[None] | None = None
    cancelled: bool = False  # somebody wants this run stopped
    began: float = field(default_factory=time.monotonic)
    traceparent: str = ""

    def context(self) -> Context | None:
        """What its task begins with: of a run that is traced its place in the trace."""
        if not self.traceparent:
            return None
        context = copy_context()
        context.run(current.set, self.traceparent)
        return context


class InputRows:
    """The rows of an experiment's inputs; chunks are read when needed and the last few kept."""

    def __init__(self, experiment_id: str, read: Callable[[Callable[..., Any]], Awaitable[Any]]) -> None:
        self._experiment_id, self._read = experiment_id, read
        self._chunks: OrderedDict[int, list[InputRow]] = OrderedDict()

    async def of(self, indexes: Iterable[int]) -> dict[int, InputRow]:
        wanted = list(indexes)
        for number in sorted({index // repository.INPUTS_PER_CHUNK for index in wanted} - self._chunks.keys()):
            chunk = partial(repository.input_chunk, experiment_id=self._experiment_id, chunk=number)
            self._chunks[number] = await self._read(chunk)
        rows = {}
        for index in wanted:
            number, offset = divmod(index, repository.INPUTS_PER_CHUNK)
            self._chunks.move_to_end(number)
            rows[index] = self._chunks[number][offset]
        while len(self._chunks) > CHUNKS_KEPT:
            self._chunks.popitem(last=False)
        return rows


class HeldRuns:
    """Runs by index, each with the task of its stage. What becomes of a stage is reported: by the executor, and for one
    that was stopped or broke, here. `may_begin` says whether stages may begin now, `cancelling` whether runs that are
    stopped are cancelled or handed back; `ended` hears of runs whose end is stored,
    `traceparent_of` says where a run is traced."""

    def __init__(
        self,
        inputs: InputRows,
        report: Callable[[Outcome], None],
        *,
        may_begin: Callable[[], bool],
        cancelling: Callable[[], bool],
        ended: Callable[[Held, RunEnded], None],
        traceparent_of: Callable[[int], str],
    ) -> None:
        self._inputs, self._report = inputs, report
        self._may_begin, self._cancelling = may_begin, cancelling
        self._ended, self._traceparent_of = ended, traceparent_of
        self._held: dict[int, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    def get(self, run_index: int) -> Held | None:
        return self._held.get(run_index)

    def cancel(self, run_index: int) -> None:
        """Stops one run, now or before its next stage."""
        if (held := self._held.get(run_index)) is not None:
            held.cancelled = True
            if held.task is not None:
                held.task.cancel()

    def stop(self) -> None:
        """Stops all calls."""
        for held in self._held.values():
            if held.task is not None:
                held.task.cancel()

    async def stopped(self) -> None:
        """Returns when no call is under way."""
        tasks = [held.task for held in self._held.values() if held.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def settle(self, sent: Iterable[Outcome], going_on: Container[int]) -> None:
        """After a turn: forgets the runs that ended or went back, and keeps the results of those that go on."""
        for outcome in sent:
            held = self._held.get(outcome.run_index)
            if held is None:
                continue
            if not isinstance(outcome, StageDone):
                if outcome.run_index not in going_on:
                    del self._held[outcome.run_index]
                if isinstance(outcome, RunEnded):
                    self._ended(held, outcome)
            elif outcome.position == held.claim.next_stage:
                held.results = (*held.results, outcome.result)
                if not outcome.last and outcome.run_index not in going_on:
                    del self._held[outcome.run_index]

    async def start(self, claims: Sequence[Claim], executor: RunExecutor) -> None:
        """Begins or goes on with runs; those that are not to run any more are reported as stopped."""
        unknown = [claim for claim in claims if claim.run_index not in self._held]
        places = {claim.run_index: executor.place_of(claim.run_index).input_index for claim in unknown}
        rows = await self._inputs.of(sorted(set(places.values()))) if places else {}
        for number, claim in enumerate(claims):
            if number % STARTED_AT_ONCE == 0:
                # Spreads a burst: what starts together ends together, and then all slots idle at once.
                await asyncio.sleep(0)
            held = self._held.get(claim.run_index)
            if held is None:
                index, traceparent = claim.run_index, self._traceparent_of(claim.run_index)
                held = self._held[index] = Held(claim, rows[places[index]], claim.results, traceparent=traceparent)
            held.claim = claim
            if held.cancelled or not self._may_begin():
                self._stopped(held, executor, maybe_paid=False)
                continue
            held.task = asyncio.create_task(executor.step(claim, held.row, held.results), context=held.context())
            held.task.add_done_callback(partial(self._step_done, held, executor))

    def _step_done(self, held: Held, executor: RunExecutor, task: asyncio.Task[None]) -> None:
        """A step reports its own outcome; one that was stopped, perhaps before it began, is reported here."""
        if held.task is task:
            held.task = None
        if task.cancelled():
            self._stopped(held, executor, maybe_paid=True)
        elif (fault := task.exception()) is not None:
            claim, facts = held.claim, executor.facts_of(held.claim.run_index, held.row)
            log.error("run %s-%s failed unexpectedly", executor.experiment_id, claim.run_index, exc_info=fault)
            told = RunError("INTERNAL", f"internal error ({type(fault).__name__}); see the Runner's log")
            self._report(
                RunEnded(claim.run_index, claim.lease_epoch, facts, RunState.FAILED, error=told, maybe_paid=True)
            )

    def _stopped(self, held: Held, executor: RunExecutor, *, maybe_paid: bool) -> None:
        claim, facts = held.claim, executor.facts_of(held.claim.run_index, held.row)
        if held.cancelled or self._cancelling():
            self._report(RunEnded(claim.run_index, claim.lease_epoch, facts, RunState.CANCELLED, maybe_paid=maybe_paid))
        else:
            self._report(RunReturned(claim.run_index, claim.lease_epoch, facts, maybe_paid=maybe_paid))
