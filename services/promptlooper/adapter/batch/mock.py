"""Batches of the `mock` provider, in memory: gone with their process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from promptlooper.adapter.batch.format import Answer, Submitted, Unanswered
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.batches import BatchItem, BatchState, BatchStatus
from promptlooper.clock import Clock
from promptlooper.completion import Completion, CompletionRequest

_KEPT = 1_000  # batches


@dataclass(slots=True)
class _Batch:
    label: str
    ends_at: float
    answers: Mapping[str, Answer]


class MockBatches:
    """A batch takes as long as the slowest of its questions. `answer` says how long that is, and what is answered."""

    def __init__(self, answer: Callable[[str, CompletionRequest], tuple[float, Answer]], clock: Clock) -> None:
        self._answer = answer
        self._clock = clock
        self._batches: OrderedDict[str, _Batch] = OrderedDict()

    async def find(self, label: str) -> str | None:
        return next((batch_id for batch_id, batch in self._batches.items() if batch.label == label), None)

    async def submit(self, model: str, label: str, items: Sequence[BatchItem]) -> Submitted:
        said = {item.item_id: self._answer(model, item.request) for item in items}
        longest = max(delay for delay, _ in said.values())
        batch_id = uuid4().hex
        answers = {item_id: answer for item_id, (_, answer) in said.items()}
        self._batches[batch_id] = _Batch(label, self._clock.monotonic() + longest, answers)
        if len(self._batches) > _KEPT:
            self._batches.popitem(last=False)
        return Submitted(batch_id)

    async def status(self, batch_id: str) -> BatchStatus:
        batch = self._known(batch_id)
        total = len(batch.answers)
        if not self._has_ended(batch):
            return BatchStatus(BatchState.RUNNING, total)
        answered = sum(isinstance(answer, Completion) for answer in batch.answers.values())
        return BatchStatus(BatchState.ENDED, total, answered, total - answered)

    async def results(self, model: str, batch_id: str) -> AsyncGenerator[tuple[str, Answer], None]:
        for result in self._known(batch_id).answers.items():
            yield result

    async def cancel(self, batch_id: str) -> None:
        batch = self._known(batch_id)
        if not self._has_ended(batch):
            batch.ends_at = 0.0
            batch.answers = dict.fromkeys(batch.answers, Unanswered.CANCELLED)

    def _known(self, batch_id: str) -> _Batch:
        batch = self._batches.get(batch_id)
        if batch is None:
            raise AttemptFailed(Failure(Kind.PERMANENT, "there is no such batch", 404))
        return batch

    def _has_ended(self, batch: _Batch) -> bool:
        return self._clock.monotonic() >= batch.ends_at
