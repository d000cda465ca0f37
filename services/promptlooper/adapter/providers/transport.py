"""HTTP to one provider: httpx's requests and responses over aiohttp's connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

LARGEST_BODY = 8 * 1024 * 1024
CONNECT_TIMEOUT = 5.0  # seconds
_KEEPALIVE = 30.0  # seconds
_URLS_KEPT = 256


class BodyTooLarge(Exception):
    """The response is larger than LARGEST_BODY; the rest was not read."""


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
        self, method: str, path: str, headers: httpx.Headers, body: bytes = b""
    ) -> AsyncIterator[tuple[int, httpx.Headers, AsyncIterator[bytes]]]:
        """Status, headers and the body as it comes. Raises as `request` does."""
        response = await self._response(method, path, headers, body)
        stream = _stream_of(response)
        try:
            yield response.status_code, response.headers, _bounded(stream)
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
        return await self._opened().handle_async_request(request)

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


async def _bounded(stream: httpx.AsyncByteStream) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > LARGEST_BODY:
            raise BodyTooLarge
        yield chunk
