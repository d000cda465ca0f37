"""What every provider does that is asked over HTTP, whatever its dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import httpx

from promptlooper.adapter.cost import Prices
from promptlooper.adapter.heard import Heard
from promptlooper.adapter.images import ImageFetcher, with_bytes
from promptlooper.adapter.keys import Key
from promptlooper.adapter.providers.bodies import as_malformed
from promptlooper.adapter.providers.embedding import EmbeddingDialect
from promptlooper.adapter.providers.headers import Headers, Sent
from promptlooper.adapter.providers.provider import Problem, no_batches
from promptlooper.adapter.providers.refusal import refusal
from promptlooper.adapter.providers.transport import CONNECT_TIMEOUT, Transport, failures_of
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.clock import Clock
from promptlooper.completion import Completion, CompletionRequest
from promptlooper.embeddings import EmbeddingRequest, Embeddings

AnswerT = TypeVar("AnswerT")

if TYPE_CHECKING:
    from promptlooper.adapter.batch.calls import Calls
    from promptlooper.adapter.batch.format import BatchProvider


class Gathering(Protocol):
    """Puts the parts of an answer together as if it had come at once."""

    begun: bool  # whether anything of the answer has come

    def add(self, event: dict[str, Any]) -> None: ...

    def body(self) -> bytes:
        """What `Dialect.completion` takes."""
        ...


class Dialect(Protocol):
    """One wire format: bytes of a question, and what the bytes of an answer mean. No I/O."""

    headers: Mapping[str, str]
    """What every request has; the operator's headers come before these."""

    def path(self, model: str, *, stream: bool) -> str:
        """After the base URL."""
        ...

    def place(self, key: str) -> Mapping[str, str]:
        """The headers that the key goes in."""
        ...

    def body(self, model: str, request: CompletionRequest, *, stream: bool) -> bytes:
        """Raises AttemptFailed, kind PERMANENT, for what this provider cannot do: nothing is dropped silently."""
        ...

    def is_stream(self, content_type: str) -> bool:
        """Whether a response comes piece by piece; others come at once also where a stream was asked for."""
        ...

    def events(self, parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]: ...

    def gathering(self, heard: Heard) -> Gathering: ...

    def completion(self, body: bytes, model: str, latency_ms: int) -> Completion:
        """The answer in a 200 response. Raises AttemptFailed where there is none."""
        ...

    def error_in(self, body: bytes) -> int | None:
        """The status of an error that hides in a 200 response; None where there is none."""
        ...

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
    ) -> Failure:
        """What an error response means."""
        ...


class Signer(Protocol):
    """Puts into the headers what a key alone does not say: a signature over the request."""

    def problem(self) -> Problem | None: ...

    async def signed(self, url: str, headers: httpx.Headers, body: bytes) -> httpx.Headers:
        """Raises AttemptFailed."""
        ...


