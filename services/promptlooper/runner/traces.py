"""Where the spans of an experiment's runs belong."""

from __future__ import annotations

from dataclasses import dataclass

from promptlooper import tracing
from promptlooper.run import Event, RunState
from promptlooper.runner.outcomes import RunEnded


@dataclass(slots=True)
class RunTraces:
    """`creator` is the traceparent of who created the experiment, "" where that is not traced."""

    experiment_id: str
    creator: str
    total: int  # runs

    def of_run(self, run_index: int, generation: int) -> str:
        """The traceparent of a run, "" where it is not traced."""
        return tracing.run_traceparent(self.experiment_id, run_index, generation, self.creator, self.total)

    def of_event(self, event: Event) -> str:
        """Of what the event tells of."""
        return self.creator if event.run_index is None else self.of_run(event.run_index, event.generation)

    def ended(self, traceparent: str, outcome: RunEnded, seconds: float) -> None:
        """Records the span of a run."""
        with tracing.run_ended(traceparent, self.creator, self.total, seconds) as span:
            span.set(
                {
                    "promptlooper.experiment_id": self.experiment_id,
                    "promptlooper.run_id": f"{self.experiment_id}-{outcome.run_index}",
                    "promptlooper.variant_id": outcome.facts.variant_id,
                    "promptlooper.run.state": outcome.state.value,
                    "promptlooper.run.score": outcome.score,
                }
            )
            if outcome.state is RunState.FAILED:
                span.fail(outcome.error.reason if outcome.error else "INTERNAL")
