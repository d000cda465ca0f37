"""What a later version will have: refused in plain words, never ignored."""

from __future__ import annotations

from collections.abc import Mapping

import click

from promptlooper.cli.outcome import USAGE, Refused

LATER: Mapping[str, str] = {
    "compare": "`promptlooper show` prints the results of one experiment",
    "rescore": "run the experiment again with the new scorers: the answers come from the cache",
}


def not_available_yet(what: str, instead: str = "") -> Refused:
    hint = f" Until then: {instead}." if instead else ""
    return Refused(f"{what} is not available yet.{hint}", reason="NOT_AVAILABLE_YET", code=USAGE)


def refusal(name: str) -> click.Command:
    """A hidden command that takes anything and says so."""

    def refuse() -> None:
        raise not_available_yet(f"`promptlooper {name}`", LATER[name])

    return click.Command(
        name,
        callback=refuse,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, expose_value=False)],
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        add_help_option=False,
        hidden=True,
    )
