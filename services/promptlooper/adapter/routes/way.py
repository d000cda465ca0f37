"""The way of one question over its routes. Decides; the gateway sleeps and asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from promptlooper.adapter.retrying import MAX_ATTEMPTS, Decision, Failure, Kind, decide
from promptlooper.adapter.routes.health import Health
from promptlooper.adapter.routes.route import Route, by_weight

_NOW = Decision(0.0)
_FOR_OTHERS = ("concurrency", "rate")


class Way:
    """`models` are lists of routes, the requested model's first; `long_models` take their place where the prompt is too
    long. One route at least can be asked. Those that rest are avoided as long as another may answer, be it another
    model's. `leave` when the question is over."""

    def __init__(
        self,
        models: Sequence[Sequence[Route]],
        long_models: Sequence[Sequence[Route]],
        health: Health,
        random: Callable[[], float],
    ) -> None:
        self._rest = models
        self._long_models = long_models
        self._health = health
        self._random = random
        self._probes = False
        self._requested = models[0]
        self._routes: Sequence[Route] = ()  # to the present model
        self._attempts = 0  # on it
        self._tried: list[Route] = []  # of it
        first = self._next_ready()
        if not first:  # all rest: better one of them than nobody
            self._rest = models
            self._routes = next(routes for routes in models if _usable(routes))
            self._rest = models[models.index(self._routes) + 1 :]
            first = [min(_usable(self._routes), key=health.rest)]
        self.route = by_weight(first, self._random)
        self._probes = health.probe(self.route)

    @property
    def is_fallback(self) -> bool:
        """Whether another model is asked than was asked for."""
        return self._routes is not self._requested

    def leave(self) -> None:
        if self._probes:
            self._health.left(self.route)
            self._probes = False

    def answered(self) -> None:
        self._health.answered(self.route)

    def failed(self, failure: Failure, *, time_left: float) -> Decision:
        """Moves to the route that is asked next, and says when; `sleep` is None where there is none."""
        if failure.waits_for in _FOR_OTHERS:
            return self._held(failure)
        self._attempts += 1
        self._tried.append(self.route)
        self._health.failed(self.route, failure)
        kind = failure.kind
        if kind is Kind.CONTEXT_TOO_LONG:
            self._rest, self._long_models = self._long_models, ()
            return self._next_model(None)
        if kind in (Kind.PERMANENT, Kind.CONTENT_FILTERED):
            return Decision(None)
        if others := self._others(kind):
            self._go(by_weight(others, self._random))
            return _NOW
        if kind is Kind.CREDENTIALS:
            return self._next_model(None)
        if kind is Kind.RATE_LIMITED:
            failure = self._soonest(failure)
        decision = decide(failure, attempts=self._attempts, time_left=time_left, random=self._random)
        enough = self._attempts >= MAX_ATTEMPTS or (kind is not Kind.RATE_LIMITED and self._health.rest(self.route) > 0)
        if decision.sleep is None or (enough and self._rest):
            following = self._next_model(decision.retry_after)
            return decision if following.sleep is None else following
        return decision

    def _held(self, failure: Failure) -> Decision:
        """Others are before this question, which is no fault of the route: another key or address may have room, and
        other models are not asked for that."""
        self._tried.append(self.route)
        if others := self._others(failure.kind):
            self._go(by_weight(others, self._random))
            return _NOW
        return Decision(None, failure.retry_after)

    def _others(self, kind: Kind) -> list[Route]:
        """Routes to the same model that may do better now: other keys where the key is at fault or used up, other
        addresses where it is the address."""
        if len(self._routes) == 1 or (kind in (Kind.TRANSIENT, Kind.MALFORMED) and self._attempts >= MAX_ATTEMPTS):
            return []
        here = self.route.upstream
        others = [route for route in self._ready(self._routes) if route not in self._tried]
        if kind is Kind.RATE_LIMITED:
            return others
        if kind is Kind.CREDENTIALS:
            refused = {route.upstream.key for route in self._tried}
            return [route for route in others if route.upstream.key not in refused]
        others = [route for route in others if route.upstream.deployment != here.deployment]
        return [route for route in others if route.upstream.key == here.key] or others

    def _soonest(self, failure: Failure) -> Failure:
        """Goes to the route that rests the shortest: each was told to wait."""
        if len(self._routes) > 1 and failure.retry_after:
            route = min(_usable(self._routes), key=self._health.rest, default=self.route)
            if (rest := self._health.rest(route)) < failure.retry_after:
                self._go(route)
                return replace(failure, retry_after=rest)
        return failure

    def _next_model(self, retry_after: float | None) -> Decision:
        ready = self._next_ready()
        if not ready:
            return Decision(None, retry_after)
        self._attempts, self._tried = 0, []
        self._go(by_weight(ready, self._random))
        return _NOW

    def _next_ready(self) -> list[Route]:
        """Of the next model that has any."""
        for index, routes in enumerate(self._rest):
            if ready := self._ready(routes):
                self._routes, self._rest = routes, self._rest[index + 1 :]
                return ready
        return []

    def _ready(self, routes: Sequence[Route]) -> list[Route]:
        return [route for route in _usable(routes) if self._health.rest(route) == 0]

    def _go(self, route: Route) -> None:
        self.leave()
        self.route = route
        self._probes = self._health.probe(route)


def _usable(routes: Sequence[Route]) -> list[Route]:
    return [route for route in routes if route.provider.problem(route.model) is None]