class HttpProvider:
    """One base URL with one key and one dialect. `images` is for a dialect that takes no addresses of images. What
    `embedding` asks is not signed."""

    def __init__(
        self,
        name: str,
        base_url: str,
        dialect: Dialect,
        *,
        prices: Prices,
        clock: Clock,
        key: Key | None = None,
        signer: Signer | None = None,
        images: ImageFetcher | None = None,
        embedding: EmbeddingDialect | None = None,
        batches: Callable[[Calls], BatchProvider] | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        proxy: str | None = None,
    ) -> None:
        self.name = name
        self.prices = prices
        self.endpoint = base_url
        self._dialect = dialect
        self._clock = clock
        self._key = key or Key(name)
        self._signer = signer
        self._images = images
        self._embedding = embedding
        self._make_batches = batches
        self._batches: BatchProvider | None = None
        self._headers = Headers(self._key, headers or {}, dialect.place, dialect.headers)
        self._transport = Transport(base_url, connect_timeout=connect_timeout, proxy=proxy)

    def problem(self, model: str) -> Problem | None:
        return self._key.problem() or (self._signer.problem() if self._signer else None)

    def batches(self, model: str) -> BatchProvider | Problem:
        if self._make_batches is None:
            return no_batches(self.name)
        if self._batches is None:
            from promptlooper.adapter.batch.calls import Calls

            calls = Calls(self.endpoint, self._transport, self._headers, self._dialect, clock=self._clock)
            self._batches = self._make_batches(calls)
        return self._batches

    def models(self) -> list[str]:
        return self.prices.known_models()

    async def complete(self, model: str, request: CompletionRequest, heard: Heard | None = None) -> Completion:
        if self._images is not None:
            request = await with_bytes(request, self._images)
        body = self._dialect.body(model, request, stream=heard is not None)
        path, sent = self._dialect.path(model, stream=heard is not None), self._headers.current()
        sending = sent.headers
        if self._signer is not None:
            sending = await self._signer.signed(self.endpoint + path, sending, body)
        started = self._clock.monotonic()
        ttft_ms: int | None = None
        with failures_of(self.endpoint, self._headers):
            if heard is None:
                status, headers, answer = await self._transport.request("POST", path, sending, body)
            else:
                status, headers, answer, first = await self._streamed(path, sending, body, heard)
                ttft_ms = None if first is None else round((first - started) * 1000)
        latency_ms = round((self._clock.monotonic() - started) * 1000)
        try:
            read = partial(self._dialect.completion, model=model, latency_ms=latency_ms)
            completion = self._read(status, headers, answer, sent, read)
            return completion if ttft_ms is None else replace(completion, ttft_ms=ttft_ms)
        except AttemptFailed as error:
            if error.failure.kind is Kind.CONTENT_FILTERED:
                return Completion(output="", model=model, finish_reason="content_filter", latency_ms=latency_ms)
            raise

    @property
    def embeds(self) -> int:
        return 0 if self._embedding is None else self._embedding.at_once

    async def embed(self, model: str, request: EmbeddingRequest) -> Embeddings:
        if self._embedding is None:
            raise refusal("it has no embeddings")
        body, path, sent = self._embedding.body(model, request), self._embedding.path(model), self._headers.current()
        started = self._clock.monotonic()
        with failures_of(self.endpoint, self._headers):
            status, headers, answer = await self._transport.request("POST", path, sent.headers, body)
        latency_ms = round((self._clock.monotonic() - started) * 1000)
        read = partial(self._embedding.embeddings, model=model, request=request)
        return replace(self._read(status, headers, answer, sent, read), latency_ms=latency_ms)

    def _read(
        self, status: int, headers: httpx.Headers, answer: bytes, sent: Sent, read: Callable[[bytes], AnswerT]
    ) -> AnswerT:
        """What a response says. Raises AttemptFailed where it is no answer."""
        if status == 200:
            try:
                with as_malformed():
                    return read(answer)
            except AttemptFailed as error:
                if headers.get("content-encoding", "identity") != "identity":
                    message = "it is compressed, though identity was asked for"
                    raise AttemptFailed(Failure(Kind.MALFORMED, message, status)) from error
                if (hidden := self._dialect.error_in(answer)) is None:
                    raise
                status = hidden
        failure = self._dialect.failure(status, headers, answer, now=self._clock.now(), redacted=self._headers.redacted)
        if failure.status == 401:
            self._headers.refused(sent)
        raise AttemptFailed(failure)

    async def _streamed(
        self, path: str, sent: httpx.Headers, body: bytes, heard: Heard
    ) -> tuple[int, httpx.Headers, bytes, float | None]:
        """The answer as if it had come at once, and when its first piece came. What can't stream, and errors, come at
        once."""
        async with self._transport.opened("POST", path, sent, body) as (status, headers, parts):
            if status != 200 or not self._dialect.is_stream(headers.get("content-type", "")):
                return status, headers, b"".join([part async for part in parts]), None
            gathered, first = self._dialect.gathering(heard), None
            with as_malformed():
                async for event in self._dialect.events(parts):
                    gathered.add(event)
                    if first is None and gathered.begun:
                        first = self._clock.monotonic()
                return status, headers, gathered.body(), first

    async def aclose(self) -> None:
        await self._transport.aclose()
        if self._images is not None:
            await self._images.aclose()
