from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from promptlooper import errors
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.rpc.deadlines import LONGEST, USUAL
from promptlooper.rpc.server import serving
from promptlooper.v1 import adapter_service_pb2, cache_service_pb2, runner_service_pb2, scorer_service_pb2

LOOKUP = "/promptlooper.v1.CacheService/Lookup"
PROTOS = Path(__file__).parents[3] / "protos" / "promptlooper" / "v1"
UNITS = {"s": 1, "min": 60}


async def remaining(connect: Any, **options: Any) -> float | None:
    """What the server reads as the time remaining of a call through our channel."""
    seen: list[float | None] = []

    async def behaviour(request: Any, context: Any) -> None:
        seen.append(context.time_remaining())

    async with connect(behaviour) as wire:
        await wire.lookup(**options)
    return seen[0]


async def test_client_fills_in_the_usual_deadline(connect: Any) -> None:
    found = await remaining(connect)
    assert found is not None
    assert 0 < found < 5  # 1 s; the clocks of the two sides differ a little


async def test_timeout_of_the_caller_stays(connect: Any) -> None:
    found = await remaining(connect, timeout=500)
    assert found is not None
    assert 400 < found < 600


@pytest.mark.parametrize("kind", ["unary_unary", "stream_unary", "unary_stream", "stream_stream"])
async def test_methods_that_are_not_ours_get_the_default_unless_they_answer_with_a_stream(kind: str) -> None:
    seen: list[float | None] = []
    asks, answers = (part == "stream" for part in kind.split("_"))

    async def answer_one(request: Any, context: Any) -> bytes:
        seen.append(context.time_remaining())
        return b""

    async def answer_many(request: Any, context: Any) -> Any:
        seen.append(context.time_remaining())
        yield b""

    def register(server: grpc.aio.Server) -> None:
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        handlers = {"Do": make(answer_many if answers else answer_one)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    async with serving("127.0.0.1:0", {"t.T": register}, reflection=False) as running:
        async with open_channel(f"127.0.0.1:{running.port}", default_deadline=33) as channel:
            sent = iter([b"a"]) if asks else b"a"
            call = getattr(channel, kind)("/t.T/Do")(sent)
            if answers:
                assert [message async for message in call] == [b""]
            else:
                await call
    if answers:
        assert seen == [None]
    else:
        assert seen[0] is not None
        assert 30 < seen[0] < 40


@pytest.mark.parametrize("timeout", [None, 2 * LONGEST])
async def test_call_without_a_deadline_is_ended_by_the_server(
    connect: Any, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    monkeypatch.setitem(USUAL, LOOKUP, 0.05)
    stopped = asyncio.Event()

    async def behaviour(request: Any, context: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with connect(behaviour) as wire:
        async with grpc.aio.insecure_channel(wire.address) as plain:  # not ours: fills nothing in
            with pytest.raises(errors.DeadlineExceeded, match="usual deadline"), domain_errors(wire.address):
                await plain.unary_unary(LOOKUP)(b"", timeout=timeout)
        assert stopped.is_set()


async def test_call_with_a_deadline_is_not_capped(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(USUAL, LOOKUP, 0.001)
    ended = asyncio.Event()

    async def behaviour(request: Any, context: Any) -> None:
        asyncio.get_running_loop().call_later(0.001, ended.set)  # timed after the usual deadline would have been
        await ended.wait()

    async with connect(behaviour) as wire:
        await wire.lookup(timeout=60)


async def test_timeout_of_the_servicers_own_is_a_fault_and_no_deadline(connect: Any) -> None:
    async def behaviour(request: Any, context: Any) -> None:
        raise TimeoutError("mine")

    async with connect(behaviour) as wire:
        async with grpc.aio.insecure_channel(wire.address) as plain:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await plain.unary_unary(LOOKUP)(b"")
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_deadline_of_the_caller_ends_the_call_on_both_sides(connect: Any) -> None:
    stopped = asyncio.Event()

    async def behaviour(request: Any, context: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with connect(behaviour) as wire:
        with pytest.raises(errors.DeadlineExceeded, match="no answer in time"), domain_errors(wire.address):
            await wire.lookup(timeout=0.1)
        await asyncio.wait_for(stopped.wait(), 10)


async def test_cancelled_call_stops_the_servicer_and_stays_a_cancellation(connect: Any) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def behaviour(request: Any, context: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with connect(behaviour) as wire:

        async def ask() -> None:
            with domain_errors(wire.address):
                await wire.lookup(timeout=60)

        asking = asyncio.create_task(ask())
        await started.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(stopped.wait(), 10)


@pytest.mark.parametrize("name", ["Lookup", "Complete"])
async def test_only_idempotent_methods_are_repeated(connect: Any, name: str) -> None:
    calls = 0

    async def fail_once(request: Any, context: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        return b""

    service = "promptlooper.v1.CacheService" if name == "Lookup" else "promptlooper.v1.AdapterService"

    def register(server: grpc.aio.Server) -> None:
        handlers = {name: grpc.unary_unary_rpc_method_handler(fail_once)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    described = (cache_service_pb2.DESCRIPTOR, adapter_service_pb2.DESCRIPTOR.services_by_name["AdapterService"])
    async with serving("127.0.0.1:0", {service: register}, reflection=False) as running:
        address = f"127.0.0.1:{running.port}"
        async with open_channel(address, *described) as channel:
            call = channel.unary_unary(f"/{service}/{name}")
            if name == "Lookup":
                await call(b"")
                assert calls == 2
            else:
                with pytest.raises(errors.ServiceUnavailable, match="busy"), domain_errors(address):
                    await call(b"")
                assert calls == 1


async def test_usual_deadlines_are_those_of_the_protos() -> None:
    found: dict[str, float | None] = {}
    for proto in PROTOS.glob("*_service.proto"):
        service, comment = "", ""
        for line in proto.read_text().splitlines():
            if declared := re.match(r"service (\w+)", line):
                service = declared[1]
            if line.strip().startswith("//"):
                comment += line
            elif method := re.match(r"  rpc (\w+)", line):
                usual = re.search(r"Usual deadline:\s+(?://\s+)?(\d+) (s|min)\.", comment)
                assert usual or "No deadline" in comment, f"{method[1]} says no usual deadline"
                seconds = int(usual[1]) * UNITS[usual[2]] if usual else None
                found[f"/promptlooper.v1.{service}/{method[1]}"] = seconds
                comment = ""
            else:
                comment = ""
    assert found == USUAL


def test_every_rpc_says_whether_it_may_be_repeated_except_those_that_cost_money() -> None:
    unsafe = [
        method.name
        for file in (adapter_service_pb2, cache_service_pb2, runner_service_pb2, scorer_service_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.GetOptions().idempotency_level
    ]
    assert unsafe == ["Complete", "CompleteMany", "StreamComplete", "SubmitBatch", "Embed", "ExecuteRun"]
