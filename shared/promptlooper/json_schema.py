"""JSON Schemas: compiled once, offline, without backtracking."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs

from promptlooper.jsonvalue import json_text, json_value

MAX_SCHEMA_BYTES = 64 * 1024
_MAX_REGEX = 1 << 20  # bytes of one compiled pattern


class SchemaRefused(Exception):
    """What is no JSON Schema that can be used; the message is a sentence."""


def validator_of(schema: Mapping[str, Any] | bool | str) -> jsonschema_rs.Validator:
    """Of a schema or its JSON text. Raises SchemaRefused."""
    return _compiled(schema if isinstance(schema, str) else json_text(schema))


def mismatch(schema: Mapping[str, Any] | bool | str, value: Any) -> str | None:
    """` at /place: what is wrong there` of a value that does not match, else None. Raises SchemaRefused."""
    validator = validator_of(schema)
    if validator.is_valid(value):
        return None
    first = next(validator.iter_errors(value))
    where = "".join(f"/{part}" for part in first.instance_path)
    return f"{' at ' + where if where else ''}: {_cut(first.message)}"


@lru_cache(maxsize=128)
def _compiled(text: str) -> jsonschema_rs.Validator:
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        raise SchemaRefused(f"the schema has {size} bytes; at most {MAX_SCHEMA_BYTES} are allowed")
    try:
        schema = json_value(text)
    except ValueError as error:
        raise SchemaRefused(f"the schema is not JSON: {error}") from error
    try:
        # Offline: no $ref is ever fetched. RegexOptions: patterns without backtracking.
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions(_MAX_REGEX))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise SchemaRefused(_fault(error)) from error


def _fault(error: Exception) -> str:
    message = str(getattr(error, "message", error))
    if "retrieving it failed" in message:
        target = message.split("'")[1]
        return f"the schema refers to {target!r}, and nothing is fetched: put it under $defs and refer to '#/$defs/…'"
    if "meta-schema" in message:
        return f"the schema names a $schema that is not known: {_cut(message)}"
    where = "".join(f"/{part}" for part in getattr(error, "instance_path", ()))
    return f"the schema is not a valid JSON Schema{' at ' + where if where else ''}: {_cut(message)}"


def _cut(message: str) -> str:
    return message if len(message) <= 300 else message[:300] + "…"
