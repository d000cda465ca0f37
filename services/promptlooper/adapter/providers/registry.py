"""Builds the pools of providers: the built-in ones, and what the providers file says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from promptlooper.adapter.config import ProviderEntry, Rule, ScriptedCall
from promptlooper.adapter.cost import Dated, Prices
from promptlooper.adapter.images import ImageFetcher
from promptlooper.adapter.keys import Key
from promptlooper.adapter.limits.ledger import Rules
from promptlooper.adapter.limits.limiter import Lane
from promptlooper.adapter.price_entries import dated
from promptlooper.adapter.providers.aws import SigV4, no_credentials, region_in, region_of
from promptlooper.adapter.providers.defaults import DEFAULTS, key_at, key_of, no_address, places_of
from promptlooper.adapter.providers.dialects import DIALECTS, WANT_BYTES, batches_of, embedding_of
from promptlooper.adapter.providers.http import HttpProvider
from promptlooper.adapter.providers.local import PARALLEL, LocalProvider
from promptlooper.adapter.providers.mock import MockError, MockProvider, MockRule
from promptlooper.adapter.providers.provider import Provider
from promptlooper.adapter.providers.unready import UnreadyProvider
from promptlooper.adapter.route_config import Deployment
from promptlooper.adapter.routes.route import Pool, Upstream
from promptlooper.adapter.tariff import FREE
from promptlooper.clock import Clock
from promptlooper.jsonvalue import json_text


def entries_with_built_in(entries: Sequence[ProviderEntry]) -> list[ProviderEntry]:
    """An entry of the file takes the place of the built-in provider of its name."""
    named = {entry.name for entry in entries}
    built_in = (ProviderEntry.model_validate({"name": name, "type": each.type}) for name, each in DEFAULTS.items())
    return [*entries, *(entry for entry in built_in if entry.name not in named)]


def rules_of(entries: Sequence[ProviderEntry]) -> Callable[[Lane], Rules]:
    """What the providers file says of a lane's limits."""
    by_name = {entry.name: entry for entry in entries}

    def rules(lane: Lane) -> Rules:
        entry = by_name[lane.provider]
        said = {"max_concurrency": PARALLEL} if entry.type == "local" else {}
        for limits in (entry.limits, entry.limits.models.get(lane.model)):
            if limits is not None:
                said |= limits.model_dump(exclude_none=True, exclude={"models"})
        return Rules(**said)

    return rules


def built_pool(entry: ProviderEntry, env: Mapping[str, str], *, clock: Clock) -> Pool:
    """All its addresses with all its keys. Raises InvalidArgument where an address in `env` is none."""
    if entry.type not in DIALECTS:
        upstreams = [Upstream(_without_address(entry, clock))]
    else:
        shared = [(key_of(entry.name, each, env, name=each.label), each.weight) for each in entry.keys]
        upstreams = [
            _upstream(entry, place, key, weight, clock, env)
            for place in places_of(entry, env)
            for key, weight in _keys_at(place, entry, env) or shared or [(key_at(entry, place.base_url, env), 1.0)]
        ] or [Upstream(UnreadyProvider(entry.name, no_address(entry), prices=_prices(entry)))]
    bare = entry.model_fields_set <= {"name", "type"} and entry.name in DEFAULTS
    if bare and entry.type == "bedrock" and (problem := no_credentials(entry.name, env)):
        upstreams = [Upstream(UnreadyProvider(entry.name, problem, prices=Prices({})))]
    listed = not bare or DEFAULTS[entry.name].listed
    return Pool(tuple(upstreams), entry.fallbacks, entry.context_window_fallbacks, listed)


def _without_address(entry: ProviderEntry, clock: Clock) -> Provider:
    if entry.type == "local":
        return LocalProvider(entry.name, prices=_prices(entry), clock=clock)
    return MockProvider(entry.name, [_rule(rule) for rule in entry.script], prices=_prices(entry), clock=clock)


def _upstream(
    entry: ProviderEntry, place: Deployment, key: Key, weight: float, clock: Clock, env: Mapping[str, str]
) -> Upstream:
    signs = entry.type == "bedrock" and key.problem() is None and key.current() is None
    region = region_of(entry.region, env) or region_in(place.base_url)
    provider = HttpProvider(
        entry.name,
        place.base_url,
        DIALECTS[entry.type](entry, place.base_url, env),
        prices=_prices(entry, place.base_url),
        clock=clock,
        key=key,
        signer=SigV4(entry.name, region, env, profile=entry.profile) if signs else None,
        images=ImageFetcher() if entry.type in WANT_BYTES else None,
        embedding=embedding_of(entry, place.base_url, env),
        batches=batches_of(entry, place.base_url),
        headers=entry.headers,
        connect_timeout=entry.timeouts.connect,
        proxy=entry.proxy,
    )
    models = None if place.models is None else frozenset(place.models)
    deployment = place.label if entry.deployments else ""
    return Upstream(provider, key.name, deployment, place.weight * weight, models, entry.stream, entry.timeouts)


def _keys_at(place: Deployment, entry: ProviderEntry, env: Mapping[str, str]) -> list[tuple[Key, float]]:
    """The key that only this address takes."""
    if place.api_key_env is None and place.api_key_file is None:
        return []
    return [(key_of(entry.name, place, env, name=place.label), 1.0)]


def _prices(entry: ProviderEntry, api_url: str | None = None) -> Prices:
    """What runs here costs nothing unless the operator says otherwise. Deployments of Azure have names of their own."""
    own = {model: dated(prices) for model, prices in entry.prices.items()}
    if entry.type in ("local", "mock") and not own:
        own = {"*": (Dated(FREE),)}
    ceiling = entry.price_ceiling.price() if entry.price_ceiling else None
    return Prices(own, api_url, unknown=ceiling, renames=entry.type == "azure")


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
        tool_calls=tuple((call.name, _arguments(call)) for call in rule.tool_calls),
    )


def _arguments(call: ScriptedCall) -> str:
    return call.arguments if isinstance(call.arguments, str) else json_text(call.arguments)
