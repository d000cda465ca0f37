"""`promptlooper run`: runs an experiment, in this process or on a Runner, and prints its results."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.failures import failure_lines
from promptlooper.cli.later import not_available_yet
from promptlooper.cli.outcome import OK, Refused, exit_code
from promptlooper.cli.output import OutputFile, output_file, write_results
from promptlooper.cli.overrides import file_argument, override_options, overrides_of
from promptlooper.cli.progress import Progress, ended, progress_for
from promptlooper.cli.reading import places_of, read_file, refused
from promptlooper.cli.report import print_report
from promptlooper.cli.rows import summary_document
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import Interrupted, run_interruptibly
from promptlooper.cli.wording import count
from promptlooper.errors import InvalidExperiment, ServiceUnavailable
from promptlooper.experiment import Experiment
from promptlooper.experiments import Experiments

if TYPE_CHECKING:
    from promptlooper.runner.spec.reading import ReadExperiment

# Counts come in bookmarks, so the events of good runs need not be sent.
_KINDS = (*(f"experiment.{verb}" for verb in ("started", "completed", "cancelled", "failed")), "run.failed")


@dataclass(slots=True)
class _Seen:
    """The experiment as it was last heard of, for what is said after a signal."""

    experiment: Experiment | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    read: ReadExperiment
    request_id: str
    detach: bool
    as_json: bool
    quiet: bool
    files: tuple[OutputFile, ...]


@click.command()
@file_argument
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE", help="Write rows to .jsonl, .json or .csv; repeatable."
)
@override_options
@click.option("--detach", is_flag=True, help="With --server: print the ID and leave.")
@click.option("--request-id", default="", metavar="ID", help="The same ID again gives the first experiment again.")
@click.option("--resume", metavar="ID", hidden=True)
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@session_options
def run(
    session: Session,
    file: Path,
    outputs: tuple[str, ...],
    detach: bool,
    request_id: str,
    resume: str | None,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> int:
    """Run an experiment and print its results. FILE defaults to promptlooper.yaml.

    \b
    Exit codes: 0 finished and gates met, 1 failed or runs failed, 2 usage or file,
    100 a gate missed, 130 and 143 stopped by a signal.
    """
    if resume is not None:
        raise not_available_yet("`run --resume`", "run the file again: what was answered before comes from the cache")
    remote = session.target.server is not None
    if detach and not remote:
        raise click.UsageError("--detach needs --server: without one the experiment runs in this process.")
    if detach and outputs:
        raise click.UsageError("--detach leaves before there are results: use `promptlooper export` instead of -o.")
    files = tuple(output_file(text) for text in outputs)
    read = read_file(file, overrides_of(flags), session)
    # A create that is sent again after a lost connection must not make a second experiment.
    wanted = _Wanted(read, request_id or (uuid.uuid4().hex if remote else ""), detach, as_json, quiet, files)
    progress = progress_for(quiet)
    seen = _Seen()
    try:
        return run_interruptibly(_run(session, wanted, progress, seen))
    except Interrupted as stop:
        raise Refused(_farewell(stop, session, seen.experiment), reason="INTERRUPTED", code=stop.exit_code) from None
    except ServiceUnavailable as error:
        if seen.experiment is None:
            raise
        name = seen.experiment.experiment_id
        again = f"Experiment {name} goes on: promptlooper watch {name}{session.target.option()}"
        raise Refused(f"{error.message} {again}", reason=error.reason) from None


async def _run(session: Session, wanted: _Wanted, progress: Progress, seen: _Seen) -> int:
    async with session.open() as experiments:
        try:
            experiment = await experiments.create(wanted.read.spec, wanted.request_id)
        except InvalidExperiment as error:
            raise refused(places_of(error.problems, wanted.read)) from None
        seen.experiment = experiment
        if wanted.detach:
            await _print_detached(experiments, experiment, wanted.as_json)
            return OK
        try:
            await _follow(experiments, experiment, progress, seen)
        finally:
            progress.close()
        summary = await experiments.summarize(experiment.experiment_id)
        for file in wanted.files:
            await write_results(experiments, experiment.experiment_id, file)
        failures = await failure_lines(experiments, summary.experiment, session.target)
        if wanted.as_json:
            print_document(summary_document(summary))
        else:
            print_report(summary, session.target, limits=wanted.read.spec.limits)
            _print_lines(failures)
        if wanted.as_json or (wanted.quiet and not sys.stdout.isatty()):
            _print_lines(failures, err=True)
        for file in wanted.files:
            click.echo(f"Wrote {file.path}", err=True)
        return exit_code(summary.experiment.state, summary.experiment.counts.failed, summary.gates)


def _print_lines(lines: Sequence[str], err: bool = False) -> None:
    for line in lines:
        click.echo(line, err=err)


async def _print_detached(experiments: Experiments, experiment: Experiment, as_json: bool) -> None:
    if as_json:
        print_document(summary_document(await experiments.summarize(experiment.experiment_id)))
    else:
        click.echo(experiment.experiment_id)


async def _follow(experiments: Experiments, experiment: Experiment, progress: Progress, seen: _Seen) -> None:
    name = experiment.experiment_id
    async for message in experiments.watch(name, kinds=_KINDS, bookmark_interval=progress.bookmark_interval):
        if message.event is not None and message.event.kind == "run.failed":
            progress.failure(message.event)
        now = message.snapshot or message.bookmark or message.terminal
        if now is not None:
            seen.experiment = now
            progress.update(now)


def _farewell(stop: Interrupted, session: Session, experiment: Experiment | None) -> str:
    """What became of the experiment, and what to type next."""
    if experiment is None:
        return f"Stopped by {stop} before the experiment was known to be created; `promptlooper list` would show it."
    name, option = experiment.experiment_id, session.target.option()
    if session.target.server is not None:
        return (
            f"Stopped watching by {stop}; experiment {name} goes on.\n"
            f"  promptlooper watch {name}{option}\n"
            f"  promptlooper cancel {name}{option}"
        )
    kept = f"{ended(experiment):,} of {count(experiment.counts.total, 'run')}"
    return (
        f"Stopped by {stop}. About {kept} of experiment {name} had ended and are kept:\n"
        f"  promptlooper show {name}\n"
        f"  promptlooper export {name} -o results.jsonl\n"
        "Run the same file again to have the rest: what was answered before comes from the cache. Until it is "
        "cancelled, this one counts as unfinished:\n"
        f"  promptlooper cancel {name}"
    )
