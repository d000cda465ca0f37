"""Which JSON Schemas OpenAI's `strict` mode takes (platform.openai.com/docs/guides/structured-outputs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_TAKEN = frozenset(
    {
        *("allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
        *("patternProperties", "propertyNames", "unevaluatedProperties", "unevaluatedItems", "prefixItems"),
        *("contains", "minContains", "maxContains", "uniqueItems", "minProperties", "maxProperties"),
        *("minLength", "maxLength", "contentEncoding", "contentMediaType", "default"),
    }
)
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_DEEPEST = 10  # levels of nesting
_MOST_PROPERTIES = 5000


def allows_strict(schema: Mapping[str, Any]) -> bool:
    """Then an answer is certain to match. Others are sent without `strict`: the model tries, and may miss."""
    if schema.get("type") != "object" or "anyOf" in schema:
        return False
    count = _properties(schema, 0)
    return count is not None and count <= _MOST_PROPERTIES


def _properties(schema: Any, depth: int) -> int | None:
    """How many there are in all; None where there is something that `strict` does not take."""
    if not isinstance(schema, dict) or depth > _DEEPEST or not _NOT_TAKEN.isdisjoint(schema):
        return None
    if not ("type" in schema or "$ref" in schema or "anyOf" in schema):  # also beside enum and const
        return None
    if schema.get("format", "date") not in _FORMATS:
        return None
    properties = schema.get("properties", {})
    if schema.get("type") == "object" or "properties" in schema:
        closed = schema.get("additionalProperties") is False
        if not (closed and isinstance(properties, dict) and set(schema.get("required", ())) == set(properties)):
            return None
    definitions = schema.get("$defs", {})
    within = [*properties.values(), *definitions.values(), *schema.get("anyOf", ())]
    if schema.get("type") == "array":
        within.append(schema.get("items"))
    count = len(properties)
    for each in within:
        inner = _properties(each, depth + 1)
        if inner is None:
            return None
        count += inner
    return count
