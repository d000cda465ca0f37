"""The work of a run: a stage at a time, and after the last one its scoring. Knows nothing of the database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from promptlooper.clock import Clock
from promptlooper.completion import Completion, CompletionRequest, ModelCheck
from promptlooper.errors import CompletionFailed, ContentFiltered, DomainError
from promptlooper.experiment import ExperimentSpec, InputRow
from promptlooper.jsonvalue import JsonObject
from promptlooper.run import RunError, RunState, Score, StageResult
from promptlooper.runner.answers import Answer, Answers, Question
from promptlooper.runner.bounds import Bound, call_bound
from promptlooper.runner.outcomes import Outcome, RunEnded, RunFacts, RunReturned, StageDone
from promptlooper.runner.render import Renderer, scorer_variables, variables
from promptlooper.runner.scores import Scores
from promptlooper.runner.spec.expand import Cell, Shape, Variant, cell, stage_model, stage_params
from promptlooper.runner.store.rows import microseconds
from promptlooper.runner.turn import Claim

log = logging.getLogger("runner.execution")
PARK_AT_LEAST = 1.0  # seconds


class NeedsMore(Exception):
    """A call may cost more than its run has reserved; it was not made."""

    def __init__(self, bound: Bound) -> None:
        super().__init__(f"needs {bound}")
        self.bound = bound


@dataclass(frozen=True, slots=True)
class Plan:
    """What is fixed of an experiment while it runs."""

    experiment_id: str
    spec: ExperimentSpec  # without its inputs
    variants: tuple[Variant, ...]
    grid: Shape
    models: dict[str, ModelCheck]  # by provider/model: prices and endpoints


class RunExecutor:
    """Executes the runs of one experiment and reports outcomes."""

    def __init__(
        self,
        plan: Plan,
        answers: Answers,
        scores: Scores,
        renderer: Renderer,
        clock: Clock,
        report: Callable[[Outcome], None],
    ) -> None:
        self._plan, self._answers, self._scores = plan, answers, scores
        self._renderer, self._clock, self._report = renderer, clock, report
        self._calls: dict[tuple[str, int], tuple[str, JsonObject]] = {}

    def place_of(self, run_index: int) -> Cell:
        return cell(self._plan.grid, run_index)

    def variant_of(self, place: Cell) -> Variant:
        return self._plan.variants[place.variant_index]

    def facts_of(self, run_index: int, row: InputRow) -> RunFacts:
        place = self.place_of(run_index)
        return RunFacts(self.variant_of(place).variant_id, row.input_id, place.repeat)

    async def step(self, claim: Claim, row: InputRow, results: tuple[StageResult, ...]) -> None:
        """Executes one stage of a run, and after the last one its scoring. Everything that can go wrong with the work
        ends as an outcome; cancellation passes."""
        plan = self._plan
        place = self.place_of(claim.run_index)
        variant = self.variant_of(place)
        facts = RunFacts(variant.variant_id, row.input_id, place.repeat)
        stages = variant.pipeline.stages
        index = claim.next_stage
        try:
            if index < len(stages):
                result = await self._stage(claim, place.repeat, variant, row, results)
                filtered = result.finish_reason == "content_filter"
                last = filtered or index + 1 == len(stages)
                self._report(StageDone(claim.run_index, claim.lease_epoch, facts, result, last))
                if filtered:
                    raise ContentFiltered(
                        f"the content filter of {result.model!r} withheld the answer; change the prompt or the input"
                    )
                if not last:
                    return
                results = (*results, result)
            scores, score, passed = await self._scored(row, results)
        except NeedsMore as need:
            self._report(
                RunReturned(
                    claim.run_index,
                    claim.lease_epoch,
                    facts,
                    need_nanousd=need.bound.nanousd,
                    need_tokens=need.bound.tokens,
                )
            )
        except DomainError as error:
            wait = error.retry_after
            if error.retryable and wait is not None and error.reason == "PROVIDER_RATE_LIMITED":
                due = microseconds(self._clock.now()) + int(max(wait, PARK_AT_LEAST) * 1e6)
                outcome = RunReturned(claim.run_index, claim.lease_epoch, facts, not_before_us=due, why=error.reason)
                self._report(outcome)
                return
            self._fail(claim, facts, _run_error(error, index, variant))
        except Exception as error:
            log.exception("run %s-%s failed unexpectedly", plan.experiment_id, claim.run_index)
            told = RunError("INTERNAL", f"internal error ({type(error).__name__}); see the Runner's log", index)
            self._fail(claim, facts, told)
        else:
            ended = RunEnded(claim.run_index, claim.lease_epoch, facts, RunState.COMPLETED, scores, score, passed)
            self._report(ended)

    def _fail(self, claim: Claim, facts: RunFacts, error: RunError) -> None:
        self._report(RunEnded(claim.run_index, claim.lease_epoch, facts, RunState.FAILED, error=error))

    async def _stage(
        self, claim: Claim, repeat: int, variant: Variant, row: InputRow, results: tuple[StageResult, ...]
    ) -> StageResult:
        plan, index = self._plan, claim.next_stage
        stage = variant.pipeline.stages[index]
        model, params = self._call_of(variant, index)
        messages = self._renderer.messages(stage, variables(plan.spec, row, results, index))
        known = plan.models.get(model) or ModelCheck(model)
        if claim.reserved_nanousd is not None or claim.reserved_tokens is not None:
            bound = call_bound(messages, params, known.price)
            if (claim.reserved_nanousd is not None and bound.nanousd > claim.reserved_nanousd) or (
                claim.reserved_tokens is not None and bound.tokens > claim.reserved_tokens
            ):
                raise NeedsMore(bound)
        request = CompletionRequest(model, messages, params, stage.timeout or plan.spec.limits.stage_timeout)
        question = Question(request, known.endpoint, repeat, plan.spec.project, plan.spec.cache)
        answer = await self._answers.ask(question)
        return _stage_result(index, stage.name, request, answer)

    def _call_of(self, variant: Variant, index: int) -> tuple[str, JsonObject]:
        """Model and parameters of a stage: the same for all its runs."""
        place = (variant.variant_id, index)
        if (call := self._calls.get(place)) is None:
            stage = variant.pipeline.stages[index]
            call = self._calls[place] = (stage_model(variant, stage), stage_params(variant, stage))
        return call

    async def _scored(
        self, row: InputRow, results: tuple[StageResult, ...]
    ) -> tuple[tuple[Score, ...], float | None, bool | None]:
        values = scorer_variables(self._plan.spec, row, results)
        return await self._scores.of(self._plan.spec.scorers, results, values)


def _run_error(error: DomainError, index: int, variant: Variant) -> RunError:
    stages = variant.pipeline.stages
    name = stages[index].name if index < len(stages) else ""
    where = f"stage {name!r}" if name else f"stage {index}"
    message = f"{where}: {error.message}" if error.reason == "TEMPLATE_ERROR" else error.message
    attempts = error.attempts if isinstance(error, CompletionFailed) else 0
    return RunError(error.reason, message, index, name, attempts, error.retryable)


def _stage_result(index: int, name: str, request: CompletionRequest, answer: Answer) -> StageResult:
    completion: Completion = answer.completion
    return StageResult(
        stage_index=index,
        name=name,
        messages=request.messages,
        output=completion.output,
        model=completion.model,
        model_requested=request.model,
        params=request.params,
        tokens_in=completion.tokens_in,
        tokens_out=completion.tokens_out,
        tokens_reasoning=completion.tokens_reasoning,
        tokens_cached_in=completion.tokens_cached_in,
        latency_ms=completion.latency_ms,
        ttft_ms=completion.ttft_ms,
        cost_nanousd=0 if answer.cached else completion.cost_nanousd,
        cost_saved_nanousd=completion.cost_nanousd if answer.cached else 0,
        cached=answer.cached,
        attempts=0 if answer.cached else completion.attempts,
        finish_reason=completion.finish_reason,
        reasoning=completion.reasoning,
    )
