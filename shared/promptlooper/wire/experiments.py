"""What is known of an experiment, and what clients ask of the Runner, on the wire."""

from __future__ import annotations

from promptlooper.errors import Problem
from promptlooper.experiment import (
    Experiment,
    ExperimentState,
    ExperimentSummary,
    GateResult,
    RunCounts,
    ScorerSummary,
    VariantSummary,
)
from promptlooper.experiments import (
    EventPage,
    ExperimentFilter,
    ExperimentPage,
    ExperimentUpdate,
    RunPage,
    Validation,
    WatchMessage,
)
from promptlooper.v1 import experiment_pb2 as pb
from promptlooper.v1 import runner_service_pb2 as runner_pb
from promptlooper.wire.events import event_from_pb, event_to_pb
from promptlooper.wire.run import run_from_pb, run_to_pb
from promptlooper.wire.scalars import EnumOnWire, moment, object_of, text_of, timestamp

STATES = EnumOnWire(ExperimentState, pb.ExperimentState, "EXPERIMENT_STATE_")


def counts_to_pb(counts: RunCounts) -> pb.RunCounts:
    return pb.RunCounts(
        total=counts.total,
        pending=counts.pending,
        running=counts.running,
        completed=counts.completed,
        failed=counts.failed,
        cancelled=counts.cancelled,
        cached=counts.cached,
        in_batch=counts.in_batch,
    )


def counts_from_pb(message: pb.RunCounts) -> RunCounts:
    return RunCounts(
        total=message.total,
        pending=message.pending,
        running=message.running,
        completed=message.completed,
        failed=message.failed,
        cancelled=message.cancelled,
        cached=message.cached,
        in_batch=message.in_batch,
    )


def experiment_to_pb(experiment: Experiment) -> pb.Experiment:
    return pb.Experiment(
        experiment_id=experiment.experiment_id,
        project=experiment.project,
        name=experiment.name,
        description=experiment.description,
        tags=experiment.tags,
        metadata=experiment.metadata,
        state=STATES.number(experiment.state),
        reason=experiment.reason,
        generation=experiment.generation,
        counts=counts_to_pb(experiment.counts),
        tokens_in=experiment.tokens_in,
        tokens_out=experiment.tokens_out,
        cost_nanousd=experiment.cost_nanousd,
        cost_unknown_calls=experiment.cost_unknown_calls,
        cost_saved_nanousd=experiment.cost_saved_nanousd,
        duration_ms=experiment.duration_ms,
        created_at=timestamp(experiment.created_at),
        started_at=timestamp(experiment.started_at),
        completed_at=timestamp(experiment.completed_at),
        event_seq=experiment.event_seq,
        max_concurrency=experiment.max_concurrency,
        budget_nanousd=experiment.budget_nanousd,
        budget_tokens=experiment.budget_tokens,
        cost_reserved_nanousd=experiment.cost_reserved_nanousd,
        cost_remaining_nanousd=experiment.cost_remaining_nanousd,
        spec_sha256=experiment.spec_sha256,
        cost_uncertain_nanousd=experiment.cost_uncertain_nanousd,
    )


def experiment_from_pb(message: pb.Experiment) -> Experiment:
    return Experiment(
        experiment_id=message.experiment_id,
        project=message.project,
        name=message.name,
        state=STATES.member(message.state, "experiment.state"),
        counts=counts_from_pb(message.counts),
        created_at=moment(message.created_at),
        description=message.description,
        tags=tuple(message.tags),
        metadata=dict(message.metadata),
        reason=message.reason,
        generation=message.generation,
        tokens_in=message.tokens_in,
        tokens_out=message.tokens_out,
        cost_nanousd=message.cost_nanousd,
        cost_unknown_calls=message.cost_unknown_calls,
        cost_saved_nanousd=message.cost_saved_nanousd,
        duration_ms=message.duration_ms,
        started_at=moment(message.started_at) if message.HasField("started_at") else None,
        completed_at=moment(message.completed_at) if message.HasField("completed_at") else None,
        event_seq=message.event_seq,
        max_concurrency=message.max_concurrency,
        budget_nanousd=message.budget_nanousd if message.HasField("budget_nanousd") else None,
        budget_tokens=message.budget_tokens if message.HasField("budget_tokens") else None,
        cost_reserved_nanousd=message.cost_reserved_nanousd,
        cost_remaining_nanousd=message.cost_remaining_nanousd if message.HasField("cost_remaining_nanousd") else None,
        spec_sha256=message.spec_sha256,
        cost_uncertain_nanousd=message.cost_uncertain_nanousd,
    )


