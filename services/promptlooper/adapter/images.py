"""Images by address, for providers that want their bytes: the only addresses that a caller can name."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver

from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind, kind_of
from promptlooper.completion import CompletionRequest

LARGEST_IMAGE = 8 * 1024 * 1024
LARGEST_SUM = 32 * 1024 * 1024  # of one question
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
TIMEOUT = 20.0  # seconds in all

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# Beyond what `ipaddress` calls private: some of it is reserved only in newer versions of Python, some is public but
# answers from within a cloud's own machines.
_INSIDE = tuple(
    ipaddress.ip_network(each)
    for each in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; a cloud's metadata at 100.100.100.200
        "168.63.129.16/32",  # Azure's own services
        "192.0.0.0/24",  # a cloud's metadata at 192.0.0.192
        "192.88.99.0/24",
        "198.18.0.0/15",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: _Address) -> bool:
    """Whether it is out in the internet: not this machine, its network, its neighbours or its cloud's metadata."""
    if isinstance(address, ipaddress.IPv6Address):
        within = address.ipv4_mapped or address.sixtofour
        if within is None and address in _NAT64:
            within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if within is not None:
            return is_public(within)
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified)
        and not any(address in network for network in _INSIDE if network.version == address.version)
    )


@dataclass(frozen=True, slots=True)
class Image:
    media_type: str  # one of MEDIA_TYPES
    data: bytes


@dataclass(slots=True)
class Room:
    """Bytes that the images of one question may still take."""

    left: int = LARGEST_SUM


class ImageFetcher:
    """Gets `https` images from public addresses. Each address is checked when a socket is made for it, so neither a
    name that means another address a moment later nor a redirect leads anywhere else. Sends no key or cookie."""

    def __init__(
        self,
        *,
        may_connect: Callable[[_Address], bool] = is_public,
        resolver: AbstractResolver | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._may_connect = may_connect
        self._resolver = resolver
        self._context = context
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str, room: Room) -> Image:
        """Raises AttemptFailed, whose message names the host and nothing else of the address."""
        host = _host(url)
        try:
            async with asyncio.timeout(TIMEOUT), self._opened().get(url, allow_redirects=False) as response:
                return await _image(response, host, room)
        except TimeoutError:
            raise _failed(Kind.TRANSIENT, f"{host!r} did not send the image within {TIMEOUT:g} s") from None
        except aiohttp.ClientConnectorError as error:
            kind = Kind.PERMANENT if _Refused.SAID in str(error.os_error) else Kind.TRANSIENT
            why = _Refused.SAID if kind is Kind.PERMANENT else "no connection"
            raise _failed(kind, f"the image can't be fetched from {host!r}: {why}") from None
        except aiohttp.ClientError as error:
            raise _failed(
                Kind.TRANSIENT, f"the image can't be fetched from {host!r} ({type(error).__name__})"
            ) from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    socket_factory=self._socket,
                    resolver=self._resolver,
                    ssl=self._context or True,
                    use_dns_cache=False,
                    force_close=True,
                ),
                headers={"accept": ", ".join(MEDIA_TYPES), "accept-encoding": "identity", "user-agent": "promptlooper"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _socket(self, info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        family, kind, protocol, _, where = info
        if not self._may_connect(ipaddress.ip_address(str(where[0]).partition("%")[0])):
            raise _Refused
        return socket.socket(family, kind, protocol)

    async def aclose(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


async def with_bytes(request: CompletionRequest, fetcher: ImageFetcher) -> CompletionRequest:
    """The question with every image that it names by address as a data URI. Raises AttemptFailed."""
    named = {each for message in request.messages for each in message.images if not each.startswith("data:")}
    if not named:
        return request
    room = Room()
    try:
        async with asyncio.TaskGroup() as group:
            fetched = {url: group.create_task(fetcher.fetch(url, room)) for url in named}
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    uris = {url: _data_uri(task.result()) for url, task in fetched.items()}
    messages = (
        replace(message, images=tuple(uris.get(each, each) for each in message.images)) if message.images else message
        for message in request.messages
    )
    return replace(request, messages=tuple(messages))


def _data_uri(image: Image) -> str:
    return f"data:{image.media_type};base64,{b64encode(image.data).decode()}"


class _Refused(OSError):
    SAID = "it is not at a public address"

    def __init__(self) -> None:
        super().__init__(self.SAID)


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    try:
        (host or "").encode("idna")
    except UnicodeError:
        host = None
    if not host or parts.scheme != "https" or parts.username is not None or parts.password is not None or port == 0:
        raise _failed(Kind.PERMANENT, "an image's address is written as 'https://host/path', without user or password")
    return host


async def _image(response: aiohttp.ClientResponse, host: str, room: Room) -> Image:
    if 300 <= response.status < 400:
        raise _failed(Kind.PERMANENT, f"{host!r} redirects, which is not followed; give the image's own address")
    if response.status != 200:
        kind = Kind.TRANSIENT if kind_of(response.status, "", "") is Kind.TRANSIENT else Kind.PERMANENT
        raise _failed(kind, f"{host!r} answered HTTP {response.status} for the image")
    media_type = response.content_type.lower()
    if media_type not in MEDIA_TYPES:
        raise _failed(Kind.PERMANENT, f"what {host!r} sent is no image that models know: {', '.join(MEDIA_TYPES)}")
    data = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        data += chunk
        room.left -= len(chunk)
        if room.left < 0:
            raise _failed(Kind.PERMANENT, f"the question's images are more than {LARGEST_SUM >> 20} MiB in all")
        if len(data) > LARGEST_IMAGE:
            raise _failed(Kind.PERMANENT, f"the image of {host!r} is larger than {LARGEST_IMAGE >> 20} MiB")
    return Image(media_type, bytes(data))


def _failed(kind: Kind, message: str) -> AttemptFailed:
    return AttemptFailed(Failure(kind, message, elsewhere=True))
