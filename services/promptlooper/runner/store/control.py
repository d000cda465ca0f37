"""What clients do to experiments: cancel, pause, resume, retry, change, delete. Each function is one short transaction
under the experiment's lock, and safe to repeat."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from promptlooper.errors import (
    ExperimentCancelled,
    ExperimentNotEnded,
    ExperimentNotFound,
    InvalidArgument,
)
from promptlooper.experiment import ExperimentState
from promptlooper.experiments import ExperimentUpdate
from promptlooper.failpoints import Failpoints
from promptlooper.jsonvalue import json_text
from promptlooper.run import RunState
from promptlooper.runner.event_facts import NewEvent, experiment_facts
from promptlooper.runner.ledger import Ledger
from promptlooper.runner.store.models import (
    deleted,
    experiments,
    progress,
    relay,
    runs,
    stage_results,
)
from promptlooper.runner.store.requests import first_answer
from promptlooper.runner.store.turns import RUN_COLUMNS, locked_ledger, number_events, pending_rows, run_row, write
from promptlooper.runner.turn import Turn

CANCELLED, FAILED = RunState.CANCELLED.value, RunState.FAILED.value


SELECT_CANCELLED = sa.select(runs.c.experiment_id, runs.c.run_index).where(
    runs.c.owner == sa.bindparam("r"),
    sa.text("cancel_requested AND state = 'RUNNING'"),  # literals, so that the partial index serves
)


@dataclass(frozen=True, slots=True)
class Restart:
    """Who asks to resume or retry an experiment; `request_id` may be ""."""

    experiment_id: str
    request_id: str
    body_sha256: str
    took_up: bool = False  # an embedded Runner takes up what was interrupted


def cancel(connection: sa.Connection, experiment_id: str, now_us: int, reason: str = "USER") -> None:
    """Marks an experiment CANCELLING, or CANCELLED where nothing runs. Does nothing to one that ended. With reason
    TIMEOUT only to one whose time is over."""
    ledger = locked_ledger(connection, experiment_id)
    if ledger.ended or ledger.state == ExperimentState.CANCELLING.value:
        return
    if reason == "TIMEOUT" and (ledger.deadline_us is None or ledger.deadline_us > now_us):
        return
    ledger.state, ledger.reason = ExperimentState.CANCELLING.value, reason
    decided = Turn(ledger, "", now_us)
    if not decided.settle(lambda: pending_rows(connection, experiment_id)):
        number_events(connection, ledger, (), now_us)
        return
    write(connection, decided, Failpoints())


def pause(connection: sa.Connection, experiment_id: str, now_us: int) -> None:
    """Nothing new starts from now on. Does nothing to one that is paused or ended."""
    ledger = locked_ledger(connection, experiment_id)
    if ledger.ended or ledger.state == ExperimentState.PAUSED.value:
        return
    _refuse_cancelling(ledger)
    ledger.state = ExperimentState.PAUSED.value
    _say(connection, ledger, "experiment.paused", now_us)


def resume(connection: sa.Connection, who: Restart, now_us: int) -> None:
    """Goes on with a paused, cancelled or failed experiment. Its cancelled runs wait again, with the stages that are
    stored; runs that were never started have no row again. Does nothing to one that runs or has completed."""
    ledger = locked_ledger(connection, who.experiment_id)
    if _asked_before(connection, who, now_us):
        return
    _refuse_cancelling(ledger)
    if ledger.state == ExperimentState.PAUSED.value:
        _time_anew(connection, who.experiment_id)
        ledger.restart(now_us)
    elif ledger.state in (ExperimentState.CANCELLED.value, ExperimentState.FAILED.value):
        of_it = runs.c.experiment_id == who.experiment_id
        newest = connection.execute(sa.select(sa.func.max(runs.c.run_index)).where(of_it)).scalar()
        ledger.next_index = 0 if newest is None else newest + 1
        ledger.returned += _wait_again(connection, sa.and_(of_it, runs.c.state == CANCELLED))
        ledger.cancelled = 0
        ledger.restart(now_us)
    else:
        if who.took_up:
            _take_up(connection, ledger, now_us)
        return
    decided = Turn(ledger, "", now_us)
    decided.events.append(NewEvent("experiment.resumed", None, experiment_facts(ledger)))
    decided.settle(list)  # all its runs may have ended while it was being cancelled
    write(connection, decided, Failpoints())


def take_up(connection: sa.Connection, experiment_id: str, now_us: int) -> None:
    """Gives an experiment that was interrupted, and nobody works on, all its time anew."""
    _take_up(connection, locked_ledger(connection, experiment_id), now_us)


def _take_up(connection: sa.Connection, ledger: Ledger, now_us: int) -> None:
    if not ledger.ended and not ledger.running:
        _time_anew(connection, ledger.experiment_id)
        ledger.set_deadline(now_us)  # its time was not running while nobody worked on it
        number_events(connection, ledger, (), now_us)


def retry(connection: sa.Connection, who: Restart, now_us: int) -> None:
    """Failed runs wait again, to go on with the stage that failed. Does nothing where none has failed."""
    ledger = locked_ledger(connection, who.experiment_id)
    if _asked_before(connection, who, now_us):
        return
    _refuse_cancelling(ledger)
    if ledger.state in (ExperimentState.CANCELLED.value, ExperimentState.FAILED.value):
        raise ExperimentCancelled(
            f"experiment {who.experiment_id!r} is {ledger.state}; resume it, and retry what has failed then",
            experiment_id=who.experiment_id,
        )
    if not ledger.failed:
        return
    failed = sa.and_(runs.c.experiment_id == who.experiment_id, runs.c.state == FAILED)
    of_failed = sa.and_(
        stage_results.c.experiment_id == who.experiment_id,
        stage_results.c.run_index.in_(sa.select(runs.c.run_index).where(failed)),
    )
    # Answers that could not be used are stored like any other, and the run stands after them.
    useless = sa.and_(of_failed, _useless(stage_results), _at_the_end())
    answered = (
        sa.select(sa.func.count())
        .select_from(stage_results)
        .where(useless, stage_results.c.run_index == runs.c.run_index, stage_results.c.finish_reason != "")
        .correlate(runs)
        .scalar_subquery()
    )
    connection.execute(sa.update(runs).where(failed).values(next_stage=runs.c.next_stage - answered))
    connection.execute(sa.delete(stage_results).where(useless))
    ledger.returned += _wait_again(connection, failed)
    ledger.failed = 0
    if ledger.ended:
        ledger.restart(now_us)
    else:  # paused ones stay paused
        ledger.generation += 1
    _say(connection, ledger, "experiment.resumed", now_us)


def update(connection: sa.Connection, experiment_id: str, wanted: ExperimentUpdate, now_us: int) -> None:
    """Changes limits, also of an experiment that has ended: it may be resumed."""
    ledger = locked_ledger(connection, experiment_id)
    before = (ledger.max_concurrency, ledger.budget_nanousd, ledger.budget_tokens)
    for name, what in (("budget_nanousd", "money"), ("budget_tokens", "tokens")):
        value = getattr(wanted, name)
        if value is None:
            continue
        if getattr(ledger, name) is None:
            # Its calls were never bounded, and those under way hold no reservation.
            raise InvalidArgument(
                f"experiment {experiment_id!r} was created without a budget in {what}; it can't get one later",
                field=name,
            )
        setattr(ledger, name, value)
    if wanted.max_concurrency is not None:
        ledger.max_concurrency = wanted.max_concurrency
    if before != (ledger.max_concurrency, ledger.budget_nanousd, ledger.budget_tokens):
        _say(connection, ledger, "experiment.updated", now_us)


def cancel_run(connection: sa.Connection, experiment_id: str, run_index: int, now_us: int) -> RunState | None:
    """Cancels a run that waits, and asks the Runner that holds a running one to stop it. Returns the state it had, None
    where it has no row."""
    ledger = locked_ledger(connection, experiment_id)
    query = sa.select(*RUN_COLUMNS).where(runs.c.experiment_id == experiment_id, runs.c.run_index == run_index)
    stored = connection.execute(query).one_or_none()
    if stored is None:
        return None
    state = RunState(stored.state)
    if state is RunState.PENDING:
        row = run_row(stored)
        ledger.drop(row)
        row.state, row.ended_us, row.not_before_us = CANCELLED, now_us, 0
        ledger.returned -= 1
        ledger.cancelled += 1
        decided = Turn(ledger, "", now_us, touched={run_index: row})
        decided.events.append(NewEvent("run.cancelled", run_index, {}))
        decided.settle(lambda: pending_rows(connection, experiment_id, run_index))
        write(connection, decided, Failpoints())
    elif state is RunState.RUNNING:
        this = sa.and_(runs.c.experiment_id == experiment_id, runs.c.run_index == run_index)
        connection.execute(sa.update(runs).where(this).values(cancel_requested=True))
    return state


def requested_cancels(connection: sa.Connection, runner_id: str) -> list[tuple[str, int]]:
    """(experiment_id, run_index) of a Runner's runs that somebody wants stopped."""
    return [(row.experiment_id, row.run_index) for row in connection.execute(SELECT_CANCELLED, {"r": runner_id})]


