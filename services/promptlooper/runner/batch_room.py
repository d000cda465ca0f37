"""How much is handed in at once of an experiment whose provider has too much in batches already."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from promptlooper.clock import Clock
from promptlooper.runner.store.batches import Sizes

_LONGEST = 32  # times the pause


@dataclass(slots=True)
class _Less:
    items: int
    until: float = 0.0  # monotonic time: nothing before
    pauses: int = 1  # how long the next one is


@dataclass(slots=True)
class BatchRoom:
    """A batch that was too much beside others is handed in later: after `pause` seconds, then twice as many, and so on.
    One that was too much alone is halved; then one batch goes at a time, each that goes well twice as large as the one
    before."""

    most: Sizes
    pause: float
    clock: Clock
    _less: dict[str, _Less] = field(default_factory=dict)  # by experiment

    def sizes(self, experiment_id: str, under_way: int) -> Sizes | None:
        """What a batch may have at most, so many being open; None where there is none to be made now."""
        less = self._less.get(experiment_id)
        if less is None:
            return self.most
        if self.clock.monotonic() < less.until or (under_way and less.items < self.most.items):
            return None
        return replace(self.most, items=less.items)

    def was_too_much(self, experiment_id: str, items: int, *, alone: bool) -> None:
        less = self._less.setdefault(experiment_id, _Less(self.most.items))
        if alone:
            less.items, less.pauses = max(1, items // 2), 1
        less.until = self.clock.monotonic() + self.pause * less.pauses
        less.pauses = min(2 * less.pauses, _LONGEST)

    def went_well(self, experiment_id: str) -> None:
        less = self._less.pop(experiment_id, None)
        if less is not None and less.items < self.most.items:
            self._less[experiment_id] = _Less(min(2 * less.items, self.most.items))

    def forget_all_but(self, experiments: Collection[str]) -> None:
        for experiment_id in self._less.keys() - set(experiments):
            del self._less[experiment_id]
