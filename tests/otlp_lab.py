"""A receiver of traces that speaks OTLP/gRPC, and traces as trees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc


@dataclass(frozen=True)
class SpanSeen:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    failed: bool
    attributes: dict[str, Any]
    links: tuple[str, ...]  # trace ids
    start: int
    end: int


@dataclass
class Collector(rpc.TraceServiceServicer):
    """Keeps every span, and the bytes of all requests."""

    address: str = ""
    spans: list[SpanSeen] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)

    async def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:
        self.raw += request.SerializeToString()
        for resource in request.resource_spans:
            service = str(_values(resource.resource.attributes)["service.name"])
            for scope in resource.scope_spans:
                self.spans += (_seen(service, span) for span in scope.spans)
        return pb.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[SpanSeen]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def environment(self, sampler: str = "always_on") -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.address}",
            "OTEL_TRACES_SAMPLER": sampler,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    server = grpc.aio.server()
    rpc.add_TraceServiceServicer_to_server(found, server)
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield found
    finally:
        await server.stop(None)


def tree(spans: Iterable[SpanSeen]) -> str:
    """One line a span, children under their parents, in the order of their start."""
    ordered = sorted(spans, key=lambda span: span.start)
    known = {span.span_id for span in ordered}

    def lines(parents: list[SpanSeen], depth: int) -> Iterator[str]:
        for span in parents:
            took = (span.end - span.start) / 1e6
            yield f"{'  ' * depth}{span.service.removeprefix('promptlooper-')}: {span.name} ({took:.1f} ms)"
            yield from lines([child for child in ordered if child.parent_id == span.span_id], depth + 1)

    return "\n".join(lines([span for span in ordered if span.parent_id not in known], 0))


def _seen(service: str, span: Any) -> SpanSeen:
    return SpanSeen(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.status.code == 2,
        _values(span.attributes),
        tuple(link.trace_id.hex() for link in span.links),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _values(attributes: Iterable[Any]) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(one) for one in found.values] if kind == "array_value" else found
