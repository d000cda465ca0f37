"""The normal form of an experiment as a JSON value, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from promptlooper.completion import Tool
from promptlooper.digest import canonical
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
from promptlooper.runner.spec.rows import with_ids


def row_to_json(row: InputRow) -> dict[str, Any]:
    return {
        "input_id": row.input_id,
        "value": row.value,
        "expected": row.expected,
        "tags": list(row.tags),
        "metadata": dict(row.metadata),
    }


def row_from_json(value: Mapping[str, Any]) -> InputRow:
    return InputRow(value["input_id"], value["value"], value["expected"], tuple(value["tags"]), value["metadata"])


def entry_to_json(entry: ModelEntry) -> dict[str, Any]:
    return {"name": entry.name, "model": entry.model, "params": dict(entry.params)}


def stage_to_json(stage: Stage) -> dict[str, Any]:
    """The later keys only where they are set: ids and digests of stages without them must stay what they were."""
    later = {name: getattr(stage, name) for name in _LATER_STAGE_KEYS}
    tools = [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in stage.tools
    ]
    return {
        "name": stage.name,
        "messages": [{"role": message.role, "content": message.content} for message in stage.messages],
        "model": stage.model,
        "params": dict(stage.params),
        "timeout": stage.timeout,
        **({"tools": tools} if tools else {}),
        **{name: value for name, value in later.items() if value != _PLAIN_STAGE[name]},
    }


_LATER_STAGE_KEYS = (
    *("images", "tool_choice", "tool_results", "response_schema", "retries_on_invalid", "continue_conversation"),
    "for_each",
)
_PLAIN_STAGE = {name: getattr(Stage(()), name) for name in _LATER_STAGE_KEYS}


def _stage_from_json(value: Mapping[str, Any]) -> Stage:
    messages = tuple(MessageTemplate(message["role"], message["content"]) for message in value["messages"])
    later = {name: value[name] for name in _LATER_STAGE_KEYS if name in value}
    if "images" in later:
        later["images"] = tuple(later["images"])
    tools = tuple(Tool(**tool) for tool in value.get("tools", ()))
    return Stage(messages, value["name"], value["model"], value["params"], value["timeout"], tools=tools, **later)


def _scorer_to_json(scorer: ScorerSpec) -> dict[str, Any]:
    return {
        "name": scorer.name,
        "type": scorer.type,
        "value": scorer.value,
        "weight": scorer.weight,
        "threshold": scorer.threshold,
        "output": scorer.output,
        "settings": dict(scorer.settings),
    }


def _limits_to_json(limits: Limits) -> dict[str, Any]:
    """The later limits only where they are set: the digests of specs without them must stay what they were."""
    later = {"run_timeout": limits.run_timeout, "experiment_timeout": limits.experiment_timeout}
    return {
        "max_concurrency": limits.max_concurrency,
        "budget_nanousd": limits.budget_nanousd,
        "budget_tokens": limits.budget_tokens,
        "stage_timeout": limits.stage_timeout,
        **{name: value for name, value in later.items() if value is not None},
    }


def _execution_to_json(execution: ExecutionPolicy) -> dict[str, Any]:
    """Nothing for the default: the digests of specs without it must stay what they were."""
    if execution == ExecutionPolicy():
        return {}
    return {"execution": {"mode": execution.mode.value, "timeout": execution.timeout}}


def _execution_from_json(value: Mapping[str, Any] | None) -> ExecutionPolicy:
    return ExecutionPolicy() if value is None else ExecutionPolicy(ExecutionMode(value["mode"]), value["timeout"])


def spec_to_json(spec: ExperimentSpec, inputs: bool = True) -> dict[str, Any]:
    """The whole normal form, defaults written out; without the rows where those are kept elsewhere."""
    return {
        "name": spec.name,
        "description": spec.description,
        "project": spec.project,
        "tags": list(spec.tags),
        "metadata": dict(spec.metadata),
        "config": dict(spec.config),
        "files": dict(spec.files),
        "inputs": [row_to_json(row) for row in spec.inputs] if inputs else None,
        "params": dict(spec.params),
        "sweep": [dict(point) for point in spec.sweep],
        "repeats": spec.repeats,
        "pipelines": [
            {
                "name": pipeline.name,
                "models": [entry_to_json(entry) for entry in pipeline.models],
                "stages": [stage_to_json(stage) for stage in pipeline.stages],
            }
            for pipeline in spec.pipelines
        ],
        "scorers": [_scorer_to_json(scorer) for scorer in spec.scorers],
        "gates": [
            {"min_scores": dict(gate.min_scores), "max_failed_runs": gate.max_failed_runs} for gate in spec.gates
        ],
        "limits": _limits_to_json(spec.limits),
        "cache": {"mode": spec.cache.mode.value, "max_age": spec.cache.max_age, "namespace": spec.cache.namespace},
        **_execution_to_json(spec.execution),
    }


def spec_from_json(value: Mapping[str, Any], inputs: Sequence[InputRow] = ()) -> ExperimentSpec:
    """The spec of `spec_to_json`; `inputs` where the rows were left out."""
    rows = value["inputs"]
    return ExperimentSpec(
        name=value["name"],
        description=value["description"],
        project=value["project"],
        tags=tuple(value["tags"]),
        metadata=value["metadata"],
        config=value["config"],
        files=value["files"],
        inputs=tuple(inputs) if rows is None else tuple(map(row_from_json, rows)),
        params=value["params"],
        sweep=tuple(value["sweep"]),
        repeats=value["repeats"],
        pipelines=tuple(
            Pipeline(
                pipeline["name"],
                tuple(map(_stage_from_json, pipeline["stages"])),
                tuple(ModelEntry(entry["name"], entry["model"], entry["params"]) for entry in pipeline["models"]),
            )
            for pipeline in value["pipelines"]
        ),
        scorers=tuple(ScorerSpec(**scorer) for scorer in value["scorers"]),
        gates=tuple(Gate(gate["min_scores"], gate["max_failed_runs"]) for gate in value["gates"]),
        limits=Limits(**value["limits"]),
        cache=CachePolicy(CacheMode(value["cache"]["mode"]), value["cache"]["max_age"], value["cache"]["namespace"]),
        execution=_execution_from_json(value.get("execution")),
    )


def body_sha256(spec: ExperimentSpec) -> str:
    """64 hex: the same experiment has the same, whoever wrote it down and in whatever key order."""
    digest = hashlib.sha256(canonical(spec_to_json(spec, inputs=False)))
    for row in spec.inputs:  # one at a time: there may be a million
        digest.update(canonical(row_to_json(row)))
    return digest.hexdigest()


def completed(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec with what clients may leave out: ids of rows, names of model entries and scorers, one input, one sweep
    point. Raises ValueError with a sentence where two rows say the same id."""
    pipelines = tuple(
        replace(
            pipeline,
            models=tuple(entry if entry.name else replace(entry, name=entry.model) for entry in _models_of(pipeline)),
        )
        for pipeline in spec.pipelines
    )
    return replace(
        spec,
        pipelines=pipelines,
        project=spec.project or "default",
        repeats=spec.repeats or 1,
        inputs=tuple(with_ids(spec.inputs or (InputRow("", None),))),
        sweep=tuple(spec.sweep) or ({},),
        scorers=tuple(scorer if scorer.name else replace(scorer, name=scorer.type) for scorer in spec.scorers),
    )


def _models_of(pipeline: Pipeline) -> Sequence[ModelEntry]:
    if pipeline.models or not pipeline.stages or not all(stage.model for stage in pipeline.stages):
        return pipeline.models
    return (ModelEntry(pipeline.stages[-1].model, pipeline.stages[-1].model),)
