"""JSON values: the one place where free values become text and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import orjson

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
JsonObject: TypeAlias = Mapping[str, Json]


def json_text(value: Any) -> str:
    """Compact JSON; keys keep their order. Integers beyond 64 bits raise TypeError."""
    return orjson.dumps(value).decode()


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError where it is not JSON."""
    return orjson.loads(text)
