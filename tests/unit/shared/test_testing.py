from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest

from promptlooper.clock import Clock
from promptlooper.testing.clock import ManualClock
from promptlooper.testing.eventually import eventually
from promptlooper.testing.ids import SequentialIds
from promptlooper.testing.proxy import Cut, fault_proxy


async def test_eventually_gives_the_first_value_that_is_one() -> None:
    values = iter([None, 0, "found", "later"])
    assert await eventually(lambda: next(values)) == "found"


async def test_eventually_takes_coroutines_and_assertions() -> None:
    tries = 0

    async def condition() -> bool:
        nonlocal tries
        tries += 1
        assert tries > 2, "not yet"
        return True

    assert await eventually(condition)
    assert tries == 3


async def test_eventually_says_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: it is \[\]"):
        await eventually(list, within=0.01)


def test_manual_clock_stands_still_until_advanced() -> None:
    clock: Clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    assert clock.now() == clock.now()
    assert isinstance(clock, ManualClock)
    clock.advance(1.5)
    assert clock.now() == datetime(2026, 1, 1, 0, 0, 1, 500000, tzinfo=UTC)
    assert clock.monotonic() == 1.5
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_sequential_ids_are_known_beforehand() -> None:
    make = SequentialIds("exp")
    assert [make(), make()] == ["exp-1", "exp-2"]


async def test_proxy_passes_cuts_refuses_delays_and_holds() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(100):
            writer.write(piece)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, fault_proxy(server.sockets[0].getsockname()[1]) as proxy:
        port = proxy.port
        async with opened(port) as (reader, writer):
            writer.write(b"a")
            assert await reader.read(1) == b"a"

            proxy.delay = 0.01
            writer.write(b"b")
            assert await reader.read(1) == b"b"

            proxy.hold()
            writer.write(b"c")
            reading = asyncio.create_task(reader.read(1))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(reading), 0.05)
            proxy.resume()
            assert await reading == b"c"

            await proxy.cut()
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)

        async with opened(port) as (reader, writer):
            writer.write_eof()
            assert await reader.read() == b""

        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await proxy.accept()
        async with opened(port) as (reader, writer):
            writer.write(b"d")
            assert await reader.read(1) == b"d"
        assert proxy.accepted == 3


async def test_proxy_cuts_where_a_pattern_would_pass() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(b"OK\n" if line == b"save\n" else b"fine\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, fault_proxy(server.sockets[0].getsockname()[1]) as proxy:
        proxy.cut_at = Cut(before=b"OK", after=b"save", every=2)
        async with opened(proxy.port) as (reader, writer):
            writer.write(b"other\n")
            assert await reader.readline() == b"fine\n"
            writer.write(b"save\n")
            assert await reader.readline() == b"OK\n"
            writer.write(b"save\n")
            assert await ends(reader)
        assert proxy.cut_at.made == 1
        async with opened(proxy.port) as (reader, writer):
            for _ in range(2):
                writer.write(b"save\n")
                assert await reader.readline() == b"OK\n"


async def test_proxy_loses_everything_and_cuts_those_who_lost_something() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(100):
            heard.append(piece)
            writer.write(piece)
        writer.close()
        await writer.wait_closed()

    heard: list[bytes] = []
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, fault_proxy(server.sockets[0].getsockname()[1]) as proxy:
        async with opened(proxy.port) as (reader, writer), opened(proxy.port) as (quiet_reader, quiet_writer):
            for each in (writer, quiet_writer):
                each.write(b"a")
            assert (await reader.read(1), await quiet_reader.read(1)) == (b"a", b"a")
            proxy.drop()
            writer.write(b"b")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(1)
            proxy.resume()
            assert await ends(reader)
            quiet_writer.write(b"c")
            assert await quiet_reader.read(1) == b"c"
        assert b"b" not in heard


async def ends(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionResetError:
        return True


async def test_proxy_to_nobody_closes_what_it_took() -> None:
    async with fault_proxy(1) as proxy, opened(proxy.port) as (reader, _):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
