"""OpenAI's batches: a file of questions, a batch over it, and a file each of answers and of errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from promptlooper.adapter.batch.calls import Calls, moment, multipart, number_in, text_in
from promptlooper.adapter.batch.format import Answer, Submitted, Unanswered, written
from promptlooper.adapter.providers.bodies import malformed
from promptlooper.batches import BatchItem, BatchState, BatchStatus

_STATES: Mapping[str, BatchState] = {
    "validating": BatchState.RUNNING,
    "in_progress": BatchState.RUNNING,
    "finalizing": BatchState.RUNNING,
    "cancelling": BatchState.CANCELLING,
    "completed": BatchState.ENDED,
    "failed": BatchState.ENDED,
    "expired": BatchState.ENDED,
    "cancelled": BatchState.ENDED,
}
_UNANSWERED: Mapping[object, Unanswered] = {
    "batch_expired": Unanswered.EXPIRED,
    "batch_cancelled": Unanswered.CANCELLED,
}
_TOO_MUCH = frozenset({"token_limit_exceeded", "request_limit_exceeded"})  # of all that a key has in batches
_LABEL = "promptlooper"  # among a batch's metadata
_PAGE, _PAGES = 100, 10  # where a label is looked for: among the newest 1,000 batches


class OpenAIBatches:
    """Also of endpoints of the same form, and of Responses. Files are deleted by OpenAI after 30 days."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def find(self, label: str) -> str | None:
        after = ""
        for _ in range(_PAGES):
            page = await self._calls.json("GET", f"/batches?limit={_PAGE}{after}")
            batches = [each for each in page.get("data") or () if isinstance(each, dict)]
            for batch in batches:
                if (batch.get("metadata") or {}).get(_LABEL) == label:
                    return text_in(batch, "id")
            if not page.get("has_more") or not batches:
                return None
            after = f"&after={quote(text_in(batches[-1], 'id'), safe='')}"
        return None

    async def submit(self, model: str, label: str, items: Sequence[BatchItem]) -> Submitted:
        dialect = self._calls.dialect
        questions, refused = await written(items, lambda request: dialect.body(model, request, stream=False))
        if not questions:
            return Submitted("", refused)
        endpoint = "/v1" + dialect.path(model, stream=False)
        head = orjson.dumps({"method": "POST", "url": endpoint})[:-1]
        lines = b"".join(
            b'%b,"custom_id":%b,"body":%b}\n' % (head, orjson.dumps(item_id), body) for item_id, body in questions
        )
        kind, form = multipart(
            "form-data",
            [
                ({"Content-Disposition": 'form-data; name="purpose"'}, b"batch"),
                (
                    {
                        "Content-Disposition": f'form-data; name="file"; filename="{label}.jsonl"',
                        "Content-Type": "application/jsonl",
                    },
                    lines,
                ),
            ],
        )
        file = await self._calls.json("POST", "/files", form, {"content-type": kind})
        batch = {
            "input_file_id": text_in(file, "id"),
            "endpoint": endpoint,
            "completion_window": "24h",
            "metadata": {_LABEL: label},
        }
        return Submitted(text_in(await self._calls.json("POST", "/batches", orjson.dumps(batch)), "id"), refused)

    async def status(self, batch_id: str) -> BatchStatus:
        return self._status(await self._batch(batch_id))

    async def results(self, model: str, batch_id: str) -> AsyncGenerator[tuple[str, Answer], None]:
        batch = await self._batch(batch_id)
        for name in ("output_file_id", "error_file_id"):
            if file_id := batch.get(name):
                async for line in self._calls.lines(f"/files/{quote(str(file_id), safe='')}/content"):
                    yield text_in(line, "custom_id"), self._answer(line, model)

    async def cancel(self, batch_id: str) -> None:
        await self._calls.json("POST", f"{_path(batch_id)}/cancel")

    async def _batch(self, batch_id: str) -> dict[str, Any]:
        return await self._calls.json("GET", _path(batch_id))

    def _status(self, batch: Mapping[str, Any]) -> BatchStatus:
        state = _STATES.get(text_in(batch, "status"))
        if state is None:
            raise malformed(f"the status {batch['status']!r} of the batch is not known")
        counts, errors = batch.get("request_counts"), batch.get("errors")
        said = [each for each in (errors or {}).get("data") or () if isinstance(each, dict)]
        return BatchStatus(
            state,
            total=number_in(counts, "total"),
            answered=number_in(counts, "completed"),
            failed=number_in(counts, "failed"),
            expires_at=moment(batch.get("expires_at")),
            message=self._calls.redacted(str(said[0].get("message"))) if said else "",
            too_much=any(each.get("code") in _TOO_MUCH for each in said),
        )

    def _answer(self, line: Mapping[str, Any], model: str) -> Answer:
        response, error = line.get("response"), line.get("error")
        if isinstance(response, dict):
            status = response.get("status_code")
            return self._calls.answer(status if isinstance(status, int) else 502, response.get("body"), model)
        code = error.get("code") if isinstance(error, dict) else None
        return _UNANSWERED.get(code) or self._calls.answer(502, {"error": error}, model)


def _path(batch_id: str) -> str:
    return f"/batches/{quote(batch_id, safe='')}"
