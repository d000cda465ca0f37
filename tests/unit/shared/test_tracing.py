"""Places in traces, and that nothing is made where nothing is recorded."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from functools import partial
from random import Random

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from otlp_lab import Collector, collector

from promptlooper import tracing
from promptlooper.batching import TickBatcher
from promptlooper.errors import InvalidArgument, ProviderRejected

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CANARY = "what was asked"


@pytest.fixture
async def traces(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """Spans are there when the recording has ended."""
    async with collector() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found


async def closed(recording: object) -> None:
    """Ends a recording in a thread: what it sends is received by this one."""
    await asyncio.to_thread(recording.__exit__, None, None, None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("said", "is_sampled"),
    [
        (PARENT, True),
        (PARENT[:-1] + "0", False),
        (PARENT[:-2] + "03", True),
        ("", None),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", None),
        (PARENT.upper(), None),
        (PARENT + "-more", None),
    ],
)
def test_a_traceparent_says_whether_its_trace_is_recorded(said: str, is_sampled: bool | None) -> None:
    assert tracing.sampled(said) is is_sampled


def test_without_an_endpoint_nothing_is_recorded_and_nobody_else_s_trace_taken_up() -> None:
    with tracing.recording("test"):
        assert not tracing.is_on()
        assert not tracing.root("x")
        assert not tracing.child("x", PARENT)
        tracing.go_on_with(PARENT)
        assert tracing.current.get() == ""
        assert tracing.run_traceparent("e", 0, 1, PARENT, 1) == ""


def test_without_the_extra_a_process_says_what_to_install_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "promptlooper.otel", raising=False)
    with tracing.recording("test"):
        assert not tracing.is_on()
    assert "pip install 'promptlooper[tracing]'" in caplog.text


@pytest.mark.parametrize(
    ("env", "is_wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_usual_variables_switch_traces_on_and_off(env: dict[str, str], is_wanted: bool) -> None:
    assert tracing.is_wanted(env) is is_wanted


def failing() -> None:
    with tracing.span("inner") as inner:
        inner.set({"n": 1, "unknown": None})
        raise ProviderRejected(CANARY)


async def test_spans_hang_together_and_say_what_failed_but_not_how(traces: Collector) -> None:
    recording = tracing.recording("test")
    recording.__enter__()
    outer = tracing.root("outer")
    with pytest.raises(ProviderRejected), outer:
        failing()
    assert tracing.current.get() == ""
    await closed(recording)
    by_name = {span.name: span for span in traces.spans}
    assert by_name["inner"].parent_id == by_name["outer"].span_id == outer.traceparent[36:52]
    assert by_name["inner"].attributes == {"n": 1, "error.type": "PROVIDER_REJECTED"}
    assert by_name["outer"].failed
    assert by_name["outer"].service == "promptlooper-test"
    assert CANARY.encode() not in traces.raw


async def test_who_is_not_sampled_is_not_recorded_though_the_sampler_would(traces: Collector) -> None:
    recording = tracing.recording("test")
    recording.__enter__()
    assert not tracing.served("x/Y", PARENT[:-1] + "0", may_begin=True)
    assert not tracing.served("x/Y", "", may_begin=False)
    assert tracing.served("x/Y", PARENT, may_begin=False).traceparent[3:35] == PARENT[3:35]
    assert tracing.served("x/Y", "no traceparent", may_begin=True)
    await closed(recording)


async def test_a_run_of_few_is_in_its_creators_trace_and_one_of_many_has_its_own_with_a_link(traces: Collector) -> None:
    recording = tracing.recording("test")
    recording.__enter__()
    few, many = (tracing.run_traceparent("e", 7, 1, PARENT, total) for total in (tracing.SMALL, tracing.SMALL + 1))
    assert few == tracing.run_traceparent("e", 7, 1, PARENT, 1)  # whoever asks
    assert few[3:35] == PARENT[3:35] != many[3:35]
    assert len({few, tracing.run_traceparent("e", 8, 1, PARENT, 1), tracing.run_traceparent("e", 7, 2, PARENT, 1)}) == 3
    for place, total in ((few, tracing.SMALL), (many, tracing.SMALL + 1)):
        with tracing.run_ended(place, PARENT, total, 1.5):
            pass
    await closed(recording)
    of_few, of_many = traces.spans
    assert (of_few.trace_id, of_few.span_id, of_few.parent_id) == (few[3:35], few[36:52], PARENT[36:52])
    assert (of_many.trace_id, of_many.span_id, of_many.parent_id) == (many[3:35], many[36:52], "")
    assert (of_few.links, of_many.links) == ((), (PARENT[3:35],))
    assert of_few.end - of_few.start >= 1_500_000_000


async def test_by_default_one_run_in_a_hundred_is_traced_and_every_process_finds_the_same(
    traces: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_TRACES_SAMPLER")
    found = []
    for service in ("runner", "relay"):
        recording = tracing.recording(service)
        recording.__enter__()
        found.append([bool(tracing.run_traceparent("e", n, 1, "", 20_000)) for n in range(20_000)])
        await closed(recording)
    assert found[0] == found[1]
    assert 140 < sum(found[0]) < 260


async def test_a_command_is_the_beginning_of_a_trace_and_not_recorded_where_it_is_not_sampled(
    traces: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place_in_command() -> str:
        with tracing.beginning("promptlooper run", partial(tracing.recording, "cli")):
            return tracing.current.get()

    place = await asyncio.to_thread(place_in_command)
    assert tracing.sampled(place)
    assert [(span.name, span.trace_id, span.parent_id) for span in traces.spans] == [
        ("promptlooper run", place[3:35], "")
    ]
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with tracing.beginning("promptlooper run", partial(tracing.recording, "cli")):
        assert not tracing.is_on()


async def test_a_command_that_is_taken_is_recorded_and_one_that_is_not_leaves_nothing(
    traces: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")

    def commands() -> list[tuple[bool, str]]:
        seen = []
        for _ in range(16):
            with tracing.beginning("promptlooper run", partial(tracing.recording, "cli")):
                seen.append((tracing.is_on(), tracing.current.get()))
        return seen

    seen = await asyncio.to_thread(commands)
    assert {on for on, _ in seen} == {True, False}
    assert all(on is bool(place) for on, place in seen)
    assert len(traces.spans) == sum(on for on, _ in seen)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5, 1.0])
def test_our_arithmetic_is_the_sdks(ratio: float) -> None:
    sampler, random = TraceIdRatioBased(ratio), Random(7)
    for _ in range(1000):
        trace_id = random.getrandbits(128)
        taken = sampler.should_sample(None, trace_id, "x").decision is Decision.RECORD_AND_SAMPLE
        assert tracing.is_taken(trace_id, tracing.bound_of(ratio)) is taken


async def test_a_ratio_that_is_none_is_refused_with_what_to_write(
    traces: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_TRACES_SAMPLER")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "often")
    with pytest.raises(InvalidArgument, match="OTEL_TRACES_SAMPLER_ARG is 'often': write a number from 0 to 1"):
        with tracing.recording("test"):
            pass


async def test_a_collector_that_is_away_does_not_hold_the_end_of_a_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setattr("promptlooper.otel.CLOSE_WITHIN", 0.05)
    with tracing.recording("test"), tracing.root("lost"):
        pass
    assert not tracing.is_on()


async def test_a_batch_is_not_its_first_items_work() -> None:
    places = []

    async def send(items: list[int]) -> list[int]:
        places.append(tracing.current.get())
        return items

    token = tracing.current.set(PARENT)
    try:
        assert await TickBatcher(send)(1) == 1
        assert await TickBatcher(send, gather=0.001)(1) == 1
    finally:
        tracing.current.reset(token)
    assert places == ["", ""]
