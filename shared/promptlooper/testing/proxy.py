"""A TCP proxy that makes a network go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_HOST = "127.0.0.1"


class FaultProxy:
    """Passes bytes between its port and a target on this machine, until told otherwise.

    `delay` is seconds that each piece waits, in both directions.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self.delay = 0.0
        self.accepted = 0

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

    def resume(self) -> None:
        """Passes on again, first what was held."""
        self._flowing.set()

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
                await asyncio.gather(self._pass(reader, target_writer), self._pass(target_reader, writer))
        finally:
            for each in writers:
                each.transport.abort()
            self._connections.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flowing.wait()
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


@asynccontextmanager
async def fault_proxy(target_port: int) -> AsyncIterator[FaultProxy]:
    """A proxy to a port of 127.0.0.1, taking connections."""
    proxy = FaultProxy(target_port)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.refuse()
