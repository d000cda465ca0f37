"""What the parts of a stack say: read from their pipes, brought into one style, and written with their names."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

import click

from promptlooper.cli.stack import Part

Emit = Callable[[str, str], None]
"""Called with who speaks (a part's name, or `up`) and one line."""

SUPERVISOR = "up"

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow")
_LINE_BYTES = 64 * 1024

_NATS = re.compile(r"\[\d+\] (\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d+) \[(\w{3})\] (.*)")
_NATS_LEVELS = {"TRC": "DEBUG", "DBG": "DEBUG", "INF": "INFO", "WRN": "WARNING", "ERR": "ERROR", "FTL": "CRITICAL"}
_REDIS = re.compile(r"\d+:\w (\d\d \w{3} \d{4} \d\d:\d\d:\d\d\.\d+) ([.\-*#]) (.*)")
_REDIS_LEVELS = {".": "DEBUG", "-": "DEBUG", "*": "INFO", "#": "WARNING"}
_SIGNAL_HEARD = re.compile(r"\d+:signal-handler ")  # of Redis
_QUIET = ("DEBUG", "INFO")


@dataclass(frozen=True, slots=True)
class ServerLine:
    """`chatter`: worth reading only for who looks for a fault. Both greet with a page of it."""

    text: str
    chatter: bool


def nats_line(line: str) -> ServerLine:
    return _translated(line, "nats", _NATS, "%Y/%m/%d %H:%M:%S.%f", _NATS_LEVELS)


def redis_line(line: str) -> ServerLine:
    return _translated(line, "redis", _REDIS, "%d %b %Y %H:%M:%S.%f", _REDIS_LEVELS)


def _translated(line: str, name: str, pattern: re.Pattern[str], form: str, levels: dict[str, str]) -> ServerLine:
    """Lines of another form, as of a crash, stay as they are. Both servers log local time."""
    if _SIGNAL_HEARD.match(line):
        return ServerLine(line, chatter=True)
    found = pattern.fullmatch(line)
    if found is None or found[2] not in levels:
        return ServerLine(line, chatter=False)
    try:
        moment = datetime.strptime(found[1], form).astimezone(UTC)
    except ValueError:
        return ServerLine(line, chatter=False)
    level = levels[found[2]]
    stamp = moment.strftime("%Y-%m-%dT%H:%M:%S") + f".{moment.microsecond // 1000:03d}Z"
    return ServerLine(f"{stamp} {level} {name} {found[3]}", chatter=level in _QUIET)


LINES: dict[str, Callable[[str], ServerLine]] = {"nats": nats_line, "redis": redis_line}
"""By kind of part."""


def printer(parts: Sequence[Part], stream: TextIO, *, colour: bool) -> Emit:
    """Writes `runner-0 | what it said`. When the reader has gone, that is taken for a closed terminal."""
    width = max(len(name) for name in (SUPERVISOR, *(part.name for part in parts)))
    colours = {part.name: _COLOURS[i % len(_COLOURS)] for i, part in enumerate(parts)}
    readable = True

    def emit(name: str, line: str) -> None:
        nonlocal readable
        if not readable:
            return
        head = f"{name.ljust(width)} |"
        if colour:
            head = click.style(head, fg=colours.get(name), bold=name not in colours)
        try:
            stream.write(f"{head} {line}\n")
            stream.flush()
        except BrokenPipeError:
            readable = False
            os.kill(os.getpid(), signal.SIGHUP)

    return emit


async def lines_of(descriptor: int) -> AsyncIterator[str]:
    """What is written into a pipe, line by line, until nobody holds it open. Closes it.

    What is not UTF-8 is replaced, and a line that does not end is cut.
    """
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb", 0)
    )
    rest = b""
    try:
        while chunk := await stream.read(_LINE_BYTES):
            *whole, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LINE_BYTES:
                whole, rest = [*whole, rest], b""
            for line in whole:
                yield line.decode(errors="replace").rstrip("\r")
        if rest:
            yield rest.decode(errors="replace")
    finally:
        transport.close()
