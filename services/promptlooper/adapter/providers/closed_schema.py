"""JSON Schemas as Anthropic and Bedrock take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMED = frozenset({"properties", "$defs", "definitions", "patternProperties"})
_LITERAL = frozenset({"const", "enum", "default", "examples"})


def closed(schema: Any) -> Any:
    """With objects that have no further properties, unless it says so itself: the formats ask for that to be said. What
    matches it matches the schema."""
    if isinstance(schema, list | tuple):
        return [closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    # The values of these are named by the caller: no words of JSON Schema.
    inner = {
        name: {each: closed(value) for each, value in part.items()}
        if name in _NAMED and isinstance(part, Mapping)
        else part
        if name in _LITERAL
        else closed(part)
        for name, part in schema.items()
    }
    if inner.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner
