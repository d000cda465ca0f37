"""`promptlooper models`: what can be asked, and at which price."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.tables import print_table
from promptlooper.cli.wording import count, price
from promptlooper.completion import ModelInfo
from promptlooper.rows import usd


@click.command()
@click.option("--available", is_flag=True, help="Only those that can be asked now.")
@json_option
@session_options
def models(session: Session, available: bool, as_json: bool) -> None:
    """List the models that can be asked. Prices are in dollars for a million tokens in and out."""
    listed = [model for model in run_interruptibly(_listed(session)) if _is_a_name(model)]
    found = [model for model in listed if model.available or not available]
    if as_json:
        print_document([_document(model) for model in found])
        return
    print_table(
        ("model", "available", "in", "out"),
        [
            (
                model.model,
                _availability(model),
                price(model.price.input_nanousd_per_mtok if model.price else None),
                price(model.price.output_nanousd_per_mtok if model.price else None),
            )
            for model in found
        ],
    )
    problems = Counter((model.provider, model.problem) for model in found if model.problem)
    for (provider, problem), models_with_it in problems.items():
        click.echo(f"{provider}: {problem} ({count(models_with_it, 'model')})")


def _is_a_name(model: ModelInfo) -> bool:
    """Price lists hold beginnings of names, too: of models that were tuned, and of families."""
    name = model.model.partition("/")[2]
    return not (name.startswith("ft:") or name.endswith("-"))


def _availability(model: ModelInfo) -> str:
    if not model.available:
        return "no"
    return "not checked" if model.model.endswith("/*") else "yes"


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
        "request_usd": usd(model.price.request_nanousd if model.price else None),
        "price_version": model.price_version or None,
        "limits": [asdict(limit) for limit in model.limits],
    }