def delete(connection: sa.Connection, experiment_id: str, now_us: int) -> None:
    """Takes an experiment that has ended out of sight; the fact that it is gone stays. `removal` does the rest."""
    try:
        ledger = locked_ledger(connection, experiment_id)
    except ExperimentNotFound:
        gone = sa.select(deleted.c.experiment_id).where(deleted.c.experiment_id == experiment_id)
        if connection.execute(gone).scalar() is None:
            raise
        return
    if not ledger.ended:
        cancelling = ledger.state == ExperimentState.CANCELLING.value
        advice = "its running calls are being stopped, try again" if cancelling else "cancel it before deleting it"
        raise ExperimentNotEnded(
            f"experiment {experiment_id!r} is {ledger.state}; {advice}", experiment_id=experiment_id
        )
    of_it = experiments.c.experiment_id == experiment_id
    project = connection.execute(sa.select(experiments.c.project).where(of_it)).scalar()
    connection.execute(
        sa.insert(deleted),
        {
            "experiment_id": experiment_id,
            "project": project,
            "event_seq": ledger.event_seq + 1,
            "generation": ledger.generation,
            "deleted_us": now_us,
            "detail_json": json_text(experiment_facts(ledger)),
        },
    )
    for table in (relay, progress):
        connection.execute(sa.delete(table).where(table.c.experiment_id == experiment_id))


