"""Builds the providers: the built-in ones, and what the providers file says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from promptlooper.adapter.address import checked_base_url, ollama_base_url
from promptlooper.adapter.config import ModelPrice, ProviderEntry, Rule
from promptlooper.adapter.cost import FREE, Prices, Tariff, rate_of
from promptlooper.adapter.providers.local import PARALLEL, LocalProvider
from promptlooper.adapter.providers.mock import MockError, MockProvider, MockRule
from promptlooper.adapter.providers.openai import PUBLIC_URL, OpenAIProvider, is_public_openai
from promptlooper.adapter.providers.provider import Problem, Provider
from promptlooper.adapter.routes.route import Pool, Upstream
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
    """Raises InvalidArgument where an address in `env` is none."""
    return Pool((Upstream(_built_provider(entry, env, clock=clock)),))


def _built_provider(entry: ProviderEntry, env: Mapping[str, str], *, clock: Clock) -> Provider:
    own = {model: _tariff(price) for model, price in entry.prices.items()}
    if entry.type == "mock":
        rules = [_rule(rule) for rule in entry.script]
        return MockProvider(entry.name, rules, prices=Prices(own or {"*": FREE}), clock=clock)
    if entry.type == "local":
        return LocalProvider(entry.name, prices=Prices(own or {"*": FREE}), clock=clock)
    base_url = _base_url(entry, env)
    key, problem = _key(entry, base_url, env)
    prices = Prices(own, api_url=base_url)
    return OpenAIProvider(
        entry.name, base_url, prices=prices, clock=clock, api_key=key, headers=entry.headers, problem=problem
    )


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


def _key(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> tuple[str | None, Problem | None]:
    """The key, and what is wrong with it. `OPENAI_API_KEY` goes only where OpenAI's own tools would send it."""
    if entry.api_key_file is not None:
        return _key_of_file(entry.name, entry.api_key_file)
    variable = entry.api_key_env
    required = variable is not None or is_public_openai(base_url)
    if variable is None and (is_public_openai(base_url) or (entry.name == "openai" and entry.base_url is None)):
        variable = "OPENAI_API_KEY"
    key = env.get(variable, "").strip() if variable else ""
    if not key:
        message = f"provider {entry.name!r} has no key; set the environment variable {variable!r}"
        return None, Problem("PROVIDER_CREDENTIALS", message) if required else None
    return _checked_key(entry.name, key, f"the environment variable {variable!r}")


def _key_of_file(name: str, path: Path) -> tuple[str | None, Problem | None]:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        message = f"provider {name!r} has no key; cannot read {str(path)!r}: {reason}"
        return None, Problem("PROVIDER_CREDENTIALS", message)
    if not key:
        return None, Problem("PROVIDER_CREDENTIALS", f"provider {name!r} has no key; {str(path)!r} is empty")
    return _checked_key(name, key, f"the file {str(path)!r}")


def _checked_key(name: str, key: str, source: str) -> tuple[str | None, Problem | None]:
    if re.fullmatch(r"[\x21-\x7e]+", key):
        return key, None
    message = f"the key of provider {name!r} has spaces, line breaks or letters that no key has; correct {source}"
    return None, Problem("PROVIDER_CREDENTIALS", message)


def _tariff(price: ModelPrice) -> Tariff:
    cached = price.cached_input_usd_per_mtok
    return Tariff(
        input=rate_of(price.input_usd_per_mtok),
        output=rate_of(price.output_usd_per_mtok),
        cached_input=None if cached is None else rate_of(cached),
    )


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
