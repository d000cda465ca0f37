"""HTTP to one provider: httpx's requests and responses over aiohttp's connections."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from promptlooper.adapter.limits.quota import hear
from promptlooper.adapter.providers.headers import Headers
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind

LARGEST_BODY = 8 * 1024 * 1024
CONNECT_TIMEOUT = 5.0  # seconds
_KEEPALIVE = 30.0  # seconds
_URLS_KEPT = 256


class BodyTooLarge(Exception):
    """The response is larger than was asked for; the rest was not read."""


class Transport:
    """Sends requests without `httpx.AsyncClient.send`, which costs more CPU than the rest of a run: no redirects (they
    would carry the key elsewhere), cookies, proxies of the environment or decompression (a bomb in a few KB).

    Bound to the event loop of its first request. Connections are not limited here: a Limiter counts attempts, and
    aiohttp's own limit of 100 would make a queue that nobody sees.
    """

    def __init__(self, base_url: str, *, connect_timeout: float = CONNECT_TIMEOUT, proxy: str | None = None) -> None:
        self._base_url = base_url
        self._extensions = {"timeout": {"connect": connect_timeout}}
        self._proxy = None if proxy is None else httpx.Proxy(proxy)
        self._urls: dict[str, httpx.URL] = {}
        self._transport: AiohttpTransport | None = None

    async def request(
        self, method: str, path: str, headers: httpx.Headers, body: bytes = b""
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body. Raises httpx.TransportError, aiohttp.ClientError or BodyTooLarge."""
        response = await self._response(method, path, headers, body)
        stream, chunks, size = _stream_of(response), [], 0
        try:
            async for chunk in stream:
                chunks.append(chunk)
                if (size := size + len(chunk)) > LARGEST_BODY:
                    raise BodyTooLarge
        finally:
            await stream.aclose()
        return response.status_code, response.headers, chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @asynccontextmanager
    async def opened(
        self,
        method: str,
        path: str,
        headers: httpx.Headers,
        body: bytes = b"",
        *,
        largest: int = LARGEST_BODY,
    ) -> AsyncIterator[tuple[int, httpx.Headers, AsyncIterator[bytes]]]:
        """Status, headers and the body, of `largest` bytes at most, as it comes. Raises as `request` does."""
        response = await self._response(method, path, headers, body)
        stream = _stream_of(response)
        try:
            yield response.status_code, response.headers, _bounded(stream, largest)
        finally:
            # Releases before it first awaits: a connection whose body was not read to its end is closed, not kept.
            await stream.aclose()

    async def _response(self, method: str, path: str, headers: httpx.Headers, body: bytes) -> httpx.Response:
        url = self._urls.get(path)
        if url is None:
            if len(self._urls) >= _URLS_KEPT:  # some paths hold the name of a model, which is the caller's
                self._urls.clear()
            url = self._urls[path] = httpx.URL(self._base_url + path)
        # As `content`, httpx would also work out the headers that aiohttp sends of its own.
        stream = httpx.ByteStream(body)
        request = httpx.Request(method, url, headers=headers, stream=stream, extensions=self._extensions)
        request.read()
        response = await self._opened().handle_async_request(request)
        hear(response.headers.raw)
        return response

    def _opened(self) -> AiohttpTransport:
        if self._transport is None:
            https = self._base_url.startswith("https:")
            # SSL_CERT_FILE and SSL_CERT_DIR are honoured. A context costs 20 ms: only where there is TLS.
            context = httpx.create_ssl_context() if https else None
            self._transport = AiohttpTransport(
                verify=context or False,
                proxy=self._proxy,
                client=lambda: aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE, ssl=context or True),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,
                ),
            )
        return self._transport

    async def aclose(self) -> None:
        if self._transport is not None:
            transport, self._transport = self._transport, None
            await asyncio.shield(transport.aclose())


def _stream_of(response: httpx.Response) -> httpx.AsyncByteStream:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.stream


async def _bounded(stream: httpx.AsyncByteStream, largest: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > largest:
            raise BodyTooLarge
        yield chunk


@contextmanager
def failures_of(endpoint: str, headers: Headers, largest: int = LARGEST_BODY) -> Iterator[None]:
    """What goes wrong with HTTP, as AttemptFailed."""
    try:
        yield
    except BodyTooLarge:
        message = f"the answer is larger than {largest >> 20} MiB"
        raise AttemptFailed(Failure(Kind.PERMANENT, message)) from None
    except httpx.TransportError as error:
        # httpx-aiohttp calls most things ConnectTimeout; the cause knows better.
        cause = error.__cause__
        said = headers.redacted(_reason(cause or error)) or type(error).__name__
        if isinstance(cause, aiohttp.ClientProxyConnectionError):
            message = f"cannot connect to the proxy of {endpoint} ({said}); check 'proxy' in the providers file"
        elif isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            message = f"cannot connect to {endpoint} ({said}); check that it runs there"
        else:
            message = f"the connection to {endpoint} broke ({said})"
        raise AttemptFailed(Failure(Kind.TRANSIENT, message)) from error
    except aiohttp.ClientResponseError as error:
        message = f"what came from {endpoint} is not HTTP ({headers.redacted(error.message)})"
        raise AttemptFailed(Failure(Kind.MALFORMED, message)) from None  # its repr shows our headers
    except aiohttp.ClientError as error:
        message = f"the request to {endpoint} failed ({type(error).__name__})"
        raise AttemptFailed(Failure(Kind.TRANSIENT, message)) from error


def _reason(error: BaseException) -> str:
    """The system's words where there are some: the library's repeat the address."""
    system = getattr(error, "os_error", None)
    return os.strerror(system.errno) if type(system) is ConnectionRefusedError and system.errno else str(error)
