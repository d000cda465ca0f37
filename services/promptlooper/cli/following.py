"""Follows an experiment to its end: progress, results, farewell. `run`, `resume` and `retry` differ only in how they
start."""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import click

from promptlooper import tracing
from promptlooper.cli.connection import Connection, given_up
from promptlooper.cli.documents import print_document
from promptlooper.cli.failures import failure_lines
from promptlooper.cli.outcome import OK, Refused, exit_code
from promptlooper.cli.output import OutputFile, output_file, write_results
from promptlooper.cli.progress import Progress, ended, progress_for
from promptlooper.cli.report import paused_line, print_report
from promptlooper.cli.session import Session, Target, json_option
from promptlooper.cli.signals import Interrupted, run_interruptibly
from promptlooper.cli.wording import count
from promptlooper.errors import ServiceUnavailable
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.experiments import Experiments
from promptlooper.rows import summary_document
from promptlooper.run import Event

# Counts come in bookmarks, so the events of good runs need not be sent.
_VERBS = ("started", "paused", "resumed", "updated", "completed", "cancelled", "failed")
_KINDS = (*(f"experiment.{verb}" for verb in _VERBS), "run.failed")

Command = TypeVar("Command", bound=Callable[..., Any])
Start = Callable[[Experiments, Callable[[str], None]], Awaitable[Experiment]]
"""Creates an experiment or takes one up. The second argument is called with its id as soon as that is known."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an experiment is followed."""

    request_id: str
    detach: bool
    as_json: bool
    quiet: bool
    files: tuple[OutputFile, ...]
    outputs: tuple[str, ...]  # `files` as they were given


_OPTIONS = (
    click.option(
        *("-o", "--output", "outputs"),
        multiple=True,
        metavar="FILE",
        help="Write rows to .jsonl, .json or .csv; repeatable.",
    ),
    click.option("--detach", is_flag=True, help="With --server: print the ID and leave."),
    click.option("--request-id", default="", metavar="ID", help="The same ID again gives the first answer again."),
    json_option,
    click.option("-q", "--quiet", is_flag=True, help="No progress."),
)


def following_options(command: Command) -> Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wanted_of(
    session: Session, outputs: tuple[str, ...], detach: bool, request_id: str, as_json: bool, quiet: bool
) -> Wanted:
    """Of the values of `following_options`. Refuses what could not be done, before anything is started."""
    remote = session.target.server is not None
    if detach and not remote:
        raise click.UsageError("--detach needs --server: without one the experiment runs in this process.")
    if detach and outputs:
        raise click.UsageError("--detach leaves before there are results: use `promptlooper export` instead of -o.")
    # What is sent again after a lost connection must not start a second time.
    request_id = request_id or (uuid.uuid4().hex if remote else "")
    return Wanted(request_id, detach, as_json, quiet, tuple(output_file(text) for text in outputs), outputs)


def follow(session: Session, wanted: Wanted, start: Start) -> int:
    """Starts, follows to the end, prints the results, and returns the exit code."""
    seen = _Seen()
    try:
        with tracing.beginning("promptlooper run", partial(tracing.recording, "cli")):
            return run_interruptibly(_followed(session, wanted, start, progress_for(wanted.quiet), seen))
    except Interrupted as stop:
        said = _farewell(stop, session, seen.experiment, wanted)
        raise Refused(said, reason="INTERRUPTED", code=stop.exit_code) from None
    except ServiceUnavailable as error:
        if seen.experiment is None:
            raise
        raise given_up(error, seen.experiment.experiment_id, session.target) from None


@dataclass(slots=True)
class _Seen:
    """The experiment as it was last heard of, for what is said after a signal."""

    experiment: Experiment | None = None


