"""Traces: which trace the work at hand belongs to, and the spans of it that this process records.

A place in a trace is a W3C `traceparent`; "" is none, and nothing is recorded of what is not sampled. As logging is,
this is set up once for a process; until then, and where OTEL_EXPORTER_OTLP_ENDPOINT is not set, a span costs as much as
the question whether there is one.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Protocol

from promptlooper.errors import InvalidArgument

_log = logging.getLogger(__name__)
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
DEFAULT_RATIO = "0.01"  # of traces: what that costs is lost in the noise, and a busy system still shows many
SMALL = 100  # runs: so many, and their stages, still make a trace that people can read

_LIMIT = 2**64

Kind = Literal["internal", "server", "client", "producer"]
Attributes = Mapping[str, Any]


class Span(Protocol):
    """A context manager. What is raised out of it is its error: the type and never the message, which may quote a
    prompt. False where nothing is recorded, so that nothing need be said of it."""

    traceparent: str

    def __bool__(self) -> bool: ...

    def __enter__(self) -> Span: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str) -> None: ...


class Recorder(Protocol):
    """What makes spans: `promptlooper.otel`."""

    def root(self, name: str, kind: Kind) -> Span: ...

    def span(self, name: str, parent: str, kind: Kind, start_ns: int | None = None) -> Span: ...

    def named(self, name: str, traceparent: str, parent: str, start_ns: int, links: Iterable[str]) -> Span: ...

    def samples(self, trace_id: int) -> bool: ...

    def close(self) -> None: ...


class _Nothing:
    traceparent = ""

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str) -> None: ...


NOTHING: Span = _Nothing()
current: ContextVar[str] = ContextVar("traceparent", default="")
_recorder: Recorder | None = None
_is_kept, _keeping = False, Lock()


@contextmanager
def recording(service: str) -> Iterator[None]:
    """Records spans until the block is left, where the environment says so; what is recorded is sent before."""
    global _recorder
    if not is_wanted():
        yield
        return
    try:
        import promptlooper.rpc  # noqa: F401  keeps grpc's core quiet, which the exporter imports too
        from promptlooper.otel import OtelRecorder
    except ModuleNotFoundError as error:
        _log.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and nothing is traced: %s is not installed; "
            "pip install 'promptlooper[tracing]'",
            error.name,
        )
        yield
        return
    _recorder = recorder = OtelRecorder(service)
    try:
        yield
    finally:
        _recorder = None
        recorder.close()


@contextmanager
def beginning(name: str, recorded: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """What a person or a program asks for as the beginning of a trace, for which `recorded` switches recording on. Of
    what the sampler does not take nothing is recorded, its runs in this process included: so it need not wait until
    OpenTelemetry is imported."""
    ratio, trace_id = sampling_ratio() if is_wanted() else 0.0, random.getrandbits(128)
    if ratio is not None and not is_taken(trace_id, bound_of(ratio)):
        yield
        return
    with recorded():
        place = f"00-{trace_id:032x}-{random.getrandbits(64):016x}-01"
        with NOTHING if _recorder is None else _recorder.named(name, place, "", time.time_ns(), ()):
            yield


@contextmanager
def kept(service: str) -> Iterator[None]:
    """As `recording`, but from the first time on to the end of the process: for programs whose end is not ours."""
    global _is_kept
    with _keeping:
        if not _is_kept and _recorder is None:
            _is_kept, stack = True, ExitStack()
            stack.enter_context(recording(service))
            atexit.register(stack.close)
    yield


def bound_of(ratio: float) -> int:
    """A sampler by ratio records the traces whose id, its low 64 bits, is less: OpenTelemetry's own arithmetic."""
    return round(ratio * _LIMIT)


def is_taken(trace_id: int, bound: int) -> bool:
    return trace_id % _LIMIT < bound


def sampling_ratio(env: Mapping[str, str] = os.environ) -> float | None:
    """The share of traces that is recorded; None where only the SDK knows the sampler. Raises InvalidArgument."""
    sampler = env.get("OTEL_TRACES_SAMPLER", "parentbased_traceidratio").removeprefix("parentbased_")
    if sampler in ("always_on", "always_off"):
        return float(sampler == "always_on")
    if sampler != "traceidratio":
        return None
    said = env.get("OTEL_TRACES_SAMPLER_ARG", DEFAULT_RATIO)
    try:
        if 0 <= (ratio := float(said)) <= 1:
            return ratio
    except ValueError:
        pass
    raise InvalidArgument(f"OTEL_TRACES_SAMPLER_ARG is {said!r}: write a number from 0 to 1")


def is_wanted(env: Mapping[str, str] = os.environ) -> bool:
    endpoint = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return bool(endpoint) and not off


def is_on() -> bool:
    return _recorder is not None


def trace_id() -> str:
    """Of the work at hand, as 32 hex digits."""
    return current.get()[3:35]


def sampled(traceparent: str) -> bool | None:
    """Whether somebody's traceparent is of a trace that is recorded; None for none, or one that can't be read."""
    found = _FORM.fullmatch(traceparent)
    return None if found is None else bool(int(found[1], 16) & 1)


def span(name: str, kind: Kind = "internal") -> Span:
    """A part of the work at hand."""
    if _recorder is None or not (parent := current.get()):
        return NOTHING
    return _recorder.span(name, parent, kind)


def root(name: str, kind: Kind = "internal") -> Span:
    """The beginning of a trace, where the sampler takes it."""
    return NOTHING if _recorder is None else _recorder.root(name, kind)


def child(name: str, parent: str, kind: Kind = "internal", start_ns: int | None = None) -> Span:
    """A part of another process's work, or of an item's of many."""
    if _recorder is None or not sampled(parent):
        return NOTHING
    return _recorder.span(name, parent, kind, start_ns)


def go_on_with(traceparent: str) -> None:
    """This task belongs to the trace from now on."""
    if _recorder is not None and sampled(traceparent):
        current.set(traceparent)


def served(method: str, traceparent: str, *, may_begin: bool) -> Span:
    """The span of a call to a server; `may_begin` a trace where the caller has none."""
    if _recorder is None:
        return NOTHING
    is_sampled = sampled(traceparent)
    if is_sampled is None and may_begin:
        return _recorder.root(method, "server")
    return _recorder.span(method, traceparent, "server") if is_sampled else NOTHING


def run_traceparent(experiment_id: str, run_index: int, generation: int, creator: str, total: int) -> str:
    """The place of a run: every process that knows the run finds the same, though none has told it.

    In the trace of who created the experiment where that has few runs; else in one of its own, if the sampler takes it.
    """
    if _recorder is None:
        return ""
    ids = hashlib.blake2b(f"{experiment_id}-{run_index}-{generation}".encode(), digest_size=24).digest()
    if creator and total <= SMALL:
        return f"00-{creator[3:35]}-{ids[16:].hex()}-01"
    return f"00-{ids[:16].hex()}-{ids[16:].hex()}-01" if _recorder.samples(int.from_bytes(ids[:16])) else ""


def run_ended(traceparent: str, creator: str, total: int, seconds: float) -> Span:
    """The span of a run that ended just now, and took so long."""
    if _recorder is None or not traceparent:
        return NOTHING
    within = creator if total <= SMALL else ""
    links = [creator] if creator and not within else []
    return _recorder.named("run", traceparent, within, time.time_ns() - int(seconds * 1e9), links)


def error_type(error: BaseException) -> str:
    """The reason of one of our errors, the class of others."""
    return str(getattr(error, "reason", "") or type(error).__name__)