def scorer_summary_to_pb(summary: ScorerSummary) -> pb.ScorerSummary:
    return pb.ScorerSummary(name=summary.name, mean=summary.mean, n=summary.n, errors=summary.errors)


def scorer_summary_from_pb(message: pb.ScorerSummary) -> ScorerSummary:
    return ScorerSummary(message.name, message.mean if message.HasField("mean") else None, message.n, message.errors)


def variant_to_pb(variant: VariantSummary) -> pb.VariantSummary:
    return pb.VariantSummary(
        variant_id=variant.variant_id,
        label=variant.label,
        pipeline=variant.pipeline,
        model=variant.model,
        params_json=text_of(variant.params, "params_json"),
        inputs=variant.inputs,
        runs=variant.runs,
        failed=variant.failed,
        score=variant.score,
        pass_rate=variant.pass_rate,
        scores=[scorer_summary_to_pb(score) for score in variant.scores],
        latency_ms_p50=variant.latency_ms_p50,
        latency_ms_p95=variant.latency_ms_p95,
        tokens_in=variant.tokens_in,
        tokens_out=variant.tokens_out,
        cost_nanousd=variant.cost_nanousd,
        cost_unknown_calls=variant.cost_unknown_calls,
    )


def variant_from_pb(message: pb.VariantSummary) -> VariantSummary:
    return VariantSummary(
        variant_id=message.variant_id,
        label=message.label,
        pipeline=message.pipeline,
        model=message.model,
        params=object_of(message.params_json, "variant.params_json"),
        inputs=message.inputs,
        runs=message.runs,
        failed=message.failed,
        score=message.score if message.HasField("score") else None,
        pass_rate=message.pass_rate if message.HasField("pass_rate") else None,
        scores=tuple(scorer_summary_from_pb(score) for score in message.scores),
        latency_ms_p50=message.latency_ms_p50 if message.HasField("latency_ms_p50") else None,
        latency_ms_p95=message.latency_ms_p95 if message.HasField("latency_ms_p95") else None,
        tokens_in=message.tokens_in,
        tokens_out=message.tokens_out,
        cost_nanousd=message.cost_nanousd,
        cost_unknown_calls=message.cost_unknown_calls,
    )


def gate_to_pb(gate: GateResult) -> pb.GateResult:
    return pb.GateResult(
        name=gate.name, variant_id=gate.variant_id, wanted=gate.wanted, got=gate.got, passed=gate.passed
    )


def gate_from_pb(message: pb.GateResult) -> GateResult:
    got = message.got if message.HasField("got") else None
    return GateResult(message.name, message.variant_id, message.wanted, got, message.passed)


def summary_to_pb(summary: ExperimentSummary) -> pb.ExperimentSummary:
    return pb.ExperimentSummary(
        experiment=experiment_to_pb(summary.experiment),
        variants=[variant_to_pb(variant) for variant in summary.variants],
        gates=[gate_to_pb(gate) for gate in summary.gates],
    )


def summary_from_pb(message: pb.ExperimentSummary) -> ExperimentSummary:
    return ExperimentSummary(
        experiment_from_pb(message.experiment),
        tuple(variant_from_pb(variant) for variant in message.variants),
        tuple(gate_from_pb(gate) for gate in message.gates),
    )


def problem_to_pb(problem: Problem) -> runner_pb.Problem:
    return runner_pb.Problem(field=problem.field, message=problem.message, file=problem.file, line=problem.line)


def problem_from_pb(message: runner_pb.Problem) -> Problem:
    return Problem(message.field, message.message, message.file, message.line)


def validation_to_pb(validation: Validation) -> runner_pb.ValidateExperimentResponse:
    return runner_pb.ValidateExperimentResponse(
        problems=[problem_to_pb(problem) for problem in validation.problems],
        runs=validation.runs,
        calls=validation.calls,
        estimated_cost_nanousd=validation.estimated_cost_nanousd,
        price_versions=validation.price_versions,
        calls_at_least=validation.calls_at_least,
    )


