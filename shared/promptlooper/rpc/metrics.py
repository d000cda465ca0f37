"""Metrics for Prometheus: `GET /metrics` on a port of its own, made of counts when they are asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from promptlooper.addresses import host_and_port
from promptlooper.counting import Histogram
from promptlooper.rpc.calls import Calls
from promptlooper.rpc.server import CannotListen
from promptlooper.settings import ServiceSettings

_log = logging.getLogger(__name__)
_PREFIX = "promptlooper_"
_ASK_WITHIN = 5.0  # seconds
_LARGEST_REQUEST = 16 * 1024
_CONNECTIONS = 20  # at once: Prometheus needs one

Labelled = Mapping[Any, float]
"""Values by label values: a text, or a tuple of them."""


def gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, help, value)


def gauges(name: str, help: str, labels: Iterable[str], values: Labelled) -> Metric:
    return _labelled(GaugeMetricFamily(_PREFIX + name, help, labels=list(labels)), values)


def counter(name: str, help: str, value: float) -> Metric:
    """`name` without `_total`."""
    return CounterMetricFamily(_PREFIX + name, help, value)


def counters(name: str, help: str, labels: Iterable[str], values: Labelled) -> Metric:
    return _labelled(CounterMetricFamily(_PREFIX + name, help, labels=list(labels)), values)


def histograms(name: str, help: str, labels: Iterable[str], values: Mapping[Any, Histogram]) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, help, labels=list(labels))
    for key, histogram in values.items():
        buckets = [("+Inf" if bound == float("inf") else str(bound), n) for bound, n in histogram.cumulative()]
        family.add_metric(_texts(key), buckets, histogram.total)
    return family


def _labelled(family: Any, values: Labelled) -> Metric:
    for key, value in values.items():
        family.add_metric(_texts(key), value)
    return family  # type: ignore[no-any-return]


def _texts(key: Any) -> list[str]:
    return [key] if isinstance(key, str) else list(key)


class CallMetrics(Collector):
    """What every service has: rate, errors and duration of its calls, and what it is."""

    def __init__(self, service: str, calls: Calls) -> None:
        self._this, self._calls = (service, version("promptlooper")), calls

    def collect(self) -> Iterator[Metric]:
        calls = self._calls
        yield gauges("build_info", "The service and its version; always 1.", ("service", "version"), {self._this: 1})
        yield gauge("draining", "1 from the moment when the service stops taking work.", float(calls.draining))
        handled = {(shown(method), code): n for (method, code), n in (calls.handled + calls.refused).items()}
        yield counters("rpc_handled", "RPCs that ended, by method and gRPC status code.", ("method", "code"), handled)
        in_flight = {shown(method): n for method, n in calls.in_flight.items()}
        yield gauges("rpc_in_flight", "RPCs under way.", ("method",), in_flight)
        seconds = {shown(method): histogram for method, histogram in calls.seconds.items()}
        yield histograms("rpc_duration_seconds", "How long unary RPCs took.", ("method",), seconds)


def shown(method: str) -> str:
    """`RunnerService/GetRun`."""
    return method.removeprefix("/promptlooper.v1.").removeprefix("/")


@asynccontextmanager
async def exposed(service: str, settings: ServiceSettings, *collectors: Collector) -> AsyncIterator[Calls]:
    """Serves metrics as the settings say, until the block is left. Yields the counts of calls, for the server."""
    calls = Calls()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in (CallMetrics(service, calls), *collectors):
        registry.register(collector)
    if settings.metrics_listen == "off":
        yield calls
        return
    async with serving_metrics(settings.metrics_listen, registry) as port:
        _log.info("metrics", extra={"port": port})
        yield calls


@asynccontextmanager
async def serving_metrics(listen: str, registry: CollectorRegistry) -> AsyncIterator[int]:
    """Serves `GET /metrics` and yields the port. Raises CannotListen where the address is taken.

    In the event loop: the library's own server collects in a thread, and what it reads would change meanwhile."""
    host, port = host_and_port(listen)
    tasks = set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            if len(tasks) <= _CONNECTIONS:
                await _answer(reader, writer, registry)
        finally:
            tasks.discard(task)
            writer.close()

    try:
        server = await asyncio.start_server(connected, host, port, limit=_LARGEST_REQUEST)
    except OSError as error:
        raise CannotListen(
            f"can't listen on {listen} for metrics: {error.strerror}; set PROMPTLOOPER_METRICS_LISTEN to another"
            " address, or to off"
        ) from None
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, registry: CollectorRegistry) -> None:
    """One request, one answer: a scrape needs no more."""
    with suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        async with asyncio.timeout(_ASK_WITHIN):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *headers = head.split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in headers if ": " in line)
            method, path = (*request.split(" "), "")[:2]
            status, kind, body = _response(method, path.partition("?")[0], fields.get("accept", ""), registry)
            lines = (
                f"HTTP/1.1 {status}",
                f"Content-Type: {kind}",
                f"Content-Length: {len(body)}",
                *("Connection: close", "", ""),
            )
            writer.write("\r\n".join(lines).encode() + (body if method != "HEAD" else b""))
            await writer.drain()


def _response(method: str, path: str, accept: str, registry: CollectorRegistry) -> tuple[str, str, bytes]:
    if method not in ("GET", "HEAD"):
        return "405 Method Not Allowed", "text/plain", b"GET /metrics\n"
    if path != "/metrics":
        return "404 Not Found", "text/plain", b"metrics are at /metrics\n"
    try:
        encode, kind = choose_encoder(accept)
        return "200 OK", kind, encode(registry)
    except Exception:  # a scrape's fault must not be silent
        _log.exception("metrics could not be collected")
        return "500 Internal Server Error", "text/plain", b"see the log\n"
