"""The providers file: which providers there are, where, with which keys, limits and prices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from promptlooper.adapter.address import checked_base_url
from promptlooper.adapter.price_entries import BatchPrice, ModelPrice, ModelPrices, PriceCeiling, Tier
from promptlooper.adapter.providers import quirks
from promptlooper.adapter.route_config import Deployment, Fallbacks, KeyEntry, Proxy, StreamSetting, Timeouts
from promptlooper.document import Document, NotUtf8, decoded, read_document
from promptlooper.document import Path as DocumentPath
from promptlooper.errors import InvalidArgument

NOT_YET = ("cohere", "google", "vertex")
"""Names that users will try; each is served by an OpenAI-compatible base_url meanwhile, or by a later version."""

HTTP_TYPES = ("openai", "openai-responses", "azure", "anthropic", "gemini", "ollama", "bedrock")
_TYPES = (*HTTP_TYPES, "local", "mock")

_Text = Annotated[str, Field(min_length=1)]
_PerMinute = Annotated[int, Field(ge=1, le=2**53)]
_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


def _quirks(name: str) -> str:
    if quirks.named(name) is None:
        raise ValueError(f"nothing is known of {name!r}; known are {', '.join(quirks.names())}")
    return name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelLimits(_Section):
    """Of one model with one key, by all Adapters together."""

    max_concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    requests_per_minute: _PerMinute | None = None
    tokens_per_minute: _PerMinute | None = None


class Limits(ModelLimits):
    """`models` have their own; what they do not set is as for all others."""

    models: dict[_Text, ModelLimits] = {}


class ScriptedError(_Section):
    status: Annotated[int, Field(ge=400, le=599)]
    message: str = "scripted error"
    code: str = ""
    retry_after: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    times: Annotated[int, Field(ge=1)] | None = None


class ScriptedCall(_Section):
    name: _Text
    arguments: dict[str, Any] | str = {}  # a text is sent as it is, also where it is no JSON


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
    tool_calls: tuple[ScriptedCall, ...] = ()

    @model_validator(mode="after")
    def _says_one_thing(self) -> Rule:
        if self.match is not None and self.regex is not None:
            raise ValueError("has both 'match' (a part of the question) and 'regex'; keep one")
        if self.text is not None and self.echo:
            raise ValueError("has both 'text' and 'echo'; keep one")
        if self.text is None and not self.echo and self.error is None and not self.tool_calls:
            raise ValueError("says nothing; give it 'text', 'echo: true', 'tool_calls' or 'error'")
        if self.regex is not None and self.text is not None:
            try:
                re.compile(self.regex).sub(self.text, "")
            except (re.error, IndexError) as error:
                raise ValueError(f"the text {self.text!r} does not fit its regex: {error}") from None
        return self


class ProviderEntry(_Section):
    """One provider. What is not set is as the built-in provider of that name has it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    type: Literal["openai", "openai-responses", "azure", "anthropic", "gemini", "ollama", "bedrock", "local", "mock"]
    base_url: Annotated[str, AfterValidator(checked_base_url)] | None = None
    quirks: Annotated[str, AfterValidator(_quirks)] | None = None
    api_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] | None = None
    region: Annotated[str, Field(pattern=r"^[a-z]{2,}(-[a-z]+)+-\d+$")] | None = None
    profile: _Text | None = None
    api_key_env: _Text | None = None
    api_key_file: Path | None = None
    keys: tuple[KeyEntry, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    fallbacks: Fallbacks = {}
    context_window_fallbacks: Fallbacks = {}
    timeouts: Timeouts = Timeouts()
    stream: StreamSetting = "auto"
    proxy: Proxy | None = None
    headers: dict[_Text, str] = {}
    limits: Limits = Limits()
    prices: dict[_Text, ModelPrices] = {}
    price_ceiling: PriceCeiling | None = None
    script: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _fits_its_type(self) -> ProviderEntry:
        for key, types in _KEYS_OF_SOME_TYPES.items():
            if key in self.model_fields_set and self.type not in types:
                raise ValueError(f"{key!r} has no meaning for type {self.type!r}; remove it")
        if self.api_key_env and self.api_key_file:
            raise ValueError("has both 'api_key_env' and 'api_key_file'; keep one")
        if self.keys and (self.api_key_env or self.api_key_file):
            raise ValueError("has both 'keys' and a key beside them; put it into 'keys'")
        if self.deployments and self.base_url:
            raise ValueError("has both 'deployments' and 'base_url'; put it into 'deployments'")
        for what, labels in (
            ("keys", [k.label for k in self.keys]),
            ("deployments", [d.label for d in self.deployments]),
        ):
            if len(set(labels)) < len(labels):
                raise ValueError(f"two of its {what} have the same name; give each a 'name' of its own")
        return self


_KEYS_OF_SOME_TYPES = {
    **dict.fromkeys(
        ("base_url", "api_key_env", "api_key_file", "keys", "deployments", "timeouts", "stream", "proxy", "headers"),
        HTTP_TYPES,
    ),
    "quirks": ("openai",),
    "api_version": ("azure",),
    **dict.fromkeys(("region", "profile"), ("bedrock",)),
    "script": ("mock",),
}
_TYPE_OF_BUILT_IN = {
    **dict.fromkeys(quirks.ENDPOINTS, "openai"),
    **{name: name for name in ("azure", "anthropic", "gemini", "ollama", "bedrock", "local", "mock")},
}
_SECTIONS: Mapping[str, type[BaseModel]] = {
    "limits": Limits,
    "models": ModelLimits,
    "prices": ModelPrice,
    "tiers": Tier,
    "batch": BatchPrice,
    "price_ceiling": PriceCeiling,
    "script": Rule,
    "error": ScriptedError,
    "tool_calls": ScriptedCall,
    "keys": KeyEntry,
    "deployments": Deployment,
    "timeouts": Timeouts,
}
_ENTRIES = TypeAdapter(tuple[ProviderEntry, ...])


def read_providers_file(path: Path) -> tuple[ProviderEntry, ...]:
    """Its entries. Raises InvalidArgument with everything that is wrong, a line each: file, line, what, what to do."""
    try:
        document = read_document(decoded(path.read_bytes()))
    except OSError as error:
        raise InvalidArgument(f"cannot read the providers file {str(path)!r}: {error.strerror}") from None
    except NotUtf8 as error:
        raise InvalidArgument(f"{path}:{error.line}: {error}") from None
    entries: tuple[ProviderEntry, ...] = ()
    problems = document.problems
    if not problems:
        entries, problems = _entries_of(document)
    if problems:
        text = "\n".join(f"{path}:{line}: {what}" for line, what in sorted(problems))
        raise InvalidArgument(text, file=str(path), line=str(min(line for line, _ in problems)))
    return tuple(_beside(path.parent, entry) for entry in entries)


_Keyed = TypeVar("_Keyed", "ProviderEntry", KeyEntry, Deployment)


def _beside(folder: Path, entry: _Keyed) -> _Keyed:
    """With the paths of its key files, which are relative to the providers file."""
    update: dict[str, Any] = {"api_key_file": folder / entry.api_key_file} if entry.api_key_file else {}
    if isinstance(entry, ProviderEntry):
        update |= {"keys": tuple(_beside(folder, key) for key in entry.keys)}
        update |= {"deployments": tuple(_beside(folder, each) for each in entry.deployments)}
    return entry.model_copy(update=update)


def _entries_of(document: Document) -> tuple[tuple[ProviderEntry, ...], list[tuple[int, str]]]:
    """The entries and what is wrong with them."""
    data: Any = document.value
    root: DocumentPath = ()
    if isinstance(data, dict):
        unknown = [key for key in data if key != "providers"]
        if unknown:
            return (), [(document.line((key,)), _unknown_key(key, ["providers"])) for key in unknown]
        data, root = data.get("providers"), ("providers",)
    if isinstance(data, dict):  # by name
        paths: list[DocumentPath] = [(*root, name) for name in data]
        data = [{**entry, "name": name} if isinstance(entry, dict) else entry for name, entry in data.items()]
    elif isinstance(data, list):
        paths = [(*root, index) for index in range(len(data))]
    else:
        return (), [(1, "the file needs a list 'providers' with a name and a type for each")]
    entries = [_with_type(entry) for entry in data]
    problems: list[tuple[int, str]] = []
    names: set[str] = set()
    for entry, path in zip(entries, paths, strict=True):
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in names:
            problems.append((document.line(path), f"two providers are named {name!r}; rename one"))
        names.add(str(name))
    try:
        return _ENTRIES.validate_python(entries), problems
    except ValidationError as error:
        for detail in error.errors():
            location = _written(detail["loc"], entries)
            line = document.line((*paths[int(location[0])], *location[1:]))
            problems.append((line, _sentence(location, detail, entries)))
        return (), problems


def _with_type(entry: Any) -> Any:
    if isinstance(entry, dict) and "type" not in entry and entry.get("name") in _TYPE_OF_BUILT_IN:
        return {**entry, "type": _TYPE_OF_BUILT_IN[entry["name"]]}
    return entry


def _sentence(location: DocumentPath, detail: Any, entries: list[Any]) -> str:
    entry = entries[int(location[0])]
    name = entry.get("name") if isinstance(entry, dict) else None
    who = f"provider {name!r}" if isinstance(name, str) else f"provider {int(location[0]) + 1}"
    where = ".".join(str(part) for part in location[1:])
    key = str(location[-1])
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"{who}: {_unknown_key(key, _siblings(location))}"
    if kind == "missing":
        return f"{who}: {where!r} is missing"
    if where == "type" and kind == "literal_error":
        given = detail["input"]
        if given in NOT_YET:
            return f"{who}: type {given!r} is not available yet; use 'openai' where its address is OpenAI-compatible"
        if given in quirks.ENDPOINTS:
            address = quirks.ENDPOINTS[given].base_url
            return f"{who}: {given!r} speaks the OpenAI format; write 'type: openai' and 'base_url: {address}'"
        near = get_close_matches(str(given), _TYPES, 1)
        return f"{who}: there is no type {given!r}; " + (f"did you mean {near[0]!r}?" if near else "use 'openai'")
    if kind == "value_error":
        message = str(detail["ctx"]["error"])
        return f"{who}: {where + ': ' if where else ''}{message}"
    if kind == "model_type":
        return f"{who}: {where or 'the entry'} must be a mapping"
    # The value is not quoted: someone may have put a key where none belongs.
    return f"{who}: {where}: {detail['msg'].replace('Input should', 'it should')}"


def _written(location: DocumentPath, entries: list[Any]) -> DocumentPath:
    """The location as the file has it: one price stands there for a list of one."""
    found: list[str | int] = []
    value: Any = entries
    for part in location:
        if isinstance(part, int) and isinstance(value, dict):
            continue
        found.append(part)
        try:
            value = value[part]
        except (LookupError, TypeError):
            value = None
    return tuple(found)


def _siblings(location: DocumentPath) -> list[str]:
    section: type[BaseModel] = ProviderEntry
    for part in location[1:-1]:
        section = _SECTIONS.get(str(part), section)
    return [field.alias or name for name, field in section.model_fields.items()]


def _unknown_key(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1, 0.5)
    return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}")
