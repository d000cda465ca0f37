"""The providers file: which providers there are, where, with which keys, limits and prices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from promptlooper.adapter.address import checked_base_url
from promptlooper.errors import InvalidArgument

NOT_YET = (
    "anthropic",
    "azure",
    "bedrock",
    "cohere",
    "gemini",
    "google",
    "groq",
    "mistral",
    "openrouter",
    "vertex",
    "xai",
)
"""Names that users will try; each is served by an OpenAI-compatible base_url meanwhile, or by a later version."""

_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Section):
    max_concurrency: Annotated[int, Field(ge=1)] | None = None


class ModelPrice(_Section):
    input_usd_per_mtok: _Usd
    output_usd_per_mtok: _Usd
    cached_input_usd_per_mtok: _Usd | None = None


class ScriptedError(_Section):
    status: Annotated[int, Field(ge=400, le=599)]
    message: str = "scripted error"
    code: str = ""
    retry_after: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    times: Annotated[int, Field(ge=1)] | None = None


class Rule(_Section):
    model: _Text | None = None
    match: _Text | None = None
    regex: Annotated[str, AfterValidator(_compiled)] | None = None
    text: str | None = None
    echo: bool = False
    delay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    error: ScriptedError | None = None
    finish_reason: Literal["stop", "length", "content_filter", "tool_calls", "other"] | None = None
    tokens_in: _Count | None = None
    tokens_out: _Count | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Rule:
        if self.match is not None and self.regex is not None:
            raise ValueError("has both 'match' (a part of the question) and 'regex': keep one")
        if self.text is not None and self.echo:
            raise ValueError("has both 'text' and 'echo': keep one")
        if self.text is None and not self.echo and self.error is None:
            raise ValueError("says nothing: give it 'text', 'echo: true' or 'error'")
        if self.regex is not None and self.text is not None:
            try:
                re.compile(self.regex).sub(self.text, "")
            except (re.error, IndexError) as error:
                raise ValueError(f"the text {self.text!r} does not fit its regex: {error}") from None
        return self


class ProviderEntry(_Section):
    """One provider. What is not set is as the built-in provider of that name has it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    type: Literal["openai", "local", "mock"]
    base_url: Annotated[str, AfterValidator(checked_base_url)] | None = None
    api_key_env: _Text | None = None
    api_key_file: Path | None = None
    headers: dict[_Text, str] = {}
    limits: Limits = Limits()
    prices: dict[_Text, ModelPrice] = {}
    script: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _fits_its_type(self) -> ProviderEntry:
        for key, types in _KEYS_OF_SOME_TYPES.items():
            if key in self.model_fields_set and self.type not in types:
                raise ValueError(f"{key!r} has no meaning for type {self.type!r}: take it out")
        if self.api_key_env and self.api_key_file:
            raise ValueError("has both 'api_key_env' and 'api_key_file': keep one")
        return self


_KEYS_OF_SOME_TYPES = {
    **dict.fromkeys(("base_url", "api_key_env", "api_key_file", "headers"), ("openai",)),
    "script": ("mock",),
}
_TYPE_OF_BUILT_IN = {"openai": "openai", "ollama": "openai", "local": "local", "mock": "mock"}
_SECTIONS: Mapping[str, type[BaseModel]] = {
    "limits": Limits,
    "prices": ModelPrice,
    "script": Rule,
    "error": ScriptedError,
}
_ENTRIES = TypeAdapter(tuple[ProviderEntry, ...])


class _CoreLoader(yaml.SafeLoader):
    """YAML 1.2's core schema, as experiment files have it: `no`, `on` and `12:30` are text."""

    yaml_implicit_resolvers = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)

_Path = tuple[str | int, ...]


