"""What the flags of `run` change in an experiment, checked like the file itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from promptlooper.experiment import ExperimentSpec, Pipeline
from promptlooper.jsonvalue import Json, json_text
from promptlooper.runner.spec.cells import matches
from promptlooper.runner.spec.forms import param
from promptlooper.runner.spec.notes import Notes
from promptlooper.runner.spec.problems import FilePosition, nearest
from promptlooper.runner.spec.rows import Rows, sampled


@dataclass(frozen=True, slots=True)
class Overrides:
    name: str | None = None  # --name
    project: str | None = None  # --project
    models: tuple[str, ...] = ()  # -m: instead of every list of models; the name of an entry of the file is that entry
    params: Mapping[str, Json] = field(default_factory=dict)  # -p: over `params`, below model entry, sweep and stage
    repeats: int | None = None  # --repeats
    first: int | None = None  # -n: of what is left
    sample: int | None = None  # --sample
    seed: int = 0  # --seed
    config: Mapping[str, Json] = field(default_factory=dict)  # --var
    tags: tuple[str, ...] = ()  # --tag: added
    metadata: Mapping[str, str] = field(default_factory=dict)  # --metadata: added
    filters: tuple[tuple[str, str], ...] = ()  # --filter: of one key any, of different keys all must hold
    budget_usd: float | None = None  # --budget-usd
    concurrency: int | None = None  # -j
    cache_mode: str | None = None  # --cache; "off" for --no-cache
    batch: bool = False  # --batch


_STAND_IN = "mock/echo"  # for models that are none, so that nothing else is said of them


def _shown(value: Json) -> str:
    return value if isinstance(value, str) else json_text(value)


def applied(document: dict[str, Any], overrides: Overrides, notes: Notes) -> dict[str, Any]:
    """The document with the flags' values in their places; `notes` learns which they are."""
    found = dict(document)

    def put(flag: str, *path: str, value: Any) -> None:
        holder = found
        for key in path[:-1]:
            inner = holder.get(key)
            if inner is not None and not isinstance(inner, dict):
                return  # wrong in the file, and noted when it is read
            holder[key] = dict(inner or {})
            holder = holder[key]
        holder[path[-1]] = value
        notes.said_by(path, flag)

    for flag, key, value in (
        ("--name", "name", overrides.name),
        ("--project", "project", overrides.project),
        ("--repeats", "repeats", overrides.repeats),
    ):
        if value is not None:
            put(flag, key, value=value)
    for name, setting in overrides.params.items():
        put(f"-p {name}={_shown(setting)}", "params", name, value=param(name, setting))
    for name, setting in overrides.config.items():
        put(f"--var {name}={_shown(setting)}", "config", name, value=setting)
    for name, text in overrides.metadata.items():
        put(f"--metadata {name}={text}", "metadata", name, value=text)
    if overrides.tags and isinstance(found.get("tags") or [], list):
        old = found.get("tags") or []
        found["tags"] = [*old, *(tag for tag in overrides.tags if tag not in old)]
        for index in range(len(old), len(found["tags"])):
            notes.said_by(("tags", index), f"--tag {found['tags'][index]}")
    if overrides.budget_usd is not None:
        put("--budget-usd", "limits", "budget_usd", value=overrides.budget_usd)
    if overrides.concurrency is not None:
        put("-j", "limits", "max_concurrency", value=overrides.concurrency)
    if overrides.cache_mode is not None:
        if isinstance(found.get("cache"), str):
            found["cache"] = {}
        put("--cache", "cache", "mode", value=overrides.cache_mode)
    if overrides.batch:
        if isinstance(found.get("execution"), str):
            found["execution"] = {}
        put("--batch", "execution", "mode", value="batch")
    if overrides.models:
        _put_models(found, overrides.models, notes)
    return found


def _put_models(found: dict[str, Any], models: Sequence[str], notes: Notes) -> None:
    given = found.get("models") if isinstance(found.get("models"), list) else []
    named = {entry["name"]: entry for entry in given or [] if isinstance(entry, dict) and "name" in entry}
    found.pop("model", None)
    chosen: list[Any] = []
    for model in models:
        if model in named or "/" in model:
            notes.said_by(("models", len(chosen)), f"-m {model}")
            chosen.append(named.get(model, model))
        else:
            message = f"{model!r} is not PROVIDER/MODEL, nor a name in 'models'{nearest(model, named)}"
            notes.add_at(FilePosition(f"-m {model}"), message)
    if not chosen:
        notes.unread.add("models")
    found["models"] = chosen or [_STAND_IN]
    if isinstance(found.get("pipelines"), dict):
        found["pipelines"] = {
            name: {key: item for key, item in value.items() if key not in ("models", "model")}
            if isinstance(value, dict)
            else value
            for name, value in found["pipelines"].items()
        }


