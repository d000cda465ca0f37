"""What a wire format is to a fake: how it is asked, what it refuses, and how it says an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from promptlooper.completion import ToolCall


@dataclass(frozen=True, slots=True)
class Said:
    """An answer in no wire's words. Counts are as in a `Completion`: the parts are within tokens_in and tokens_out."""

    text: str = "ok"
    reasoning: str = ""
    signature: str = ""  # of the reasoning, where the wire signs it
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"  # one of FINISH_REASONS
    tokens_in: int = 12
    tokens_out: int = 5
    tokens_reasoning: int = 0
    tokens_cached_in: int = 0
    tokens_cache_write_in: int = 0
    logprob: float | None = None  # of the whole text as one token


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    path: str  # with its query
    headers: Mapping[str, str]  # names in lower case
    body: Mapping[str, Any]
    raw: bytes = b""  # the body as it came


class Refused(Exception):
    """Raised for what the real server answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Wire(Protocol):
    """One wire format, strict in what it takes."""

    type: str
    """Of the providers file."""
    base: str
    """The path at the end of a base URL."""
    paths: tuple[str, ...]
    """What is posted to, after `base`; parts in braces stand for anything."""

    def check(self, asked: Asked) -> None:
        """Raises Refused."""
        ...

    def streams(self, asked: Asked) -> bool: ...

    def whole(self, asked: Asked, said: Said) -> bytes: ...

    def stream(self, asked: Asked, said: Said) -> tuple[str, list[bytes]]:
        """Its content type, and its parts in order. The text is in the words of `pieces`."""
        ...

    def error(self, status: int, message: str) -> bytes: ...


class Strict(BaseModel):
    """A part of a request: what it does not name is refused, and so is what only looks like its type."""

    model_config = ConfigDict(extra="forbid", strict=True)


M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], body: Mapping[str, Any]) -> M:
    """Raises Refused, status 400, with the first thing that is wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refused(400, f"{where}: {first['msg']}") from None


def needed(asked: Asked, header: str, status: int = 401) -> str:
    """A header that must be there."""
    value = asked.headers.get(header)
    if not value:
        raise Refused(status, f"{header}: this header is missing")
    return value


def sse(data: object, event: str = "") -> bytes:
    """A server-sent event."""
    named = f"event: {event}\n".encode() if event else b""
    return named + b"data: " + (data if isinstance(data, bytes) else orjson.dumps(data)) + b"\n\n"


def pieces(text: str) -> list[str]:
    """A text as it is streamed: word by word."""
    words = text.split(" ")
    return [word + " " for word in words[:-1]] + ([words[-1]] if words[-1] else [])
