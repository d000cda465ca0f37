"""OpenAI's files and batches as its public address takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from aiohttp import web
from pydantic import Field

from promptlooper.testing.wires.batches import BatchServer, WireBatch, headers_of, json_lines, json_of, object_in
from promptlooper.testing.wires.openai_chat import OpenAIChatWire
from promptlooper.testing.wires.server import Answering
from promptlooper.testing.wires.wire import Asked, Refused, Strict, Wire, checked

_Id = Annotated[str, Field(min_length=1, max_length=64)]
_CREATED = 1_700_000_000
_DAY = 24 * 3600


class _Batch(Strict):
    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = None


class _Line(Strict):
    custom_id: _Id
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class OpenAIBatchServer(BatchServer):
    """Of chat completions, or of Responses. A file that it can't read makes a batch that failed."""

    def __init__(self, answer: Answering | None = None, *, wire: Wire | None = None, hold: bool = False) -> None:
        super().__init__(wire or OpenAIChatWire(), answer, hold=hold)
        self.files: dict[str, bytes] = {}

    def more_routes(self) -> Sequence[web.RouteDef]:
        base, guarded = self.wire.base, self.guarded
        return [
            web.post(base + "/files", guarded(self._upload)),
            web.get(base + "/files/{id}/content", guarded(self._content)),
            web.post(base + "/batches", guarded(self._create)),
            web.get(base + "/batches", guarded(self._list)),
            web.get(base + "/batches/{id}", guarded(self._get)),
            web.post(base + "/batches/{id}/cancel", guarded(self._cancel)),
        ]

    async def _upload(self, http: web.Request) -> web.Response:
        _check_key(http)
        if http.content_type != "multipart/form-data":
            raise Refused(400, "a file is sent as multipart/form-data")
        form = await http.post()
        file = form.get("file")
        if form.get("purpose") != "batch":
            raise Refused(400, "'purpose' must be 'batch'")
        if not isinstance(file, web.FileField) or not file.filename.endswith(".jsonl"):
            raise Refused(400, "'file' must be a file of JSON lines, by its name .jsonl")
        data = file.file.read()
        file_id = f"file-{len(self.files) + 1}"
        self.files[file_id] = data
        return json_of(
            {
                "id": file_id,
                "object": "file",
                "bytes": len(data),
                "created_at": _CREATED,
                "expires_at": _CREATED + 30 * _DAY,
                "filename": file.filename,
                "purpose": "batch",
                "status": "processed",
            }
        )

    async def _create(self, http: web.Request) -> web.Response:
        _check_key(http)
        asked = checked(_Batch, await object_in(http))
        data = self.files.get(asked.input_file_id)
        if data is None:
            raise Refused(400, f"there is no file {asked.input_file_id!r}")
        label = (asked.metadata or {}).get("promptlooper", "")
        try:
            questions = self._questions(data, asked.endpoint, headers_of(http))
        except Refused as error:
            batch = WireBatch(f"batch_{len(self.batches) + 1}", label, {}, "ended", "failed", message=str(error))
            self.batches.append(batch)
            return json_of(self._batch(batch))
        return json_of(self._batch(self.take(label, questions)))

    def _questions(self, data: bytes, endpoint: str, headers: Mapping[str, str]) -> dict[str, Asked]:
        questions: dict[str, Asked] = {}
        models = set()
        for raw in data.splitlines():
            line = checked(_Line, orjson.loads(raw))
            if line.custom_id in questions:
                raise Refused(400, f"the custom_id {line.custom_id!r} is there twice")
            if line.url != endpoint or line.body.get("stream"):
                raise Refused(400, "every line's url must be the batch's endpoint, and none may stream")
            models.add(line.body.get("model"))
            questions[line.custom_id] = Asked(line.url, headers, line.body, raw)
        if len(models) != 1:
            raise Refused(400, "all questions of a batch must be for one model")
        return questions

    async def _get(self, http: web.Request) -> web.Response:
        _check_key(http)
        return json_of(self._batch(self.batch(http.match_info["id"])))

    async def _list(self, http: web.Request) -> web.Response:
        _check_key(http)
        newest = self.batches[::-1]
        if after := http.query.get("after"):
            newest = newest[[batch.id for batch in newest].index(after) + 1 :]
        limit = int(http.query.get("limit", "20"))
        page = [self._batch(batch) for batch in newest[:limit]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return json_of({"object": "list", "data": page, "has_more": len(newest) > limit, **ends})

    async def _cancel(self, http: web.Request) -> web.Response:
        _check_key(http)
        batch = self.batch(http.match_info["id"])
        if batch.state != "running":
            raise Refused(409, f"a batch that is {batch.end} can't be cancelled")
        self.cancel(batch)
        return json_of(self._batch(batch))

    async def _content(self, http: web.Request) -> web.Response:
        _check_key(http)
        name = http.match_info["id"]
        if name in self.files:
            return web.Response(body=self.files[name])
        kind, _, batch_id = name.partition("-")
        lines = self._lines(self.batch(batch_id), failed=kind == "errors")
        return json_lines(lines)

    def _lines(self, batch: WireBatch, *, failed: bool) -> list[object]:
        lines: list[object] = []
        for name, reply in batch.answers.items():
            if (reply.status != 200) is failed:
                body = self.body_of(batch.questions[name], reply)
                response = {"status_code": reply.status, "request_id": f"req_{name}", "body": body}
                lines.append({"id": f"batch_req_{name}", "custom_id": name, "response": response, "error": None})
        if failed and batch.end in ("expired", "cancelled"):
            error = {"code": f"batch_{batch.end}", "message": f"This request was not executed: batch {batch.end}."}
            lines += [
                {"id": f"batch_req_{name}", "custom_id": name, "response": None, "error": error}
                for name in batch.unanswered
            ]
        return lines

    def _batch(self, batch: WireBatch) -> dict[str, Any]:
        ended = batch.state == "ended"
        completed = sum(reply.status == 200 for reply in batch.answers.values())
        failed = len(batch.answers) - completed
        errors = failed or (batch.end in ("expired", "cancelled") and batch.unanswered)
        error = {"code": batch.code, "message": batch.message, "line": 1, "param": None}
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1" + self.wire.paths[0],
            "errors": {"object": "list", "data": [error]} if batch.message else None,
            "input_file_id": "file-1",
            "completion_window": "24h",
            "status": batch.end if ended else {"running": "in_progress"}.get(batch.state, batch.state),
            "output_file_id": f"answers-{batch.id}" if ended and completed else None,
            "error_file_id": f"errors-{batch.id}" if ended and errors else None,
            "created_at": _CREATED,
            "expires_at": _CREATED + _DAY,
            "request_counts": {
                "total": len(batch.questions),
                "completed": completed,
                "failed": failed,
            },
            "metadata": {"promptlooper": batch.label},
        }


def _check_key(http: web.Request) -> None:
    if not http.headers.get("authorization", "").startswith("Bearer "):
        raise Refused(401, "the key must be a bearer token")
