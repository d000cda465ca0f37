"""Metrics over HTTP, and the counts of calls that they show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from promptlooper.rpc.access import Access
from promptlooper.rpc.calls import Calls
from promptlooper.rpc.metrics import CallMetrics, exposed, serving_metrics
from promptlooper.rpc.server import CannotListen, serving
from promptlooper.scorer.metrics import ScorerMetrics
from promptlooper.scorer.registry import ScorerCore
from promptlooper.settings import ServiceSettings

LISTEN = "127.0.0.1:0"


class Port:
    """Where metrics are, as a service logs it."""

    def __init__(self, number: int) -> None:
        self.url = f"http://127.0.0.1:{number}"

    async def get(self, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.request(method, self.url + path) as response:
            return response.status, await response.text()


@pytest.fixture
async def port(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Port]:
    with caplog.at_level("INFO"):
        core = ScorerCore()
        async with exposed("scorer", ServiceSettings(metrics_listen=LISTEN), ScorerMetrics(core)):
            number = next(vars(record)["port"] for record in caplog.records if record.message == "metrics")
            yield Port(number)


async def test_metrics_are_text_that_prometheus_reads(port: Port) -> None:
    status, text = await port.get()
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["promptlooper_build_info"].samples[0].labels["service"] == "scorer"
    assert families["process_cpu_seconds"].type == "counter"


async def test_other_paths_and_methods_are_refused_with_a_word_of_what_is_right(port: Port) -> None:
    assert await port.get("/") == (404, "metrics are at /metrics\n")
    assert await port.get(method="POST") == (405, "GET /metrics\n")


@pytest.mark.parametrize("sent", [b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"x" * 20_000, b""])
async def test_what_is_not_http_ends_only_its_own_connection(port: Port, sent: bytes) -> None:
    host, number = port.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(number))
    writer.write(sent)
    writer.write_eof()
    await reader.read()
    writer.close()
    assert (await port.get())[0] == 200


async def test_a_port_that_is_taken_is_said_with_what_to_do(port: Port) -> None:
    with pytest.raises(CannotListen, match="set PROMPTLOOPER_METRICS_LISTEN"):
        async with exposed("x", ServiceSettings(metrics_listen=port.url.removeprefix("http://"))):
            pass


async def test_off_listens_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        async with exposed("x", ServiceSettings(metrics_listen="off")) as calls:
            assert calls == Calls()
    assert not caplog.records


async def test_calls_are_counted_by_method_and_code_while_they_run_and_after() -> None:
    calls = Calls()
    async with (
        serving(LISTEN, {}, health_listen=LISTEN, calls=calls) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        check, watch = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
        await health.Check(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await health.Check(health_pb2.HealthCheckRequest(service="no.Such"))
        watching = health.Watch(health_pb2.HealthCheckRequest())
        await watching.read()
        assert calls.in_flight == {check: 0, watch: 1}
        watching.cancel()
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/no.Such/Method")(b"")
        assert not calls.draining
    assert calls.draining
    assert calls.handled == {(check, "OK"): 1, (check, "NOT_FOUND"): 1, (watch, "CANCELLED"): 1}
    assert calls.in_flight[watch] == 0
    assert calls.seconds[check].cumulative()[-1] == (float("inf"), 2)
    assert watch not in calls.seconds


async def test_a_fault_of_a_collector_is_an_error_and_not_an_empty_page(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise ZeroDivisionError

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Broken())
    async with serving_metrics(LISTEN, registry) as number:
        assert await Port(number).get() == (500, "see the log\n")
    assert "metrics could not be collected" in caplog.text


async def test_calls_refused_for_their_token_are_counted_and_methods_that_nobody_serves_share_a_name() -> None:
    calls = Calls()
    async with (
        serving(LISTEN, {}, health_listen=LISTEN, access=Access(), calls=calls) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        for method in ("/promptlooper.v1.ScorerService/ListScorers", "/no.Such/Method", "/no.Such/Other"):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(method)(b"")
    list_scorers = "/promptlooper.v1.ScorerService/ListScorers"
    assert calls.refused == {(list_scorers, "UNAUTHENTICATED"): 1, ("other", "UNAUTHENTICATED"): 2}
    metrics = {metric.name: metric for metric in CallMetrics("x", calls).collect()}
    shown = {(s.labels["method"], s.labels["code"]): s.value for s in metrics["promptlooper_rpc_handled"].samples}
    assert shown == {("ScorerService/ListScorers", "UNAUTHENTICATED"): 1, ("other", "UNAUTHENTICATED"): 2}
