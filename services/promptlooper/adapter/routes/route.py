"""Who may answer a question: providers, their addresses and keys, and other models in a model's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from promptlooper.adapter.limits.limiter import Lane
from promptlooper.adapter.providers.provider import Provider
from promptlooper.adapter.route_config import StreamSetting, Timeouts


@dataclass(frozen=True, slots=True, eq=False)
class Upstream:
    """One address of a provider with one key. Names are the operator's: a key is called by its name, never shown."""

    provider: Provider
    key: str = ""
    deployment: str = ""
    weight: float = 1.0
    models: frozenset[str] | None = None  # None: whatever is asked for
    stream: StreamSetting = "auto"
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True, slots=True)
class Route:
    """An upstream that is asked for a model."""

    upstream: Upstream
    model: str  # in the provider's words

    @property
    def provider(self) -> Provider:
        return self.upstream.provider

    @property
    def lane(self) -> Lane:
        """What is limited together: by the key at an address."""
        upstream = self.upstream
        key = f"{upstream.key}@{upstream.deployment}" if upstream.deployment else upstream.key
        return Lane(self.provider.name, self.model, key)

    @property
    def name(self) -> str:
        return f"{self.upstream.provider.name}/{self.model}"


@dataclass(frozen=True, slots=True)
class Pool:
    """All upstreams of one provider. Its fallbacks are by model, `*` for every other, each as `provider/model`."""

    upstreams: tuple[Upstream, ...]
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    context_window_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    listed: bool = True  # among the models also while none of them can be asked

    def routes(self, model: str) -> list[Route]:
        return [Route(up, model) for up in self.upstreams if up.models is None or model in up.models]

    @property
    def all_fallbacks(self) -> set[str]:
        return {
            name for by in (self.fallbacks, self.context_window_fallbacks) for names in by.values() for name in names
        }


def of_model(by_model: Mapping[str, tuple[str, ...]], model: str) -> tuple[str, ...]:
    return by_model.get(model) or by_model.get("*", ())


def by_weight(routes: Sequence[Route], random: Callable[[], float]) -> Route:
    """One of them. `random` gives numbers in [0, 1)."""
    if len(routes) == 1:
        return routes[0]
    point = random() * sum(route.upstream.weight for route in routes)
    for route in routes:
        point -= route.upstream.weight
        if point < 0:
            return route
    return routes[-1]
