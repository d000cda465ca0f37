"""What only the Adapter and the Scorer know of an experiment: models, prices, scorers; and what it may cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from promptlooper.completion import CompletionGateway, ModelCheck
from promptlooper.errors import Problem, TemplateError
from promptlooper.experiment import ExperimentSpec, Stage
from promptlooper.experiments import Validation
from promptlooper.runner.render import Renderer, variables
from promptlooper.runner.spec.call_counts import counted, items_of, spread, stages_over_nothing
from promptlooper.runner.spec.check_spec import problems_of
from promptlooper.runner.spec.check_templates import texts_in
from promptlooper.runner.spec.expand import Variant, shape, stage_model, stage_params, variants
from promptlooper.scoring import ScorerCheck, ScoringService

CHARACTERS_PER_TOKEN = 4
_ROWS_TRIED = 50  # for the estimate


async def check(
    spec: ExperimentSpec, gateway: CompletionGateway, scoring: ScoringService, renderer: Renderer | None = None
) -> Validation:
    """Everything that is wrong with an experiment, and what it would take. Raises ServiceUnavailable."""
    renderer = renderer or Renderer()
    problems = problems_of(spec, renderer=renderer)
    found = variants(spec)
    asked = _models(spec)
    checks = {one.model: one for one in await gateway.check_models(list(asked))} if asked else {}
    for model, field in asked.items():
        one = checks.get(model)
        if one is not None and one.problem is not None:
            problems.append(Problem(field, one.problem))
        elif one is not None and spec.execution.is_batch and not one.batches:
            problems.append(Problem("execution.mode", _no_batches(model)))
    problems += await _scorer_problems(spec, scoring, renderer)
    problems += _budget_problems(spec, found, checks)
    if not problems:
        problems += stages_over_nothing(spec, renderer)
    estimate = None if problems else _estimate(spec, found, checks, renderer)
    count = counted(spec, renderer)
    versions = {one.price_version for one in checks.values() if one.price_version}
    return Validation(
        problems=tuple(dict.fromkeys(problems)),
        runs=shape(spec).total,
        calls=count.calls,
        calls_at_least=count.at_least,
        estimated_cost_nanousd=estimate,
        price_versions=() if estimate is None else tuple(sorted(versions)),
    )


def _models(spec: ExperimentSpec) -> dict[str, str]:
    """Every well-formed model that would be asked, with the field that names it first."""
    found: dict[str, str] = {}
    for i, pipeline in enumerate(spec.pipelines):
        for j, stage in enumerate(pipeline.stages):
            if stage.model:
                found.setdefault(stage.model, f"pipelines[{i}].stages[{j}].model")
        if not all(stage.model for stage in pipeline.stages):
            for j, entry in enumerate(pipeline.models):
                found.setdefault(entry.model, f"pipelines[{i}].models[{j}].model")
    return {model: field for model, field in found.items() if "/" in model.strip("/")}


def _no_batches(model: str) -> str:
    return f"the provider of {model!r} answers no batches; take 'execution: direct', or another model"


async def _scorer_problems(spec: ExperimentSpec, scoring: ScoringService, renderer: Renderer) -> list[Problem]:
    if not spec.scorers:
        return []
    checks = []
    for scorer in spec.scorers:
        late = any(renderer.is_template(text) for text in texts_in(scorer.value))
        checks.append(ScorerCheck(scorer.type, scorer.value, scorer.settings, late))
    answers = await scoring.check(checks)
    return [Problem(f"scorers[{i}]", message) for i, messages in enumerate(answers) for message in messages]


def _calls(found: Sequence[Variant]) -> Iterator[tuple[Variant, int, Stage, str, Mapping[str, Any]]]:
    for variant in found:
        for index, stage in enumerate(variant.pipeline.stages):
            yield variant, index, stage, stage_model(variant, stage), stage_params(variant, stage)


def _budget_problems(
    spec: ExperimentSpec, found: Sequence[Variant], checks: Mapping[str, ModelCheck]
) -> Iterator[Problem]:
    """A hard budget needs an upper bound of what each call can take."""
    for _, index, _, model, params in _calls(found):
        bounded = isinstance(params.get("max_tokens"), int)
        one = checks.get(model)
        if spec.limits.budget_nanousd is not None and one is not None and one.problem is None:
            if one.price is None:
                message = (
                    f"a budget_usd needs a price of {model!r}, and none is known; add one to the providers file, or a"
                    " 'price_ceiling' for what has no price"
                )
                yield Problem("limits.budget_usd", message)
            elif not bounded and not one.price.is_free:
                message = f"a budget_usd needs 'max_tokens' for every call; stage {index} with {model!r} has none"
                yield Problem("limits.budget_usd", message)
        if spec.limits.budget_tokens is not None and not bounded:
            message = f"a budget_tokens needs 'max_tokens' for every call; stage {index} with {model!r} has none"
            yield Problem("limits.budget_tokens", message)


def _estimate(
    spec: ExperimentSpec, found: Sequence[Variant], checks: Mapping[str, ModelCheck], renderer: Renderer
) -> int | None:
    """Nano-USD at list prices, those of batches where they are used: prompts at 4 characters a token, answers of
    max_tokens, nothing cached. None where a price or max_tokens is unknown."""
    rows = spread(spec.inputs, _ROWS_TRIED)
    rendered: dict[tuple[int, int], tuple[float, float]] = {}
    total = 0.0
    for variant, index, stage, model, params in _calls(found):
        one = checks.get(model)
        price = None if one is None or one.price_unknown else one.list_price or one.price
        if one is not None and spec.execution.is_batch:
            price = one.batch_price or price
        if price is None:
            return None
        if price.is_free:
            continue
        most = params.get("max_tokens")
        if not isinstance(most, int):
            return None
        key = (index, id(stage))
        if key not in rendered:
            characters = sum(_characters(spec, row, stage, index, renderer) for row in rows) / len(rows)
            rendered[key] = characters, items_of(spec, variant.pipeline, index, renderer) or 1
        characters, items = rendered[key]
        before = 0
        if index and any("prev_output" in m.content or "stages" in m.content for m in stage.messages):
            earlier = stage_params(variant, variant.pipeline.stages[index - 1]).get("max_tokens")
            before = earlier if isinstance(earlier, int) else 0
        tokens_in = characters / CHARACTERS_PER_TOKEN + before
        if stage.continue_conversation:  # each item's call has all that was said before
            tokens_in += (items - 1) / 2 * (tokens_in + most)
        once = (tokens_in * price.input_nanousd_per_mtok + most * price.output_nanousd_per_mtok) / 1e6
        total += items * (once + price.request_nanousd)
    return round(total * len(spec.inputs) * spec.repeats)


def _characters(spec: ExperimentSpec, row: Any, stage: Stage, index: int, renderer: Renderer) -> int:
    try:
        if index == 0:
            return sum(len(message.content) for message in renderer.messages(stage, variables(spec, row, (), 0)))
    except TemplateError:
        pass  # this run will fail; its length is guessed from the template
    return sum(len(message.content) for message in stage.messages)
