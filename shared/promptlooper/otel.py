"""Spans by OpenTelemetry's SDK, sent over OTLP/gRPC. Imported only where tracing is on."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from types import TracebackType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased

from promptlooper.tracing import (
    NOTHING,
    Attributes,
    Kind,
    Recorder,
    Span,
    bound_of,
    current,
    error_type,
    is_taken,
    sampling_ratio,
)

CLOSE_WITHIN = 2.0  # seconds for the last spans, where the collector does not answer
_KINDS = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
}
_ROOT = Context()


class OtelRecorder(Recorder):
    """As the OTEL_* variables say, with a sampler of our own default."""

    def __init__(self, service: str) -> None:
        # A collector that is away is told of once a batch, not once a span.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._ids = _Ids()
        self._exporter = OTLPSpanExporter()
        ratio = sampling_ratio()
        given = ratio is None or "OTEL_TRACES_SAMPLER" in os.environ  # then the SDK reads it
        sampler = None if given else ParentBased(TraceIdRatioBased(ratio or 0.0))
        self._bound = None if ratio is None else bound_of(ratio)
        self._provider = TracerProvider(
            sampler=sampler, resource=_resource(service), id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("promptlooper", version("promptlooper"))

    def root(self, name: str, kind: Kind) -> Span:
        trace_id = self._ids.generate_trace_id()
        if self._bound is not None and not is_taken(trace_id, self._bound):
            return NOTHING  # of most calls, without what the SDK spends on a span that is not recorded
        return self._with_ids(name, (trace_id, self._ids.generate_span_id()), _ROOT, kind)

    def span(self, name: str, parent: str, kind: Kind, start_ns: int | None = None) -> Span:
        return _recorded(self._tracer.start_span(name, _within(parent), _KINDS[kind], start_time=start_ns))

    def named(self, name: str, traceparent: str, parent: str, start_ns: int, links: Iterable[str]) -> Span:
        """A span whose ids are known before."""
        ids = int(traceparent[3:35], 16), int(traceparent[36:52], 16)
        linked = [trace.Link(_context_of(link)) for link in links]
        return self._with_ids(name, ids, _within(parent) if parent else _ROOT, "internal", start_ns, linked)

    def _with_ids(
        self,
        name: str,
        ids: tuple[int, int],
        context: Context,
        kind: Kind,
        start_ns: int | None = None,
        links: Sequence[trace.Link] = (),
    ) -> Span:
        self._ids.next = ids
        try:
            return _recorded(self._tracer.start_span(name, context, _KINDS[kind], links=links, start_time=start_ns))
        finally:
            self._ids.next = None

    def samples(self, trace_id: int) -> bool:
        """Whether a trace with this id is recorded, when nothing is its parent."""
        if self._bound is not None:  # asked of every run, and the SDK takes its time
            return is_taken(trace_id, self._bound)
        result = self._provider.sampler.should_sample(_ROOT, trace_id, "run")
        return result.decision is Decision.RECORD_AND_SAMPLE

    def close(self) -> None:
        hurry = threading.Timer(CLOSE_WITHIN, self._exporter.shutdown)
        hurry.daemon = True
        hurry.start()
        self._provider.shutdown()
        hurry.cancel()


class _Ids(RandomIdGenerator):
    """`next` are the trace's and the span's, if they are to be those."""

    next: tuple[int, int] | None = None

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.next is None else self.next[0]

    def generate_span_id(self) -> int:
        return super().generate_span_id() if self.next is None else self.next[1]


class _Recorded:
    def __init__(self, span: trace.Span) -> None:
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        self._span = span

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Span:
        self._token = current.set(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        current.reset(self._token)
        if isinstance(error, asyncio.CancelledError):
            self.set({"error.type": "cancelled"})  # mostly somebody's wish, and no error
        elif error is not None:
            self.fail(error_type(error))
        self._span.end()

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(trace.StatusCode.ERROR)


def _recorded(span: trace.Span) -> Span:
    return _Recorded(span) if span.is_recording() else NOTHING


def _within(traceparent: str) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(_context_of(traceparent)), _ROOT)


def _context_of(traceparent: str) -> trace.SpanContext:
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(int(traceparent[3:35], 16), int(traceparent[36:52], 16), True, sampled)


def _resource(service: str) -> Resource:
    own = {"service.version": version("promptlooper"), "service.instance.id": uuid.uuid4().hex}
    if "OTEL_SERVICE_NAME" not in os.environ:
        own["service.name"] = f"promptlooper-{service}"
    return Resource.create(own)
