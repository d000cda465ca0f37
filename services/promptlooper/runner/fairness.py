"""How a Runner's slots are shared between experiments, and an experiment's concurrency between Runners."""

from __future__ import annotations

from collections.abc import Mapping

from promptlooper.runner.store.repository import Active

UNUSED = 0.4  # seconds that others may leave room of an experiment unused


class Portion:
    """How many runs of one experiment this Runner wants: its equal part among the Runners that live, and what those
    leave unused, as they may be full of other things."""

    def __init__(self, now: float) -> None:
        self._living, self._extra, self._full_at = 0, 0, now

    def wanted(self, experiment: Active, living: int, in_flight: int, now: float) -> int:
        """`now` in seconds of a monotonic clock."""
        if living != self._living:
            self._living, self._extra = living, 0
        if not experiment.room:
            self._full_at = now
        elif now - self._full_at >= UNUSED:
            self._extra, self._full_at = self._extra + experiment.room, now
        part = -(-experiment.max_concurrency // max(1, living))
        return min(part + self._extra, in_flight + experiment.room)


def fair_shares(slots: int, wants: Mapping[str, int]) -> dict[str, int]:
    """How many runs each experiment may have here at once: equal shares, and what one does not want goes to the others.

    `wants` is what an experiment could run at once. Nothing is preempted: one that has more than its share claims
    nothing until it has less. Where there are more experiments than slots, those that want least come first.
    """
    shares: dict[str, int] = {}
    left = slots
    for rest, (experiment_id, want) in zip(
        range(len(wants), 0, -1), sorted(wants.items(), key=lambda item: (item[1], item[0])), strict=True
    ):
        share = min(want, max(left // rest, 1 if left else 0))
        shares[experiment_id] = share
        left -= share
    return shares
