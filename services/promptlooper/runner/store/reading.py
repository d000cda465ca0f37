"""Runs as clients see them: rows of four tables and the spec put together, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from promptlooper.experiment import Experiment, ExperimentSpec, InputRow
from promptlooper.jsonvalue import json_text
from promptlooper.run import Run, RunState, Score, StageResult
from promptlooper.runner.calls import output_of
from promptlooper.runner.spec.expand import Cell, Shape, Variant, cell
from promptlooper.runner.store.models import CALL_ORDER, runs, scores, stage_results
from promptlooper.runner.store.repository import INPUTS_PER_CHUNK, check_exists, input_chunk
from promptlooper.runner.store.rows import EPOCH, moment_of, run_error_of, score_of, stage_result_of

PAGE_BYTES = 3 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RunSource:
    """An experiment whose runs are read."""

    experiment: Experiment
    spec: ExperimentSpec
    variants: tuple[Variant, ...]

    @property
    def grid(self) -> Shape:
        rows = self.experiment.counts.total // (self.spec.repeats * len(self.variants))
        return Shape(rows, self.spec.repeats, len(self.variants))

    def place_of(self, run_index: int) -> Cell:
        return cell(self.grid, run_index)


def read_runs(
    connection: sa.Connection,
    source: RunSource,
    start: int,
    limit: int,
    *,
    full: bool,
    states: Sequence[RunState] = (),
    only: int | None = None,
) -> list[Run]:
    """Runs with a row from `start` on, by run_index: up to `limit`, and in the full view up to 3 MiB of text but at
    least one. `only` names a single run. Raises ExperimentNotFound where the experiment was deleted meanwhile."""
    experiment_id = source.experiment.experiment_id
    query = sa.select(runs, _text_size(connection, full)).where(
        runs.c.experiment_id == experiment_id, runs.c.run_index >= start
    )
    if only is not None:
        query = query.where(runs.c.run_index == only)
    if states:
        query = query.where(runs.c.state.in_([state.value for state in states]))
    inputs = _Inputs(connection, experiment_id)
    found: list[Run] = []
    size = 0
    with connection.execute(query.order_by(runs.c.run_index).limit(limit)) as rows:
        for group in _groups(rows):
            indexes = [row.run_index for row in group]
            stages = _stages(connection, experiment_id, indexes) if full else {}
            judged = _scores(connection, experiment_id, indexes)
            for row in group:
                run = _run(source, row, inputs, stages.get(row.run_index, []), judged.get(row.run_index, []), full)
                size += _text_bytes(run)
                if found and size > PAGE_BYTES:
                    check_exists(connection, experiment_id)
                    return found
                found.append(run)
    check_exists(connection, experiment_id)
    return found


_STAGE_TEXTS = (
    "messages_json",
    "output",
    "reasoning",
    "params_json",
    "tool_calls_json",
    "logprobs_json",
    "provider_data",
)


def _text_size(connection: sa.Connection, full: bool) -> sa.Label[int]:
    """About how much text there is to be read of a run's scores, and in the full view of its stages."""
    # PostgreSQL knows the bytes of a text without reading it. SQLite counts characters: its octet_length is of 3.43.
    length = sa.func.octet_length if connection.dialect.name == "postgresql" else sa.func.length
    texts = [scores.c.explanation, scores.c.error, scores.c.metadata_json]
    size = _total(scores, [length(text) for text in texts])
    if full:
        texts = [stage_results.c[name] for name in _STAGE_TEXTS]
        size += _total(stage_results, [length(text) for text in texts])
    return size.label("text_size")


def _total(table: sa.Table, lengths: Sequence[sa.ColumnElement[int]]) -> sa.ColumnElement[int]:
    of_a_row = sum((sa.func.coalesce(length, 0) for length in lengths), start=sa.literal(0))
    return (
        sa.select(sa.func.coalesce(sa.func.sum(of_a_row), 0))
        .where(table.c.experiment_id == runs.c.experiment_id, table.c.run_index == runs.c.run_index)
        .scalar_subquery()
    )


def _groups(rows: Iterable[Any]) -> Iterator[list[Any]]:
    """Runs whose texts are held in memory together: a page's worth, or one run."""
    group: list[Any] = []
    size = 0
    for row in rows:
        if group and size + row.text_size > PAGE_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += row.text_size
    if group:
        yield group


class _Inputs:
    """Rows of inputs by index; keeps the chunk that it read last."""

    def __init__(self, connection: sa.Connection, experiment_id: str) -> None:
        self._connection, self._experiment_id = connection, experiment_id
        self._number, self._chunk = -1, list[InputRow]()

    def __getitem__(self, index: int) -> InputRow:
        number, offset = divmod(index, INPUTS_PER_CHUNK)
        if number != self._number:
            self._number, self._chunk = number, input_chunk(self._connection, self._experiment_id, number)
        return self._chunk[offset]


