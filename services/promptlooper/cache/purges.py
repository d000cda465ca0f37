"""What was purged, as numbers that only grow: a value that was stored under a smaller one counts as none.

So a purge is one write, however much it makes forgotten, and holds at once wherever values are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

ANY = "*"
EVERYTHING = f"{ANY}.{ANY} {ANY}"
NUMBER = "number"
"""The name beside the patterns that counts all purges: where it is unchanged, so are they."""


@dataclass(frozen=True, slots=True)
class Purge:
    """`project`, `namespace` and `model`: "" is any."""

    project: str = ""
    namespace: str = ""
    model: str = ""

    @property
    def pattern(self) -> str:
        return f"{self.project or ANY}.{self.namespace or ANY} {self.model or ANY}"


@dataclass(slots=True)
class Purges:
    """`counts`: how often each pattern was purged, and NUMBER. After a purge of EVERYTHING, it alone is left, with
    NUMBER, so that sums still only grow."""

    counts: Mapping[str, int]
    _sums: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.counts.get(NUMBER, 0)

    def generation(self, key: str, model: str) -> int:
        """The sum of the purges that were of such a value. One whose model is not known was of every model."""
        if not self.counts:
            return 0
        scope = key.partition(":")[0]
        if (known := self._sums.get((scope, model))) is None:
            known = self._sums[scope, model] = self._sum(scope, model)
        return known

    def _sum(self, scope: str, model: str) -> int:
        project, _, namespace = scope.partition(".")
        scopes = [f"{p}.{n}" for p, n in product((project, ANY), (namespace, ANY))]
        if not model:
            return sum(count for pattern, count in self.counts.items() if pattern.partition(" ")[0] in scopes)
        return sum(self.counts.get(f"{one} {which}", 0) for one, which in product(scopes, (model, ANY)))
