"""Who calls, and what they may do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from promptlooper.rpc.scopes import Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """`until` is in seconds since the epoch: the token's end."""

    name: str
    scopes: frozenset[Scope]
    until: float

    def may(self, needed: Scope) -> bool:
        return any(scope.includes(needed) for scope in self.scopes)


def parsed_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Raises ValueError for one that does not exist."""
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError as error:
        raise ValueError(f"{str(error).partition(' is not')[0]} is no scope: use read, run or admin") from None
