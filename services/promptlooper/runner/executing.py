"""ExecuteRun: one run now, in its caller's time, with nothing stored and nothing queued."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import groupby

from promptlooper.clock import Clock
from promptlooper.completion import CompletionGateway
from promptlooper.errors import DeadlineExceeded, Draining, InvalidExperiment, ServiceUnavailable
from promptlooper.experiment import ExperimentSpec, InputRow
from promptlooper.experiments import Execution, OutputDelta
from promptlooper.failpoints import Failpoints
from promptlooper.run import Run, RunError, RunState, StageResult
from promptlooper.runner.answers import Answers
from promptlooper.runner.calls import output_of
from promptlooper.runner.claims import Claim
from promptlooper.runner.counts import RunnerCounts
from promptlooper.runner.event_facts import waiting_facts
from promptlooper.runner.execution import Plan, RunExecutor
from promptlooper.runner.outcomes import Outcome, RunEnded, RunReturned, StageDone
from promptlooper.runner.render import Renderer
from promptlooper.runner.scores import Scores
from promptlooper.runner.spec.check_services import check
from promptlooper.runner.spec.expand import Shape, stage_model, variants
from promptlooper.runner.spec.normal import body_sha256
from promptlooper.runner.store.rows import microseconds, storable
from promptlooper.runner.targets import Targets, row_of_target
from promptlooper.scoring import ScoringService
from promptlooper.sources import RunTarget
from promptlooper.streaming import parts_of, told_by

AT_ONCE = 1_000  # in one process: bounds its memory
PLANS, PLAN_AGE = 256, 60.0  # seconds that a checked experiment is executed without another look


class Executions:
    """Executes runs for callers who wait. What it checked of an experiment it knows for a minute."""

    def __init__(
        self,
        answers: Answers,
        scores: Scores,
        renderer: Renderer,
        gateway: CompletionGateway,
        scoring: ScoringService,
        clock: Clock,
        failpoints: Failpoints,
        counts: RunnerCounts,
        *,
        at_once: int = AT_ONCE,
    ) -> None:
        self._answers, self._scores, self._renderer, self._clock = answers, scores, renderer, clock
        self._gateway, self._scoring, self._failpoints = gateway, scoring, failpoints
        self._at_once, self._counts = at_once, counts
        self._plans: OrderedDict[Hashable, tuple[float, Plan]] = OrderedDict()

    async def execute(
        self, target: RunTarget, targets: Targets, timeout: float | None, draining: Callable[[], bool]
    ) -> AsyncIterator[Execution]:
        """Deltas and stages as they come, and the run in the end. `timeout` is the caller's, in seconds. Raises what
        StartRun raises, ServiceUnavailable where too many are executed already, DeadlineExceeded where the caller's
        time was over first."""
        if draining():
            raise Draining("this Runner is shutting down; ask again, another answers")
        if self._counts.executing >= self._at_once:
            raise ServiceUnavailable(
                f"this Runner executes {self._at_once:,} runs already: ask another, or later", retry_after=1.0
            )
        self._counts.executing += 1
        try:
            began = self._clock.monotonic()
            plan, row = await self._planned(target, targets)
            left = None if timeout is None else timeout - (self._clock.monotonic() - began)
            execution = _Execution(plan, row, left, self._executor, self._clock, self._counts)
            async with aclosing(told_by(execution.run)) as told:
                async for ready in told:
                    for message in _joined(ready):
                        yield message
        finally:
            self._counts.executing -= 1

    def _executor(
        self, plan: Plan, report: Callable[[Outcome], None], on_delta: Callable[[int, str], None]
    ) -> RunExecutor:
        return RunExecutor(
            plan, self._answers, self._scores, self._renderer, self._clock, report, self._failpoints, on_delta
        )

    async def _planned(self, target: RunTarget, targets: Targets) -> tuple[Plan, InputRow]:
        key: Hashable
        if isinstance(target.experiment, str) and target.has_row:
            key, row = (target.experiment, target.variant_id), row_of_target(target)
            if (plan := self._known(key)) is None:
                plan = await self._checked((await targets.one_run(target)).spec, key)
            return plan, row
        spec = (await targets.one_run(target)).spec
        key = body_sha256(replace(spec, inputs=()))
        return self._known(key) or await self._checked(spec, key), spec.inputs[0]

    def _known(self, key: Hashable) -> Plan | None:
        until, plan = self._plans.get(key, (0.0, None))
        return plan if self._clock.monotonic() < until else None

    async def _checked(self, spec: ExperimentSpec, key: Hashable) -> Plan:
        if problems := (await check(spec, self._gateway, self._scoring, self._renderer)).problems:
            raise InvalidExperiment(problems)
        chosen = variants(spec)
        models = sorted({stage_model(variant, stage) for variant in chosen for stage in variant.pipeline.stages})
        known = {one.model: one for one in await self._gateway.check_models(models)}
        plan = Plan("", replace(spec, inputs=()), chosen, Shape(1, 1, 1), known)
        self._plans[key] = self._clock.monotonic() + PLAN_AGE, plan
        self._plans.move_to_end(key)
        while len(self._plans) > PLANS:
            self._plans.popitem(last=False)
        return plan


def _joined(ready: Iterable[Execution]) -> Iterator[Execution]:
    """One message for deltas that follow each other, as they are of one output: the stage is told between two."""
    for is_delta, messages in groupby(ready, key=lambda message: message.delta is not None):
        if not is_delta:
            yield from messages
            continue
        deltas = [message.delta for message in messages if message.delta is not None]
        for text in parts_of("".join(delta.text for delta in deltas)):
            yield Execution(delta=replace(deltas[0], text=text))


_Executor = Callable[[Plan, Callable[[Outcome], None], Callable[[int, str], None]], RunExecutor]


@dataclass(slots=True)
class _Execution:
    """One run under way."""

    plan: Plan
    row: InputRow
    timeout: float | None  # seconds
    make_executor: _Executor
    clock: Clock
    counts: RunnerCounts
    results: list[StageResult] = field(default_factory=list)
    last: Outcome | None = None
    told: int = 0  # characters of the output of the stage under way

    async def run(self, tell: Callable[[Execution], None]) -> Execution:
        began, state = self.clock.monotonic(), RunState.FAILED
        try:
            run = await self._executed(tell)
            state = run.state
            return Execution(run=run)
        except asyncio.CancelledError:
            state = RunState.CANCELLED
            raise
        finally:
            self.counts.has_executed(state, self.clock.monotonic() - began)

    async def _executed(self, tell: Callable[[Execution], None]) -> Run:
        started = self.clock.now()
        callers_us = None if self.timeout is None else microseconds(started) + int(self.timeout * 1e6)
        deadline_us = callers_us
        limit = self.plan.spec.limits.run_timeout
        if limit is not None:
            over_us = microseconds(started) + int(limit * 1e6)
            deadline_us = over_us if deadline_us is None else min(deadline_us, over_us)
        executor = self.make_executor(self.plan, partial(self._hear, tell), partial(self._delta, tell))
        while not isinstance(self.last, RunEnded | RunReturned):
            self.last, self.told = None, 0
            await executor.step(self._claim(deadline_us), self.row, tuple(self.results))
        run = self._run(started)
        late = run.error is not None and run.error.reason == DeadlineExceeded.reason
        if late and callers_us is not None and callers_us <= microseconds(self.clock.now()):
            raise DeadlineExceeded("the caller's time was over before the run's end: allow more time")
        return run

    def _claim(self, deadline_us: int | None) -> Claim:
        """With all that is left of a budget for the next call."""
        limits = self.plan.spec.limits
        nanousd = tokens = None
        if limits.budget_nanousd is not None:
            nanousd = limits.budget_nanousd - sum(result.cost_nanousd or 0 for result in self.results)
        if limits.budget_tokens is not None:
            paid = (result for result in self.results if not result.cached)
            tokens = limits.budget_tokens - sum((r.tokens_in or 0) + (r.tokens_out or 0) for r in paid)
        return Claim(0, 0, len(self.results), nanousd, tokens, None, deadline_us)

    def _delta(self, tell: Callable[[Execution], None], stage_index: int, text: str) -> None:
        self.told += len(text)
        tell(Execution(delta=OutputDelta(stage_index, self._name(stage_index), storable(text))))

    def _hear(self, tell: Callable[[Execution], None], outcome: Outcome) -> None:
        self.last = outcome
        if isinstance(outcome, StageDone):
            result = outcome.result
            self.results.append(result)
            self.counts.answered(result)
            if not self.told and result.output:
                self._delta(tell, result.stage_index, result.output)
            tell(Execution(stage=result))

    def _name(self, stage_index: int) -> str:
        return self.plan.variants[0].pipeline.stages[stage_index].name

    def _run(self, started: datetime) -> Run:
        assert isinstance(self.last, RunEnded | RunReturned)
        stages, error = list(self.results), None
        if isinstance(self.last, RunReturned):
            error = self._why_not_queued(self.last)
        elif self.last.state is not RunState.COMPLETED:
            error = self.last.error
            if self.last.failed_stage is not None:
                stages.append(self.last.failed_stage)
        ended = self.last if isinstance(self.last, RunEnded) else None
        answered, spec, variant = self.results, self.plan.spec, self.plan.variants[0]
        costs = [result.cost_nanousd for result in answered]
        now = self.clock.now()
        return Run(
            run_id="",
            experiment_id="",
            project=spec.project,
            generation=0,
            run_index=0,
            state=RunState.FAILED if error else RunState.COMPLETED,
            input_index=0,
            input_id=self.row.input_id,
            variant_id=variant.variant_id,
            pipeline=variant.pipeline.name,
            model=variant.model_entry.name,
            params=variant.params,
            repeat=0,
            input=self.row.value,
            expected=self.row.expected,
            output=output_of(variant.pipeline.stages, answered, completed=ended is not None),
            score=ended.score if ended else None,
            passed=ended.passed if ended else None,
            scores=ended.scores if ended else (),
            error=error,
            tokens_in=sum(result.tokens_in or 0 for result in answered),
            tokens_out=sum(result.tokens_out or 0 for result in answered),
            tokens_reasoning=sum(result.tokens_reasoning or 0 for result in answered),
            tokens_cached_in=sum(result.tokens_cached_in or 0 for result in answered),
            cost_nanousd=None if None in costs else sum(cost or 0 for cost in costs),
            cost_saved_nanousd=sum(result.cost_saved_nanousd or 0 for result in answered),
            latency_ms=sum(result.latency_ms for result in answered),
            duration_ms=max(0, microseconds(now) - microseconds(started)) // 1000,
            cached=bool(answered) and all(result.cached for result in answered) and not (error and error.attempts),
            attempts=sum(result.attempts for result in answered) + (error.attempts if error else 0),
            stages=tuple(stages),
            tags=self.row.tags,
            metadata=self.row.metadata,
            created_at=started,
            started_at=started,
            completed_at=now,
        )

    def _why_not_queued(self, returned: RunReturned) -> RunError:
        """What would wait in an experiment fails here."""
        index = len(self.results)
        where = index, self._name(index), returned.attempts
        if returned.not_before_us is not None:
            wait = max(0.0, (returned.not_before_us - microseconds(self.clock.now())) / 1e6)
            what = waiting_facts(returned.why, returned.waits_for)["error_message"]
            message = f"{what}: ask again in {wait:.0f} s, or queue it with StartRun"
            return RunError(returned.why or "PROVIDER_RATE_LIMITED", message, *where, retryable=True)
        if returned.maybe_paid:
            message = "the answer was lost, and its call may be billed: it is not repeated under a budget"
            return RunError("SERVICE_UNAVAILABLE", message, *where, retryable=True)
        message = "the next call may cost more than is left of the budget: raise limits.budget_usd or budget_tokens"
        return RunError("BUDGET_EXCEEDED", message, *where)
