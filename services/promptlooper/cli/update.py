"""`promptlooper update`: changes limits of an experiment, also while it runs."""

from __future__ import annotations

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.ids import meant
from promptlooper.cli.overrides import concurrency_option
from promptlooper.cli.session import Session, json_option, project_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.wording import count, money
from promptlooper.experiment import Experiment
from promptlooper.experiments import ExperimentUpdate
from promptlooper.rows import experiment_document


@click.command()
@click.argument("experiment_id", metavar="ID")
@concurrency_option
@click.option(
    "--budget-usd",
    type=click.FloatRange(min=0, min_open=True, max=1e9),
    metavar="X",
    help="Spend at most X, with what is spent already; only where there is a budget in dollars.",
)
@click.option(
    "--budget-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pay for at most N tokens, with those paid already; only where there is a budget in tokens.",
)
@project_option
@json_option
@session_options
def update(
    session: Session,
    experiment_id: str,
    max_concurrency: int | None,
    budget_usd: float | None,
    budget_tokens: int | None,
    project: str | None,
    as_json: bool,
) -> None:
    """Change limits of an experiment, also while it runs. Runs that are under way are not stopped."""
    if max_concurrency is None and budget_usd is None and budget_tokens is None:
        raise click.UsageError("Nothing to change: give --max-concurrency, --budget-usd or --budget-tokens.")
    from promptlooper.runner.spec.values import nanousd

    budget = None if budget_usd is None else nanousd(budget_usd)
    change = ExperimentUpdate(max_concurrency, budget, budget_tokens)
    now = run_interruptibly(_updated(session, experiment_id, project, change))
    if as_json:
        print_document(experiment_document(now))
    else:
        click.echo(f"Experiment {now.experiment_id}: {_limits(now)}.", err=True)


async def _updated(session: Session, text: str, project: str | None, change: ExperimentUpdate) -> Experiment:
    async with session.open() as experiments:
        found = await meant(experiments, text, project)
        return await experiments.update(found.experiment_id, change)


def _limits(experiment: Experiment) -> str:
    parts = [f"at most {count(experiment.max_concurrency, 'run')} at once"]
    if experiment.budget_nanousd is not None:
        parts.append(f"a budget of {money(experiment.budget_nanousd)}")
    if experiment.budget_tokens is not None:
        parts.append(f"at most {count(experiment.budget_tokens, 'paid token')}")
    return ", ".join(parts)
