"""Anthropic's message batches: the questions in one request, the results as a file of lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from promptlooper.adapter.batch.calls import Calls, instant, number_in, text_in
from promptlooper.adapter.batch.format import Answer, Submitted, Unanswered, written
from promptlooper.adapter.providers.bodies import malformed
from promptlooper.batches import BatchItem, BatchState, BatchStatus

_STATES: Mapping[str, BatchState] = {
    "in_progress": BatchState.RUNNING,
    "canceling": BatchState.CANCELLING,
    "ended": BatchState.ENDED,
}
_UNANSWERED: Mapping[object, Unanswered] = {"expired": Unanswered.EXPIRED, "canceled": Unanswered.CANCELLED}


class AnthropicBatches:
    """Results are kept by Anthropic for 29 days. A batch has no name there by which it could be found again."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._path = calls.dialect.path("", stream=False) + "/batches"

    async def find(self, label: str) -> None:
        """None can be told apart."""

    async def submit(self, model: str, label: str, items: Sequence[BatchItem]) -> Submitted:
        dialect = self._calls.dialect
        questions, refused = await written(items, lambda request: dialect.body(model, request, stream=False))
        if not questions:
            return Submitted("", refused)
        requests = (b'{"custom_id":%b,"params":%b}' % (orjson.dumps(item_id), body) for item_id, body in questions)
        batch = await self._calls.json("POST", self._path, b'{"requests":[%b]}' % b",".join(requests))
        return Submitted(text_in(batch, "id"), refused)

    async def status(self, batch_id: str) -> BatchStatus:
        batch = await self._calls.json("GET", self._of(batch_id))
        state = _STATES.get(text_in(batch, "processing_status"))
        if state is None:
            raise malformed(f"the status {batch['processing_status']!r} of the batch is not known")
        counts = batch.get("request_counts")
        failed = sum(number_in(counts, name) for name in ("errored", "expired", "canceled"))
        answered = number_in(counts, "succeeded")
        return BatchStatus(
            BatchState.UNKNOWN if batch.get("archived_at") else state,
            total=answered + failed + number_in(counts, "processing"),
            answered=answered,
            failed=failed,
            expires_at=instant(batch.get("expires_at")),
        )

    async def results(self, model: str, batch_id: str) -> AsyncGenerator[tuple[str, Answer], None]:
        # Not its `results_url`: an answer does not say where the key is sent.
        async for line in self._calls.lines(f"{self._of(batch_id)}/results"):
            yield text_in(line, "custom_id"), self._answer(line.get("result"), model)

    async def cancel(self, batch_id: str) -> None:
        await self._calls.json("POST", f"{self._of(batch_id)}/cancel")

    def _of(self, batch_id: str) -> str:
        return f"{self._path}/{quote(batch_id, safe='')}"

    def _answer(self, result: Any, model: str) -> Answer:
        if not isinstance(result, dict):
            raise malformed("a line has no result")
        kind = result.get("type")
        # An error is as in a stream, whose status is 200 already.
        return _UNANSWERED.get(kind) or self._calls.answer(
            200, result.get("message" if kind == "succeeded" else "error"), model
        )
