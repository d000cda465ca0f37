"""`promptlooper scorers`: what outputs can be scored by."""

from __future__ import annotations

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.tables import print_table, terminal_width
from promptlooper.scoring import ScorerInfo


@click.command()
@json_option
@session_options
def scorers(session: Session, as_json: bool) -> None:
    """List the scorers. Any of them can be negated: `not-contains`."""
    found = run_interruptibly(_listed(session))
    if as_json:
        print_document([_document(scorer) for scorer in found])
        return
    print_table(
        ("type", "value", "settings", "what it does"),
        [
            (
                scorer.type,
                "needed" if scorer.value_required else "optional" if scorer.value_schema else "none",
                ", ".join(_settings(scorer)),
                scorer.description,
            )
            for scorer in found
        ],
        terminal_width(),
    )


async def _listed(session: Session) -> list[ScorerInfo]:
    async with session.open() as experiments:
        return await experiments.list_scorers()


def _settings(scorer: ScorerInfo) -> list[str]:
    properties = scorer.settings_schema.get("properties")
    return sorted(properties) if isinstance(properties, dict) else []


def _document(scorer: ScorerInfo) -> dict[str, object]:
    return {
        "type": scorer.type,
        "description": scorer.description,
        "value_required": scorer.value_required,
        "value_schema": scorer.value_schema,
        "settings_schema": scorer.settings_schema,
    }
