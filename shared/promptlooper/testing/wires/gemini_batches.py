"""Gemini's files and batches as its public address takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from aiohttp import BodyPartReader, MultipartReader, web
from pydantic import Field

from promptlooper.testing.wires.batches import BatchServer, WireBatch, headers_of, json_lines, json_of, object_in
from promptlooper.testing.wires.gemini import GeminiWire
from promptlooper.testing.wires.server import Answering
from promptlooper.testing.wires.wire import Asked, Refused, Strict, checked, needed

_CREATED = "2026-11-23T12:00:00.123456789Z"
_CODES = {400: 3, 403: 7, 404: 5, 429: 8, 500: 13, 503: 14}
_STATES = {"completed": "SUCCEEDED", "expired": "EXPIRED", "cancelled": "CANCELLED", "failed": "FAILED"}


class _Input(Strict):
    file_name: Annotated[str, Field(alias="fileName")]


class _Named(Strict):
    display_name: Annotated[str, Field(alias="displayName", min_length=1)]
    input_config: Annotated[_Input, Field(alias="inputConfig")]


class _Batch(Strict):
    batch: _Named


class _Line(Strict):
    key: Annotated[str, Field(min_length=1)]
    request: dict[str, Any]


class GeminiBatchServer(BatchServer):
    """Of a batch that did not complete there are no results."""

    def __init__(self, answer: Answering | None = None, *, hold: bool = False) -> None:
        super().__init__(GeminiWire(), answer, hold=hold)
        self.files: dict[str, bytes] = {}

    def more_routes(self) -> Sequence[web.RouteDef]:
        guarded = self.guarded
        return [
            web.post("/upload/v1beta/files", guarded(self._upload)),
            web.get("/download/v1beta/files/{id}:download", guarded(self._download)),
            web.get("/v1beta/files/{id}:download", guarded(self._download)),  # their own client asks here
            web.post("/v1beta/models/{model}:batchGenerateContent", guarded(self._create)),
            web.get("/v1beta/batches", guarded(self._list)),
            web.get("/v1beta/batches/{id}", guarded(self._get)),
            web.post("/v1beta/batches/{id}:cancel", guarded(self._cancel)),
        ]

    async def _upload(self, http: web.Request) -> web.Response:
        _checked_headers(http)
        if http.headers.get("x-goog-upload-protocol") != "multipart" or http.content_type != "multipart/related":
            raise Refused(400, "a file is sent by one of the upload protocols: here as multipart/related")
        parts = await _parts(await http.multipart())
        if [kind for kind, _ in parts] != ["application/json", "application/jsonl"]:
            raise Refused(400, "the parts are the file's metadata and the file")
        about = orjson.loads(parts[0][1])["file"]
        file_id = f"file{len(self.files) + 1}"
        self.files[file_id] = parts[1][1]
        return json_of({"file": {"name": f"files/{file_id}", "state": "ACTIVE", **about}})

    async def _create(self, http: web.Request) -> web.Response:
        headers = _checked_headers(http)
        asked = checked(_Batch, await object_in(http)).batch
        data = self.files.get(asked.input_config.file_name.removeprefix("files/"))
        if data is None:
            raise Refused(404, f"there is no file {asked.input_config.file_name!r}")
        path = f"/v1beta/models/{http.match_info['model']}:generateContent"
        questions: dict[str, Asked] = {}
        for raw in data.splitlines():
            line = checked(_Line, orjson.loads(raw))
            if line.key in questions:
                raise Refused(400, f"the key {line.key!r} is there twice")
            questions[line.key] = Asked(path, headers, line.request, raw)
        return json_of(self._operation(self.take(asked.display_name, questions)))

    async def _get(self, http: web.Request) -> web.Response:
        return json_of(self._operation(self._asked_for(http)))

    async def _list(self, http: web.Request) -> web.Response:
        _checked_headers(http)
        start, size = int(http.query.get("pageToken", "0")), int(http.query.get("pageSize", "50"))
        newest = self.batches[::-1]
        page: dict[str, Any] = {"operations": [self._operation(each) for each in newest[start : start + size]]}
        if len(newest) > start + size:
            page["nextPageToken"] = str(start + size)
        return json_of(page)

    async def _cancel(self, http: web.Request) -> web.Response:
        batch = self._asked_for(http)
        if batch.state == "ended":
            raise Refused(400, "the batch has ended already")
        self.cancel(batch)
        return json_of({})

    async def _download(self, http: web.Request) -> web.Response:
        _checked_headers(http)
        if http.query.get("alt") != "media":
            raise Refused(400, "only media can be downloaded")
        batch = self.batch(http.match_info["id"].removeprefix("batch-"))
        lines: list[object] = []
        for name, reply in batch.answers.items():
            said: Any = self.body_of(batch.questions[name], reply)
            if reply.status == 200:
                lines.append({"key": name, "response": said})
            else:
                error = {"code": _CODES[reply.status], "message": said["error"]["message"]}
                lines.append({"key": name, "error": error})
        return json_lines(lines)

    def _asked_for(self, http: web.Request) -> WireBatch:
        _checked_headers(http)
        return self.batch(http.match_info["id"])

    def _operation(self, batch: WireBatch) -> dict[str, Any]:
        ended = batch.state == "ended"
        succeeded = sum(reply.status == 200 for reply in batch.answers.values())
        counts = {  # a count of 0 is not sent, and numbers are texts
            "requestCount": len(batch.questions),
            "successfulRequestCount": succeeded,
            "failedRequestCount": len(batch.answers) - succeeded,
            "pendingRequestCount": 0 if ended else len(batch.questions),
        }
        output = {"responsesFile": f"files/batch-{batch.id}"}
        operation: dict[str, Any] = {
            "name": f"batches/{batch.id}",
            "metadata": {
                "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
                "displayName": batch.label,
                "createTime": _CREATED,
                "batchStats": {name: str(count) for name, count in counts.items() if count},
                "state": f"BATCH_STATE_{_STATES[batch.end] if ended else 'RUNNING'}",
            },
        }
        if ended:
            operation["done"] = True
        if ended and batch.end == "completed":
            operation["metadata"]["output"] = output
            operation["response"] = output
        if batch.message:
            operation["error"] = {"code": 3, "message": batch.message}
        return operation


async def _parts(reader: MultipartReader) -> list[tuple[str, bytes]]:
    parts = []
    while (part := await reader.next()) is not None:
        assert isinstance(part, BodyPartReader)
        parts.append((part.headers["content-type"], bytes(await part.read())))
    return parts


def _checked_headers(http: web.Request) -> Mapping[str, str]:
    headers = headers_of(http)
    needed(Asked(http.path, headers, {}), "x-goog-api-key", 403)
    if "key" in http.query:
        raise Refused(400, "the key belongs into its header")
    return headers
