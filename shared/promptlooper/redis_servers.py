"""Which server is asked about a key: the one there is, or in a Redis Cluster the one that holds the key's slot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as NoConnection
from redis.maint_notifications import MaintNotificationsConfig

from promptlooper.errors import InvalidArgument
from promptlooper.redis_security import with_security
from promptlooper.settings import masked

CONNECTIONS = 32  # to each server


class Servers(Protocol):
    """Methods raise what redis-py raises."""

    async def holding(self, name: str) -> Redis: ...

    async def all_of_them(self) -> Sequence[Redis]:
        """Those that hold keys of their own."""
        ...

    def forget(self) -> None:
        """Looks again who holds what, as it may be another now."""
        ...

    async def aclose(self) -> None: ...


class OneServer(Servers):
    def __init__(self, server: Redis) -> None:
        self._server = server

    async def holding(self, name: str) -> Redis:
        return self._server

    async def all_of_them(self) -> Sequence[Redis]:
        return [self._server]

    def forget(self) -> None:
        return

    async def aclose(self) -> None:
        await self._server.aclose()


class ClusterServers(Servers):
    """Learns from any server that it knows who holds what. redis-py's own client of clusters loses calls that come
    while it does so, and waits between tries. Slots on their way from one server to another are refused: misses."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        first = opener.address
        self._known: dict[tuple[str, int], Redis] = {first: opener.opened(*first)}
        self._asked_next = [first]  # who is asked who holds what, in this order
        self._slots: dict[range, Redis] = {}
        self._learning = asyncio.Lock()

    async def holding(self, name: str) -> Redis:
        slot = key_slot(name.encode())
        for slots, server in (await self._learnt()).items():
            if slot in slots:
                return server
        self.forget()
        raise NoConnection(f"no server of the cluster holds slot {slot}")

    async def all_of_them(self) -> Sequence[Redis]:
        return list(dict.fromkeys((await self._learnt()).values()))

    def forget(self) -> None:
        self._slots = {}

    async def aclose(self) -> None:
        for server in self._known.values():
            await server.aclose()

    async def _learnt(self) -> dict[range, Redis]:
        if not self._slots:
            async with self._learning:
                if not self._slots:
                    await self._learn()
        return self._slots

    async def _learn(self) -> None:
        asked = self._asked_next[0]
        self._asked_next.append(self._asked_next.pop(0))  # should this one be silent, the next time another is asked
        server: Any = self._known[asked]
        said = await server.execute_command("CLUSTER SLOTS")
        slots: dict[range, Redis] = {}
        for first, last, (host, port, *_), *_ in said:
            address = ((host or b"").decode() or asked[0], int(port))
            if address not in self._known:
                self._known[address] = self._opener.opened(*address)
                self._asked_next.append(address)
            slots[range(first, last + 1)] = self._known[address]
        self._slots = slots


class Opener:
    """Clients of servers that are reached as the URL says, each with connections of its own, none made yet. Raises
    InvalidArgument where the URL or a file can't be taken."""

    def __init__(self, url: str, timeout: float, password_file: Path | None, ca_file: Path | None) -> None:
        self._said = masked(url)
        self._url, security = with_security(url, password_file, ca_file)
        self._timeout = timeout
        # redis-py retries ten times by default; with a frozen Redis one GET then takes half a minute. And while it
        # listens for notices of maintenance, it does not look whether a connection has been closed.
        self._options: dict[str, Any] = {
            "max_connections": CONNECTIONS,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            **security,
        }

    @property
    def address(self) -> tuple[str, int]:
        """That of the URL."""
        parts = urlsplit(self._url)
        if parts.path.strip("/") not in ("", "0"):
            raise InvalidArgument(f"the Redis URL {self._said!r} is wrong: a cluster has database 0 only")
        return parts.hostname or "localhost", parts.port or 6379

    def opened(self, host: str = "", port: int = 0) -> Redis:
        """The server of the URL, or another that is reached in the same way."""
        url = self._url
        if host:
            parts = urlsplit(url)
            user, at, _ = parts.netloc.rpartition("@")
            place = f"[{host}]" if ":" in host else host
            url = urlunsplit(parts._replace(netloc=f"{user}{at}{place}:{port}"))
        try:
            return Redis.from_pool(BlockingConnectionPool.from_url(url, timeout=self._timeout, **self._options))
        except ValueError as error:
            raise InvalidArgument(f"the Redis URL {self._said!r} is wrong: {error}") from None
