"""Scorers of outputs that are JSON."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jsonpath import JSONPath, JSONPathEnvironment, JSONPathError
from jsonpath.token import TOKEN_COMMA, TOKEN_DDOT, TOKEN_ROOT

from promptlooper.digest import canonical
from promptlooper.json_schema import MAX_SCHEMA_BYTES, SchemaRefused, mismatch, validator_of
from promptlooper.jsonvalue import JsonObject, json_text
from promptlooper.scorer.scorertype import NotJson, ScorerType, ScoringFailed, Subject, shown, yes_no
from promptlooper.scoring import ScoreValue

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
    schema = _schema_text(value)
    try:
        validator_of(schema)
    except SchemaRefused as error:
        raise ScoringFailed(str(error)) from error
    try:
        document = subject.json()
    except NotJson as error:
        return _not_json(subject, error)
    found = mismatch(schema, document)
    return (
        yes_no(True, "The output fits the schema.")
        if found is None
        else yes_no(False, f"The output does not fit the schema{found}.")
    )


def _schema_text(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _schema_problems(value: Any, settings: JsonObject) -> list[str]:
    if value is None:
        return []
    try:
        validator_of(_schema_text(value))
    except SchemaRefused as failure:
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
