"""What all simulations of a process share, because making it takes longer than a simulation. None of it remembers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from unittest.mock import patch

from simulation.store import Disk

from promptlooper.runner.references import References
from promptlooper.runner.render import Renderer
from promptlooper.scorer.registry import ScorerCore


@lru_cache(maxsize=1)
def scorers() -> ScorerCore:
    return ScorerCore()


class KeptRenderer(Renderer):
    """Keeps also what it has found out about templates."""

    def __init__(self) -> None:
        super().__init__()
        self._references: dict[str, References] = {}

    def references(self, source: str) -> References:
        if source not in self._references:
            self._references[source] = super().references(source)
        return self._references[source]


@lru_cache(maxsize=1)
def renderer() -> KeptRenderer:
    return KeptRenderer()


@contextmanager
def one_renderer() -> Iterator[None]:
    with (
        patch("promptlooper.runner.app.Renderer", renderer),
        patch("promptlooper.runner.spec.check_services.Renderer", renderer),
    ):
        yield


@lru_cache(maxsize=1)
def disk() -> Disk:
    """Emptied before each simulation."""
    return Disk()
