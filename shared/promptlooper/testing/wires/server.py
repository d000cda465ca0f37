"""The server of a wire format: answers as it is told, breaks off where it is told, and keeps what it was asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, TypeAlias

import orjson
from aiohttp import web

from promptlooper.testing.wires.wire import Asked, Refused, Said, Wire

_DRIP = 0.005  # seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """What is done with one request. `upto` is the place in the bytes of the answer where it stops, and `then` what
    follows: an end as if all were sent, a dropped connection, silence, or bytes that say nothing, without end."""

    said: Said = field(default_factory=Said)
    status: int = 200
    message: str = "scripted error"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # sent as it is, in place of the wire's
    upto: Callable[[bytes], int] | None = None
    then: Literal["end", "drop", "hang", "drip"] = "end"
    each: int | None = None  # so many bytes at a time


Answering: TypeAlias = Reply | Said | Callable[[Asked], Reply | Said]


class WireServer:
    """An async context manager; `base_url` is for the providers file. Answers what `script` holds, in order, then
    `answer`, which may depend on the question. What the wire does not take is answered with its error, and kept in
    `refused`."""

    def __init__(self, wire: Wire, answer: Answering | None = None) -> None:
        self.wire = wire
        self.answer: Answering = answer or Reply()
        self.script: deque[Answering] = deque()
        self.asked: list[Asked] = []
        self.refused: list[str] = []
        self.open = 0
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Condition()

    @property
    def address(self) -> str:
        assert self._runner is not None, "it does not run"
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @property
    def base_url(self) -> str:
        return self.address + self.wire.base

    async def __aenter__(self) -> WireServer:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        for path in self.wire.paths:
            app.router.add_post(self.wire.base + path, self._handle)
        app.router.add_routes(self.more_routes())
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def more_routes(self) -> Sequence[web.RouteDef]:
        """Of who serves more than answers."""
        return ()

    def reply(self, asked: Asked) -> Reply:
        """What comes next."""
        reply = self.script.popleft() if self.script else self.answer
        reply = reply(asked) if callable(reply) else reply
        return Reply(reply) if isinstance(reply, Said) else reply

    async def closed(self) -> None:
        """Returns when no request is open."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.open == 0)

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        self.open += 1
        try:
            return await self._answered(http)
        finally:
            self.open -= 1
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _answered(self, http: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in http.headers.items()}
        raw = await http.read()
        try:
            body = orjson.loads(raw)
        except ValueError:
            return self.error(400, "the body is not JSON")
        asked = Asked(http.raw_path, headers, body, raw)
        self.asked.append(asked)
        try:
            if not headers.get("content-type", "").startswith("application/json"):
                raise Refused(415, "the content type must be application/json")
            if not isinstance(body, dict):
                raise Refused(400, "the body is not an object")
            self.wire.check(asked)
        except Refused as error:
            self.refused.append(str(error))
            return self.error(error.status, str(error))
        return await self.sent(http, asked, self.reply(asked))

    def error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
        said = {"content-type": "application/json", **(headers or {})}
        return web.Response(status=status, body=self.wire.error(status, message), headers=said)

    async def sent(self, http: web.Request, asked: Asked, reply: Reply) -> web.StreamResponse:
        if reply.status != 200 and reply.body is None:
            return self.error(reply.status, reply.message, reply.headers)
        kind, parts = "application/json", [reply.body if reply.body is not None else b""]
        if self.wire.streams(asked):
            kind, events = self.wire.stream(asked, reply.said)
            parts = events if reply.body is None else parts
        elif reply.body is None:
            parts = [self.wire.whole(asked, reply.said)]
        if reply.upto is not None:
            whole = b"".join(parts)
            parts = [whole[: reply.upto(whole)]]
        if reply.each is not None:
            whole = b"".join(parts)
            parts = [whole[start : start + reply.each] for start in range(0, len(whole), reply.each)]
        response = web.StreamResponse(status=reply.status, headers={"content-type": kind, **reply.headers})
        await response.prepare(http)
        for part in parts:
            await response.write(part)
        if reply.then == "hang":
            await asyncio.Event().wait()
        while reply.then == "drip":
            await response.write(b":\n" if kind == "text/event-stream" else b" ")
            await asyncio.sleep(_DRIP)
        if reply.then == "drop" and http.transport is not None:
            http.transport.abort()
        return response
