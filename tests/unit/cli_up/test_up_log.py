"""What the parts of a stack say, in one style."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import Iterator

import pytest

from promptlooper.cli import stack_log
from promptlooper.cli.stack import planned_parts
from promptlooper.cli.stack_log import lines_of, nats_line, printer, redis_line


@pytest.fixture(autouse=True)
def _two_hours_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "EET-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_line_of_nats_gets_our_form_and_utc() -> None:
    line = nats_line("[9961] 2026/11/23 15:37:30.105298 [WRN] Slow consumer")
    assert line.text == "2026-11-23T13:37:30.105Z WARNING nats Slow consumer"
    assert not line.chatter


def test_a_line_of_redis_gets_our_form_and_utc() -> None:
    line = redis_line("9966:M 23 Nov 2026 15:37:30.140 * Ready to accept connections tcp")
    assert line.text == "2026-11-23T13:37:30.140Z INFO redis Ready to accept connections tcp"
    assert line.chatter


def test_a_line_of_another_form_is_shown_as_it_is() -> None:
    for text in ("panic: runtime error", "", "[1] 2026/99/99 15:37:30.1 [INF] x", "[1] 2026/11/23 15:37:30.1 [???] x"):
        assert nats_line(text).text == text
        assert not nats_line(text).chatter


async def test_lines_come_whole_and_the_last_one_without_its_end() -> None:
    assert await read(b"one\r\ntwo", b"\nthr", b"ee") == ["one", "two", "three"]


async def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert await read(b"caf\xff\n") == ["caf\ufffd"]


async def test_a_line_that_does_not_end_is_cut() -> None:
    lines = await read(b"x" * 200_000)
    assert len(lines) > 1
    assert "".join(lines) == "x" * 200_000


async def read(*chunks: bytes) -> list[str]:
    reading, writing = os.pipe()
    found = []

    def write() -> None:  # in a thread, because a pipe holds less than a long line
        for chunk in chunks:
            os.write(writing, chunk)
        os.close(writing)

    written = asyncio.create_task(asyncio.to_thread(write))
    async for line in lines_of(reading):
        found.append(line)
    await written
    return found


def test_every_line_carries_the_name_of_who_said_it() -> None:
    out = io.StringIO()
    emit = printer(planned_parts({}, 7051), out, colour=False)
    emit("runner-0", "serving")
    emit("up", "everything is healthy")
    assert out.getvalue() == "runner-0  | serving\nup        | everything is healthy\n"


def test_a_reader_that_has_gone_stops_the_stack_as_a_closed_terminal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(stack_log.os, "kill", lambda pid, number: sent.append((pid, number)))
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    emit = printer(planned_parts({}, 7051), stream, colour=False)
    emit("nats", "one")
    emit("nats", "two")
    assert sent == [(os.getpid(), signal.SIGHUP)]
    with pytest.raises(BrokenPipeError):
        stream.close()
