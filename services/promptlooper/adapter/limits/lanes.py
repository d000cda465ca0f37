"""All lanes of an Adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from promptlooper.adapter.limits.lane import Keeper, LanePermit, WaitingLane
from promptlooper.adapter.limits.ledger import Ledger, Rules, exchanged
from promptlooper.adapter.limits.limiter import Held, Lane, Question
from promptlooper.adapter.limits.share import Share
from promptlooper.clock import Clock
from promptlooper.completion import LimitState

_MOST_LANES = 1_000  # callers may name any model
_HERE = "here"


class Here:
    """Keeps a ledger for one lane of this process, alone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ledger = Ledger()

    def now(self) -> float:
        return self._clock.monotonic()

    def exchange(self, lane: WaitingLane, *, urgent: bool) -> None:
        grant = exchanged(self._ledger, _HERE, lane.report(), lane.share.rules, self.now())
        lane.take(grant, replace(self._ledger.control))


class Lanes:
    """The Limiter of the gateway. `rules` says what the configuration has on a provider's model; `keeper` makes what
    keeps a lane's ledger."""

    def __init__(
        self, rules: Callable[[Lane], Rules], clock: Clock, keeper: Callable[[Lane], Keeper] | None = None
    ) -> None:
        self._rules, self._clock = rules, clock
        self._keeper = keeper or (lambda _: Here(clock))
        self._lanes: dict[Lane, WaitingLane] = {}
        self.held: Counter[tuple[str, str]] = Counter()

    async def permit(self, lane: Lane, request: Question) -> LanePermit:
        """Raises Held."""
        found = self._lanes.pop(lane, None)
        if found is None:
            found = self._opened(lane)
        self._lanes[lane] = found  # the last used is last
        try:
            return await found.permit(request)
        except Held as held:
            self.held[lane.provider, held.waits_for] += 1
            raise

    def queue(self, lane: Lane) -> WaitingLane:
        """Of a lane that was used."""
        return self._lanes[lane]

    def states(self) -> Mapping[Lane, LimitState]:
        return {lane: one.state(lane.key) for lane, one in self._lanes.items()}

    def _opened(self, lane: Lane) -> WaitingLane:
        if len(self._lanes) >= _MOST_LANES:
            for idle in [name for name, one in self._lanes.items() if one.is_idle][: _MOST_LANES // 10]:
                del self._lanes[idle]
        return WaitingLane(Share(self._rules(lane)), self._keeper(lane), self._clock.now)