def _stages(connection: sa.Connection, experiment_id: str, indexes: list[int]) -> dict[int, list[StageResult]]:
    query = (
        sa.select(stage_results)
        .where(stage_results.c.experiment_id == experiment_id, stage_results.c.run_index.in_(indexes))
        .order_by(*CALL_ORDER)
    )
    found: dict[int, list[StageResult]] = {}
    for row in connection.execute(query):
        found.setdefault(row.run_index, []).append(stage_result_of(row))
    return found


def _scores(connection: sa.Connection, experiment_id: str, indexes: list[int]) -> dict[int, list[Score]]:
    query = (
        sa.select(scores)
        .where(scores.c.experiment_id == experiment_id, scores.c.run_index.in_(indexes))
        .order_by(scores.c.run_index, scores.c.score_index)
    )
    found: dict[int, list[Score]] = {}
    for row in connection.execute(query):
        found.setdefault(row.run_index, []).append(score_of(row))
    return found


def _run(
    source: RunSource, row: Any, inputs: _Inputs, stages: list[StageResult], judged: list[Score], full: bool
) -> Run:
    experiment = source.experiment
    place = source.place_of(row.run_index)
    variant, value = source.variants[place.variant_index], inputs[place.input_index]
    answered = row.next_stage > 0
    return Run(
        run_id=f"{experiment.experiment_id}-{row.run_index}",
        experiment_id=experiment.experiment_id,
        project=experiment.project,
        generation=row.generation,
        run_index=row.run_index,
        state=RunState(row.state),
        input_index=place.input_index,
        input_id=value.input_id,
        variant_id=variant.variant_id,
        pipeline=variant.pipeline.name,
        model=variant.model_entry.name,
        params=variant.params,
        repeat=place.repeat,
        input=value.value if full else None,
        expected=value.expected if full else None,
        output=output_of(variant.pipeline.stages, stages, completed=row.state == RunState.COMPLETED.value),
        score=row.score,
        passed=row.passed,
        scores=tuple(judged),
        error=run_error_of(row.error_json),
        tokens_in=row.tokens_in,
        tokens_out=row.tokens_out,
        tokens_reasoning=row.tokens_reasoning,
        tokens_cached_in=row.tokens_cached_in,
        cost_nanousd=None if row.cost_unknown_calls else row.cost_nanousd,
        cost_saved_nanousd=row.cost_saved_nanousd,
        latency_ms=row.latency_ms,
        duration_ms=None if row.ended_us is None else max(0, row.ended_us - row.started_us) // 1000,
        cached=answered and row.paid_calls == 0 and row.attempts == 0,
        attempts=row.attempts,
        stages=tuple(stages),
        tags=value.tags,
        metadata=value.metadata,
        created_at=experiment.created_at,
        started_at=EPOCH + timedelta(microseconds=row.started_us),
        completed_at=moment_of(row.ended_us),
    )


def unstarted_run(source: RunSource, place: Cell, row: InputRow) -> Run:
    """A run that has no row yet, in the BASIC view."""
    experiment, variant = source.experiment, source.variants[place.variant_index]
    return Run(
        run_id=f"{experiment.experiment_id}-{place.run_index}",
        experiment_id=experiment.experiment_id,
        project=experiment.project,
        generation=experiment.generation,
        run_index=place.run_index,
        state=RunState.PENDING,
        input_index=place.input_index,
        input_id=row.input_id,
        variant_id=variant.variant_id,
        pipeline=variant.pipeline.name,
        model=variant.model_entry.name,
        params=variant.params,
        repeat=place.repeat,
        input=None,
        expected=None,
        output=None,
        score=None,
        passed=None,
        scores=(),
        error=None,
        tokens_in=0,
        tokens_out=0,
        tokens_reasoning=0,
        tokens_cached_in=0,
        cost_nanousd=0,
        cost_saved_nanousd=0,
        latency_ms=0,
        duration_ms=None,
        cached=False,
        attempts=0,
        stages=(),
        tags=row.tags,
        metadata=row.metadata,
        created_at=experiment.created_at,
        started_at=None,
        completed_at=None,
    )


def _text_bytes(run: Run) -> int:
    """About how much of a message the run takes."""
    size = 1_000 + len(run.input_id) + len((run.output or "").encode())
    for stage in run.stages:
        size += 500 + len(stage.output.encode()) + len((stage.reasoning or "").encode())
        size += sum(len(message.content.encode()) for message in stage.messages) + len(json_text(stage.params).encode())
    for score in run.scores:
        size += (
            200 + len(score.explanation.encode()) + len((score.error or "").encode()) + len(json_text(score.metadata))
        )
    size += 0 if run.error is None else len(run.error.message.encode())
    return size + sum(len(json_text(value).encode()) for value in (run.input, run.expected, run.metadata, run.tags))