def validation_from_pb(message: runner_pb.ValidateExperimentResponse) -> Validation:
    return Validation(
        tuple(problem_from_pb(problem) for problem in message.problems),
        message.runs,
        message.calls,
        message.estimated_cost_nanousd if message.HasField("estimated_cost_nanousd") else None,
        tuple(message.price_versions),
        message.calls_at_least,
    )


def filter_to_pb(where: ExperimentFilter, page_size: int, page_token: str) -> runner_pb.ListExperimentsRequest:
    return runner_pb.ListExperimentsRequest(
        page_size=page_size,
        page_token=page_token,
        project=where.project,
        tags=where.tags,
        metadata=where.metadata,
        states=[STATES.number(state) for state in where.states],
        experiment_id_prefix=where.experiment_id_prefix,
    )


def filter_from_pb(message: runner_pb.ListExperimentsRequest) -> ExperimentFilter:
    return ExperimentFilter(
        project=message.project,
        tags=tuple(message.tags),
        metadata=dict(message.metadata),
        states=tuple(STATES.member(state, f"states[{i}]") for i, state in enumerate(message.states)),
        experiment_id_prefix=message.experiment_id_prefix,
    )


def experiment_page_to_pb(page: ExperimentPage) -> runner_pb.ListExperimentsResponse:
    return runner_pb.ListExperimentsResponse(
        experiments=[experiment_to_pb(experiment) for experiment in page.experiments],
        next_page_token=page.next_page_token,
    )


def experiment_page_from_pb(message: runner_pb.ListExperimentsResponse) -> ExperimentPage:
    return ExperimentPage(tuple(experiment_from_pb(e) for e in message.experiments), message.next_page_token)


def run_page_to_pb(page: RunPage) -> runner_pb.ListRunsResponse:
    return runner_pb.ListRunsResponse(runs=[run_to_pb(run) for run in page.runs], next_page_token=page.next_page_token)


def run_page_from_pb(message: runner_pb.ListRunsResponse) -> RunPage:
    return RunPage(tuple(run_from_pb(run) for run in message.runs), message.next_page_token)


def event_page_to_pb(page: EventPage) -> runner_pb.ListEventsResponse:
    return runner_pb.ListEventsResponse(
        events=[event_to_pb(event) for event in page.events], next_page_token=page.next_page_token
    )


def event_page_from_pb(message: runner_pb.ListEventsResponse) -> EventPage:
    return EventPage(tuple(event_from_pb(event) for event in message.events), message.next_page_token)


def update_to_pb(experiment_id: str, update: ExperimentUpdate) -> runner_pb.UpdateExperimentRequest:
    return runner_pb.UpdateExperimentRequest(
        experiment_id=experiment_id,
        max_concurrency=update.max_concurrency,
        budget_nanousd=update.budget_nanousd,
        budget_tokens=update.budget_tokens,
    )


def update_from_pb(message: runner_pb.UpdateExperimentRequest) -> ExperimentUpdate:
    return ExperimentUpdate(
        max_concurrency=message.max_concurrency if message.HasField("max_concurrency") else None,
        budget_nanousd=message.budget_nanousd if message.HasField("budget_nanousd") else None,
        budget_tokens=message.budget_tokens if message.HasField("budget_tokens") else None,
    )


def watch_message_to_pb(message: WatchMessage) -> runner_pb.WatchExperimentResponse:
    return runner_pb.WatchExperimentResponse(
        resume_token=message.resume_token,
        event_seq=message.event_seq,
        snapshot=None if message.snapshot is None else experiment_to_pb(message.snapshot),
        event=None if message.event is None else event_to_pb(message.event),
        bookmark=None
        if message.bookmark is None
        else runner_pb.WatchBookmark(experiment=experiment_to_pb(message.bookmark)),
        terminal=None if message.terminal is None else experiment_to_pb(message.terminal),
    )


def watch_message_from_pb(message: runner_pb.WatchExperimentResponse) -> WatchMessage:
    which = message.WhichOneof("message")
    return WatchMessage(
        resume_token=message.resume_token,
        event_seq=message.event_seq,
        snapshot=experiment_from_pb(message.snapshot) if which == "snapshot" else None,
        event=event_from_pb(message.event) if which == "event" else None,
        bookmark=experiment_from_pb(message.bookmark.experiment) if which == "bookmark" else None,
        terminal=experiment_from_pb(message.terminal) if which == "terminal" else None,
    )
