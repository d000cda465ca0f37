"""The trace that what a program asks for belongs to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from promptlooper import tracing


@contextmanager
def traced(name: str) -> Iterator[None]:
    """The program's own, where it has a span of OpenTelemetry under way; else, where OTEL_EXPORTER_OTLP_ENDPOINT is
    set, one that begins here."""
    if tracing.current.get():  # a part of what the program asked for
        yield
    elif (own := _own()) is None:
        with tracing.beginning(name, partial(tracing.kept, "client")):
            yield
    else:
        token = tracing.current.set(own)
        try:
            yield
        finally:
            tracing.current.reset(token)


def _own() -> str | None:
    """The traceparent of the program's span, "" where that is not sampled; None without one. A program that has one has
    imported the package."""
    trace = sys.modules.get("opentelemetry.trace")
    context = None if trace is None else trace.get_current_span().get_span_context()
    if context is None or not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01" if context.trace_flags.sampled else ""
