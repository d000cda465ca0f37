"""Every shared type goes through its proto message and back unchanged, with every field it has."""

from __future__ import annotations

import sys
import types
from array import array
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptlooper import batches, caching, completion, embeddings, experiment, experiments, run, scoring, sources
from promptlooper.digest import canonical
from promptlooper.errors import Problem
from promptlooper.v1 import cache_service_pb2 as cache_pb
from promptlooper.wire import batches as batches_wire
from promptlooper.wire import caching as caching_wire
from promptlooper.wire import completion as completion_wire
from promptlooper.wire import embeddings as embeddings_wire
from promptlooper.wire import events as events_wire
from promptlooper.wire import experiment as experiment_wire
from promptlooper.wire import experiments as experiments_wire
from promptlooper.wire import limit_states as limits_wire
from promptlooper.wire import run as run_wire
from promptlooper.wire import scoring as scoring_wire
from promptlooper.wire import single_runs as single_wire
from promptlooper.wire import sources as sources_wire

CONVERSIONS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    batches.BatchItem: (batches_wire.item_to_pb, batches_wire.item_from_pb),
    batches.BatchResult: (batches_wire.result_to_pb, batches_wire.result_from_pb),
    batches.SubmittedBatch: (batches_wire.submitted_to_pb, batches_wire.submitted_from_pb),
    batches.BatchStatus: (batches_wire.status_to_pb, batches_wire.status_from_pb),
    caching.Lookup: (caching_wire.lookup_to_pb, caching_wire.lookup_from_pb),
    caching.Found: (caching_wire.found_to_pb, caching_wire.found_from_pb),
    caching.CacheEntry: (caching_wire.entry_to_pb, caching_wire.entry_from_pb),
    caching.Worth: (caching_wire.worth_to_pb, caching_wire.worth_from_pb),
    caching.CacheStats: (caching_wire.stats_to_pb, caching_wire.stats_from_pb),
    completion.Message: (completion_wire.message_to_pb, completion_wire.message_from_pb),
    completion.ToolCall: (completion_wire.tool_call_to_pb, completion_wire.tool_call_from_pb),
    completion.Tool: (completion_wire.tool_to_pb, completion_wire.tool_from_pb),
    completion.CompletionRequest: (completion_wire.request_to_pb, completion_wire.request_from_pb),
    completion.Completion: (completion_wire.completion_to_pb, completion_wire.completion_from_pb),
    completion.Price: (completion_wire.price_to_pb, completion_wire.price_from_pb),
    completion.ModelCheck: (completion_wire.check_to_pb, completion_wire.check_from_pb),
    completion.LimitState: (limits_wire.limit_to_pb, limits_wire.limit_from_pb),
    completion.ModelInfo: (completion_wire.model_to_pb, completion_wire.model_from_pb),
    embeddings.EmbeddingRequest: (embeddings_wire.request_to_pb, embeddings_wire.request_from_pb),
    embeddings.Embeddings: (embeddings_wire.embeddings_to_pb, embeddings_wire.embeddings_from_pb),
    experiment.InputRow: (experiment_wire.input_to_pb, experiment_wire.input_from_pb),
    experiment.ModelEntry: (experiment_wire.model_to_pb, experiment_wire.model_from_pb),
    experiment.MessageTemplate: (experiment_wire.template_to_pb, experiment_wire.template_from_pb),
    experiment.Stage: (experiment_wire.stage_to_pb, experiment_wire.stage_from_pb),
    experiment.Pipeline: (experiment_wire.pipeline_to_pb, experiment_wire.pipeline_from_pb),
    experiment.ScorerSpec: (experiment_wire.scorer_to_pb, experiment_wire.scorer_from_pb),
    experiment.Gate: (experiment_wire.gate_to_pb, experiment_wire.gate_from_pb),
    experiment.Limits: (experiment_wire.limits_to_pb, experiment_wire.limits_from_pb),
    experiment.CachePolicy: (experiment_wire.cache_to_pb, experiment_wire.cache_from_pb),
    experiment.ExecutionPolicy: (experiment_wire.execution_to_pb, experiment_wire.execution_from_pb),
    experiment.ExperimentSpec: (experiment_wire.spec_to_pb, experiment_wire.spec_from_pb),
    experiment.RunCounts: (experiments_wire.counts_to_pb, experiments_wire.counts_from_pb),
    experiment.Experiment: (experiments_wire.experiment_to_pb, experiments_wire.experiment_from_pb),
    experiment.ScorerSummary: (experiments_wire.scorer_summary_to_pb, experiments_wire.scorer_summary_from_pb),
    experiment.VariantSummary: (experiments_wire.variant_to_pb, experiments_wire.variant_from_pb),
    experiment.GateResult: (experiments_wire.gate_to_pb, experiments_wire.gate_from_pb),
    experiment.ExperimentSummary: (experiments_wire.summary_to_pb, experiments_wire.summary_from_pb),
    Problem: (experiments_wire.problem_to_pb, experiments_wire.problem_from_pb),
    experiments.Validation: (experiments_wire.validation_to_pb, experiments_wire.validation_from_pb),
    experiments.ExperimentFilter: (
        lambda where: experiments_wire.filter_to_pb(where, 0, ""),
        experiments_wire.filter_from_pb,
    ),
    experiments.ExperimentPage: (experiments_wire.experiment_page_to_pb, experiments_wire.experiment_page_from_pb),
    experiments.EventPage: (experiments_wire.event_page_to_pb, experiments_wire.event_page_from_pb),
    experiments.ExperimentUpdate: (
        lambda update: experiments_wire.update_to_pb("e", update),
        experiments_wire.update_from_pb,
    ),
    experiments.RunPage: (experiments_wire.run_page_to_pb, experiments_wire.run_page_from_pb),
    experiments.WatchMessage: (experiments_wire.watch_message_to_pb, experiments_wire.watch_message_from_pb),
    experiments.StartedRun: (single_wire.started_to_pb, single_wire.started_from_pb),
    experiments.RunWatchMessage: (single_wire.run_watch_to_pb, single_wire.run_watch_from_pb),
    experiments.OutputDelta: (single_wire.delta_to_pb, single_wire.delta_from_pb),
    experiments.Execution: (single_wire.execution_to_pb, single_wire.execution_from_pb),
    sources.FileReference: (sources_wire.reference_to_pb, sources_wire.reference_from_pb),
    sources.ExperimentSource: (sources_wire.source_to_pb, sources_wire.source_from_pb),
    sources.FilePiece: (sources_wire.piece_to_pb, sources_wire.piece_from_pb),
    sources.Uploaded: (sources_wire.uploaded_to_pb, sources_wire.uploaded_from_pb),
    sources.RunTarget: (single_wire.target_to_pb, single_wire.target_from_pb),
    sources.RenderedStage: (sources_wire.rendered_stage_to_pb, sources_wire.rendered_stage_from_pb),
    sources.RenderedRun: (sources_wire.rendered_to_pb, sources_wire.rendered_from_pb),
    run.RunError: (run_wire.error_to_pb, run_wire.error_from_pb),
    run.StageResult: (run_wire.stage_to_pb, run_wire.stage_from_pb),
    run.Score: (run_wire.score_to_pb, run_wire.score_from_pb),
    run.Run: (run_wire.run_to_pb, run_wire.run_from_pb),
    run.Event: (events_wire.event_to_pb, events_wire.event_from_pb),
    scoring.ScorerCall: (scoring_wire.call_to_pb, scoring_wire.call_from_pb),
    scoring.ScoreItem: (scoring_wire.item_to_pb, scoring_wire.item_from_pb),
    scoring.ScoreValue: (scoring_wire.value_to_pb, scoring_wire.value_from_pb),
    scoring.ScorerCheck: (scoring_wire.check_to_pb, scoring_wire.check_from_pb),
    scoring.ScorerInfo: (scoring_wire.scorer_to_pb, scoring_wire.scorer_from_pb),
}
MODULES = (batches, caching, completion, embeddings, experiment, experiments, run, scoring, sources)

