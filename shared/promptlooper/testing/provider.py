"""A provider for tests: a real HTTP server that speaks the OpenAI chat completions format and does what it is told."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """One request as it came."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]  # names in lower case

    @property
    def question(self) -> str:
        """The last user message."""
        messages = self.body.get("messages", ())
        return next((m["content"] for m in reversed(messages) if m.get("role") == "user"), "")

    @property
    def model(self) -> str:
        return str(self.body.get("model"))


@dataclass(slots=True)
class ProviderCall:
    """One request's life, in monotonic seconds. `answered` is None while it is open, and for good where its client hung
    up; `ended` is when it was answered or given up. `asker` is who asked, by its key."""

    question: str
    asker: str
    started: float
    answered: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the provider does with one request. Token counts default to words."""

    text: str = "ok"
    status: int = 200
    finish_reason: str | None = "stop"  # None: the field is not sent
    tokens_in: int | None = None
    tokens_out: int | None = None
    usage: Mapping[str, Any] | None = None  # in place of the counts; {} sends no usage
    message: Mapping[str, Any] = field(default_factory=dict)  # further fields of the message: reasoning_content, …
    code: str = ""  # of an error
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # sent as it is
    until: asyncio.Event | None = None  # answers when this is set
    pause: asyncio.Event | None = None  # a stream goes on after its first piece when this is set
    streams: bool = True  # whether it can stream: else it answers at once
    cut: bool = False  # announces a whole body, sends half of it, and drops the connection
    drop: bool = False  # drops the connection without an answer


def error(status: int, message: str = "scripted error", *, code: str = "", retry_after: str | None = None) -> Reply:
    """An error reply; `retry_after` as the header says it: seconds or an HTTP date."""
    return Reply(message, status, code=code, headers={} if retry_after is None else {"retry-after": retry_after})


_PIECES = re.compile(r"\S+\s*|\s+")
Answer = Callable[[ProviderRequest], Reply | str | Awaitable[Reply | str]]


class FakeProvider:
    """An async context manager; `base_url` is for `OPENAI_BASE_URL`.

    Answers what `script` holds, in order, then what `answer` says. Records every request, with its times in `history`,
    and counts those that are open and those whose client hung up; `eventually` waits for such counts.
    """

    def __init__(self, answer: Answer | Reply | str = "ok", *, port: int = 0) -> None:
        self.answer = answer
        self.script: deque[Reply | str] = deque()
        self.requests: list[ProviderRequest] = []
        self.calls: Counter[str] = Counter()
        """Requests by question."""
        self.history: list[ProviderCall] = []
        self.open = 0
        self.most_open = 0
        self.hung_up = 0
        self._port = port
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Condition()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> FakeProvider:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._complete)
        # The handler is cancelled when its client hangs up: that is how it is counted.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=4096)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def eventually(self, condition: Callable[[FakeProvider], bool]) -> None:
        """Returns when `condition` holds; it is asked again whenever a request comes or ends."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        request = ProviderRequest(orjson.loads(await http.read()), {k.lower(): v for k, v in http.headers.items()})
        self.requests.append(request)
        self.calls[request.question] += 1
        asker = request.headers.get("authorization", "").removeprefix("Bearer ")
        call = ProviderCall(request.question, asker, time.monotonic())
        self.history.append(call)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._tell()
            reply = await self._reply(request)
            if reply.until is not None:
                await reply.until.wait()
            sent = await self._sent(http, request, reply)
            call.answered = call.ended = time.monotonic()
            return sent
        except asyncio.CancelledError:
            self.hung_up += 1
            raise
        finally:
            call.ended = call.ended or time.monotonic()
            self.open -= 1
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _reply(self, request: ProviderRequest) -> Reply:
        said: Any = self.script.popleft() if self.script else self.answer
        if callable(said):
            said = said(request)
            if isinstance(said, Awaitable):
                said = await said
        return Reply(said) if isinstance(said, str) else said

    async def _sent(self, http: web.Request, request: ProviderRequest, reply: Reply) -> web.StreamResponse:
        if request.body.get("stream") and reply.streams and reply.status == 200 and reply.body is None:
            return await self._streamed(http, request, reply)
        body = _body(request, reply) if reply.body is None else reply.body
        if (reply.cut or reply.drop) and http.transport is not None:
            if reply.cut:
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                http.transport.write(head.encode() + body[: len(body) // 2])
            http.transport.close()
        return web.Response(
            status=reply.status, body=body, headers={"content-type": "application/json", **reply.headers}
        )

    async def _streamed(self, http: web.Request, request: ProviderRequest, reply: Reply) -> web.StreamResponse:
        """A piece for each word; with `cut` the connection is dropped in the middle."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **reply.headers})
        await response.prepare(http)
        pieces = _PIECES.findall(reply.text)
        for index, piece in enumerate(pieces):
            if reply.cut and index >= len(pieces) // 2 and http.transport is not None:
                http.transport.close()
                return response
            await response.write(_event(request, {"content": piece}))
            if index == 0 and reply.pause is not None:
                await reply.pause.wait()
        whole = orjson.loads(_body(request, reply))
        await response.write(_event(request, dict(reply.message), whole["choices"][0].get("finish_reason")))
        if "usage" in whole:
            await response.write(b"data: " + orjson.dumps({"choices": [], "usage": whole["usage"]}) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(request: ProviderRequest, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    data = {"object": "chat.completion.chunk", "model": request.model, "choices": [choice]}
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _body(request: ProviderRequest, reply: Reply) -> bytes:
    if reply.status != 200:
        return orjson.dumps({"error": {"message": reply.text, "type": "error", "code": reply.code or None}})
    usage: Mapping[str, Any] | None = reply.usage
    if usage is None:
        tokens_in = sum(len(str(m.get("content")).split()) for m in request.body.get("messages", ()))
        tokens_in = tokens_in if reply.tokens_in is None else reply.tokens_in
        tokens_out = len(reply.text.split()) if reply.tokens_out is None else reply.tokens_out
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": reply.text, **reply.message}}
    if reply.finish_reason is not None:
        choice["finish_reason"] = reply.finish_reason
    data = {"id": "chatcmpl-fake", "object": "chat.completion", "model": request.model, "choices": [choice]}
    return orjson.dumps({**data, "usage": usage} if usage else data)
