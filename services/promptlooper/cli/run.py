"""`promptlooper run`: runs an experiment, in this process or on a Runner, and prints its results."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from promptlooper.cli.following import Start, follow, following_options, wanted_of
from promptlooper.cli.ids import LATEST
from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.cli.overrides import file_argument, override_options, overrides_of
from promptlooper.cli.reading import places_of, read_file, refused
from promptlooper.cli.resume import resumed
from promptlooper.cli.session import Session, Target, session_options
from promptlooper.errors import InvalidExperiment
from promptlooper.experiment import Experiment
from promptlooper.experiments import Experiments

if TYPE_CHECKING:
    from promptlooper.experiment import ExperimentSpec
    from promptlooper.runner.spec.reading import ReadExperiment


@click.command()
@file_argument
@click.option("--resume", metavar="ID", help="Go on with this experiment, or with `latest`, instead of making one.")
@override_options
@following_options
@session_options
@click.pass_context
def run(
    ctx: click.Context,
    /,
    session: Session,
    file: Path,
    resume: str | None,
    outputs: tuple[str, ...],
    detach: bool,
    request_id: str,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> int:
    """Run an experiment and print its results. FILE defaults to promptlooper.yaml.

    With --resume, FILE and the flags that change it are only needed to make sure that it is the same experiment.

    \b
    Exit codes: 0 finished and gates met, 1 failed or runs failed, 2 usage or file,
    100 a gate missed, 130 and 143 stopped by a signal.
    """
    wanted = wanted_of(session, outputs, detach, request_id, as_json, quiet)
    overrides = overrides_of(flags)
    if resume is None:
        return follow(session, wanted, _created(read_file(file, overrides, session), wanted.request_id))
    # --project alone says where to look for `latest`, as in other commands.
    given = [name for name in ("file", *flags) if name != "project" and _was_given(ctx, name)]
    if given and "file" not in given and not file.exists():
        raise _without_file(ctx, resume, given, session.target)
    spec = read_file(file, overrides, session).spec if given else None
    project = spec.project if spec is not None and resume == LATEST else flags["project"]
    same = _same_as(spec, file, given, session.target)
    return follow(session, wanted, resumed(resume, project, wanted.request_id, same))


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _without_file(ctx: click.Context, resume: str, given: list[str], target: Target) -> Refused:
    flags = ", ".join(param.opts[0] for param in ctx.command.params if param.name in given)
    limit_flags = (("max_concurrency", "-j"), ("budget_usd", "--budget-usd"))
    limits = " ".join(f"{flag} {ctx.params[name]}" for name, flag in limit_flags if name in given)
    project = f" --project {shlex.quote(ctx.params['project'])}" if ctx.params["project"] else ""
    update = (
        f" `promptlooper update {resume} {limits}{project}{target.option()}` changes limits, also while it runs."
        if limits
        else ""
    )
    return Refused(
        f"--resume goes on with an experiment as it was made, and flags such as {flags} are part of that: name the "
        f"FILE that it was made of, so that they can be compared, or leave them out.{update}",
        reason="INVALID_ARGUMENT",
        code=USAGE,
    )


def _created(read: ReadExperiment, request_id: str) -> Start:
    async def create(experiments: Experiments, taken_up: Callable[[str], None]) -> Experiment:
        try:
            experiment = await experiments.create(read.spec, request_id)
        except InvalidExperiment as error:
            raise refused(places_of(error.problems, read)) from None
        taken_up(experiment.experiment_id)
        return experiment

    return create


def _same_as(spec: ExperimentSpec | None, file: Path, given: list[str], target: Target) -> Callable[[Experiment], None]:
    """Refuses an experiment that the file and flags would not make. Without them, or where it is not known what it was
    made of, any will do."""
    if spec is None:
        return lambda experiment: None
    from promptlooper.runner.spec.normal import body_sha256, completed

    wanted = body_sha256(completed(spec))

    def same(experiment: Experiment) -> None:
        if experiment.spec_sha256 in ("", wanted):
            return
        name, option = experiment.experiment_id, target.option()
        limits = (
            f" `promptlooper update {name}{option}` changes its limits."
            if {"max_concurrency", "budget_usd"} & {*given}
            else ""
        )
        raise Refused(
            f"Experiment {name} was made of something else than {str(file)!r} with these flags. Go on with it as it is "
            f"with `promptlooper run --resume {name}{option}`, or leave --resume out to make a new one.{limits}",
            reason="INVALID_ARGUMENT",
            code=USAGE,
        )

    return same
