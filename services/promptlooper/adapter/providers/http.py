"""What every provider does that is asked over HTTP, whatever its dialect."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

import aiohttp
import httpx

from promptlooper.adapter.cost import Prices
from promptlooper.adapter.heard import Heard
from promptlooper.adapter.images import ImageFetcher, with_bytes
from promptlooper.adapter.keys import Key
from promptlooper.adapter.providers.headers import Headers
from promptlooper.adapter.providers.provider import Problem
from promptlooper.adapter.providers.transport import CONNECT_TIMEOUT, LARGEST_BODY, BodyTooLarge, Transport
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.clock import Clock
from promptlooper.completion import Completion, CompletionRequest


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
    """One base URL with one key and one dialect. `images` is for a dialect that takes no addresses of images."""

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
        self._headers = Headers(self._key, headers or {}, dialect.place, dialect.headers)
        self._transport = Transport(base_url, connect_timeout=connect_timeout, proxy=proxy)

    def problem(self, model: str) -> Problem | None:
        return self._key.problem() or (self._signer.problem() if self._signer else None)

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
        with self._failures():
            if heard is None:
                status, headers, answer = await self._transport.request("POST", path, sending, body)
            else:
                status, headers, answer, first = await self._streamed(path, sending, body, heard)
                ttft_ms = None if first is None else round((first - started) * 1000)
        latency_ms = round((self._clock.monotonic() - started) * 1000)
        if status == 200:
            try:
                completion = self._dialect.completion(answer, model, latency_ms)
                return completion if ttft_ms is None else replace(completion, ttft_ms=ttft_ms)
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
        if failure.kind is Kind.CONTENT_FILTERED:
            return Completion(output="", model=model, finish_reason="content_filter", latency_ms=latency_ms)
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
            async for event in self._dialect.events(parts):
                gathered.add(event)
                if first is None and gathered.begun:
                    first = self._clock.monotonic()
            return status, headers, gathered.body(), first

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """What goes wrong with HTTP, as AttemptFailed."""
        try:
            yield
        except BodyTooLarge:
            message = f"the answer is larger than {LARGEST_BODY >> 20} MiB"
            raise AttemptFailed(Failure(Kind.PERMANENT, message)) from None
        except httpx.TransportError as error:
            # httpx-aiohttp calls most things ConnectTimeout; the cause knows better.
            cause = error.__cause__
            said = self._headers.redacted(_reason(cause or error)) or type(error).__name__
            if isinstance(cause, aiohttp.ClientProxyConnectionError):
                message = (
                    f"cannot connect to the proxy of {self.endpoint} ({said}); check 'proxy' in the providers file"
                )
            elif isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                message = f"cannot connect to {self.endpoint} ({said}); check that it runs there"
            else:
                message = f"the connection to {self.endpoint} broke ({said})"
            raise AttemptFailed(Failure(Kind.TRANSIENT, message)) from error
        except aiohttp.ClientResponseError as error:
            message = f"what came from {self.endpoint} is not HTTP ({self._headers.redacted(error.message)})"
            raise AttemptFailed(Failure(Kind.MALFORMED, message)) from None  # its repr shows our headers
        except aiohttp.ClientError as error:
            message = f"the request to {self.endpoint} failed ({type(error).__name__})"
            raise AttemptFailed(Failure(Kind.TRANSIENT, message)) from error

    async def aclose(self) -> None:
        await self._transport.aclose()
        if self._images is not None:
            await self._images.aclose()


def _reason(error: BaseException) -> str:
    """The system's words where there are some: the library's repeat the address."""
    system = getattr(error, "os_error", None)
    return os.strerror(system.errno) if type(system) is ConnectionRefusedError and system.errno else str(error)
