"""What is wrong with an experiment in its normal form, as far as the spec itself tells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from promptlooper.digest import canonical
from promptlooper.errors import Problem
from promptlooper.experiment import ExperimentSpec, Pipeline
from promptlooper.jsonvalue import Json
from promptlooper.runner.render import Renderer
from promptlooper.runner.spec.check_calls import problems_of_calls
from promptlooper.runner.spec.check_templates import TemplateCheck
from promptlooper.runner.spec.expand import shape
from promptlooper.runner.spec.problems import nearest
from promptlooper.runner.spec.values import PROJECT, SCORER_NAME, STAGE_NAME, is_integer, is_number, noun

MAX_RUNS = 10_000_000
MAX_REPEATS = 100_000
MAX_CONCURRENCY = 10_000
LONGEST_TIMEOUT = 365 * 24 * 3600.0  # seconds
ROLES = ("system", "user", "assistant")  # tools speak through tool_results

_TYPES: Mapping[str, tuple[Callable[[Json], bool], str]] = {
    **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), (is_number, "a number")),
    **dict.fromkeys(("max_tokens", "seed", "top_k", "reasoning_tokens", "top_logprobs"), (is_integer, "an integer")),
    "parallel_tool_calls": (lambda value: isinstance(value, bool), "true or false"),
    "logprobs": (lambda value: isinstance(value, int), "true or false"),  # a number at Together
    "reasoning_effort": (lambda value: isinstance(value, str), "text such as low"),
    "stop": (
        lambda value: isinstance(value, list | tuple) and all(isinstance(each, str) for each in value),
        "text or a list of texts",
    ),
}
_SET_ELSEWHERE = {
    "model": "write 'model' beside 'params'",
    "messages": "write 'prompt' or 'messages' beside 'params'",
    "stream": "streaming is a setting of the provider",
    "stream_options": "streaming is a setting of the provider",
    "timeout": "write 'timeout' beside the stage's 'params', or limits.stage_timeout",
}
_BESIDE = {
    "tools": "write 'tools' beside the stage's 'params'",
    "functions": "write 'tools' beside the stage's 'params'",
    "tool_choice": "write 'tool_choice' beside the stage's 'params'",
    "function_call": "write 'tool_choice' beside the stage's 'params'",
    "response_format": "write 'response_schema' beside the stage's 'params'",
    "response_schema": "write 'response_schema' beside the stage's 'params'",
}
_ANSWERS = ("n", "best_of")


def problems_of(
    spec: ExperimentSpec,
    *,
    unread: Collection[str] = (),
    lost_scorers: Collection[str] = (),
    renderer: Renderer | None = None,
) -> list[Problem]:
    """Everything that is wrong, each once. Nothing is said of what may be missing only because it could not be read:
    of `unread`, any of inputs, models, pipelines, scorers, config and files, and of scorers named `lost_scorers`."""
    found = [
        *_names(spec),
        *_pipelines(spec, unread),
        *_params(spec),
        *_dead_axes(spec),
        *_scorers(spec),
        *_gates(spec, unread, lost_scorers),
        *_numbers(spec),
        *_rows(spec),
        *TemplateCheck(spec, renderer or Renderer(), unread).problems(),
    ]
    return list(dict.fromkeys(found))


def _names(spec: ExperimentSpec) -> Iterator[Problem]:
    if not 0 < len(spec.name.strip()) <= 200:
        yield Problem("name", f"{noun(spec.name)} is not a name of 1 to 200 characters")
    for field, text in (("project", spec.project), ("cache.namespace", spec.cache.namespace)):
        if not PROJECT.fullmatch(text):
            what = field.rpartition(".")[2]
            yield Problem(field, f"the {what} {text!r} must be 1 to 40 of a-z, 0-9 and -")
    for index, tag in enumerate(spec.tags):
        yield from _tag(f"tags[{index}]", tag)
    for name, text in spec.metadata.items():
        if not 0 < len(name) <= 100 or len(text) > 1000:
            yield Problem(f"metadata.{name}", "metadata have names of 1 to 100 and texts of at most 1,000 characters")


def _tag(field: str, tag: str) -> Iterator[Problem]:
    if not 0 < len(tag) <= 100 or tag != tag.strip() or not tag.isprintable() or "," in tag:
        yield Problem(field, f"the tag {tag!r} must be 1 to 100 printable characters without commas")


def _doubles(names: Sequence[str]) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield index, name
        seen.add(name)


def _pipelines(spec: ExperimentSpec, unread: Collection[str]) -> Iterator[Problem]:
    if not spec.pipelines and "pipelines" not in unread:
        yield Problem("pipelines", "there is no pipeline; add 'prompt', 'prompts' or 'pipelines'")
    for index, name in _doubles([pipeline.name for pipeline in spec.pipelines]):
        yield Problem(f"pipelines[{index}].name", f"two pipelines are named {name!r}")
    for index, pipeline in enumerate(spec.pipelines):
        field = f"pipelines[{index}]"
        if not 0 < len(pipeline.name) <= 100 or not pipeline.name.isprintable():
            yield Problem(f"{field}.name", f"{pipeline.name!r} is not a name of 1 to 100 printable characters")
        yield from _stages(field, pipeline, unread)
        yield from _models(field, pipeline, unread)


def _stages(field: str, pipeline: Pipeline, unread: Collection[str]) -> Iterator[Problem]:
    if not pipeline.stages:
        yield Problem(f"{field}.stages", f"the pipeline {pipeline.name!r} has no stages")
    names = [stage.name for stage in pipeline.stages]
    for index, name in _doubles(names):
        if name:
            yield Problem(f"{field}.stages[{index}].name", f"two stages are named {name!r}")
    for index, stage in enumerate(pipeline.stages):
        at = f"{field}.stages[{index}]"
        if stage.name and not STAGE_NAME.fullmatch(stage.name):
            yield Problem(f"{at}.name", f"the stage name {stage.name!r} must begin with a-z or _, then a-z, 0-9 and _")
        if stage.timeout is not None and stage.timeout <= 0:
            yield Problem(f"{at}.timeout", "'timeout' must be above 0")
        if stage.model:
            yield from _model(f"{at}.model", stage.model)
        if not stage.messages and "pipelines" not in unread:
            yield Problem(f"{at}.messages", "a stage needs a prompt or messages")
        for k, message in enumerate(stage.messages):
            if message.role not in ROLES:
                near = nearest(message.role, ROLES)
                yield Problem(f"{at}.messages[{k}].role", f"{message.role!r} is not a role{near}")
            if not message.content.strip() and message.role == "user":
                yield Problem(f"{at}.messages[{k}].content", "the prompt is empty")
        yield from problems_of_calls(at, stage, first=index == 0)


def _models(field: str, pipeline: Pipeline, unread: Collection[str]) -> Iterator[Problem]:
    if not pipeline.models and pipeline.stages and "models" not in unread:
        yield Problem(f"{field}.models", f"the pipeline {pipeline.name!r} has no model; add 'models' or 'model'")
    for index, name in _doubles([entry.name for entry in pipeline.models]):
        yield Problem(f"{field}.models[{index}].name", f"two models are named {name!r}; give each a 'name' of its own")
    for index, entry in enumerate(pipeline.models):
        yield from _model(f"{field}.models[{index}].model", entry.model)
        if not 0 < len(entry.name) <= 200 or not entry.name.isprintable():
            at = f"{field}.models[{index}].name"
            yield Problem(at, f"{entry.name!r} is not a name of 1 to 200 printable characters")


def _model(field: str, model: str) -> Iterator[Problem]:
    provider, slash, name = model.partition("/")
    if not provider.strip() or not slash or not name.strip() or not model.isprintable() or len(model) > 300:
        yield Problem(field, f"the model {model!r} is not PROVIDER/MODEL")


def _params(spec: ExperimentSpec) -> Iterator[Problem]:
    yield from _typed("params", spec.params)
    said: set[str] = set()
    for index, point in enumerate(spec.sweep):
        for problem in _typed(f"sweep[{index}]", point):
            if problem.message not in said:  # a value of one axis is in many points
                said.add(problem.message)
                yield problem
    for i, pipeline in enumerate(spec.pipelines):
        for j, entry in enumerate(pipeline.models):
            yield from _typed(f"pipelines[{i}].models[{j}].params", entry.params)
        for j, stage in enumerate(pipeline.stages):
            yield from _typed(f"pipelines[{i}].stages[{j}].params", stage.params)


def _typed(field: str, params: Mapping[str, Json]) -> Iterator[Problem]:
    for name, value in params.items():
        wrong = None
        if not name.strip():
            wrong = "a parameter needs a name"
        elif name in _SET_ELSEWHERE:
            wrong = f"{name!r} is not a parameter; {_SET_ELSEWHERE[name]}"
        elif value is None:
            continue
        elif name in _BESIDE:
            wrong = f"{name!r} is not a parameter; {_BESIDE[name]}"
        elif name in _ANSWERS and value != 1:
            wrong = f"{name!r} must be 1, not {noun(value)}: a run has one answer; 'repeats' asks again"
        elif name in _TYPES and not _TYPES[name][0](value):
            wrong = f"{name!r} must be {_TYPES[name][1]}, not {noun(value)}"
        elif name == "max_tokens" and not value >= 1:  # type: ignore[operator]
            wrong = f"'max_tokens' must be at least 1, not {value}"
        elif name == "top_logprobs" and not value >= 0:  # type: ignore[operator]
            wrong = f"'top_logprobs' must be at least 0, not {value}"
        elif name == "temperature" and not value >= 0:  # type: ignore[operator]
            wrong = f"'temperature' must be at least 0, not {value}"
        elif name == "top_p" and not 0 <= value <= 1:  # type: ignore[operator]
            wrong = f"'top_p' must be from 0 to 1, not {value}"
        if wrong is not None:
            yield Problem(f"{field}.{name}", wrong)


def _dead_axes(spec: ExperimentSpec) -> Iterator[Problem]:
    seen: set[bytes] = set()
    for index, point in enumerate(spec.sweep):
        form = canonical(point)
        if form in seen:
            yield Problem(f"sweep[{index}]", "two points of the sweep are equal")
        seen.add(form)
    swept = list(dict.fromkeys(name for point in spec.sweep for name in point))
    for index, pipeline in enumerate(spec.pipelines):
        if not pipeline.stages:
            continue
        if len(pipeline.models) > 1 and all(stage.model for stage in pipeline.stages):
            message = (
                f"the models change nothing in pipeline {pipeline.name!r}: each of its stages names its own;"
                " remove those, or give the pipeline one of the models"
            )
            yield Problem(f"pipelines[{index}].models", message)
        for name in swept:
            if all(name in stage.params for stage in pipeline.stages):
                message = (
                    f"the sweep of {name!r} changes nothing in pipeline {pipeline.name!r}: each of its stages sets"
                    f" {name!r}; remove it from one of the two"
                )
                first = next(i for i, other in enumerate(spec.sweep) if name in other)
                yield Problem(f"sweep[{first}].{name}", message)


def _scorers(spec: ExperimentSpec) -> Iterator[Problem]:
    for index, name in _doubles([scorer.name for scorer in spec.scorers]):
        yield Problem(f"scorers[{index}].name", f"two scorers are named {name!r}; give each a 'name' of its own")
    for index, scorer in enumerate(spec.scorers):
        at = f"scorers[{index}]"
        if not SCORER_NAME.fullmatch(scorer.name):
            message = f"the scorer name {scorer.name!r} must be 1 to 64 of letters, digits, _, - and ."
            yield Problem(f"{at}.name", message)
        if not 0 <= scorer.weight < float("inf"):
            yield Problem(f"{at}.weight", f"'weight' must be at least 0, not {scorer.weight}")
        if scorer.threshold is not None and not 0 <= scorer.threshold <= 1:
            yield Problem(f"{at}.threshold", f"'threshold' must be from 0 to 1, not {scorer.threshold}")
    if spec.scorers and all(scorer.weight == 0 for scorer in spec.scorers):
        yield Problem("scorers", "every scorer has weight 0, so there is no score; give one a weight")


def _gates(spec: ExperimentSpec, unread: Collection[str], lost: Collection[str]) -> Iterator[Problem]:
    names = [*(scorer.name for scorer in spec.scorers), *lost]
    for index, gate in enumerate(spec.gates):
        at = f"gates[{index}]"
        for name, least in gate.min_scores.items():
            if name not in names and "scorers" not in unread:
                yield Problem(f"{at}.min_scores.{name}", f"no scorer is named {name!r}{nearest(name, names)}")
            if not 0 <= least <= 1:
                yield Problem(f"{at}.min_scores.{name}", f"a least score must be from 0 to 1, not {least}")
        if gate.max_failed_runs is not None and gate.max_failed_runs < 0:
            yield Problem(f"{at}.max_failed_runs", f"'max_failed_runs' must be at least 0, not {gate.max_failed_runs}")


def _numbers(spec: ExperimentSpec) -> Iterator[Problem]:
    if not 1 <= spec.repeats <= MAX_REPEATS:
        yield Problem("repeats", f"'repeats' must be from 1 to {MAX_REPEATS:,}, not {spec.repeats}")
    limits = spec.limits
    if not 1 <= limits.max_concurrency <= MAX_CONCURRENCY:
        message = f"'max_concurrency' must be from 1 to {MAX_CONCURRENCY:,}, not {limits.max_concurrency}"
        yield Problem("limits.max_concurrency", message)
    if limits.budget_nanousd is not None and limits.budget_nanousd <= 0:
        yield Problem("limits.budget_usd", "'budget_usd' must be above 0")
    if limits.budget_tokens is not None and limits.budget_tokens <= 0:
        yield Problem("limits.budget_tokens", f"'budget_tokens' must be at least 1, not {limits.budget_tokens}")
    for name in ("stage_timeout", "run_timeout", "experiment_timeout"):
        timeout = getattr(limits, name)
        if timeout is not None and not 0 < timeout <= LONGEST_TIMEOUT:
            yield Problem(f"limits.{name}", f"'{name}' must be above 0 and at most 365 days")
    if spec.cache.max_age is not None and spec.cache.max_age <= 0:
        yield Problem("cache.max_age", "'max_age' must be above 0")
    if not 0 < spec.execution.timeout <= LONGEST_TIMEOUT:
        yield Problem("execution.timeout", "'timeout' must be above 0 and at most 365 days")
    runs = shape(spec).total
    if runs > MAX_RUNS:
        yield Problem("", f"the experiment has {runs:,} runs, at most {MAX_RUNS:,} are allowed")


def _rows(spec: ExperimentSpec) -> Iterator[Problem]:
    for index, name in _doubles([row.input_id for row in spec.inputs]):
        yield Problem(f"inputs[{index}].input_id", f"two rows have the id {name!r}")
    for index, row in enumerate(spec.inputs):
        for tag in row.tags:
            yield from _tag(f"inputs[{index}]._tags", tag)
