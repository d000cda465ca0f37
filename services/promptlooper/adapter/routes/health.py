"""Which routes do not answer at present, so that others are asked meanwhile."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

from promptlooper.adapter.retrying import Failure, Kind
from promptlooper.adapter.routes.route import Route, Upstream
from promptlooper.clock import Clock

FAILURES = 5  # in a row, then a route rests
REST = 5.0  # seconds; doubles with every rest that did not help
LONGEST_REST = 60.0  # also where the account or its rights are at fault, which takes a human
_MOST_STATES = 10_000  # callers may ask for any model

_log = logging.getLogger(__name__)

_Place: TypeAlias = tuple[Upstream, str]


@dataclass(slots=True)
class _State:
    failures: int = 0  # in a row
    rests: int = 0  # in a row
    until: float = 0.0  # monotonic; it may only grow
    probing: bool = False


class Health:
    """A breaker for every provider, address, key and model: after failures in a row a route rests; then one question at
    a time probes it, and its outcome decides. A rest is extended, never shortened. Routes that work have no state."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: dict[_Place, _State] = {}

    def rest(self, route: Route) -> float:
        """Seconds for which it is not to be asked: 0 for now, infinity while another question probes it."""
        if not self._states:
            return 0.0
        state = self._states.get((route.upstream, route.model))
        if state is None:
            return 0.0
        if state.probing:
            return float("inf")
        return max(0.0, state.until - self._clock.monotonic())

    def resting(self) -> Counter[tuple[str, str, str]]:
        """How many models are avoided now, by provider, deployment and key."""
        routes = [Route(*place) for place in self._states]
        ups = [route.upstream for route in routes if self.rest(route) > 0]
        return Counter((up.provider.name, up.deployment, up.key) for up in ups)

    def probe(self, route: Route) -> bool:
        """Whether the question that goes there now is a probe: until `left`, nobody else is sent there."""
        state = self._states.get((route.upstream, route.model))
        if state is None or not state.rests:
            return False
        state.probing = True
        return True

    def left(self, route: Route) -> None:
        """The probe is over, with an outcome or without."""
        if (state := self._states.get((route.upstream, route.model))) is not None:
            state.probing = False

    def answered(self, route: Route) -> None:
        """It works. What the provider said about waiting still holds."""
        state = self._states.get((route.upstream, route.model))
        if state is None:
            return
        if state.until > self._clock.monotonic():
            state.failures = 0
        else:
            del self._states[route.upstream, route.model]

    def failed(self, route: Route, failure: Failure) -> None:
        if failure.elsewhere:
            return
        if failure.kind in (Kind.TRANSIENT, Kind.MALFORMED):
            state = self._state(route)
            state.failures += 1
            if state.failures >= FAILURES or state.probing:
                self._open(route, state, min(LONGEST_REST, REST * 2.0 ** min(state.rests, 10)), failure)
            elif failure.retry_after:
                self._extend(state, failure.retry_after)
        elif failure.kind is Kind.CREDENTIALS:
            self._open(route, self._state(route), LONGEST_REST, failure)
        elif failure.kind is Kind.RATE_LIMITED:
            if failure.retry_after:
                self._extend(self._state(route), failure.retry_after)
        else:  # the question is at fault
            self.answered(route)

    def _open(self, route: Route, state: _State, rest: float, failure: Failure) -> None:
        rested = state.until > self._clock.monotonic()
        state.rests += 1
        state.failures = 0
        self._extend(state, max(rest, failure.retry_after or 0.0))
        if rested:
            return
        # Not the provider's message: it may quote the prompt.
        _log.warning(
            "provider %s%s%s: others are asked for %.0f s where there are some, after: %s, HTTP %s",
            route.provider.name,
            f", deployment {route.upstream.deployment}" if route.upstream.deployment else "",
            f", key {route.upstream.key}" if route.upstream.key else "",
            *(state.until - self._clock.monotonic(), failure.kind.value, failure.status or "-"),
        )

    def _extend(self, state: _State, rest: float) -> None:
        state.until = max(state.until, self._clock.monotonic() + rest)

    def _state(self, route: Route) -> _State:
        place = (route.upstream, route.model)
        state = self._states.get(place)
        if state is None:
            if len(self._states) >= _MOST_STATES:
                self._forget()
            state = self._states[place] = _State()
        return state

    def _forget(self) -> None:
        now = self._clock.monotonic()
        self._states = {place: state for place, state in self._states.items() if state.until > now or state.probing}
        while len(self._states) >= _MOST_STATES:
            del self._states[next(iter(self._states))]