texts = st.text(st.characters(codec="utf-8"), max_size=8)
names = st.text("abcxyz019._-", min_size=1, max_size=8)
integers = st.integers(0, 2**31 - 1)
reals = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
durations = st.integers(1, 10**10).map(lambda ms: ms / 1000)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | reals | texts
jsons = st.recursive(scalars, lambda x: st.lists(x, max_size=2) | st.dictionaries(texts, x, max_size=2), max_leaves=4)
objects = st.dictionaries(texts, jsons, max_size=2)
vectors = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=3).map(lambda v: array("f", v))
parameters = st.fixed_dictionaries(
    {},
    optional={
        "temperature": reals | st.integers(-(2**70), 2**70).filter(lambda n: abs(n) < 2**63),
        "top_p": reals | st.booleans(),
        "frequency_penalty": reals | texts,
        "presence_penalty": reals | st.lists(reals, max_size=1),
        "max_tokens": st.integers(-(2**63), 2**63 - 1) | reals,
        "seed": st.integers(-(2**63), 2**64 - 1) | st.booleans(),
        "stop": texts | st.lists(texts, max_size=3) | st.lists(integers, max_size=2),
        "reasoning_effort": texts,
        "logit_bias": objects,
    },
)
experiment_facts = st.fixed_dictionaries(
    {
        **dict.fromkeys(("state", "reason"), texts),
        **dict.fromkeys(("total", "completed", "failed", "cancelled", "cost_nanousd", "cost_unknown_calls"), integers),
        "max_concurrency": st.integers(0, 2**31 - 1),
    }
)
run_facts = st.fixed_dictionaries(
    {
        **dict.fromkeys(("variant_id", "input_id", "error_reason", "error_message"), texts),
        **dict.fromkeys(("repeat", "tokens_in", "tokens_out", "latency_ms"), integers),
        "cached": st.booleans(),
    },
    optional={
        **dict.fromkeys(("stage_index", "cost_nanousd"), integers),
        "score": reals,
        "passed": st.booleans(),
        "not_before_us": st.integers(0, 4 * 10**15),
    },
)

