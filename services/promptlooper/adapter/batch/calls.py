"""The HTTP of batches: small calls, whole files up, and results line by line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import orjson

from promptlooper.adapter.batch.format import Answer
from promptlooper.adapter.providers.bodies import answer_in, as_malformed, malformed
from promptlooper.adapter.providers.headers import Headers, Sent
from promptlooper.adapter.providers.http import Dialect
from promptlooper.adapter.providers.transport import LARGEST_BODY, Transport, failures_of
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.clock import Clock
from promptlooper.completion import Completion

LARGEST_RESULTS = 4 * 1024**3
_LONGEST_LINE = LARGEST_BODY  # an answer in a batch is no longer than one outside


class Calls:
    """To one address with one key. `dialect` is the format of the questions and answers in a batch."""

    def __init__(
        self, endpoint: str, transport: Transport, headers: Headers, dialect: Dialect, *, clock: Clock
    ) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._headers = headers
        self._clock = clock
        self.dialect = dialect

    async def json(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The object that it answers. Raises AttemptFailed."""
        sent = self._headers.current()
        with failures_of(self._endpoint, self._headers):
            status, said, answer = await self._transport.request(method, path, _with(sent.headers, headers), body)
        if status != 200:
            raise self._failed(status, said, answer, sent)
        return answer_in(answer)

    async def lines(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The objects of a file of JSON lines, as they come. Raises AttemptFailed."""
        sent = self._headers.current()
        rest = b""
        with failures_of(self._endpoint, self._headers, LARGEST_RESULTS):
            async with self._transport.opened("GET", path, sent.headers, largest=LARGEST_RESULTS) as opened:
                status, said, parts = opened
                if status != 200:
                    raise self._failed(status, said, b"".join([part async for part in parts]), sent)
                async for part in parts:
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield answer_in(line)
                    if len(rest) > _LONGEST_LINE:
                        message = f"a line of the results is larger than {_LONGEST_LINE >> 20} MiB"
                        raise AttemptFailed(Failure(Kind.PERMANENT, message))
        if rest.strip():
            yield answer_in(rest)

    def answer(self, status: int, body: object, model: str) -> Answer:
        """What an item was answered, as HTTP would have answered it alone."""
        data = orjson.dumps(body)
        if status == 200:
            try:
                with as_malformed():
                    return self.dialect.completion(data, model, 0)
            except AttemptFailed as error:
                if (hidden := self.dialect.error_in(data)) is None:
                    return error.failure
                status = hidden
        failure = self.dialect.failure(status, {}, data, now=self._clock.now(), redacted=self._headers.redacted)
        if failure.kind is Kind.CONTENT_FILTERED:
            return Completion(output="", model=model, finish_reason="content_filter")
        return failure

    def redacted(self, text: str) -> str:
        return self._headers.redacted(text)

    def _failed(self, status: int, said: httpx.Headers, body: bytes, sent: Sent) -> AttemptFailed:
        failure = self.dialect.failure(status, said, body, now=self._clock.now(), redacted=self._headers.redacted)
        if failure.status == 401:
            self._headers.refused(sent)
        return AttemptFailed(failure)


def _with(headers: httpx.Headers, more: Mapping[str, str] | None) -> httpx.Headers:
    if more is None:
        return headers
    merged = headers.copy()
    merged.update(more)
    return merged


def multipart(kind: str, parts: list[tuple[Mapping[str, str], bytes]]) -> tuple[str, bytes]:
    """Content type and body of several parts, each with its headers."""
    boundary = uuid4().hex
    pieces: list[bytes] = []
    for headers, data in parts:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        pieces += [f"--{boundary}\r\n{head}\r\n".encode(), data, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return f"multipart/{kind}; boundary={boundary}", b"".join(pieces)


def moment(seconds: object) -> datetime | None:
    """A Unix time."""
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) else None


def instant(said: object) -> datetime | None:
    """A time in the words of RFC 3339."""
    try:
        return datetime.fromisoformat(said) if isinstance(said, str) else None
    except ValueError:
        return None


def text_in(data: Mapping[str, Any], name: str) -> str:
    """A text that must be there. Raises AttemptFailed."""
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise malformed(f"there is no {name!r}")
    return value


def number_in(data: object, name: str) -> int:
    """A count, 0 where it is not said. Some are written as texts."""
    value = data.get(name) if isinstance(data, Mapping) else None
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and value > 0 else 0
