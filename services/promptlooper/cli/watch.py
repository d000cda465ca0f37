"""`promptlooper watch`: an experiment's events as they happen, to its end."""

from __future__ import annotations

import time
from datetime import datetime
from functools import partial
from typing import Any

import click

from promptlooper.cli.connection import Connection, given_up
from promptlooper.cli.documents import print_document
from promptlooper.cli.ids import meant
from promptlooper.cli.kinds import kinds_option
from promptlooper.cli.outcome import Refused, exit_code
from promptlooper.cli.report import left_alone_line, state_line
from promptlooper.cli.session import Session, project_option, session_options
from promptlooper.cli.signals import Interrupted, run_interruptibly
from promptlooper.cli.wording import local_time, milliseconds, money, one_line, share
from promptlooper.errors import ServiceUnavailable
from promptlooper.experiment import Experiment
from promptlooper.experiments import Experiments, WatchMessage
from promptlooper.rows import experiment_document, iso
from promptlooper.run import Event

_LOOK_EVERY = 1.0  # seconds between two looks at whether a process works on it, or whether its server is there
_BOOKMARK_EVERY = 15.0  # seconds without anything else


@click.command()
@click.argument("experiment_id", metavar="ID")
@kinds_option
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@session_options
def watch(session: Session, experiment_id: str, kinds: tuple[str, ...], project: str | None, as_json: bool) -> int:
    """Follow an experiment to its end. The exit code is that of `run`.

    Ctrl-C ends the watch, not the experiment.
    """
    try:
        return run_interruptibly(_watched(session, experiment_id, kinds, project, as_json))
    except Interrupted as stop:
        again = f"promptlooper watch {experiment_id}{session.target.option()}"
        raise Refused(
            f"Stopped watching; the experiment is not touched by that. Watch it again: {again}",
            reason="INTERRUPTED",
            code=stop.exit_code,
        ) from None


async def _watched(session: Session, text: str, kinds: tuple[str, ...], project: str | None, as_json: bool) -> int:
    left_alone = session.target.left_alone()
    embedded = session.target.server is None
    connection = Connection(session.target, partial(click.echo, err=True))
    async with session.open(connection) as experiments:
        found = await meant(experiments, text, project)
        if left_alone(found):
            raise _nobody_works(found, session)
        name, told = found.experiment_id, time.monotonic()
        try:
            async for message in experiments.watch(name, kinds=kinds, bookmark_interval=_LOOK_EVERY):
                if message.bookmark is not None:
                    if embedded:
                        await _look(session, experiments, name)
                    if time.monotonic() - told < _BOOKMARK_EVERY:
                        continue
                told = time.monotonic()
                if as_json:
                    print_document(watch_document(message))
                elif (line := watch_line(message)) is not None:
                    click.echo(line)
            summary = await experiments.summarize(name)
        except ServiceUnavailable as error:
            raise given_up(error, name, session.target) from None
        return exit_code(summary)


async def _look(session: Session, experiments: Experiments, experiment_id: str) -> None:
    """Ends the watch where the process that worked on the experiment has gone: nothing would ever come."""
    left_alone = session.target.left_alone()
    now = await experiments.get(experiment_id)
    if left_alone(now):
        raise _nobody_works(now, session)


def _nobody_works(experiment: Experiment, session: Session) -> Refused:
    return Refused(left_alone_line(experiment, session.target), reason="INTERRUPTED")


def watch_document(message: WatchMessage) -> dict[str, Any]:
    """As the RPC's response: token, number, and one of snapshot, event, bookmark, terminal."""
    document: dict[str, Any] = {"resume_token": message.resume_token, "event_seq": message.event_seq}
    if message.event is not None:
        document["event"] = event_document(message.event)
    for key in ("snapshot", "bookmark", "terminal"):
        if (experiment := getattr(message, key)) is not None:
            document[key] = experiment_document(experiment)
    return document


def event_document(event: Event) -> dict[str, Any]:
    detail = {key: iso(value) if isinstance(value, datetime) else value for key, value in event.detail.items()}
    return {
        "experiment_id": event.experiment_id,
        "event_seq": event.event_seq,
        "project": event.project,
        "kind": event.kind,
        "event_time": iso(event.event_time),
        "run_id": event.run_id,
        "run_index": event.run_index,
        "generation": event.generation,
        "detail": detail,
    }


def watch_line(message: WatchMessage) -> str | None:
    """None for a bookmark, which says nothing new to a reader, and where the terminal message will say the same."""
    if message.snapshot is not None and not message.snapshot.state.ended:
        return f"{message.snapshot.experiment_id}: {state_line(message.snapshot)}"
    if message.event is not None:
        return event_line(message.event)
    if message.terminal is not None:
        return f"{message.terminal.experiment_id}: {state_line(message.terminal)}"
    return None


def event_line(event: Event) -> str:
    detail = event.detail
    parts = [local_time(event.event_time), f"#{event.event_seq}", event.kind]
    if event.run_index is not None:
        parts.append(f"run {event.run_index}")
    if detail.get("stage_index") is not None:
        parts.append(f"stage {detail['stage_index']}")
    if event.kind == "run.stage_completed":
        parts.append(f"{detail.get('tokens_in', 0)}+{detail.get('tokens_out', 0)} tokens")
        parts.append(money(detail.get("cost_nanousd")))
        parts.append("cached" if detail.get("cached") else milliseconds(detail.get("latency_ms")))
    if event.kind == "run.completed":
        if detail.get("score") is not None:
            parts.append(f"score {share(detail['score'])}")
        if detail.get("cached"):
            parts.append("cached")
    if detail.get("error_reason"):
        parts.append(one_line(f"{detail['error_reason']}: {detail.get('error_message') or ''}"))
    if event.kind == "experiment.updated":
        parts.append("limits changed")  # which of them, the event does not say
        if detail.get("max_concurrency"):
            parts.append(f"at most {detail['max_concurrency']} at once")
    if event.run_index is None and detail.get("reason"):
        parts.append(one_line(str(detail["reason"])))
    return "  ".join(parts)
