"""The kinds of events, as `--kind` takes them."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

import click

_EXPERIMENT = ("created", "started", "paused", "resumed", "updated", "completed", "cancelled", "failed", "deleted")
_RUN = ("started", "stage_completed", "waiting", "completed", "failed", "cancelled", "rescored")
KINDS = (*(f"experiment.{verb}" for verb in _EXPERIMENT), *(f"run.{verb}" for verb in _RUN))

Command = TypeVar("Command", bound=Callable[..., Any])


class _Kind(click.ParamType[str]):
    name = "kind"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in KINDS:
            nearest = get_close_matches(value, KINDS, n=1, cutoff=0)[0]
            self.fail(f"There is no kind {value!r}; the nearest is {nearest!r}. All: {', '.join(KINDS)}.", param, ctx)
        return value


kinds_option = click.option(
    "--kind", "kinds", multiple=True, type=_Kind(), metavar="KIND", help="Only events of this kind; repeatable."
)
