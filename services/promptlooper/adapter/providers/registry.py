"""Builds the pools of providers: the built-in ones, and what the providers file says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from promptlooper.adapter.address import checked_base_url, ollama_base_url
from promptlooper.adapter.config import ProviderEntry, Rule
from promptlooper.adapter.cost import Dated, Prices
from promptlooper.adapter.keys import Key
from promptlooper.adapter.price_entries import dated
from promptlooper.adapter.providers.http import HttpProvider
from promptlooper.adapter.providers.local import PARALLEL, LocalProvider
from promptlooper.adapter.providers.mock import MockError, MockProvider, MockRule
from promptlooper.adapter.providers.openai import PUBLIC_URL, OpenAIChat, is_public_openai
from promptlooper.adapter.providers.provider import Provider
from promptlooper.adapter.route_config import Deployment, KeyEntry
from promptlooper.adapter.routes.route import Pool, Upstream
from promptlooper.adapter.tariff import FREE
from promptlooper.clock import Clock
from promptlooper.errors import InvalidArgument

_BUILT_IN = (
    ProviderEntry(name="openai", type="openai"),
    ProviderEntry(name="ollama", type="openai"),
    ProviderEntry(name="local", type="local"),
    ProviderEntry(name="mock", type="mock"),
)


def entries_with_built_in(entries: Sequence[ProviderEntry]) -> list[ProviderEntry]:
    """An entry of the file takes the place of the built-in provider of its name."""
    named = {entry.name for entry in entries}
    return [*entries, *(entry for entry in _BUILT_IN if entry.name not in named)]


def max_concurrency(entry: ProviderEntry) -> int | None:
    """None is without a limit."""
    return entry.limits.max_concurrency or (PARALLEL if entry.type == "local" else None)


def built_pool(entry: ProviderEntry, env: Mapping[str, str], *, clock: Clock) -> Pool:
    """All its addresses with all its keys. Raises InvalidArgument where an address in `env` is none."""
    if entry.type != "openai":
        upstreams = [Upstream(_without_address(entry, clock))]
    else:
        shared = [(_key_of(entry.name, each, env, name=each.label), each.weight) for each in entry.keys]
        places = entry.deployments or [Deployment(base_url=_base_url(entry, env))]
        upstreams = [
            _upstream(entry, place, key, weight, clock)
            for place in places
            for key, weight in _keys_at(place, entry, env) or shared or [(_key(entry, place.base_url, env), 1.0)]
        ]
    return Pool(tuple(upstreams), entry.fallbacks, entry.context_window_fallbacks)


def _without_address(entry: ProviderEntry, clock: Clock) -> Provider:
    if entry.type == "local":
        return LocalProvider(entry.name, prices=_prices(entry), clock=clock)
    return MockProvider(entry.name, [_rule(rule) for rule in entry.script], prices=_prices(entry), clock=clock)


def _upstream(entry: ProviderEntry, place: Deployment, key: Key, weight: float, clock: Clock) -> Upstream:
    provider = HttpProvider(
        entry.name,
        place.base_url,
        OpenAIChat(place.base_url),
        prices=_prices(entry, place.base_url),
        clock=clock,
        key=key,
        headers=entry.headers,
        connect_timeout=entry.timeouts.connect,
        proxy=entry.proxy,
    )
    models = None if place.models is None else frozenset(place.models)
    return Upstream(provider, key.name, place.label, place.weight * weight, models, entry.stream, entry.timeouts)


def _base_url(entry: ProviderEntry, env: Mapping[str, str]) -> str:
    if entry.base_url is not None:
        return entry.base_url
    variable = {"openai": "OPENAI_BASE_URL", "ollama": "OLLAMA_HOST"}.get(entry.name)
    said = env.get(variable, "").strip() if variable else ""
    try:
        if entry.name == "ollama":
            return ollama_base_url(said)
        return checked_base_url(said) if said else PUBLIC_URL
    except ValueError as error:
        raise InvalidArgument(f"the environment variable {variable!r}: {error}") from None


def _keys_at(place: Deployment, entry: ProviderEntry, env: Mapping[str, str]) -> list[tuple[Key, float]]:
    """The key that only this address takes."""
    if place.api_key_env is None and place.api_key_file is None:
        return []
    return [(_key_of(entry.name, place, env, name=place.label), 1.0)]


def _key(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Key:
    """The one key, or none. `OPENAI_API_KEY` goes only where OpenAI's own tools would send it."""
    if entry.api_key_env is not None or entry.api_key_file is not None:
        return _key_of(entry.name, entry, env)
    public = is_public_openai(base_url)
    theirs = entry.name == "openai" and entry.base_url is None and not entry.deployments
    if public or (theirs and env.get("OPENAI_API_KEY", "").strip()):
        return _key_of(entry.name, KeyEntry(api_key_env="OPENAI_API_KEY"), env)
    return Key(entry.name)


def _key_of(provider: str, said: ProviderEntry | KeyEntry | Deployment, env: Mapping[str, str], name: str = "") -> Key:
    if said.api_key_file is not None:
        return Key.of_file(provider, said.api_key_file, name=name)
    assert said.api_key_env is not None
    return Key.of_variable(provider, said.api_key_env, env, name=name)


def _prices(entry: ProviderEntry, api_url: str | None = None) -> Prices:
    """What is on no public list, and without a price of the operator's, costs nothing."""
    own = {model: dated(prices) for model, prices in entry.prices.items()}
    if api_url is None and not own:
        own = {"*": (Dated(FREE),)}
    return Prices(own, api_url, unknown=entry.price_ceiling.price() if entry.price_ceiling else None)


def _rule(rule: Rule) -> MockRule:
    pattern = rule.regex if rule.regex is not None else re.escape(rule.match) if rule.match is not None else None
    error = None if rule.error is None else MockError(**rule.error.model_dump())
    return MockRule(
        model=rule.model,
        match=re.compile(pattern) if pattern is not None else None,
        text=rule.text,
        expand=rule.regex is not None,
        echo=rule.echo,
        delay=rule.delay,
        error=error,
        finish_reason=rule.finish_reason,
        tokens_in=rule.tokens_in,
        tokens_out=rule.tokens_out,
    )
