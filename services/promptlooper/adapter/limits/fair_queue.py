"""Whose turn it is: those who wait for one answer first, then one of each experiment in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    @property
    def experiment(self) -> str:
        """ "" is nobody's: it comes first."""
        ...

    @property
    def left(self) -> bool:
        """Does not wait any more."""
        ...


W = TypeVar("W", bound=Waiting)


class FairQueue(Generic[W]):
    """`leave` is for who gives up: they are counted out at once, and dropped when their turn comes."""

    def __init__(self) -> None:
        self._urgent: deque[W] = deque()
        self._turns: OrderedDict[str, deque[W]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[W]:
        """Not in their order."""
        for queue in (self._urgent, *self._turns.values()):
            yield from (one for one in queue if not one.left)

    def add(self, one: W) -> None:
        queue = self._turns.setdefault(one.experiment, deque()) if one.experiment else self._urgent
        queue.append(one)
        self._count += 1

    def leave(self) -> None:
        self._count -= 1

    def ahead_of(self, experiment: str) -> int:
        """How many go before the next one of this experiment, if no others come."""
        urgent = sum(not one.left for one in self._urgent)
        if not experiment:
            return urgent
        own = len(self._turns.get(experiment, ()))
        return urgent + own + sum(min(len(queue), own + 1) for name, queue in self._turns.items() if name != experiment)

    def head(self) -> W | None:
        self._drop(self._urgent)
        if self._urgent:
            return self._urgent[0]
        for name in list(self._turns):
            queue = self._turns[name]
            self._drop(queue)
            if queue:
                return queue[0]
            del self._turns[name]
        return None

    def take(self) -> None:
        """Takes `head` away; the next one is another experiment's."""
        self._count -= 1
        if self._urgent:
            self._urgent.popleft()
            return
        name = next(iter(self._turns))
        self._turns[name].popleft()
        if self._turns[name]:
            self._turns.move_to_end(name)
        else:
            del self._turns[name]

    @staticmethod
    def _drop(queue: deque[W]) -> None:
        while queue and queue[0].left:
            queue.popleft()
