"""Streams of JSON objects: the data of server-sent events, or one a line. No I/O."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind

MOST_EVENTS = 200_000  # of an answer; one has about as many as tokens
LONGEST_LINE = 1024 * 1024
_STATUS = 200


async def events_of(parts: AsyncIterator[bytes], prefix: bytes = b"data:") -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream, to its end; `prefix` is before each. Raises AttemptFailed for what is none, and
    where there is no end of them."""
    rest, count = b"", 0
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise AttemptFailed(
                Failure(Kind.PERMANENT, f"a line of the stream is longer than {LONGEST_LINE >> 20} MiB")
            )
        for line in lines:
            if (event := _event(line, prefix)) is not None:
                count += 1
                yield event
        if count > MOST_EVENTS:
            raise AttemptFailed(Failure(Kind.PERMANENT, f"the stream has more than {MOST_EVENTS:,} events"))
    if (event := _event(rest, prefix)) is not None:
        yield event


def _event(line: bytes, prefix: bytes) -> dict[str, Any] | None:
    """None for comments, blank lines, other fields and the end's mark."""
    if not line.startswith(prefix):
        return None
    data = line[len(prefix) :].strip()
    if not data or data == b"[DONE]":
        return None
    try:
        event = orjson.loads(data)
    except ValueError:
        raise AttemptFailed(Failure(Kind.MALFORMED, "a part of the stream is not JSON", _STATUS)) from None
    if not isinstance(event, dict):
        raise AttemptFailed(Failure(Kind.MALFORMED, "a part of the stream is not a JSON object", _STATUS))
    return event
