"""Finds the routes of a model."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from promptlooper.adapter.config import NOT_YET
from promptlooper.adapter.providers.provider import Problem
from promptlooper.adapter.routes.health import Health
from promptlooper.adapter.routes.route import Pool, Route, of_model
from promptlooper.adapter.routes.way import Way
from promptlooper.clock import Clock, SystemClock
from promptlooper.errors import InvalidArgument


class Router:
    """All providers, each with its pool of upstreams. Raises InvalidArgument where a fallback can't be asked."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        *,
        clock: Clock | None = None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.pools = dict(pools)
        self.health = Health(clock or SystemClock())
        self._random = random
        for name, pool in self.pools.items():
            for fallback in pool.all_fallbacks:
                found = self.routes(fallback)
                if isinstance(found, Problem):
                    raise InvalidArgument(f"provider {name!r}: the fallback {fallback!r}: {found.message}")

    def routes(self, name: str) -> list[Route] | Problem:
        """Who serves a `provider/model`, with or without a key, or why nobody does."""
        provider, slash, model = name.partition("/")
        pool = self.pools.get(provider)
        if pool is None or not model:
            return self._unknown(name, provider, names_both=bool(slash and model))
        return pool.routes(model) or Problem(
            "INVALID_ARGUMENT",
            f"no deployment of provider {provider!r} has the model {model!r}; add it to its 'models'",
        )

    def models(self, name: str) -> list[list[Route]] | Problem:
        """The routes of a `provider/model` and of each of its fallbacks, or why it can't be asked."""
        routes = self.routes(name)
        if isinstance(routes, Problem):
            return routes
        return _checked([routes, *self._fallbacks(name, lambda pool: pool.fallbacks)])

    def longer(self, name: str) -> list[list[Route]]:
        """The routes of those that are asked where the prompt is too long for the model."""
        return self._fallbacks(name, lambda pool: pool.context_window_fallbacks)

    def way(self, name: str) -> Way | Problem:
        """For one question to a `provider/model`, or why it can't be asked."""
        models = self.models(name)
        return models if isinstance(models, Problem) else Way(models, self.longer(name), self.health, self._random)

    def embedding_routes(self, name: str) -> list[Route] | Problem:
        """Those that have embeddings, or why there are none. No fallbacks: vectors of two models can't be compared."""
        routes = self.routes(name)
        if isinstance(routes, Problem):
            return routes
        able = [route for route in routes if route.provider.embeds]
        if not able:
            provider = routes[0].provider.name
            message = f"provider {provider!r} has no embeddings; docs/providers.md says which others have them"
            return Problem("INVALID_ARGUMENT", message)
        models = _checked([able])
        return models if isinstance(models, Problem) else able

    def embedding_way(self, routes: Sequence[Route]) -> Way:
        return Way([routes], (), self.health, self._random)

    def _fallbacks(self, name: str, of_pool: Callable[[Pool], Mapping[str, tuple[str, ...]]]) -> list[list[Route]]:
        provider, _, model = name.partition("/")
        by_model = of_pool(self.pools[provider])
        names = of_model(by_model, model) if by_model else ()
        return [routes for each in names if isinstance(routes := self.routes(each), list)]

    def _unknown(self, name: str, provider: str, *, names_both: bool) -> Problem:
        known = ", ".join(sorted(self.pools))
        if not names_both:
            message = f"the model {name!r} names no provider; write it as PROVIDER/MODEL; providers are {known}"
            return Problem("INVALID_ARGUMENT", message)
        if provider in NOT_YET:
            message = (
                f"provider {provider!r} is not available yet; where it has an OpenAI-compatible address, put it "
                f"into the providers file (PROMPTLOOPER_PROVIDERS) with 'type: openai' and its 'base_url'"
            )
            return Problem("UNKNOWN_PROVIDER", message)
        near = get_close_matches(provider, self.pools, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {known}"
        message = (
            f"there is no provider {provider!r}; {hint}"
            f"{'' if near else ';'} others go into the providers file (PROMPTLOOPER_PROVIDERS)"
        )
        return Problem("UNKNOWN_PROVIDER", message)


def _checked(models: list[list[Route]]) -> list[list[Route]] | Problem:
    """The same where one route at least can be asked; else why the first can't."""
    first = models[0][0]
    problem = first.provider.problem(first.model)
    if problem is None or any(r.provider.problem(r.model) is None for routes in models for r in routes):
        return models
    return problem