def read_providers_file(path: Path) -> tuple[ProviderEntry, ...]:
    """Its entries. Raises InvalidArgument with everything that is wrong, a line each: file, line, what, what to do."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidArgument(f"Cannot read the providers file {str(path)!r}: {reason}.") from None
    data, lines, problems = _document(text)
    entries: tuple[ProviderEntry, ...] = ()
    if not problems:
        entries, problems = _entries_of(data, lines)
    if problems:
        raise InvalidArgument("\n".join(f"{path}:{line}: {what}" for line, what in sorted(problems)))
    return tuple(
        entry.model_copy(update={"api_key_file": path.parent / entry.api_key_file}) if entry.api_key_file else entry
        for entry in entries
    )


def _document(text: str) -> tuple[Any, dict[_Path, int], list[tuple[int, str]]]:
    """The data, the line of every path in it, and what is wrong."""
    lines: dict[_Path, int] = {}
    try:
        loader = _CoreLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, lines, []
        problems = list(_walk(root, (), lines))
        return loader.construct_document(root), lines, problems
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return None, lines, [(line, f"This is not YAML: {error.problem or error.context}.")]
    except yaml.YAMLError as error:
        return None, lines, [(1, f"This is not YAML: {error}.")]


def _entries_of(data: Any, lines: Mapping[_Path, int]) -> tuple[tuple[ProviderEntry, ...], list[tuple[int, str]]]:
    """The entries and what is wrong with them."""
    root: _Path = ()
    if isinstance(data, dict):
        unknown = [str(key) for key in data if key != "providers"]
        if unknown:
            return (), [(_line((key,), lines), _unknown_key(key, ["providers"])) for key in unknown]
        data, root = data.get("providers"), ("providers",)
    if isinstance(data, dict):  # by name
        paths: list[_Path] = [(*root, name) for name in data]
        data = [{**entry, "name": name} if isinstance(entry, dict) else entry for name, entry in data.items()]
    elif isinstance(data, list):
        paths = [(*root, index) for index in range(len(data))]
    else:
        return (), [(1, "The file needs a list `providers:` with a name and a type for each.")]
    entries = [_with_type(entry) for entry in data]
    problems: list[tuple[int, str]] = []
    names: set[str] = set()
    for entry, path in zip(entries, paths, strict=True):
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in names:
            problems.append((_line(path, lines), f"There are two providers of the name {name!r}: rename one."))
        names.add(str(name))
    try:
        return _ENTRIES.validate_python(entries), problems
    except ValidationError as error:
        for detail in error.errors():
            location = detail["loc"]
            line = _line((*paths[int(location[0])], *location[1:]), lines)
            problems.append((line, _sentence(location, detail, entries)))
        return (), problems


def _with_type(entry: Any) -> Any:
    if isinstance(entry, dict) and "type" not in entry and entry.get("name") in _TYPE_OF_BUILT_IN:
        return {**entry, "type": _TYPE_OF_BUILT_IN[entry["name"]]}
    return entry


def _walk(node: yaml.Node, path: _Path, lines: dict[_Path, int]) -> Iterator[tuple[int, str]]:
    """Notes the line of every path; yields keys that stand twice in a mapping."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                yield line, f"The key {key.value!r} stands twice: take one out."
            seen.add(key.value)
            lines[(*path, key.value)] = line
            yield from _walk(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*path, index), lines)


def _line(location: _Path, lines: Mapping[_Path, int]) -> int:
    while location not in lines and location:
        location = location[:-1]
    return lines.get(location, 1)


def _sentence(location: _Path, detail: Any, entries: list[Any]) -> str:
    entry = entries[int(location[0])]
    name = entry.get("name") if isinstance(entry, dict) else None
    who = f"provider {name!r}" if isinstance(name, str) else f"provider {int(location[0]) + 1}"
    where = ".".join(str(part) for part in location[1:])
    key = str(location[-1])
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"In {who}: {_unknown_key(key, _siblings(location))}"
    if kind == "missing":
        return f"In {who}: {where!r} is missing."
    if where == "type" and kind == "literal_error":
        given = detail["input"]
        if given in NOT_YET:
            return (
                f"In {who}: type {given!r} is not available yet; use 'openai' where its address is OpenAI-compatible."
            )
        near = get_close_matches(str(given), ["openai", "local", "mock"], 1)
        return f"In {who}: there is no type {given!r}: " + (f"did you mean {near[0]!r}?" if near else "use 'openai'.")
    if kind == "value_error":
        message = str(detail["ctx"]["error"])
        return f"In {who}: {where + ': ' if where else ''}{message}."
    if kind == "model_type":
        return f"In {who}: {where or 'the entry'}: it should be a mapping."
    # The value is not quoted: someone may have put a key where none belongs.
    return f"In {who}: {where}: {detail['msg'].replace('Input should', 'it should')}."


def _siblings(location: _Path) -> list[str]:
    section: type[BaseModel] = ProviderEntry
    for part in location[1:-1]:
        section = _SECTIONS.get(str(part), section)
    return list(section.model_fields)


def _unknown_key(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1, 0.5)
    return f"Unknown key {key!r}: " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}.")
