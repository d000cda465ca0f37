"""Error responses in the shapes that most servers use: what they mean. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from http import HTTPStatus
from types import MappingProxyType

import orjson

from promptlooper.adapter.retrying import Failure, kind_of, retry_after_of


def error_in(body: bytes, statuses: Mapping[str, int] = MappingProxyType({}), otherwise: int = 502) -> int | None:
    """The status of an error that some routers send in a 200 response: a number that it has for its code, else that of
    `statuses` for a word; 502 where it has no code, None without an error."""
    try:
        error = orjson.loads(body).get("error")
    except (ValueError, AttributeError):
        return None
    if not isinstance(error, dict):
        return 502 if isinstance(error, str) else None
    code = error.get("code")
    if isinstance(code, str) and code:
        if not code.isdecimal():
            return statuses.get(code, otherwise)
        code = int(code[:4])
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def failure_of(
    status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
) -> Failure:
    """What an error response means."""
    code, message = _error(body)
    if not message:
        try:
            message = HTTPStatus(status).phrase
        except ValueError:
            message = "an error without a message"
    if 300 <= status < 400:
        message = (
            f"it redirects to {headers.get('location', 'elsewhere')!r}, which is not followed; set its base_url to that"
        )
    return Failure(kind_of(status, code, message), redacted(message), status, retry_after_of(headers, now))


def _error(body: bytes) -> tuple[str, str]:
    """Code and message, from the shapes that servers of this format use."""
    try:
        data = orjson.loads(body)
    except ValueError:
        text = body[:2000].decode("utf-8", "replace").strip()
        return "", "" if text.startswith("<") else text
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return "", ""
    message = error.get("message") or error.get("detail") or ""
    code = error.get("code")
    return (
        code if isinstance(code, str) and code else str(error.get("type") or ""),
        message if isinstance(message, str) else orjson.dumps(message).decode(),
    )