async def _followed(session: Session, wanted: Wanted, start: Start, progress: Progress, seen: _Seen) -> int:
    with ExitStack() as stack:
        async with session.open(Connection(session.target, progress.note)) as experiments:
            experiment = await start(experiments, lambda name: stack.enter_context(session.target.working_on(name)))
            seen.experiment = experiment
            if wanted.detach:
                await _print_detached(experiments, experiment, wanted.as_json)
                return OK
            try:
                await _to_its_end(experiments, experiment, session.target, progress, seen)
            finally:
                progress.close()
            return await _report(experiments, experiment.experiment_id, session.target, wanted)


async def _to_its_end(
    experiments: Experiments, experiment: Experiment, target: Target, progress: Progress, seen: _Seen
) -> None:
    name = experiment.experiment_id
    async for message in experiments.watch(name, kinds=_KINDS, bookmark_interval=progress.bookmark_interval):
        if message.event is not None:
            _tell(message.event, progress)
        now = message.experiment
        if now is not None:
            was, seen.experiment = seen.experiment, now
            progress.update(now)
            paused = now.state is ExperimentState.PAUSED
            if paused and (message.snapshot is not None or was is None or was.state is not now.state):
                progress.note(paused_line(now, target))


def _tell(event: Event, progress: Progress) -> None:
    if event.kind == "run.failed":
        progress.failure(event)
    elif event.kind == "experiment.resumed":
        progress.note(f"Experiment {event.experiment_id} was resumed.")


async def _report(experiments: Experiments, name: str, target: Target, wanted: Wanted) -> int:
    summary = await experiments.summarize(name)
    for file in wanted.files:
        await write_results(experiments, name, file)
    failures = await failure_lines(experiments, summary.experiment, target)
    if wanted.as_json:
        print_document(summary_document(summary))
    else:
        print_report(summary, target)
        _print_lines(failures)
    if wanted.as_json or (wanted.quiet and not sys.stdout.isatty()):
        _print_lines(failures, err=True)
    for file in wanted.files:
        click.echo(f"Wrote {file.path}", err=True)
    return exit_code(summary)


def _print_lines(lines: Sequence[str], err: bool = False) -> None:
    for line in lines:
        click.echo(line, err=err)


async def _print_detached(experiments: Experiments, experiment: Experiment, as_json: bool) -> None:
    if as_json:
        print_document(summary_document(await experiments.summarize(experiment.experiment_id)))
    else:
        click.echo(experiment.experiment_id)


def _farewell(stop: Interrupted, session: Session, experiment: Experiment | None, wanted: Wanted) -> str:
    """What became of the experiment, and what to type next. This process works on it no more."""
    if experiment is None:
        return f"Stopped by {stop} before the experiment was known to be stored; `promptlooper list` would show it."
    name, option = experiment.experiment_id, session.target.option()
    remote, had_ended = session.target.server is not None, experiment.state.ended
    if remote or (not had_ended and session.target.is_worked_on(name)):
        where = "" if remote else " in another process"
        if experiment.state is ExperimentState.PAUSED:
            now, verb = "is paused", "resume"
        else:
            now, verb = f"goes on{where}", "watch"
        return (
            f"Stopped watching by {stop}; experiment {name} {now}.\n"
            f"  promptlooper {verb} {name}{option}\n"
            f"  promptlooper cancel {name}{option}"
        )
    files = "".join(f" -o {shlex.quote(text)}" for text in wanted.outputs)
    if had_ended:
        again = f"promptlooper run --resume {name}{files}{option}"
        return f"Stopped by {stop}; experiment {name} had ended. Its results:\n  {again}"
    least = ended(experiment)  # a moment ago: more may have ended
    kept = f" At least {least:,} of {count(experiment.counts.total, 'run')} had ended." if least else ""
    waiting = experiment.counts.in_batch
    there = f" Batches for {count(waiting, 'run')} go on at their provider and are billed." if waiting else ""
    return (
        f"Stopped by {stop}.{kept} What was answered of experiment {name} is kept.{there} Run the rest:\n"
        f"  promptlooper run --resume {name}{files}{option}\n"
        "See what there is, or end it:\n"
        f"  promptlooper show {name}{option}\n"
        f"  promptlooper cancel {name}{option}"
    )
