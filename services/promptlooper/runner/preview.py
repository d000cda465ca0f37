"""The exact messages of a run, before anything is asked: outputs of earlier stages are placeholders."""

from __future__ import annotations

from promptlooper.completion import Message
from promptlooper.errors import InvalidArgument, TemplateError
from promptlooper.experiment import ExperimentSpec, InputRow, Stage
from promptlooper.run import StageResult
from promptlooper.runner.calls import Call, Conversation
from promptlooper.runner.render import Renderer
from promptlooper.runner.spec.expand import Cell, Shape, Variant, cell, shape, stage_model, stage_params, variants
from promptlooper.sources import RenderedRun, RenderedStage


def place_of(grid: Shape, run_index: int) -> Cell:
    """Raises InvalidArgument for a run that the grid has not."""
    try:
        return cell(grid, run_index)
    except IndexError:
        message = f"run_index {run_index} is not one of the grid's: the runs are 0 to {grid.total - 1}"
        raise InvalidArgument(message, field="run_index") from None


def rendered(spec: ExperimentSpec, run_index: int, renderer: Renderer | None = None) -> RenderedRun:
    """A run of a spec with all its inputs. Raises InvalidArgument for a run that its grid has not."""
    grid = shape(spec)
    place = place_of(grid, run_index)
    return rendered_at(
        spec, variants(spec)[place.variant_index], spec.inputs[place.input_index], place, grid.total, renderer
    )


def rendered_at(
    spec: ExperimentSpec, variant: Variant, row: InputRow, place: Cell, runs: int, renderer: Renderer | None = None
) -> RenderedRun:
    renderer = renderer or Renderer()
    earlier: list[StageResult] = []
    stages = []
    conversation = Conversation(renderer, spec, variant.pipeline.stages, row)
    call: Call | None = Call(0)
    while call is not None:
        stage = variant.pipeline.stages[call.stage_index]
        messages: tuple[Message, ...] = ()
        problem = ""
        try:
            messages = conversation.messages(call, earlier)
        except TemplateError as error:
            problem = error.message
        model = stage_model(variant, stage)
        stages.append(
            RenderedStage(
                call.stage_index,
                stage.name,
                model,
                stage_params(variant, stage),
                messages,
                problem,
                stage.tools,
                stage.tool_choice,
                stage.response_schema,
            )
        )
        earlier.append(_placeholder(call, stage, model, messages))
        call = _following(conversation, call, earlier, len(variant.pipeline.stages))
    return RenderedRun(
        place.run_index, runs, variant.variant_id, variant.label, row.input_id, place.repeat, tuple(stages)
    )


def _following(conversation: Conversation, call: Call, earlier: list[StageResult], count: int) -> Call | None:
    """Where the items of for_each are not known before earlier stages answer, the stage is shown once."""
    try:
        return conversation.next_call(earlier)
    except TemplateError:
        return Call(call.stage_index + 1) if call.stage_index + 1 < count else None


def _placeholder(call: Call, stage: Stage, model: str, messages: tuple[Message, ...]) -> StageResult:
    return StageResult(
        stage_index=call.stage_index,
        name=stage.name,
        messages=messages,
        output=f"<output of {stage.name or f'stage {call.stage_index}'}>",
        model=model,
        model_requested=model,
        params={},
        tokens_in=None,
        tokens_out=None,
        tokens_reasoning=None,
        tokens_cached_in=None,
        latency_ms=0,
        ttft_ms=None,
        cost_nanousd=None,
        cost_saved_nanousd=None,
        cached=False,
        attempts=0,
        finish_reason="stop",
        iteration=call.iteration,
    )
