"""Named places in the code where tests make things go wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Failpoints:
    """Calls what is set for a name when the code passes it; nothing is set by default.

    An action raises to fail there. The code passes `failpoints.hit("before_commit")` synchronously, in the thread that
    does the work, so that an action also runs inside a transaction.
    """

    def __init__(self, actions: Mapping[str, Callable[[], None]] | None = None) -> None:
        self.actions: dict[str, Callable[[], None]] = dict(actions or {})

    def hit(self, name: str) -> None:
        if self.actions and (action := self.actions.get(name)) is not None:
            action()
