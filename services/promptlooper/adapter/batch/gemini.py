"""Gemini's batches: a file of questions, a long-running operation over it, and a file of answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import orjson

from promptlooper.adapter.batch.calls import Calls, instant, multipart, number_in, text_in
from promptlooper.adapter.batch.format import Answer, Submitted, Unanswered, written
from promptlooper.adapter.providers.bodies import malformed
from promptlooper.batches import BatchItem, BatchState, BatchStatus

VERSION = "/v1beta"
_STATES: Mapping[str, BatchState] = {
    "PENDING": BatchState.RUNNING,
    "RUNNING": BatchState.RUNNING,
    "SUCCEEDED": BatchState.ENDED,
    "FAILED": BatchState.ENDED,
    "CANCELLED": BatchState.ENDED,
    "EXPIRED": BatchState.ENDED,
}
_HTTP: Mapping[int, int] = {3: 400, 4: 504, 5: 404, 7: 403, 8: 429, 9: 400, 13: 500, 14: 503, 16: 401}
"""Of the numbers of google.rpc.Code, which an item's error has."""
_CANCELLED = 1
_LIFETIME = timedelta(hours=48)
_PAGE, _PAGES = 100, 10  # where a label is looked for: among the newest 1,000 batches


class GeminiBatches:
    """Google deletes files after 48 hours. Of a batch that expired, failed or was cancelled it says no results."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def find(self, label: str) -> str | None:
        token = ""
        for _ in range(_PAGES):
            page = await self._calls.json("GET", f"{VERSION}/batches?pageSize={_PAGE}{token}")
            for batch in page.get("operations") or ():
                if isinstance(batch, dict) and _metadata(batch).get("displayName") == label:
                    return text_in(batch, "name")
            following = page.get("nextPageToken")
            if not following:
                return None
            token = f"&pageToken={quote(str(following), safe='')}"
        return None

    async def submit(self, model: str, label: str, items: Sequence[BatchItem]) -> Submitted:
        dialect = self._calls.dialect
        questions, refused = await written(items, lambda request: dialect.body(model, request, stream=False))
        if not questions:
            return Submitted("", refused)
        lines = b"".join(b'{"key":%b,"request":%b}\n' % (orjson.dumps(item_id), body) for item_id, body in questions)
        about = orjson.dumps({"file": {"displayName": label, "mimeType": "application/jsonl"}})
        kind, form = multipart(
            "related", [({"Content-Type": "application/json"}, about), ({"Content-Type": "application/jsonl"}, lines)]
        )
        sent = {"content-type": kind, "x-goog-upload-protocol": "multipart"}
        answer = await self._calls.json("POST", f"/upload{VERSION}/files", form, sent)
        file = answer.get("file")
        batch = {
            "displayName": label,
            "inputConfig": {"fileName": text_in(file if isinstance(file, dict) else {}, "name")},
        }
        path = dialect.path(model, stream=False).replace(":generateContent", ":batchGenerateContent")
        return Submitted(text_in(await self._calls.json("POST", path, orjson.dumps({"batch": batch})), "name"), refused)

    async def status(self, batch_id: str) -> BatchStatus:
        batch = await self._batch(batch_id)
        metadata = _metadata(batch)
        said = text_in(metadata, "state")
        state = _STATES.get(said.rpartition("_STATE_")[2])
        if state is None:
            raise malformed(f"the state {said!r} of the batch is not known")
        counts, error = metadata.get("batchStats"), batch.get("error")
        created = instant(metadata.get("createTime"))
        return BatchStatus(
            state,
            total=number_in(counts, "requestCount"),
            answered=number_in(counts, "successfulRequestCount"),
            failed=number_in(counts, "failedRequestCount"),
            expires_at=None if created is None else created + _LIFETIME,
            message=self._calls.redacted(str(error.get("message"))) if isinstance(error, dict) else "",
        )

    async def results(self, model: str, batch_id: str) -> AsyncGenerator[tuple[str, Answer], None]:
        batch = await self._batch(batch_id)
        said = (batch.get("response"), _metadata(batch).get("output"))
        files = [each["responsesFile"] for each in said if isinstance(each, dict) and each.get("responsesFile")]
        if files:
            async for line in self._calls.lines(f"/download{VERSION}/{quote(str(files[0]))}:download?alt=media"):
                yield text_in(line, "key"), self._answer(line, model)

    async def cancel(self, batch_id: str) -> None:
        await self._calls.json("POST", f"{VERSION}/{quote(batch_id)}:cancel", b"{}")

    async def _batch(self, batch_id: str) -> dict[str, Any]:
        return await self._calls.json("GET", f"{VERSION}/{quote(batch_id)}")

    def _answer(self, line: Mapping[str, Any], model: str) -> Answer:
        error = line.get("error") or line.get("status")
        if not isinstance(error, dict):
            return self._calls.answer(200, line.get("response"), model)
        if (code := number_in(error, "code")) == _CANCELLED:
            return Unanswered.CANCELLED
        return self._calls.answer(_HTTP.get(code, code if 400 <= code < 600 else 500), {"error": error}, model)


def _metadata(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = batch.get("metadata")
    return metadata if isinstance(metadata, dict) else {}
