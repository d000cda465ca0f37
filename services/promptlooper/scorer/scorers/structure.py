"""Scorers of outputs that are JSON."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema_rs
from jsonpath import JSONPath, JSONPathEnvironment, JSONPathError
from jsonpath.token import TOKEN_COMMA, TOKEN_DDOT, TOKEN_ROOT

from promptlooper.digest import canonical
from promptlooper.jsonvalue import JsonObject, json_text, json_value
from promptlooper.scorer.scorertype import NotJson, ScorerType, ScoringFailed, Subject, shown, yes_no
from promptlooper.scoring import ScoreValue

MAX_SCHEMA_BYTES = 64 * 1024
MAX_PATH = 1024
_MAX_SELECTED = 10_000


def _not_json(subject: Subject, error: NotJson) -> ScoreValue:
    fenced = " (it is inside a Markdown code fence)" if subject.text.lstrip().startswith("```") else ""
    return yes_no(False, f"The output is not JSON{fenced}: {error}.")


def _json_valid(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    try:
        subject.json()
    except NotJson as error:
        return _not_json(subject, error)
    return yes_no(True, "The output is JSON.")


def _json_schema(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    validator = _validator(_schema_text(value))
    try:
        document = subject.json()
    except NotJson as error:
        return _not_json(subject, error)
    if validator.is_valid(document):
        return yes_no(True, "The output fits the schema.")
    first = next(validator.iter_errors(document))
    where = "".join(f"/{part}" for part in first.instance_path)
    return yes_no(False, f"The output does not fit the schema{' at ' + where if where else ''}: {_cut(first.message)}.")


def _cut(message: str) -> str:
    return message if len(message) <= 300 else message[:300] + "…"


def _schema_text(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


@lru_cache(maxsize=128)
def _validator(text: str) -> jsonschema_rs.Validator:
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        raise ScoringFailed(f"the schema has {size} bytes; at most {MAX_SCHEMA_BYTES} are allowed")
    try:
        schema = json_value(text)
    except ValueError as error:
        raise ScoringFailed(f"the schema is not JSON: {error}") from error
    try:
        # Offline: no $ref is ever fetched. RegexOptions: patterns without backtracking.
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions(_MAX_REGEX))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise ScoringFailed(_schema_fault(error)) from error


_MAX_REGEX = 1 << 20  # bytes of one compiled pattern


def _schema_fault(error: Exception) -> str:
    message = str(getattr(error, "message", error))
    if "retrieving it failed" in message:
        target = message.split("'")[1]
        return f"the schema refers to {target!r}, and nothing is fetched: put it under $defs and refer to '#/$defs/…'"
    if "meta-schema" in message:
        return f"the schema names a $schema that is not known: {_cut(message)}"
    where = "".join(f"/{part}" for part in getattr(error, "instance_path", ()))
    return f"the schema is not a valid JSON Schema{' at ' + where if where else ''}: {_cut(message)}"


def _schema_problems(value: Any, settings: JsonObject) -> list[str]:
    if value is None:
        return []
    try:
        _validator(_schema_text(value))
    except ScoringFailed as failure:
        return [str(failure)]
    return []


def _environment() -> JSONPathEnvironment:
    environment = JSONPathEnvironment(strict=True)
    for name in ("match", "search"):  # they use backtracking regular expressions
        del environment.function_extensions[name]
    return environment


_PATHS = _environment()
_COSTLY = ((TOKEN_DDOT, 1, "more than one '..'"), (TOKEN_ROOT, 1, "a '$' in a filter"), (TOKEN_COMMA, 0, "a ','"))


@lru_cache(maxsize=256)
def _path(text: str) -> JSONPath:
    """Raises ScoringFailed. Refuses what makes the time more than (length of path) x (size of document)."""
    if len(text) > MAX_PATH:
        raise ScoringFailed(f"the path has {len(text)} characters; at most {MAX_PATH} are allowed")
    try:
        kinds = [token.kind for token in _PATHS.lexer.tokenize(text)]
        path = _PATHS.compile(text)
    except JSONPathError as error:
        raise ScoringFailed(f"the path {shown(text)} is not a JSONPath of RFC 9535: {error.args[0]}") from error
    for kind, most, what in _COSTLY:
        if kinds.count(kind) > most:
            raise ScoringFailed(f"the path {shown(text)} has {what}, which is not allowed here; use a simpler path")
    if not isinstance(path, JSONPath):
        raise ScoringFailed(f"the path {shown(text)} is several paths; use one")
    return path


def _json_path_equals(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    text = str(settings["path"])
    path = _path(text)
    try:
        document = subject.json()
    except NotJson as error:
        return _not_json(subject, error)
    if not isinstance(document, dict | list):
        selected = [document] if text == "$" else []  # the library would read a text as JSON again
    else:
        selected = []
        for match in path.finditer(document):
            selected.append(match.obj)
            if len(selected) > _MAX_SELECTED:
                raise ScoringFailed(f"the path {shown(text)} selects more than {_MAX_SELECTED} values")
    if path.singular_query():
        if not selected:
            return yes_no(False, f"The output has nothing at {shown(text)}.")
        got: Any = selected[0]
    else:
        got = selected
    same = canonical(got) == canonical(value)
    return yes_no(same, f"At {shown(text)} the output has {shown(got)}{'' if same else f', not {shown(value)}'}.")


def _path_problems(value: Any, settings: JsonObject) -> list[str]:
    try:
        _path(str(settings["path"]))
    except ScoringFailed as failure:
        return [str(failure)]
    return []


SCORERS = (
    ScorerType(
        type="json-valid",
        description="1 if the whole output is JSON, else 0.",
        score=_json_valid,
        value_schema={"type": "null", "description": "absent"},
        value_required=False,
    ),
    ScorerType(
        type="json-schema",
        description="1 if the output is JSON that fits the schema, else 0. Nothing the schema refers to is fetched.",
        score=_json_schema,
        value_schema={
            "type": ["object", "boolean", "string"],
            "description": f"a JSON Schema of at most {MAX_SCHEMA_BYTES // 1024} KB, as a mapping or as JSON text",
        },
        problems=_schema_problems,
    ),
    ScorerType(
        type="json-path-equals",
        description="1 if what the setting `path` selects in the output equals the value, else 0. A path that can "
        "select several values (with *, .., a slice or a filter) is compared as the list of them.",
        score=_json_path_equals,
        value_schema={
            "type": ["string", "number", "boolean", "array", "object"],
            "description": "a JSON value that is not null",
        },
        settings={
            "path": {
                "type": "string",
                "minLength": 1,
                "description": "A JSONPath of RFC 9535, such as $.city.name; at most one '..', no ','.",
            }
        },
        settings_required=("path",),
        problems=_path_problems,
    ),
)
