"""A watch of one run: its state, then its events in order, each once, then the run as it ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

import sqlalchemy as sa

from promptlooper.errors import ResumeTokenInvalid
from promptlooper.experiments import RunWatchMessage
from promptlooper.run import Event, Run, RunState
from promptlooper.runner.events.tail import PAGE
from promptlooper.runner.events.watching import Watching, seq_of, token_of
from promptlooper.runner.runs import Runs, no_run, run_place
from promptlooper.runner.store import event_log, repository
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.models import progress
from promptlooper.runner.store.reading import RunSource, read_runs, unstarted_run

ENDED = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})
ENDINGS = frozenset({"run.completed", "run.failed", "run.cancelled"})
KINDS = (*sorted(ENDINGS), "run.started", "run.stage_completed", "run.waiting", "run.rescored")


class RunWatching:
    """Watches of runs, made of watches of their experiments."""

    def __init__(self, database: Database, watching: Watching, runs: Runs) -> None:
        self._database, self._watching, self._runs = database, watching, runs

    async def watch(
        self, run_id: str, resume_token: str = "", bookmark_interval: float | None = None
    ) -> AsyncIterator[RunWatchMessage]:
        """Ends after the terminal message, or without one when this process drains. Raises RunNotFound for a run that
        its experiment has not, or has ended without."""
        experiment_id, run_index = run_place(run_id)
        source = await self._runs.source(experiment_id)
        if run_index >= source.experiment.counts.total:
            raise no_run(run_id)
        now, run = await self._database.read(partial(_snapshot, source=source, run_index=run_index))
        seq = seq_of(resume_token, experiment_id) if resume_token else now
        if seq > now:
            raise ResumeTokenInvalid("the resume token is newer than the experiment; watch without it")
        if not resume_token:
            yield RunWatchMessage(token_of(experiment_id, seq), seq, snapshot=run)
        if run.state in ENDED:
            async for told in self._told(source, run_index, seq, now):
                yield RunWatchMessage(token_of(experiment_id, told.event_seq), told.event_seq, event=told)
            yield RunWatchMessage(token_of(experiment_id, now), now, terminal=await self._runs.get(run_id))
            return
        messages = self._watching.watch(experiment_id, token_of(experiment_id, seq), KINDS, bookmark_interval)
        async with aclosing(messages):  # type: ignore[type-var]
            async for message in messages:
                event, token, seq = message.event, message.resume_token, message.event_seq
                of_it = event is not None and event.run_index == run_index
                if of_it:
                    yield RunWatchMessage(token, seq, event=event)
                if message.bookmark is not None:
                    yield RunWatchMessage(token, seq, bookmark=True)
                if message.terminal is not None or (of_it and event is not None and event.kind in ENDINGS):
                    run = await self._runs.get(run_id)
                    if run.state in ENDED:  # else it is being retried already
                        yield RunWatchMessage(token, seq, terminal=run)
                        return

    async def _told(self, source: RunSource, run_index: int, event_seq: int, up_to: int) -> AsyncIterator[Event]:
        """The run's events after event_seq."""
        while event_seq < up_to:
            read = partial(
                event_log.page_after,
                experiment_id=source.experiment.experiment_id,
                project=source.experiment.project,
                event_seq=event_seq,
                limit=PAGE,
                kinds=KINDS,
                up_to=up_to,
            )
            page = await self._database.read(read)
            for event in page.events:
                if event.run_index == run_index:
                    yield event
            event_seq = page.event_seq


def _snapshot(connection: sa.Connection, source: RunSource, run_index: int) -> tuple[int, Run]:
    """The experiment's last event, and the run as it was then."""
    if connection.dialect.name == "postgresql":  # SQLite's readers see one moment anyway
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    experiment_id = source.experiment.experiment_id
    seq = connection.execute(
        sa.select(progress.c.event_seq).where(progress.c.experiment_id == experiment_id)
    ).scalar_one()
    found = read_runs(connection, source, 0, 1, full=False, only=run_index)
    if found:
        return seq, found[0]
    place = source.place_of(run_index)
    row = repository.input_at(connection, experiment_id, place.input_index)
    return seq, unstarted_run(source, place, row)
