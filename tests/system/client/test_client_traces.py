"""The trace of what a program asks for through the client."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from otlp_lab import collector, tree

from promptlooper import tracing
from promptlooper.client.traces import traced

PROGRAM = "from promptlooper.client import run; assert run('capitals.yaml').passed"


async def ran(program: str, here: Path, env: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=here, env={**os.environ, **env})
    assert await process.wait() == 0


async def test_a_program_that_runs_an_experiment_is_the_root_of_its_runs_trace(here: Path) -> None:
    async with collector() as traces:
        await ran(PROGRAM, here, traces.environment())
    (root,) = (span for span in traces.spans if not span.parent_id)
    assert (root.service, root.name) == ("promptlooper-client", "promptlooper run")
    runs = [span for span in traces.trace(root.trace_id) if span.name == "run"]
    assert [span.parent_id for span in runs] == [root.span_id] * 2, tree(traces.spans)


def test_a_span_of_the_programs_own_is_gone_on_with_only_while_it_lasts_and_if_it_is_sampled() -> None:
    with TracerProvider().get_tracer("own").start_as_current_span("own") as span, traced("x"):
        assert tracing.current.get()[3:35] == f"{span.get_span_context().trace_id:032x}"
        with traced("within"):
            assert tracing.current.get()[36:52] == f"{span.get_span_context().span_id:016x}"
    assert tracing.current.get() == ""
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("own").start_as_current_span("own"), traced("x"):
        assert tracing.current.get() == ""


def test_without_any_of_it_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not trace.get_current_span().get_span_context().is_valid
    with traced("x"):
        assert tracing.current.get() == ""
        assert not tracing.is_on()
