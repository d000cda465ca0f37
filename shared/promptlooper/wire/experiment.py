"""What a user submits, on the wire: the normal form of an experiment. Empty and 0 mean the proto's defaults."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from promptlooper.errors import InvalidArgument
from promptlooper.experiment import (
    CacheMode,
    CachePolicy,
    ExecutionMode,
    ExecutionPolicy,
    ExperimentSpec,
    Gate,
    InputRow,
    Limits,
    MessageTemplate,
    ModelEntry,
    Pipeline,
    ScorerSpec,
    Stage,
)
from promptlooper.v1 import experiment_pb2 as pb
from promptlooper.wire.completion import schema_of, schema_text, tool_from_pb, tool_to_pb
from promptlooper.wire.scalars import (
    EnumOnWire,
    milliseconds,
    object_of,
    object_text,
    refusing_misfits,
    seconds,
    value_of,
    value_text,
)

ValueT = TypeVar("ValueT")

LOCAL_MAX_CONCURRENCY = 2  # where a model is `local/` and the spec says 0

CACHE_MODES = EnumOnWire(CacheMode, pb.CacheMode, "CACHE_MODE_", unspecified=CacheMode.READ_WRITE)
EXECUTION_MODES = EnumOnWire(ExecutionMode, pb.ExecutionMode, "EXECUTION_MODE_", unspecified=ExecutionMode.DIRECT)


def input_to_pb(row: InputRow, field: str = "input") -> pb.InputRow:
    return pb.InputRow(
        input_id=row.input_id,
        value_json=value_text(row.value, f"{field}.value_json"),
        expected_json=value_text(row.expected, f"{field}.expected_json"),
        tags=row.tags,
        metadata=row.metadata,
    )


def input_from_pb(message: pb.InputRow, field: str = "input") -> InputRow:
    return InputRow(
        message.input_id,
        value_of(message.value_json, f"{field}.value_json"),
        value_of(message.expected_json, f"{field}.expected_json"),
        tuple(message.tags),
        dict(message.metadata),
    )


def model_to_pb(entry: ModelEntry, field: str = "model") -> pb.ModelEntry:
    return pb.ModelEntry(
        name=entry.name, model=entry.model, params_json=object_text(entry.params, f"{field}.params_json")
    )


def model_from_pb(message: pb.ModelEntry, field: str = "model") -> ModelEntry:
    return ModelEntry(
        message.name or message.model, message.model, object_of(message.params_json, f"{field}.params_json")
    )


def template_to_pb(template: MessageTemplate) -> pb.MessageTemplate:
    return pb.MessageTemplate(role=template.role, content=template.content)


def template_from_pb(message: pb.MessageTemplate) -> MessageTemplate:
    return MessageTemplate(message.role, message.content)


def stage_to_pb(stage: Stage, field: str = "stage") -> pb.Stage:
    return pb.Stage(
        name=stage.name,
        messages=[template_to_pb(template) for template in stage.messages],
        model=stage.model,
        params_json=object_text(stage.params, f"{field}.params_json"),
        timeout_ms=milliseconds(stage.timeout),
        images=stage.images,
        tools=[tool_to_pb(tool, f"{field}.tools[{i}]") for i, tool in enumerate(stage.tools)],
        tool_choice=stage.tool_choice,
        tool_results=[pb.ToolResult(tool=tool, content=content) for tool, content in stage.tool_results.items()],
        response_schema_json=schema_text(stage.response_schema, f"{field}.response_schema_json"),
        retries_on_invalid=stage.retries_on_invalid,
        continue_conversation=stage.continue_conversation,
        for_each=stage.for_each,
    )


def stage_from_pb(message: pb.Stage, field: str = "stage") -> Stage:
    return Stage(
        messages=tuple(template_from_pb(template) for template in message.messages),
        name=message.name,
        model=message.model,
        params=object_of(message.params_json, f"{field}.params_json"),
        timeout=seconds(message.timeout_ms, f"{field}.timeout_ms"),
        images=tuple(message.images),
        tools=tuple(tool_from_pb(tool, f"{field}.tools[{i}]") for i, tool in enumerate(message.tools)),
        tool_choice=message.tool_choice,
        tool_results=_by_name(
            ((result.tool, result.content) for result in message.tool_results), f"{field}.tool_results"
        ),
        response_schema=schema_of(message.response_schema_json, f"{field}.response_schema_json"),
        retries_on_invalid=message.retries_on_invalid,
        continue_conversation=message.continue_conversation,
        for_each=message.for_each,
    )


def pipeline_to_pb(pipeline: Pipeline, field: str = "pipeline") -> pb.Pipeline:
    return pb.Pipeline(
        name=pipeline.name,
        models=[model_to_pb(entry, f"{field}.models[{i}]") for i, entry in enumerate(pipeline.models)],
        stages=[stage_to_pb(stage, f"{field}.stages[{i}]") for i, stage in enumerate(pipeline.stages)],
    )


def pipeline_from_pb(message: pb.Pipeline, field: str = "pipeline") -> Pipeline:
    return Pipeline(
        name=message.name,
        stages=tuple(stage_from_pb(stage, f"{field}.stages[{i}]") for i, stage in enumerate(message.stages)),
        models=tuple(model_from_pb(entry, f"{field}.models[{i}]") for i, entry in enumerate(message.models)),
    )


def scorer_to_pb(scorer: ScorerSpec, field: str = "scorer") -> pb.ScorerSpec:
    return pb.ScorerSpec(
        name=scorer.name,
        type=scorer.type,
        value_json=value_text(scorer.value, f"{field}.value_json"),
        weight=scorer.weight,
        threshold=scorer.threshold,
        output=scorer.output,
        settings_json=object_text(scorer.settings, f"{field}.settings_json"),
    )


def scorer_from_pb(message: pb.ScorerSpec, field: str = "scorer") -> ScorerSpec:
    return ScorerSpec(
        name=message.name or message.type,
        type=message.type,
        value=value_of(message.value_json, f"{field}.value_json"),
        weight=message.weight if message.HasField("weight") else 1.0,
        threshold=message.threshold if message.HasField("threshold") else None,
        output=message.output,
        settings=object_of(message.settings_json, f"{field}.settings_json"),
    )


def gate_to_pb(gate: Gate) -> pb.Gate:
    return pb.Gate(
        min_scores=[pb.MinScore(scorer=name, value=value) for name, value in gate.min_scores.items()],
        max_failed_runs=gate.max_failed_runs,
    )


def gate_from_pb(message: pb.Gate, field: str = "gate") -> Gate:
    return Gate(
        _by_name(((score.scorer, score.value) for score in message.min_scores), f"{field}.min_scores"),
        message.max_failed_runs if message.HasField("max_failed_runs") else None,
    )


def limits_to_pb(limits: Limits, field: str = "limits") -> pb.Limits:
    """Raises InvalidArgument for a budget of 0, which would say "no budget" on the wire."""
    for name in ("budget_nanousd", "budget_tokens"):
        if getattr(limits, name) == 0:
            raise InvalidArgument(
                f"{field}.{name}: must be more than 0; leave it out for none", field=f"{field}.{name}"
            )
    return pb.Limits(
        max_concurrency=limits.max_concurrency,
        budget_nanousd=limits.budget_nanousd or 0,
        budget_tokens=limits.budget_tokens or 0,
        stage_timeout_ms=milliseconds(limits.stage_timeout),
        run_timeout_ms=milliseconds(limits.run_timeout),
        experiment_timeout_ms=milliseconds(limits.experiment_timeout),
    )


def limits_from_pb(message: pb.Limits, field: str = "limits", *, local: bool = False) -> Limits:
    """`local`: a model of the experiment is `local/`, which changes the default of max_concurrency."""
    defaults = Limits()
    return Limits(
        message.max_concurrency or (LOCAL_MAX_CONCURRENCY if local else defaults.max_concurrency),
        message.budget_nanousd or None,
        message.budget_tokens or None,
        seconds(message.stage_timeout_ms, f"{field}.stage_timeout_ms") or defaults.stage_timeout,
        seconds(message.run_timeout_ms, f"{field}.run_timeout_ms"),
        seconds(message.experiment_timeout_ms, f"{field}.experiment_timeout_ms"),
    )


def cache_to_pb(cache: CachePolicy) -> pb.CachePolicy:
    return pb.CachePolicy(
        mode=CACHE_MODES.number(cache.mode), max_age_ms=milliseconds(cache.max_age), namespace=cache.namespace
    )


def cache_from_pb(message: pb.CachePolicy, field: str = "cache") -> CachePolicy:
    return CachePolicy(
        CACHE_MODES.member(message.mode, f"{field}.mode"),
        seconds(message.max_age_ms, f"{field}.max_age_ms"),
        message.namespace or CachePolicy().namespace,
    )


def execution_to_pb(execution: ExecutionPolicy) -> pb.ExecutionPolicy:
    return pb.ExecutionPolicy(mode=EXECUTION_MODES.number(execution.mode), timeout_ms=milliseconds(execution.timeout))


def execution_from_pb(message: pb.ExecutionPolicy, field: str = "execution") -> ExecutionPolicy:
    return ExecutionPolicy(
        EXECUTION_MODES.member(message.mode, f"{field}.mode"),
        seconds(message.timeout_ms, f"{field}.timeout_ms") or ExecutionPolicy().timeout,
    )


def spec_to_pb(spec: ExperimentSpec, field: str = "spec") -> pb.ExperimentSpec:
    with refusing_misfits(field):
        return pb.ExperimentSpec(
            name=spec.name,
            description=spec.description,
            project=spec.project,
            tags=spec.tags,
            metadata=spec.metadata,
            config_json=object_text(spec.config, f"{field}.config_json"),
            files=[pb.NamedText(name=name, text=text) for name, text in spec.files.items()],
            inputs=[input_to_pb(row, f"{field}.inputs[{i}]") for i, row in enumerate(spec.inputs)],
            params_json=object_text(spec.params, f"{field}.params_json"),
            sweep=[
                pb.SweepPoint(params_json=object_text(point, f"{field}.sweep[{i}].params_json"))
                for i, point in enumerate(spec.sweep)
            ],
            repeats=spec.repeats,
            pipelines=[
                pipeline_to_pb(pipeline, f"{field}.pipelines[{i}]") for i, pipeline in enumerate(spec.pipelines)
            ],
            scorers=[scorer_to_pb(scorer, f"{field}.scorers[{i}]") for i, scorer in enumerate(spec.scorers)],
            gates=[gate_to_pb(gate) for gate in spec.gates],
            limits=limits_to_pb(spec.limits, f"{field}.limits"),
            cache=cache_to_pb(spec.cache),
            execution=None if spec.execution == ExecutionPolicy() else execution_to_pb(spec.execution),
        )


def spec_from_pb(message: pb.ExperimentSpec, field: str = "spec") -> ExperimentSpec:
    """Raises InvalidArgument for what cannot be read; whether it makes sense is for the core to say."""
    pipelines = tuple(pipeline_from_pb(p, f"{field}.pipelines[{i}]") for i, p in enumerate(message.pipelines))
    models = [named.model for p in pipelines for named in p.models] + [s.model for p in pipelines for s in p.stages]
    local = any(model.startswith("local/") for model in models)
    return ExperimentSpec(
        name=message.name,
        pipelines=pipelines,
        inputs=tuple(input_from_pb(row, f"{field}.inputs[{i}]") for i, row in enumerate(message.inputs)),
        description=message.description,
        project=message.project or "default",
        tags=tuple(message.tags),
        metadata=dict(message.metadata),
        config=object_of(message.config_json, f"{field}.config_json"),
        files=_by_name(((file.name, file.text) for file in message.files), f"{field}.files"),
        params=object_of(message.params_json, f"{field}.params_json"),
        sweep=tuple(
            object_of(point.params_json, f"{field}.sweep[{i}].params_json") for i, point in enumerate(message.sweep)
        )
        or ({},),
        repeats=message.repeats or 1,
        scorers=tuple(scorer_from_pb(scorer, f"{field}.scorers[{i}]") for i, scorer in enumerate(message.scorers)),
        gates=tuple(gate_from_pb(gate, f"{field}.gates[{i}]") for i, gate in enumerate(message.gates)),
        limits=limits_from_pb(message.limits, f"{field}.limits", local=local),
        cache=cache_from_pb(message.cache, f"{field}.cache"),
        execution=execution_from_pb(message.execution, f"{field}.execution"),
    )


def _by_name(pairs: Iterable[tuple[str, ValueT]], field: str) -> dict[str, ValueT]:
    named: dict[str, ValueT] = {}
    for name, value in pairs:
        if name in named:
            raise InvalidArgument(f"{field}: {name!r} stands there twice; keep one", field=field)
        named[name] = value
    return named