# Where a field takes less than its type says, or None stands for what is not said.
OVERRIDES: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (batches.BatchResult, "error"): st.none(),  # no dataclass: see the tests of the RPCs
    (caching.Lookup, "max_age"): st.none() | durations,
    (caching.CacheStats, "entries"): integers,  # None together with bytes: below
    (caching.CacheStats, "bytes"): integers,
    (caching.CacheStats, "breaker"): st.sampled_from(("closed", "open", "half_open")),
    (caching.CacheStats, "counted_since"): st.just(0.0) | st.integers(1, 4_000_000_000).map(float),
    (caching.Found, "stored_at"): st.just(0.0) | st.floats(1e9, 4e9),
    (completion.CompletionRequest, "params"): parameters,
    (completion.CompletionRequest, "timeout"): durations,
    (completion.CompletionRequest, "response_schema"): st.none() | objects,
    (completion.Completion, "finish_reason"): st.sampled_from(completion.FINISH_REASONS),
    (completion.ModelCheck, "problem_reason"): st.none() | names,
    (completion.ModelCheck, "problem"): st.none() | names,
    (completion.ModelInfo, "problem"): st.none() | names,
    (embeddings.EmbeddingRequest, "dimensions"): st.none() | integers,
    (embeddings.EmbeddingRequest, "timeout"): durations,
    (embeddings.Embeddings, "vectors"): st.lists(vectors, max_size=2).map(tuple),
    (experiment.ModelEntry, "name"): names,
    (experiment.Stage, "timeout"): st.none() | durations,
    (experiment.Stage, "response_schema"): st.none() | objects,
    (experiment.ScorerSpec, "name"): names,
    (experiment.Limits, "max_concurrency"): st.integers(1, 2**31 - 1),
    (experiment.Limits, "budget_nanousd"): st.none() | st.integers(1, 2**62),
    (experiment.Limits, "budget_tokens"): st.none() | st.integers(1, 2**62),
    (experiment.Limits, "stage_timeout"): durations,
    (experiment.ExecutionPolicy, "timeout"): durations,
    (experiment.Limits, "run_timeout"): st.none() | durations,
    (experiment.Limits, "experiment_timeout"): st.none() | durations,
    (experiments.ExperimentUpdate, "max_concurrency"): st.none() | st.integers(0, 2**31 - 1),
    (experiment.CachePolicy, "max_age"): st.none() | durations,
    (experiment.CachePolicy, "namespace"): names,
    (experiment.ExperimentSpec, "project"): names,
    (experiment.ExperimentSpec, "sweep"): st.lists(objects, min_size=1, max_size=2).map(tuple),
    (experiment.ExperimentSpec, "repeats"): st.integers(1, 2**31 - 1),
    (run.Score, "error"): st.none() | names,
    (sources.ExperimentSource, "path"): names,
    (sources.RenderedStage, "response_schema"): st.none() | objects,
    (run.StageResult, "finish_reason"): st.sampled_from(("", *completion.FINISH_REASONS)),
    (scoring.ScoreValue, "error"): st.none() | names,
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return jsons
    if origin in (types.UnionType, Union):
        return st.one_of(*(values_of(arg) for arg in args))
    if origin is tuple:
        return st.lists(values_of(args[0]), max_size=2).map(tuple)
    if args:
        return st.dictionaries(values_of(args[0]), values_of(args[1]), max_size=2)
    plain = {str: texts, int: integers, float: reals, bool: st.booleans(), bytes: st.binary(max_size=8)}
    plain |= {datetime: moments, type(None): st.none()}
    if hint in plain:
        return plain[hint]
    return st.sampled_from(hint) if issubclass(hint, Enum) else instances_of(hint)


