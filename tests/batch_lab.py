"""A provider's batches in this process: they outlive the Runner, and do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import sqlalchemy as sa
from runner_lab import Lab, Said, ScriptedModel, experiment

from promptlooper.batches import BatchItem, BatchResult, BatchState, BatchStatus, SubmittedBatch
from promptlooper.completion import Completion, CompletionRequest, ModelCheck
from promptlooper.errors import BatchCancelled, BatchExpired, DomainError
from promptlooper.experiment import ExecutionMode, ExecutionPolicy, ExperimentSpec
from promptlooper.runner.batches import BatchPace
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.models import batch_items, batches, progress
from promptlooper.testing.eventually import eventually

T = TypeVar("T")
SOON = BatchPace(poll=0.02)
BATCH = ExecutionPolicy(ExecutionMode.BATCH)


@dataclass
class KeptBatch:
    label: str
    items: Sequence[BatchItem]
    state: BatchState = BatchState.RUNNING
    results: dict[str, BatchResult] = field(default_factory=dict)
    too_much: bool = False


class BatchingModel(ScriptedModel):
    """Answers batches with `say`: at once, or with `hold_batches` when the test calls `finish`."""

    def __init__(
        self, say: Callable[[CompletionRequest], Said] = lambda request: "fine", *, hold_batches: bool = False
    ) -> None:
        super().__init__(say)
        self.hold_batches, self.batching = hold_batches, True
        self.batches: dict[str, KeptBatch] = {}
        self.submissions: list[tuple[str, bool]] = []  # (label, again) of every call
        self.refuses: Callable[[BatchItem], DomainError | None] = lambda item: None
        self.on_submit: Callable[[], None] = lambda: None  # before it is taken
        self.on_submitted: Callable[[], None] = lambda: None  # after
        self.says_so = asyncio.Event()  # that it is taken
        self.says_so.set()
        self.lost: DomainError | None = None  # of every question about a batch
        self.lost_by_cancelling: Sequence[str] = ("*",)
        self.ends_cancelled = True
        self.breaks_off: DomainError | None = None  # raised after one result
        self.room: int | None = None  # for so many questions in batches at once; a batch that is too much fails

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        plain = await super().check_models(models)
        if self.price is None:
            return [replace(one, batches=self.batching) for one in plain]
        half = replace(
            self.price,
            input_nanousd_per_mtok=self.price.input_nanousd_per_mtok // 2,
            output_nanousd_per_mtok=self.price.output_nanousd_per_mtok // 2,
        )
        return [replace(one, batches=True, list_price=self.price, batch_price=half) for one in plain]

    @property
    def asked(self) -> list[list[str]]:
        """The prompts of each batch."""
        return [[item.request.messages[-1].content for item in batch.items] for batch in self.batches.values()]

    async def submit_batch(
        self, model: str, label: str, items: Sequence[BatchItem], *, again: bool = False
    ) -> SubmittedBatch:
        self.submissions.append((label, again))
        self.on_submit()
        if again and label in self.batches:
            return SubmittedBatch(label)
        if not items:
            assert again
            return SubmittedBatch("")
        assert all(item.request.model == model for item in items)
        refused = {item.item_id: error for item in items if (error := self.refuses(item)) is not None}
        taken = [item for item in items if item.item_id not in refused]
        if taken:
            under_way = sum(len(b.items) for b in self.batches.values() if b.state is BatchState.RUNNING)
            self.batches[label] = KeptBatch(label, taken)
            if self.room is not None and under_way + len(taken) > self.room:
                self.batches[label].state, self.batches[label].too_much = BatchState.ENDED, True
            elif not self.hold_batches:
                self.finish(label)
        await self.says_so.wait()
        self.on_submitted()
        told = tuple(BatchResult(item_id, error=error) for item_id, error in refused.items())
        return SubmittedBatch(label if taken else "", told)

    def finish(self, label: str = "", *, but: Sequence[str] = (), error: type[DomainError] = BatchExpired) -> None:
        """Ends a batch, or all; what asks for `but` gets the error instead of an answer."""
        for batch in self.batches.values():
            if batch.state is BatchState.ENDED or label not in ("", batch.label):
                continue
            batch.state = BatchState.ENDED
            for item in batch.items:
                prompt = item.request.messages[-1].content
                said = error("not in time") if prompt in but or "*" in but else self.say(item.request)
                batch.results[item.item_id] = self._result(item, said)

    def _result(self, item: BatchItem, said: Said) -> BatchResult:
        if isinstance(said, DomainError):
            return BatchResult(item.item_id, error=said)
        if isinstance(said, Completion):
            return BatchResult(item.item_id, said)
        assert isinstance(said, str)
        tokens_in, cost = len(item.request.messages[-1].content), None
        if self.price is not None:
            parts = tokens_in * self.price.input_nanousd_per_mtok + len(said) * self.price.output_nanousd_per_mtok
            cost = -(-parts // 2_000_000)
        answer = Completion(said, item.request.model, "stop", tokens_in, len(said), cost_nanousd=cost, attempts=1)
        return BatchResult(item.item_id, answer)

    async def batch_status(self, batch: str) -> BatchStatus:
        if self.lost is not None:
            raise self.lost
        kept = self.batches.get(batch)
        if kept is None:
            return BatchStatus(BatchState.UNKNOWN)
        if kept.state is BatchState.CANCELLING and self.ends_cancelled:
            self.finish(batch, but=self.lost_by_cancelling, error=BatchCancelled)
        return BatchStatus(kept.state, len(kept.items), len(kept.results), too_much=kept.too_much)

    async def batch_results(self, batch: str) -> AsyncIterator[BatchResult]:
        for result in reversed(self.batches[batch].results.values()):
            yield result
            if self.breaks_off is not None:
                raise self.breaks_off

    async def cancel_batch(self, batch: str) -> None:
        if self.lost is not None:
            raise self.lost
        if self.batches[batch].state is BatchState.RUNNING:
            self.batches[batch].state = BatchState.CANCELLING


def by_batch(*prompts: str, count: int = 3, **settings: object) -> ExperimentSpec:
    """An experiment over `count` rows whose questions go by batches."""
    spec = experiment(*(prompts or ("say {{ input.n }}",)), rows=[{"n": n} for n in range(count)], **settings)
    return replace(spec, execution=BATCH)


def echo(request: CompletionRequest) -> str:
    return f"<{request.messages[-1].content}>"


@asynccontextmanager
async def runner_of(lab: Lab, **settings: Any) -> AsyncIterator[RunnerCore]:
    async with lab.runner(**{"batch_pace": SOON, **settings}) as runner:
        yield runner


def model_of(lab: Lab, **settings: Any) -> BatchingModel:
    model = BatchingModel(echo, **settings)
    lab.model = model
    return model


def read(lab: Lab, work: Callable[[sa.Connection], T]) -> T:
    database = Database(lab.database_url)
    try:
        return database.reading(work)
    finally:
        database.close()


def wrote(lab: Lab, work: Callable[[sa.Connection], T]) -> T:
    database = Database(lab.database_url)
    try:
        return database.writing(work)
    finally:
        database.close()


def left(lab: Lab) -> list[int]:
    """Rows of questions, of batches, and of experiments that somebody keeps."""

    def count(connection: sa.Connection) -> list[int]:
        kept = sa.select(progress).where(progress.c.batch_keeper.is_not(None))
        queries = (sa.select(batch_items), sa.select(batches), kept)
        return [len(connection.execute(query).all()) for query in queries]

    return read(lab, count)


async def in_batch(runner: RunnerCore, experiment_id: str, count: int) -> None:
    async def waits() -> bool:
        return (await runner.get(experiment_id)).counts.in_batch == count

    await eventually(waits)
