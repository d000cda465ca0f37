"""Results by variant, computed by the database: memory does not grow with the number of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from promptlooper.experiment import ExperimentSpec, ExperimentSummary, Gate, GateResult, ScorerSummary, VariantSummary
from promptlooper.run import RunState
from promptlooper.runner.spec.expand import Variant
from promptlooper.runner.store import repository
from promptlooper.runner.store.models import runs, scores
from promptlooper.runner.store.reading import RunSource

ENDED = [RunState.COMPLETED.value, RunState.FAILED.value, RunState.CANCELLED.value]


def summarize(connection: sa.Connection, source: RunSource) -> ExperimentSummary:
    experiment_id = source.experiment.experiment_id
    totals = {row.variant_index: row for row in connection.execute(_totals(experiment_id))}
    latencies = {row.variant_index: row for row in connection.execute(_latencies(experiment_id))}
    means = _means(connection, experiment_id)
    repository.check_exists(connection, experiment_id)
    variants = tuple(
        _variant(source, variant, totals.get(index), latencies.get(index), means.get(index, {}))
        for index, variant in enumerate(source.variants)
    )
    return ExperimentSummary(
        experiment=source.experiment,
        variants=variants,
        gates=gate_results(source.spec.gates, variants, source.experiment.counts.failed),
    )


def _totals(experiment_id: str) -> sa.Select[Any]:
    def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    completed, failed = runs.c.state == RunState.COMPLETED.value, runs.c.state == RunState.FAILED.value
    return (
        sa.select(
            runs.c.variant_index,
            count(runs.c.state.in_(ENDED)).label("ended"),
            count(failed).label("failed"),
            sa.func.avg(sa.case((completed, runs.c.score))).label("score"),
            count(sa.and_(completed, runs.c.passed.is_(True))).label("passed"),
            count(sa.and_(completed, runs.c.passed.is_not(None))).label("judged"),
            sa.func.sum(runs.c.tokens_in).label("tokens_in"),
            sa.func.sum(runs.c.tokens_out).label("tokens_out"),
            sa.func.sum(runs.c.cost_nanousd).label("cost_nanousd"),
            sa.func.sum(runs.c.cost_unknown_calls).label("cost_unknown_calls"),
        )
        .where(runs.c.experiment_id == experiment_id)
        .group_by(runs.c.variant_index)
    )


def _means(connection: sa.Connection, experiment_id: str) -> dict[int, dict[str, ScorerSummary]]:
    query = (
        sa.select(
            scores.c.variant_index,
            scores.c.name,
            sa.func.avg(scores.c.value),
            sa.func.count(scores.c.value),
            sa.func.count(scores.c.error),
        )
        .where(scores.c.experiment_id == experiment_id)
        .group_by(scores.c.variant_index, scores.c.name)
    )
    found: dict[int, dict[str, ScorerSummary]] = {}
    for variant_index, name, mean, n, errors in connection.execute(query):
        found.setdefault(variant_index, {})[name] = ScorerSummary(
            name, None if mean is None else float(mean), n, errors
        )
    return found


def _variant(
    source: RunSource, variant: Variant, totals: Any, latencies: Any, means: Mapping[str, ScorerSummary]
) -> VariantSummary:
    spec: ExperimentSpec = source.spec
    # A failed run did not pass; where nothing has a threshold there is no rate.
    judged = 0 if totals is None or not totals.judged else int(totals.judged) + int(totals.failed)
    return VariantSummary(
        variant_id=variant.variant_id,
        label=variant.label,
        pipeline=variant.pipeline.name,
        model=variant.model_entry.name,
        params=variant.params,
        inputs=source.grid.inputs,
        runs=0 if totals is None else int(totals.ended),
        failed=0 if totals is None else int(totals.failed),
        score=None if totals is None or totals.score is None else float(totals.score),
        pass_rate=int(totals.passed) / judged if judged else None,
        scores=tuple(means.get(s.name, ScorerSummary(s.name, None, 0, 0)) for s in spec.scorers),
        latency_ms_p50=None if latencies is None else int(latencies.latency_ms_p50),
        latency_ms_p95=None if latencies is None else int(latencies.latency_ms_p95),
        tokens_in=0 if totals is None else int(totals.tokens_in),
        tokens_out=0 if totals is None else int(totals.tokens_out),
        cost_nanousd=0 if totals is None else int(totals.cost_nanousd),
        cost_unknown_calls=0 if totals is None else int(totals.cost_unknown_calls),
    )


def _latencies(experiment_id: str) -> sa.Select[Any]:
    """The nearest-rank percentiles over completed runs: the smallest value with at least that share at or below it."""
    variant = runs.c.variant_index
    ranked = (
        sa.select(
            variant,
            runs.c.latency_ms,
            sa.func.row_number().over(partition_by=variant, order_by=runs.c.latency_ms).label("rank"),
            sa.func.count().over(partition_by=variant).label("completed"),
        )
        .where(runs.c.experiment_id == experiment_id, runs.c.state == RunState.COMPLETED.value)
        .subquery()
    )

    def percentile(percent: int) -> sa.ColumnElement[int]:
        rank = (ranked.c.completed * percent + 99) // 100  # rounded up
        return sa.func.max(sa.case((ranked.c.rank == rank, ranked.c.latency_ms)))

    return sa.select(
        ranked.c.variant_index, percentile(50).label("latency_ms_p50"), percentile(95).label("latency_ms_p95")
    ).group_by(ranked.c.variant_index)


def gate_results(
    gates: tuple[Gate, ...], variants: tuple[VariantSummary, ...], failed_runs: int
) -> tuple[GateResult, ...]:
    """Each minimum is asked of each variant; one that cannot be computed is missed."""
    results: list[GateResult] = []
    for gate in gates:
        for scorer, wanted in gate.min_scores.items():
            for variant in variants:
                got = next((s.mean for s in variant.scores if s.name == scorer), None)
                passed = got is not None and got >= wanted
                results.append(GateResult(f"min_scores.{scorer}", variant.variant_id, wanted, got, passed))
        if gate.max_failed_runs is not None:
            passed = failed_runs <= gate.max_failed_runs
            results.append(GateResult("max_failed_runs", "", gate.max_failed_runs, failed_runs, passed))
    return tuple(results)
