"""The providers that are there without any file: their addresses, and the variables their users know already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from promptlooper.adapter.address import azure_base_url, checked_base_url, native_ollama_url, ollama_base_url
from promptlooper.adapter.config import ProviderEntry
from promptlooper.adapter.keys import Key
from promptlooper.adapter.providers import aws
from promptlooper.adapter.providers.provider import Problem
from promptlooper.adapter.providers.quirks import ENDPOINTS
from promptlooper.adapter.route_config import Deployment, KeyEntry
from promptlooper.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Default:
    """What holds where neither the providers file nor a variable says otherwise."""

    type: str
    base_url: str = ""  # "" where there is none
    api_key_env: str = ""
    older_api_key_env: str = ""  # comes first where it is set, as in its owner's tools
    base_url_env: str = ""
    keyless: bool = False  # whether it may be asked without a key, too
    listed: bool = False  # among the models also without a key


DEFAULTS: Mapping[str, Default] = {
    **{name: Default("openai", known.base_url, known.api_key_env) for name, known in ENDPOINTS.items()},
    "openai": Default("openai", ENDPOINTS["openai"].base_url, "OPENAI_API_KEY", "", "OPENAI_BASE_URL", listed=True),
    "azure": Default("azure", "", "AZURE_OPENAI_API_KEY", "", "AZURE_OPENAI_ENDPOINT"),
    "anthropic": Default("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY", "", "ANTHROPIC_BASE_URL"),
    "gemini": Default(
        "gemini",
        "https://generativelanguage.googleapis.com",
        "GEMINI_API_KEY",
        "GOOGLE_API_KEY",
        "GOOGLE_GEMINI_BASE_URL",
    ),
    "bedrock": Default("bedrock", "", aws.BEARER, "", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME", keyless=True),
    "ollama": Default("ollama", ollama_base_url(""), "OLLAMA_API_KEY", "", "OLLAMA_HOST", listed=True),
    "local": Default("local", listed=True),
    "mock": Default("mock", listed=True),
}
_BY_TYPE = {"openai-responses": "openai"}  # where the type is not the name
_AS_WRITTEN: Mapping[str, Callable[[str], str]] = {"azure": azure_base_url, "ollama": native_ollama_url}  # by type
_IN_VARIABLE: Mapping[str, Callable[[str], str]] = {**_AS_WRITTEN, "ollama": ollama_base_url}


def places_of(entry: ProviderEntry, env: Mapping[str, str]) -> list[Deployment]:
    """Its addresses; none where neither the file nor a variable says one. Raises InvalidArgument where a variable
    holds no address."""
    places = entry.deployments or ([Deployment(base_url=url)] if (url := _base_url_of(entry, env)) else [])
    as_written = _AS_WRITTEN.get(entry.type)
    if as_written is None:
        return list(places)
    return [place.model_copy(update={"base_url": as_written(place.base_url)}) for place in places]


def _base_url_of(entry: ProviderEntry, env: Mapping[str, str]) -> str:
    if entry.base_url is not None:
        return entry.base_url
    default = _default(entry)
    said = env.get(default.base_url_env, "").strip() if default.base_url_env else ""
    if not said and entry.type == "bedrock" and (region := aws.region_of(entry.region, env)):
        return aws.bedrock_base_url(region)
    if not said:
        return default.base_url
    try:
        return _IN_VARIABLE.get(default.type, checked_base_url)(said)
    except ValueError as error:
        raise InvalidArgument(f"the environment variable {default.base_url_env!r}: {error}") from None


def no_address(entry: ProviderEntry) -> Problem:
    if entry.type == "bedrock":
        message = (
            f"provider {entry.name!r} has no region; give it a 'region' in the providers file, or set 'AWS_REGION'"
        )
        return Problem("INVALID_ARGUMENT", message)
    variable = _default(entry).base_url_env
    or_set = f", or set the environment variable {variable!r}" if variable else ""
    message = f"provider {entry.name!r} has no address; give it a 'base_url' in the providers file{or_set}"
    return Problem("INVALID_ARGUMENT", message)


def key_at(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Key:
    """The one key, or none. A variable's key goes only where its owner's own tools would send it."""
    if entry.api_key_env is not None or entry.api_key_file is not None:
        return key_of(entry.name, entry, env)
    default = _default(entry)
    anywhere = not default.base_url  # each of its users has an address of their own
    theirs = (anywhere or entry.base_url is None) and not entry.deployments
    variable = _variable(default, env)
    if theirs and variable and ((anywhere and not default.keyless) or env.get(variable, "").strip()):
        return key_of(entry.name, KeyEntry(api_key_env=variable), env)
    owner = _owner(base_url)
    if owner is not None:
        return key_of(entry.name, KeyEntry(api_key_env=_variable(owner, env)), env)
    return Key(entry.name)


def _variable(default: Default, env: Mapping[str, str]) -> str:
    older = default.older_api_key_env
    return older if older and env.get(older, "").strip() else default.api_key_env


def key_of(provider: str, said: ProviderEntry | KeyEntry | Deployment, env: Mapping[str, str], name: str = "") -> Key:
    if said.api_key_file is not None:
        return Key.of_file(provider, said.api_key_file, name=name)
    assert said.api_key_env is not None
    return Key.of_variable(provider, said.api_key_env, env, name=name)


def _default(entry: ProviderEntry) -> Default:
    """That of its name; else that of its type, whose address it has but not its variables."""
    known, usual = DEFAULTS.get(entry.name), _BY_TYPE.get(entry.type, entry.type)
    if known is not None and (known.type == entry.type or entry.name == usual):
        return known
    if known is not None:
        return Default(entry.type)  # a well-known name with another format: its address is not ours to guess
    return replace(DEFAULTS.get(usual, Default(entry.type)), api_key_env="", older_api_key_env="", base_url_env="")


def _owner(base_url: str) -> Default | None:
    """Whose public address this is: nothing is answered there without a key."""
    host = urlsplit(base_url).hostname or ""
    for default in DEFAULTS.values():
        public = urlsplit(default.base_url).hostname if default.base_url.startswith("https:") else None
        if public and (host == public or host.endswith("." + public)):
            return default
    return None