def fail(connection: sa.Connection, experiment_id: str, reason: str, now_us: int) -> None:
    """Ends an experiment that cannot be run. Its running runs are cancelled."""
    ledger = locked_ledger(connection, experiment_id)
    if ledger.ended:
        return
    query = sa.select(*RUN_COLUMNS).where(
        runs.c.experiment_id == experiment_id, runs.c.state.in_([RunState.PENDING.value, RunState.RUNNING.value])
    )
    decided = Turn(ledger, "", now_us)
    decided.fail([run_row(row) for row in connection.execute(query)], reason)
    write(connection, decided, Failpoints())


def _say(connection: sa.Connection, ledger: Ledger, kind: str, now_us: int) -> None:
    number_events(connection, ledger, [NewEvent(kind, None, experiment_facts(ledger))], now_us)


def _asked_before(connection: sa.Connection, who: Restart, now_us: int) -> bool:
    if not who.request_id:
        return False
    return first_answer(connection, who.request_id, who.body_sha256, who.experiment_id, now_us) is not None


def _refuse_cancelling(ledger: Ledger) -> None:
    if ledger.state == ExperimentState.CANCELLING.value:
        raise ExperimentNotEnded(
            f"experiment {ledger.experiment_id!r} is being cancelled; try again when it has ended",
            experiment_id=ledger.experiment_id,
        )


def _useless(results: sa.FromClause) -> sa.ColumnElement[bool]:
    """Calls without an answer, withheld answers, and those that could not be used."""
    return sa.or_(results.c.error_json.is_not(None), results.c.finish_reason == "content_filter")


def _at_the_end() -> sa.ColumnElement[bool]:
    """Where a run stands: no useful answer came after it."""
    later = stage_results.alias()
    place = (stage_results.c.stage_index, stage_results.c.iteration, stage_results.c.round)
    same = sa.and_(
        later.c.experiment_id == stage_results.c.experiment_id, later.c.run_index == stage_results.c.run_index
    )
    after = sa.tuple_(later.c.stage_index, later.c.iteration, later.c.round) > sa.tuple_(*place)
    return ~sa.exists().where(same, after, ~_useless(later)).correlate(stage_results)


def _time_anew(connection: sa.Connection, experiment_id: str) -> None:
    """Runs that wait get the time of their stage and of themselves anew."""
    waiting = sa.and_(runs.c.experiment_id == experiment_id, sa.text("state = 'PENDING'"))
    connection.execute(sa.update(runs).where(waiting).values(deadline_us=None, run_deadline_us=None))


def _wait_again(connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
    """Makes ended runs wait, without an event each: that they start again is one. Returns how many."""
    waiting = sa.update(runs).where(which)
    fresh = {
        "state": RunState.PENDING.value,
        "owner": None,
        "not_before_us": 0,
        "deadline_us": None,
        "run_deadline_us": None,
        "cancel_requested": False,
        "error_json": None,
        "score": None,
        "passed": None,
        "ended_us": None,
    }
    return connection.execute(waiting.values(fresh)).rowcount
