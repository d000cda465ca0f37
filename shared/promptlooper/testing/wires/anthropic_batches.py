"""Anthropic's message batches as its public address takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from aiohttp import web
from pydantic import Field

from promptlooper.testing.wires.anthropic import AnthropicWire
from promptlooper.testing.wires.batches import BatchServer, WireBatch, headers_of, json_lines, json_of, object_in
from promptlooper.testing.wires.server import Answering
from promptlooper.testing.wires.wire import Asked, Refused, Strict, checked, needed

_PATH = "/v1/messages/batches"
_CREATED, _EXPIRES = "2026-11-23T12:00:00Z", "2026-11-24T12:00:00Z"


class _Request(Strict):
    custom_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    params: dict[str, Any]


class _Batch(Strict):
    requests: Annotated[list[_Request], Field(min_length=1, max_length=100_000)]


class AnthropicBatchServer(BatchServer):
    def __init__(self, answer: Answering | None = None, *, hold: bool = False) -> None:
        super().__init__(AnthropicWire(), answer, hold=hold)

    def more_routes(self) -> Sequence[web.RouteDef]:
        guarded = self.guarded
        return [
            web.post(_PATH, guarded(self._create)),
            web.get(_PATH + "/{id}", guarded(self._get)),
            web.get(_PATH + "/{id}/results", guarded(self._results)),
            web.post(_PATH + "/{id}/cancel", guarded(self._cancel)),
        ]

    async def _create(self, http: web.Request) -> web.Response:
        headers = _checked_headers(http)
        requests = checked(_Batch, await object_in(http)).requests
        questions = {
            one.custom_id: Asked("/v1/messages", headers, one.params, orjson.dumps(one.params)) for one in requests
        }
        if len(questions) < len(requests):
            raise Refused(400, "requests: a custom_id is there twice")
        if any(one.params.get("stream") for one in requests):
            raise Refused(400, "requests: stream is not supported in a batch")
        return json_of(self._batch(self.take("", questions), http))

    async def _get(self, http: web.Request) -> web.Response:
        return json_of(self._batch(self._asked_for(http), http))

    async def _cancel(self, http: web.Request) -> web.Response:
        batch = self._asked_for(http)
        if batch.state == "ended":
            raise Refused(400, "the batch has ended already")
        self.cancel(batch)
        return json_of(self._batch(batch, http))

    async def _results(self, http: web.Request) -> web.Response:
        batch = self._asked_for(http)
        if batch.state != "ended":
            raise Refused(404, "the batch has no results yet")
        lines: list[object] = []
        for name, asked in batch.questions.items():
            reply = batch.answers.get(name)
            if reply is None:
                result: dict[str, Any] = {"type": "canceled" if batch.end == "cancelled" else "expired"}
            elif reply.status == 200:
                message: Any = self.body_of(asked, reply)
                message["usage"]["service_tier"] = "batch"
                result = {"type": "succeeded", "message": message}
            else:
                result = {"type": "errored", "error": self.body_of(asked, reply)}
            lines.append({"custom_id": name, "result": result})
        return json_lines(lines)

    def _asked_for(self, http: web.Request) -> WireBatch:
        _checked_headers(http)
        return self.batch(http.match_info["id"])

    def _batch(self, batch: WireBatch, http: web.Request) -> dict[str, Any]:
        ended = batch.state == "ended"
        succeeded = sum(reply.status == 200 for reply in batch.answers.values())
        unanswered = len(batch.unanswered)
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": {"running": "in_progress", "cancelling": "canceling"}.get(batch.state, "ended"),
            "request_counts": {  # zero until the whole batch has ended
                "processing": 0 if ended else len(batch.questions),
                "succeeded": succeeded if ended else 0,
                "errored": len(batch.answers) - succeeded if ended else 0,
                "canceled": unanswered if ended and batch.end == "cancelled" else 0,
                "expired": unanswered if ended and batch.end != "cancelled" else 0,
            },
            "created_at": _CREATED,
            "expires_at": _EXPIRES,
            "ended_at": _CREATED if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None if batch.state == "running" else _CREATED,
            "results_url": f"http://{http.host}{_PATH}/{batch.id}/results" if ended else None,
        }


def _checked_headers(http: web.Request) -> dict[str, str]:
    headers = headers_of(http)
    asked = Asked(http.path, headers, {})
    if not headers.get("authorization", "").startswith("Bearer "):
        needed(asked, "x-api-key")
    needed(asked, "anthropic-version", 400)
    return headers
