"""What fakes of batches have in common: batches run until a test ends them, over restarts of who submitted them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import orjson
from aiohttp import web

from promptlooper.testing.wires.server import Answering, Reply, WireServer
from promptlooper.testing.wires.wire import Asked, Refused, Wire

End: TypeAlias = Literal["completed", "expired", "cancelled", "failed"]
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class WireBatch:
    """`answers` are of the questions that were answered before it ended; `message` and `code` say why one failed as a
    whole."""

    id: str
    label: str
    questions: Mapping[str, Asked]
    state: Literal["running", "cancelling", "ended"] = "running"
    end: End = "completed"
    answers: dict[str, Reply] = field(default_factory=dict)
    message: str = ""
    code: str = "invalid_request"

    @property
    def unanswered(self) -> list[str]:
        return [name for name in self.questions if name not in self.answers]


class BatchServer(WireServer):
    """Also answers batches, with `answer` and `script` for each of their questions. A batch ends at once; where `hold`
    is set, when the test says so. One that is asked to stop ends as cancelled, or is `cancelling` while held."""

    def __init__(self, wire: Wire, answer: Answering | None = None, *, hold: bool = False) -> None:
        super().__init__(wire, answer)
        self.hold = hold
        self.batches: list[WireBatch] = []
        self.calls: list[Asked] = []  # about batches, without their bodies
        self.failing: list[Reply | None] = []  # what calls about batches are answered, in order; None: as usual

    def batch(self, batch_id: str) -> WireBatch:
        """Raises Refused."""
        found = next((each for each in self.batches if each.id == batch_id), None)
        if found is None:
            raise Refused(404, f"there is no batch {batch_id!r}")
        return found

    def take(self, label: str, questions: Mapping[str, Asked]) -> WireBatch:
        batch = WireBatch(f"batch_{len(self.batches) + 1}", label, questions)
        self.batches.append(batch)
        if not self.hold:
            self.finish(batch)
        return batch

    def finish(self, batch: WireBatch | None = None, end: End = "completed", *, answered: int | None = None) -> None:
        """Ends a batch, by default the last one, after so many of its questions were answered: by default all of one
        that is completed, and no more of another."""
        batch = batch or self.batches[-1]
        count = answered if answered is not None else len(batch.questions) if end == "completed" else 0
        for name, asked in list(batch.questions.items())[:count]:
            if name not in batch.answers:
                batch.answers[name] = self._reply_to(asked)
        batch.state, batch.end = "ended", end

    def cancel(self, batch: WireBatch) -> None:
        if self.hold:
            batch.state = "cancelling"
        else:
            self.finish(batch, "cancelled")

    def forget(self) -> None:
        """No batch is known any more."""
        self.batches.clear()

    def _reply_to(self, asked: Asked) -> Reply:
        try:
            self.wire.check(asked)
        except Refused as error:
            self.refused.append(str(error))
            return Reply(status=error.status, message=str(error))
        self.asked.append(asked)
        return self.reply(asked)

    def body_of(self, asked: Asked, reply: Reply) -> object:
        """What an item was answered, as JSON."""
        if reply.status == 200:
            return orjson.loads(self.wire.whole(asked, reply.said))
        return orjson.loads(self.wire.error(reply.status, reply.message))

    def guarded(self, handle: Handler) -> Handler:
        """A handler whose refusals are the wire's errors."""

        async def answered(http: web.Request) -> web.StreamResponse:
            call = Asked(http.raw_path, headers_of(http), {})
            self.calls.append(call)
            if self.failing and (reply := self.failing.pop(0)) is not None:
                return await self.sent(http, call, reply)
            try:
                return await handle(http)
            except Refused as error:
                self.refused.append(str(error))
                return self.error(error.status, str(error))

        return answered


def headers_of(http: web.Request) -> dict[str, str]:
    return {name.lower(): value for name, value in http.headers.items()}


async def object_in(http: web.Request) -> dict[str, object]:
    """Raises Refused."""
    if not http.headers.get("content-type", "").startswith("application/json"):
        raise Refused(415, "the content type must be application/json")
    try:
        data = orjson.loads(await http.read())
    except ValueError:
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(data, dict):
        raise Refused(400, "the body is not an object")
    return data


def json_lines(lines: list[object]) -> web.Response:
    return web.Response(body=b"".join(orjson.dumps(line) + b"\n" for line in lines), content_type="application/jsonl")


def json_of(data: object) -> web.Response:
    return web.Response(body=orjson.dumps(data), content_type="application/json")
