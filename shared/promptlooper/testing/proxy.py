"""A TCP proxy that makes a network go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

_HOST = "127.0.0.1"


@dataclass(slots=True)
class Cut:
    """Ends a connection when the target says `before`, before the client hears it; with `after`, only once the client
    has said that on this connection. Only each `every`-th time, and at most `times` times; `made` counts."""

    before: bytes
    after: bytes = b""
    times: int = 1
    every: int = 1
    made: int = 0
    met: int = 0

    def is_due(self) -> bool:
        if self.made >= self.times:
            return False
        self.met += 1
        due = self.met % self.every == 0
        self.made += due
        return due


class FaultProxy:
    """Passes bytes between its port and a target on this machine, until told otherwise.

    `delay` is seconds that each piece waits, in both directions. `cut_at` ends connections by what is said on them.
    `garble` says what the client hears in place of what the target says.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self.delay = 0.0
        self.cut_at: Cut | None = None
        self.garble: Callable[[bytes], bytes] | None = None
        self.accepted = 0
        self._dropping = False
        self._robbed: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"{_HOST}:{self.port}"

    async def accept(self) -> None:
        """Takes connections, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, _HOST, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Takes no connections, and cuts those there are: as a process that has died."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        """Ends all connections; new ones are taken."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def hold(self) -> None:
        """Passes nothing on but keeps connections: as a process that is frozen."""
        self._flowing.clear()

    def drop(self) -> None:
        """Loses what is sent, in both directions, and keeps connections: as a network that is gone."""
        self._dropping = True

    def resume(self) -> None:
        """Passes on again, first what was held. Connections that lost something are cut."""
        self._dropping = False
        self._flowing.set()
        for connection in self._robbed:
            connection.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.accepted += 1
        writers = [writer]
        try:
            # Either side may go at any time, and `cut` cancels: both are what a proxy is for.
            with suppress(OSError, asyncio.CancelledError):
                target_reader, target_writer = await asyncio.open_connection(_HOST, self._target_port)
                writers.append(target_writer)
                said, heard = _Tail(), _Tail()
                await asyncio.gather(
                    self._pass(task, reader, target_writer, lambda piece: self._said(said, piece)),
                    self._pass(task, target_reader, writer, lambda piece: self._is_cut(said, heard, piece), self._told),
                )
        finally:
            for each in writers:
                each.transport.abort()
            self._connections.discard(task)
            self._robbed.discard(task)

    def _said(self, said: _Tail, piece: bytes) -> bool:
        if self.cut_at is not None and self.cut_at.after:
            said.look_for(self.cut_at.after, piece)
        return False

    def _told(self, piece: bytes) -> bytes:
        return piece if self.garble is None else self.garble(piece)

    def _is_cut(self, said: _Tail, heard: _Tail, piece: bytes) -> bool:
        """Whether the connection ends here, in place of passing the piece on."""
        cut = self.cut_at
        if cut is None or not heard.look_for(cut.before, piece):
            return False
        heard.found = False
        due = (said.found or not cut.after) and cut.is_due()
        said.found = False
        return due

    async def _pass(
        self,
        connection: asyncio.Task[None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_cut: Callable[[bytes], bool],
        told: Callable[[bytes], bytes] = bytes,
    ) -> None:
        while piece := await reader.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flowing.wait()
            if self._dropping:
                self._robbed.add(connection)
                continue
            if is_cut(piece):
                raise ConnectionResetError
            writer.write(told(piece))
            await writer.drain()
        if connection not in self._robbed and writer.can_write_eof():
            writer.write_eof()


@dataclass(slots=True)
class _Tail:
    """The end of what went one way, since a pattern may come in two pieces."""

    last: bytes = b""
    found: bool = False

    def look_for(self, pattern: bytes, piece: bytes) -> bool:
        joined = self.last + piece
        self.found = self.found or pattern in joined
        self.last = joined[max(0, len(joined) - len(pattern) + 1) :]
        return self.found


@asynccontextmanager
async def fault_proxy(target_port: int) -> AsyncIterator[FaultProxy]:
    """A proxy to a port of 127.0.0.1, taking connections."""
    proxy = FaultProxy(target_port)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.refuse()
