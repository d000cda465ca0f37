"""`promptlooper validate`: checks an experiment as `run` would, and runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.overrides import file_argument, override_options, overrides_of
from promptlooper.cli.reading import places_of, read_file, refused
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.wording import count, money
from promptlooper.experiments import Validation
from promptlooper.rows import usd

if TYPE_CHECKING:
    from promptlooper.experiment import ExperimentSpec


@click.command()
@file_argument
@override_options
@json_option
@session_options
def validate(session: Session, file: Path, as_json: bool, **flags: Any) -> None:
    """Check an experiment; say its runs, calls and what they may cost. Runs nothing."""
    read = read_file(file, overrides_of(flags), session)
    found = run_interruptibly(_validated(session, read.spec))
    if found.problems:
        raise refused(places_of(found.problems, read))
    budget = read.spec.limits.budget_nanousd
    if budget is not None and found.estimated_cost_nanousd is not None and budget < found.estimated_cost_nanousd:
        click.echo(
            f"Warning: the budget of {money(budget)} is below the estimated cost of "
            f"{money(found.estimated_cost_nanousd)}; the experiment may end before every run has been made.",
            err=True,
        )
    if as_json:
        print_document(
            {
                "valid": True,
                "name": read.spec.name,
                "runs": found.runs,
                "calls": found.calls,
                "calls_at_least": found.calls_at_least,
                "estimated_cost_usd": usd(found.estimated_cost_nanousd),
                "price_versions": list(found.price_versions),
            }
        )
        return
    if found.estimated_cost_nanousd is None:
        why = ": a model has no price, or max_tokens is not set"
    else:
        why = f" (prices: {', '.join(found.price_versions)})" if found.price_versions else ""
    least = "at least " if found.calls_at_least else ""
    click.echo(
        f"{file} is valid: {count(found.runs, 'run')}, {least}{count(found.calls, 'call')}, "
        f"estimated cost {least}{money(found.estimated_cost_nanousd)}{why}"
    )


async def _validated(session: Session, spec: ExperimentSpec) -> Validation:
    async with session.open() as experiments:
        return await experiments.validate(spec)