def instances_of(cls: type) -> st.SearchStrategy[Any]:
    if cls is run.Event:
        experiments_events = fields_of(cls, kind=st.just("experiment.completed"), detail=st.just({}) | experiment_facts)
        return experiments_events | fields_of(cls, kind=st.just("run.waiting"), detail=st.just({}) | run_facts)
    if cls is experiments.WatchMessage:
        kinds = ("snapshot", "event", "bookmark", "terminal")
        return st.one_of(*(fields_of(cls, **{kind: st.none() for kind in kinds if kind != one}) for one in kinds))
    if cls is experiments.RunWatchMessage:
        none: dict[str, Any] = dict.fromkeys(("snapshot", "event", "terminal"), st.none())
        one = (none | {kind: ONE_OF[kind], "bookmark": st.just(False)} for kind in none)
        return st.one_of(fields_of(cls, **none, bookmark=st.just(True)), *(fields_of(cls, **each) for each in one))
    if cls is experiments.Execution:
        none = dict.fromkeys(("delta", "stage", "run"), st.none())
        return st.one_of(*(fields_of(cls, **(none | {kind: ONE_OF[kind]})) for kind in none))
    if cls is sources.RunTarget:
        return fields_of(cls, row=st.none(), has_row=st.just(False)) | fields_of(cls, row=jsons, has_row=st.just(True))
    return fields_of(cls)


# One of these is set of a message that is one of several.
ONE_OF = {
    **dict.fromkeys(("snapshot", "terminal", "run"), st.deferred(lambda: instances_of(run.Run))),
    "event": st.deferred(lambda: instances_of(run.Event)),
    "delta": st.deferred(lambda: instances_of(experiments.OutputDelta)),
    "stage": st.deferred(lambda: instances_of(run.StageResult)),
}


def fields_of(cls: type, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    chosen = dict(given)
    for field in fields(cls):
        if field.name in given:
            continue
        if (cls, field.name) in OVERRIDES:
            chosen[field.name] = OVERRIDES[cls, field.name]
        elif field.type in ("Json", "JsonObject"):  # looked up by name: resolved, they are endless
            chosen[field.name] = jsons if field.type == "Json" else objects
        else:
            chosen[field.name] = values_of(eval(str(field.type), vars(sys.modules[cls.__module__])))
    return st.builds(cls, **chosen)


def plain(value: Any) -> Any:
    """What canonical() takes: there True is not 1, and 1 is 1.0."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | array):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum | bytes):
        return repr(value)
    return value


@pytest.mark.parametrize("cls", CONVERSIONS, ids=lambda cls: cls.__name__)
def test_every_field_survives_the_round_trip(cls: type) -> None:
    to_pb, from_pb = CONVERSIONS[cls]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(instances_of(cls))
    def round_trip(value: Any) -> None:
        message = to_pb(value)
        received = type(message).FromString(message.SerializeToString())
        assert canonical(plain(from_pb(received))) == canonical(plain(value))

    round_trip()


def test_every_shared_dataclass_has_a_conversion() -> None:
    defined = {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__
    }
    assert defined - CONVERSIONS.keys() == set()


def test_cache_whose_store_is_away_says_so_and_one_of_the_first_version_is_understood() -> None:
    away = caching.CacheStats("redis", None, None, 1, 2, breaker="open")
    assert caching_wire.stats_from_pb(caching_wire.stats_to_pb(away)) == away
    first = cache_pb.GetStatsResponse(backend="redis", entries=1, bytes=2, hits=3, misses=4)
    assert caching_wire.stats_from_pb(first) == caching.CacheStats("redis", 1, 2, 3, 4)
