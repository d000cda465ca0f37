"""How a Runner's slots are shared between experiments."""

from __future__ import annotations

from collections.abc import Mapping


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
