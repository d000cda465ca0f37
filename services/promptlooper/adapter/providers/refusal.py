"""What a provider cannot do is refused before it is asked: nothing of a question is dropped silently."""

from __future__ import annotations

from typing import Any

import orjson

from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.completion import ToolCall, arguments_of


def refusal(message: str) -> AttemptFailed:
    return AttemptFailed(Failure(Kind.PERMANENT, message))


def no_parameter(name: str, hint: str = "remove it from 'params'") -> AttemptFailed:
    return refusal(f"the parameter {name!r} has no equivalent at this provider; {hint}")


def own_parameter(name: str) -> AttemptFailed:
    return refusal(f"the parameter {name!r} is set by the Adapter itself; remove it from 'params'")


def json_bytes(body: dict[str, Any]) -> bytes:
    """Raises AttemptFailed where a parameter is no JSON."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise refusal(f"the request is not JSON: {error}") from error


def put(body: dict[str, Any], path: str, value: Any) -> None:
    """Sets a field, or a field of an object where `path` has a dot. Other fields of that object stay."""
    name, dot, rest = path.partition(".")
    if not dot:
        body[name] = value
        return
    inner = body.get(name)
    body[name] = inner = dict(inner) if isinstance(inner, dict) else {}
    put(inner, rest, value)


def arguments_object(call: ToolCall) -> dict[str, Any]:
    """What a tool was called with, for a provider that takes only objects."""
    arguments = arguments_of(call)
    if arguments is None:
        raise refusal(f"the arguments of the call to tool {call.name!r} are not a JSON object, as this provider needs")
    return arguments
