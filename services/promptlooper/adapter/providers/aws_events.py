"""AWS event streams: binary messages with checksums, whose payloads are JSON objects. No I/O.

The format is at https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from struct import error as struct_error
from struct import unpack_from
from typing import Any
from zlib import crc32

import orjson

from promptlooper.adapter.providers.sse import LONGEST_LINE, MOST_EVENTS
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind

_PRELUDE = 12  # bytes: lengths of the message and of its headers, and their checksum
_SHORTEST = _PRELUDE + 4  # with the checksum at its end
_STRING = 7
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}  # of header values by their type; 6 and 7 say their own


async def events_of(parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The payloads, each with its kind as `:event`: the event's type, or `exception` with the exception's. Raises
    AttemptFailed for what is no such stream, and where there is no end of it. A message that is cut off is not told."""
    rest, count = b"", 0
    async for part in parts:
        rest += part
        while len(rest) >= _PRELUDE:
            length = _length(rest)
            if len(rest) < length:
                break
            count += 1
            if count > MOST_EVENTS:
                raise AttemptFailed(Failure(Kind.PERMANENT, f"the stream has more than {MOST_EVENTS:,} events"))
            yield _event(rest[:length])
            rest = rest[length:]


def _length(data: bytes) -> int:
    length, _, checksum = unpack_from(">III", data)
    if crc32(data[: _PRELUDE - 4]) != checksum:
        raise _broken("a message of the stream has a wrong checksum")
    if length < _SHORTEST:
        raise _broken("a message of the stream is shorter than its own frame")
    if length > LONGEST_LINE:
        raise AttemptFailed(Failure(Kind.PERMANENT, f"a message is longer than {LONGEST_LINE >> 20} MiB"))
    return int(length)


def _event(message: bytes) -> dict[str, Any]:
    (checksum,) = unpack_from(">I", message, len(message) - 4)
    if crc32(message[:-4]) != checksum:
        raise _broken("a message of the stream has a wrong checksum")
    (size,) = unpack_from(">I", message, 4)
    try:
        headers = dict(_headers(message[_PRELUDE : _PRELUDE + size]))
    except (IndexError, struct_error):
        raise _broken("a message of the stream has broken headers") from None
    try:
        payload = orjson.loads(message[_PRELUDE + size : -4])
    except ValueError:
        raise _broken("a part of the stream is not JSON") from None
    if not isinstance(payload, dict):
        raise _broken("a part of the stream is not a JSON object")
    if headers.get(":message-type") == "event":
        return {**payload, ":event": headers.get(":event-type")}
    code = headers.get(":exception-type") or headers.get(":error-code")
    return {"message": headers.get(":error-message"), **payload, ":event": "exception", "code": code}


def _headers(data: bytes) -> Iterator[tuple[str, str]]:
    """Those that are text; the others say nothing that is read here."""
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        name, kind = data[at + 1 : name_end].decode("utf-8", "replace"), data[name_end]
        at = name_end + 1
        if kind in _SIZES:
            at += _SIZES[kind]
            continue
        (size,) = unpack_from(">H", data, at)
        at += 2 + size
        if kind == _STRING:
            yield name, data[at - size : at].decode("utf-8", "replace")


def _broken(message: str) -> AttemptFailed:
    return AttemptFailed(Failure(Kind.MALFORMED, message, 200))
