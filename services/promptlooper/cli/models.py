"""`promptlooper models`: what can be asked, and at which price."""

from __future__ import annotations

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.rows import usd
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.tables import print_table
from promptlooper.cli.wording import money
from promptlooper.completion import ModelInfo


@click.command()
@click.option("--available", is_flag=True, help="Only those that can be asked now.")
@json_option
@session_options
def models(session: Session, available: bool, as_json: bool) -> None:
    """List the models that can be asked. Prices are in dollars for a million tokens in and out."""
    found = [model for model in run_interruptibly(_listed(session)) if model.available or not available]
    if as_json:
        print_document([_document(model) for model in found])
        return
    print_table(
        ("model", "available", "in", "out", "problem"),
        [
            (
                model.model,
                "yes" if model.available else "no",
                money(model.price.input_nanousd_per_mtok if model.price else None),
                money(model.price.output_nanousd_per_mtok if model.price else None),
                model.problem or "",
            )
            for model in found
        ],
    )


async def _listed(session: Session) -> list[ModelInfo]:
    async with session.open() as experiments:
        return await experiments.list_models()


def _document(model: ModelInfo) -> dict[str, object]:
    return {
        "model": model.model,
        "provider": model.provider,
        "available": model.available,
        "problem": model.problem,
        "input_usd_per_mtok": usd(model.price.input_nanousd_per_mtok if model.price else None),
        "output_usd_per_mtok": usd(model.price.output_nanousd_per_mtok if model.price else None),
    }
