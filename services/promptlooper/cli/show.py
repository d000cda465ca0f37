"""`promptlooper show`: an experiment's results so far, or one of its runs."""

from __future__ import annotations

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.ids import meant
from promptlooper.cli.messages import asked_for, said
from promptlooper.cli.report import print_report
from promptlooper.cli.session import Session, json_option, project_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.wording import count, milliseconds, money, one_line, printable, share
from promptlooper.experiment import ExperimentSummary
from promptlooper.rows import run_row, summary_document
from promptlooper.run import Run, RunState

_SHOWN_FAILURES = 10


@click.command()
@click.argument("experiment_id", metavar="ID")
@click.option("--run", "run_index", type=click.IntRange(min=0), metavar="N", help="Show run N in full.")
@project_option
@json_option
@session_options
def show(session: Session, experiment_id: str, run_index: int | None, project: str | None, as_json: bool) -> None:
    """Show an experiment's results so far. ID may be the beginning of one, or `latest`."""
    if run_index is not None:
        run = run_interruptibly(_run(session, experiment_id, project, run_index))
        if as_json:
            print_document(run_row(run))
        else:
            _print_run(run)
        return
    left_alone = session.target.left_alone()
    summary, failures = run_interruptibly(_summary(session, experiment_id, project))
    if as_json:
        print_document(summary_document(summary))
        return
    experiment = summary.experiment
    click.secho(printable(f"{experiment.name}  {experiment.experiment_id}"), bold=True)
    if experiment.description:
        click.echo(printable(experiment.description))
    print_report(summary, session.target, left_alone=left_alone(experiment))
    for run in failures:
        assert run.error is not None
        click.echo(one_line(f"run {run.run_index} failed: {run.error.reason}: {run.error.message}"))
    unseen = experiment.counts.failed - len(failures)
    if unseen > 0 and failures:
        click.echo(f"and {count(unseen, 'more failed run')}")


async def _summary(session: Session, text: str, project: str | None) -> tuple[ExperimentSummary, list[Run]]:
    async with session.open() as experiments:
        found = await meant(experiments, text, project)
        summary = await experiments.summarize(found.experiment_id)
        failed = await experiments.list_runs(found.experiment_id, _SHOWN_FAILURES, states=(RunState.FAILED,))
        return summary, [run for run in failed.runs if run.error is not None]


async def _run(session: Session, text: str, project: str | None, run_index: int) -> Run:
    async with session.open() as experiments:
        found = await meant(experiments, text, project)
        return await experiments.get_run(f"{found.experiment_id}-{run_index}")


def _echo(*lines: str) -> None:
    for line in lines:
        click.echo(printable(line))


def _print_run(run: Run) -> None:
    click.secho(f"run {run.run_id}  {run.state.value}", bold=True)
    click.echo(printable(f"{run.pipeline} · {run.model} · input {run.input_id} · repeat {run.repeat}"))
    for stage in run.stages:
        name = f" ({stage.name})" if stage.name else ""
        cached = ", cached" if stage.cached else ", by a batch" if stage.batched else ""
        cost, model = money(stage.cost_nanousd), stage.model or stage.model_requested
        click.secho(
            f"\nstage {stage.stage_index}{name}: {model}, {milliseconds(stage.latency_ms)}, {cost}{cached}",
            bold=True,
        )
        for message in stage.messages:
            _echo(f"[{message.role}] {message.content}", *said(message))
        if not stage.finish_reason:
            click.echo("[no answer]")
            continue
        calls = list(asked_for(stage.tool_calls))
        _echo(*([] if calls and not stage.output else [f"[answer] {stage.output}"]), *calls)
        if stage.error is not None:
            _echo(f"{stage.error.reason}: {stage.error.message}")
    if run.scores:
        click.secho(f"\nscore {share(run.score)}", bold=True)
    for score in run.scores:
        detail = score.error or score.explanation
        click.echo(one_line(f"{score.name}: {share(score.value)}" + (f" – {detail}" if detail else "")))
    if run.error is not None:
        click.echo(printable(f"\nfailed: {run.error.reason}: {run.error.message}"))
