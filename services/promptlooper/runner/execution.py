"""The work of a run: a stage at a time, and after the last one its scoring. Knows nothing of the database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from promptlooper.clock import Clock
from promptlooper.completion import CompletionRequest, ModelCheck
from promptlooper.errors import (
    CompletionFailed,
    ContentFiltered,
    DeadlineExceeded,
    DomainError,
    ServiceUnavailable,
    TemplateError,
)
from promptlooper.experiment import ExperimentSpec, InputRow, Stage
from promptlooper.failpoints import Failpoints
from promptlooper.jsonvalue import JsonObject
from promptlooper.questions import Question
from promptlooper.run import RunError, RunState, Score, StageResult
from promptlooper.runner.answers import Answers
from promptlooper.runner.batched import BATCH, WaitsForBatch, batched
from promptlooper.runner.bounds import Bound, call_bound
from promptlooper.runner.calls import Call, Conversation
from promptlooper.runner.claims import Claim
from promptlooper.runner.outcomes import Outcome, RunEnded, RunFacts, RunReturned, StageDone
from promptlooper.runner.render import Renderer, scorer_variables
from promptlooper.runner.results import failed_stage, stage_result
from promptlooper.runner.scores import Scores
from promptlooper.runner.spec.expand import Cell, Shape, Variant, cell, stage_model, stage_params
from promptlooper.runner.store.rows import microseconds, storable
from promptlooper.telemetry import work_on
from promptlooper.tracing import span

log = logging.getLogger("runner.execution")
PARK_AT_LEAST, PARK_AT_MOST = 1.0, 3600.0  # seconds
LOOK_AFTER = 3600.0  # seconds after a batch's time
MAYBE_PAID = frozenset({"DEADLINE_EXCEEDED", "PROVIDER_UNAVAILABLE", "PROVIDER_MALFORMED", "SERVICE_UNAVAILABLE"})


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
    _calls: dict[tuple[str, int], tuple[str, JsonObject]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def bounded(self) -> bool:
        return self.spec.limits.budget_nanousd is not None or self.spec.limits.budget_tokens is not None

    def call_of(self, variant: Variant, index: int) -> tuple[str, JsonObject]:
        """Model and parameters of a stage: the same for all its runs."""
        place = (variant.variant_id, index)
        if (call := self._calls.get(place)) is None:
            stage = variant.pipeline.stages[index]
            call = self._calls[place] = (stage_model(variant, stage), stage_params(variant, stage))
        return call


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
        failpoints: Failpoints,
        on_delta: Callable[[int, str], None] | None = None,
    ) -> None:
        """`on_delta` hears outputs as they are generated, with the index of their stage."""
        self._failpoints, self._on_delta = failpoints, on_delta
        self._plan, self._answers, self._scores = plan, answers, scores
        self._renderer, self._clock, self._report = renderer, clock, report

    @property
    def experiment_id(self) -> str:
        return self._plan.experiment_id

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
        work_on(self._plan.experiment_id, claim.run_index)
        place = self.place_of(claim.run_index)
        variant = self.variant_of(place)
        facts = RunFacts(variant.variant_id, row.input_id, place.repeat)
        run, stages = (claim.run_index, claim.lease_epoch, facts), variant.pipeline.stages
        conversation = Conversation(self._renderer, self._plan.spec, stages, row)
        index = results[-1].stage_index if results else 0
        deadline_us = claim.deadline_us or self._now_us() + int(self._limit_of(stages[index:]) * 1e6)
        if claim.run_deadline_us is not None:
            deadline_us = min(deadline_us, claim.run_deadline_us)
        request: CompletionRequest | None = None
        call: Call | None = None
        try:
            if fault := _fault(conversation, results):
                raise fault  # this Runner, or the one before, stopped right after that was stored
            call = conversation.next_call(results)
            if call is not None:
                index = call.stage_index
                request = self._request(claim, variant, conversation, call, results, deadline_us)
                result = await self._stage(claim, request, call, stages[index].name, place.repeat)
                results = (*results, result)
                fault = _fault(conversation, results)
                last = fault is not None or _is_last(conversation, results)
                self._report(StageDone(*run, claim.next_stage, result, last))
                request = None
                if fault is not None:
                    raise fault
                if not last:
                    return
            scores, score, passed = await self._scored(row, results)
        except WaitsForBatch as waits:
            self._report(RunReturned(*run, not_before_us=self._batch_due_us(claim), why=BATCH, item=waits.item))
        except NeedsMore as need:
            bound = need.bound
            self._report(
                RunReturned(*run, deadline_us=deadline_us, need_nanousd=bound.nanousd, need_tokens=bound.tokens)
            )
        except DomainError as error:
            attempts = error.attempts if isinstance(error, CompletionFailed) else 0
            if isinstance(error, ServiceUnavailable) and error.sent and self._plan.bounded:
                # Once more, within another reservation: the first call may be billed.
                nanousd, tokens = claim.reserved_nanousd or 0, claim.reserved_tokens or 0
                self._report(
                    RunReturned(
                        *run, deadline_us=deadline_us, need_nanousd=nanousd, need_tokens=tokens, maybe_paid=True
                    )
                )
                return
            due_us = self._due_us(error)
            waits_for = error.metadata.get("waits_for", "")
            # A run that only waits for others has lost none of the stage's time: they may be many.
            queued = waits_for in ("concurrency", "rate")
            until_us = claim.run_deadline_us if queued else deadline_us
            if due_us is not None and (until_us is None or due_us < until_us):
                waiting = RunReturned(
                    *run,
                    not_before_us=due_us,
                    deadline_us=None if queued else deadline_us,
                    attempts=attempts,
                    why=error.reason,
                    waits_for=waits_for,
                )
                self._report(waiting)
            else:
                over = claim.run_deadline_us is not None and deadline_us == claim.run_deadline_us
                told = _run_error(error, index, stages, too_long=due_us is not None, run_is_over=over)
                self._fail(run, told, request, call, maybe_paid=bool(attempts) and error.reason in MAYBE_PAID)
        except Exception as error:
            log.exception("run %s-%s failed unexpectedly", self._plan.experiment_id, claim.run_index)
            told = RunError("INTERNAL", f"internal error ({type(error).__name__}); see the Runner's log", index)
            self._fail(run, told, request, call, maybe_paid=request is not None)
        else:
            self._report(RunEnded(*run, RunState.COMPLETED, scores, score, passed))

    def _fail(
        self,
        run: tuple[int, int, RunFacts],
        error: RunError,
        request: CompletionRequest | None,
        call: Call | None,
        *,
        maybe_paid: bool,
    ) -> None:
        failed = None if request is None or call is None else failed_stage(request, call, error)
        self._report(RunEnded(*run, RunState.FAILED, error=error, failed_stage=failed, maybe_paid=maybe_paid))

    def _now_us(self) -> int:
        return microseconds(self._clock.now())

    def _batch_due_us(self, claim: Claim) -> int:
        """When a run that waits for a batch looks for itself: mostly it is woken."""
        due_us = self._now_us() + int((self._plan.spec.execution.timeout + LOOK_AFTER) * 1e6)
        return due_us if claim.run_deadline_us is None else min(due_us, claim.run_deadline_us)

    def _limit_of(self, stages: Sequence[Stage]) -> float:
        """Seconds that the first of these stages may take, waits for rate limits included."""
        return (stages[0].timeout if stages else None) or self._plan.spec.limits.stage_timeout

    def _due_us(self, error: DomainError) -> int | None:
        """When a run may try again that a provider told to wait; None for other errors."""
        if error.reason != "PROVIDER_RATE_LIMITED" or error.retry_after is None:
            return None
        return self._now_us() + int(min(max(error.retry_after, PARK_AT_LEAST), PARK_AT_MOST) * 1e6)

    def _request(
        self,
        claim: Claim,
        variant: Variant,
        conversation: Conversation,
        call: Call,
        results: tuple[StageResult, ...],
        deadline_us: int,
    ) -> CompletionRequest:
        """The call's question. Raises TemplateError, NeedsMore, or DeadlineExceeded where waiting took all the
        time."""
        plan, stage = self._plan, variant.pipeline.stages[call.stage_index]
        model, params = plan.call_of(variant, call.stage_index)
        self._failpoints.hit("render_before")
        messages = conversation.messages(call, results)
        self._failpoints.hit("render_after")
        if any(storable(message.content) != message.content for message in messages):
            raise TemplateError("the prompt has a character that is not text (NUL or half of a surrogate pair)")
        if claim.reserved_nanousd is not None or claim.reserved_tokens is not None:
            known = plan.models.get(model) or ModelCheck(model)
            is_direct = not plan.spec.execution.is_batch or (claim.item is not None and claim.item.state == "DIRECT")
            bound = call_bound(messages, params, known.price if is_direct else known.most_in_batch, stage)
            if (claim.reserved_nanousd is not None and bound.nanousd > claim.reserved_nanousd) or (
                claim.reserved_tokens is not None and bound.tokens > claim.reserved_tokens
            ):
                raise NeedsMore(bound)
        timeout = (deadline_us - self._now_us()) / 1e6
        if timeout <= 0:
            raise DeadlineExceeded("waiting for the provider's rate limit took longer than limits.stage_timeout allows")
        return CompletionRequest(
            model,
            messages,
            params,
            timeout,
            once=plan.bounded,
            tools=stage.tools,
            tool_choice=stage.tool_choice,
            response_schema=stage.response_schema,
            experiment_id=plan.experiment_id,
        )

    async def _stage(self, claim: Claim, request: CompletionRequest, call: Call, name: str, repeat: int) -> StageResult:
        plan = self._plan
        known = plan.models.get(request.model) or ModelCheck(request.model)
        question = Question(request, known.endpoint, repeat, plan.spec.project, plan.spec.cache)
        on_delta = None if self._on_delta is None else partial(self._on_delta, call.stage_index)
        with span("stage") as staging:
            if plan.spec.execution.is_batch:
                answer = await batched(self._answers, question, claim)
            else:
                answer = await self._answers.ask(question, on_delta)
            result = stage_result(call, name, request, answer)
            if staging:
                staging.set({"promptlooper.stage.index": call.stage_index, "promptlooper.cached": result.cached})
        return result

    async def _scored(
        self, row: InputRow, results: tuple[StageResult, ...]
    ) -> tuple[tuple[Score, ...], float | None, bool | None]:
        values = scorer_variables(self._plan.spec, row, results)
        return await self._scores.of(self._plan.spec.scorers, results, values)


def _fault(conversation: Conversation, results: tuple[StageResult, ...]) -> DomainError | None:
    """Why the run can't go on after its last answer."""
    if not results:
        return None
    return _withheld(results[-1]) if results[-1].finish_reason == "content_filter" else conversation.fault(results)


def _is_last(conversation: Conversation, results: tuple[StageResult, ...]) -> bool:
    """What is wrong with the call after it is for that call to say: this answer is paid, and is stored first."""
    try:
        return conversation.next_call(results) is None
    except TemplateError:
        return False


def _withheld(result: StageResult) -> ContentFiltered:
    return ContentFiltered(
        f"the content filter of {result.model!r} withheld the answer; change the prompt or the input"
    )


def _run_error(
    error: DomainError, index: int, stages: Sequence[Stage], *, too_long: bool, run_is_over: bool
) -> RunError:
    name = stages[index].name if index < len(stages) else ""
    where = f"stage {name!r}" if name else f"stage {index}"
    message = f"{where}: {error.message}" if error.reason == "TEMPLATE_ERROR" else error.message
    limit = "limits.run_timeout" if run_is_over else "limits.stage_timeout"
    if too_long:
        message += f"; {limit} does not allow so long a wait: raise it, or lower limits.max_concurrency"
    elif run_is_over and isinstance(error, DeadlineExceeded):
        message = f"the run took longer than {limit} allows; raise it or ask for less"
    attempts = error.attempts if isinstance(error, CompletionFailed) else 0
    return RunError(error.reason, message, index, name, attempts, error.retryable)
