"""JSON values: the one place where free values become text and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import orjson

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
JsonObject: TypeAlias = Mapping[str, Json]

_DEEPEST = 200  # levels of an output's value: written out inside of other values, 254 are the end


def json_text(value: Any) -> str:
    """Compact JSON; keys keep their order. Integers beyond 64 bits raise TypeError."""
    return orjson.dumps(value).decode()


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError where it is not JSON."""
    return orjson.loads(text)


def parsed_output(output: str) -> Json:
    """The value of a model's output that is a JSON object or array as a whole, else None."""
    if not output or output.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value: Json = orjson.loads(output)
    except ValueError:
        return None
    if output.count("[") + output.count("{") > _DEEPEST and _is_deeper(value):
        return None
    return value


def _is_deeper(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        level = [item for item in level if isinstance(item, dict | list)]
    return bool(level)