def selected(spec: ExperimentSpec, rows: Rows, overrides: Overrides, notes: Notes) -> tuple[ExperimentSpec, Rows]:
    """The spec with what the filters, `--sample` and `-n` leave over."""
    wanted: dict[str, list[str]] = {}
    for key, value in overrides.filters:
        wanted.setdefault(key, []).append(value)
    for key, values in wanted.items():
        flag = f"--filter {key}={values[-1]}"
        if key in ("pipeline", "model"):
            spec = _filtered(spec, key, values, flag, notes)
        elif key == "tag":
            rows = _filtered_rows(rows, flag, notes, lambda row, values=values: bool(set(values) & set(row.tags)))
        elif key.startswith("input.") and key != "input.":
            name = key.removeprefix("input.")
            known = {k for row in rows.rows if isinstance(row.value, dict) for k in row.value}
            if name not in known:
                notes.add_at(FilePosition(flag), f"no input has {name!r}{nearest(name, known)}")
                continue
            rows = _filtered_rows(
                rows,
                flag,
                notes,
                lambda row, name=name, values=values: (
                    isinstance(row.value, dict)
                    and name in row.value
                    and any(matches(row.value[name], value) for value in values)
                ),
            )
        else:
            near = nearest(key, ("pipeline", "model", "tag"))
            notes.add_at(FilePosition(flag), f"a filter is pipeline=, model=, tag= or input.KEY=, not {key!r}{near}")
    for flag, number in (("--sample", overrides.sample), ("-n", overrides.first)):
        if number is not None and number < 1:
            notes.add_at(FilePosition(flag), f"{number} is not a number of inputs of at least 1")
    if overrides.sample is not None and overrides.sample > 0:
        rows = rows.kept(sampled(len(rows.rows), overrides.sample, overrides.seed))
    if overrides.first is not None and overrides.first > 0:
        rows = rows.kept(range(min(overrides.first, len(rows.rows))))
    return replace(spec, inputs=rows.rows), rows


def _filtered_rows(rows: Rows, flag: str, notes: Notes, keeps: Any) -> Rows:
    kept = [index for index, row in enumerate(rows.rows) if keeps(row)]
    if not kept:
        notes.add_at(FilePosition(flag), "no input matches this filter")
        return rows
    return rows.kept(kept)


def _filtered(spec: ExperimentSpec, key: str, values: list[str], flag: str, notes: Notes) -> ExperimentSpec:
    names = {pipeline.name for pipeline in spec.pipelines}
    pipelines: list[Pipeline] = []
    kept: list[int] = []
    for index, pipeline in enumerate(spec.pipelines):
        if key == "pipeline":
            if pipeline.name in values:
                kept.append(index)
                pipelines.append(pipeline)
            continue
        names |= {name for entry in pipeline.models for name in (entry.name, entry.model)}
        models = [i for i, entry in enumerate(pipeline.models) if entry.name in values or entry.model in values]
        if models:
            notes.keep(f"pipelines[{index}].models", models)
            kept.append(index)
            pipelines.append(replace(pipeline, models=tuple(pipeline.models[i] for i in models)))
    if not pipelines:
        if spec.pipelines:
            notes.add_at(FilePosition(flag), f"no {key} matches this filter{nearest(values[-1], names)}")
        return spec
    notes.keep("pipelines", kept)
    return replace(spec, pipelines=tuple(pipelines))


def check_effect(spec: ExperimentSpec, overrides: Overrides, notes: Notes) -> None:
    """A flag that everything else overrides changes nothing, and that is said."""
    stages = [(pipeline, stage) for pipeline in spec.pipelines for stage in pipeline.stages]
    if overrides.models and stages and all(stage.model for _, stage in stages):
        notes.add_at(FilePosition(f"-m {overrides.models[0]}"), "this changes nothing: every stage names its own model")
    for name, value in overrides.params.items():
        reaches = any(
            name not in stage.params and name not in point and (bool(stage.model) or name not in entry.params)
            for pipeline, stage in stages
            for entry in pipeline.models
            for point in spec.sweep
        )
        if stages and not reaches:
            flag = FilePosition(f"-p {name}={_shown(value)}")
            notes.add_at(flag, f"this changes nothing: {name!r} is set by the sweep, the models or every stage")
