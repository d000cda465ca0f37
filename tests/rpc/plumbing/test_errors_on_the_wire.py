from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from promptlooper import errors
from promptlooper.errors import CompletionFailed, DomainError, InvalidExperiment, Problem
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.rpc.server import serving
from promptlooper.rpc.status import CODES
from promptlooper.v1 import cache_service_pb2

REASONS = sorted(reason for reason in errors.ERRORS_BY_REASON if reason != "INVALID_EXPERIMENT")


def raising(error: BaseException) -> Any:
    async def behaviour(request: Any, context: Any) -> None:
        raise error

    return behaviour


async def failure(wire: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.lookup()
    return caught.value


@pytest.mark.parametrize("reason", REASONS)
async def test_every_error_arrives_as_what_was_raised(connect: Any, reason: str) -> None:
    cls = errors.ERRORS_BY_REASON[reason]
    attempts = {"attempts": 3} if issubclass(cls, CompletionFailed) else {}
    sent = cls("who knows ¿…?", retry_after=1.25, field="x", **attempts)
    async with connect(raising(sent)) as wire:
        with pytest.raises(DomainError) as caught, domain_errors(wire.address):
            await wire.lookup()
        assert wire.servicer.calls == (4 if reason in ("DRAINING", "STORE_UNAVAILABLE") else 1)
    got = caught.value
    assert type(got) is cls
    assert (got.message, got.reason, got.retry_after, got.metadata) == ("who knows ¿…?", reason, 1.25, {"field": "x"})
    if isinstance(got, CompletionFailed):
        assert got.attempts == 3


@pytest.mark.parametrize("reason", REASONS)
async def test_status_has_the_code_of_the_table_and_one_reason_of_our_domain(connect: Any, reason: str) -> None:
    cls = errors.ERRORS_BY_REASON[reason]
    async with connect(raising(cls("no"))) as wire:
        error = await failure(wire)
    assert error.code() is CODES[cls]
    assert error.details() == "no"
    status: status_pb2.Status = rpc_status.from_call(error)  # type: ignore[arg-type, assignment]
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo.FromString(infos[0].value)
    assert (info.domain, info.reason) == ("promptlooper", reason)


async def test_every_problem_of_an_experiment_arrives_in_order(connect: Any) -> None:
    problems = [Problem("pipelines[0].stages[1].model", "no provider 'opnai': openai?"), Problem("", "no runs")]
    async with connect(raising(InvalidExperiment(problems))) as wire:
        with pytest.raises(InvalidExperiment) as caught, domain_errors(wire.address):
            await wire.lookup()
        assert caught.value.problems == tuple(problems)
        error = await failure(wire)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_too_many_problems_are_cut_with_a_word_on_how_many_are_missing(connect: Any) -> None:
    problems = [Problem(f"inputs[{i}].country", "größer als erlaubt " * 5) for i in range(1000)]
    async with connect(raising(InvalidExperiment(problems))) as wire:
        with pytest.raises(InvalidExperiment) as caught, domain_errors(wire.address):
            await wire.lookup()
    got = caught.value.problems
    assert 20 < len(got) < 1000
    assert got[:-1] == tuple(problems[: len(got) - 1])
    assert got[-1] == Problem("", f"and {1000 - len(got) + 1} more: ValidateExperiment lists them all")


async def test_long_messages_with_lone_surrogates_still_arrive(connect: Any) -> None:
    async with connect(raising(errors.ProviderRejected("é\ud800" * 5000, provider="x" * 5000))) as wire:
        with pytest.raises(errors.ProviderRejected) as caught, domain_errors(wire.address):
            await wire.lookup()
    assert caught.value.message.startswith("é?é?")
    assert caught.value.message.endswith("…")


async def test_unknown_exception_is_internal_without_details(connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with connect(raising(ValueError("password=hunter2"))) as wire:
        error = await failure(wire)
        with pytest.raises(DomainError) as caught, domain_errors(wire.address):
            raise error
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert caught.value.reason == "INTERNAL"
    assert "hunter2" not in repr(error)
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in logged] == ["/promptlooper.v1.CacheService/Lookup failed"]
    assert "hunter2" in caplog.text


async def test_error_of_a_task_group_is_that_error(connect: Any) -> None:
    async def behaviour(request: Any, context: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(raising(errors.RunNotFound("no run 'x'"))(request, context))

    async with connect(behaviour) as wire:
        with pytest.raises(errors.RunNotFound), domain_errors(wire.address):
            await wire.lookup()


async def test_own_abort_of_a_servicer_passes(connect: Any) -> None:
    async def behaviour(request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.DATA_LOSS, "mine")

    async with connect(behaviour) as wire:
        error = await failure(wire)
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "mine")


async def test_method_that_is_not_served_is_unimplemented(connect: Any) -> None:
    async with connect(raising(AssertionError("not called"))) as wire:
        with pytest.raises(errors.NotAvailableYet, match="does not serve"), domain_errors(wire.address):
            await wire.stub.Purge(cache_service_pb2.PurgeRequest())


async def test_wrong_service_at_the_address_is_said(connect: Any) -> None:
    async with connect(raising(AssertionError("not called"))) as wire:
        call = wire.channel.unary_unary("/promptlooper.v1.RunnerService/GetRun")
        with pytest.raises(errors.NotAvailableYet, match="is not a Runner"), domain_errors(wire.address, "runner"):
            await call(b"")


async def test_nobody_there_says_what_to_start(connect: Any) -> None:
    async with connect(raising(AssertionError("not called"))) as wire:
        address = wire.address
    async with open_channel(address) as channel:
        with pytest.raises(errors.ServiceUnavailable) as caught, domain_errors(address, "cache"):
            await channel.unary_unary("/promptlooper.v1.CacheService/Lookup")(b"")
    assert f"no cache answers at {address}: start it (`promptlooper serve cache`" in caught.value.message
    assert caught.value.metadata == {"address": address}


async def test_message_that_is_too_large_is_said(connect: Any) -> None:
    async with connect(raising(AssertionError("not called"))) as wire:
        with pytest.raises(errors.TooLarge, match="send less at once"), domain_errors(wire.address):
            await wire.stub.Lookup(cache_service_pb2.LookupRequest(claimant_id="x" * 5_000_000))
        async with grpc.aio.insecure_channel(wire.address) as plain:  # not ours: sends anything
            with pytest.raises(errors.TooLarge, match="send less at once"), domain_errors(wire.address):
                await plain.unary_unary("/promptlooper.v1.CacheService/Lookup")(b"x" * 5_000_000)


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_all_four_kinds_of_method_are_covered(kind: str) -> None:
    asks, answers = (part == "stream" for part in kind.split("_"))

    async def answer_one(request: Any, context: Any) -> bytes:
        raise errors.RunNotFound("no run 'x'", run_id="x")

    async def answer_many(request: Any, context: Any) -> Any:
        yield b"first"
        raise errors.RunNotFound("no run 'x'", run_id="x")

    def register(server: grpc.aio.Server) -> None:
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        handlers = {"Do": make(answer_many if answers else answer_one)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    async with serving("127.0.0.1:0", {"t.T": register}, reflection=False) as running:
        address = f"127.0.0.1:{running.port}"
        async with open_channel(address) as channel:
            call = getattr(channel, kind)("/t.T/Do")
            received: list[bytes] = []

            async def ask() -> None:
                sent = iter([b"a"]) if asks else b"a"
                if answers:
                    async for message in call(sent):
                        received.append(message)
                else:
                    await call(sent)

            with pytest.raises(errors.RunNotFound) as caught, domain_errors(address):
                await ask()
    assert caught.value.metadata == {"run_id": "x"}
    assert received == ([b"first"] if answers else [])


@pytest.mark.parametrize(
    ("greeting", "answer", "said"),
    [
        (b"", b"HTTP/1.0 400 Bad Request\r\n\r\n", "(what listens there does not speak gRPC)"),
        (b'INFO {"server_id":"x"}\r\n', b"-ERR 'Unknown Protocol Operation'\r\n", "does not speak gRPC)"),
        (b"", b"-ERR unknown command 'PRI'\r\n", "does not speak gRPC)"),
        (b"", b"", "(the connection was closed; servers do so where TLS or a client certificate of theirs is missing)"),
    ],
)
async def test_another_kind_of_server_is_said_without_internals(greeting: bytes, answer: bytes, said: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read(100)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with open_channel(address) as channel:
            with pytest.raises(errors.ServiceUnavailable) as caught, domain_errors(address, "runner"):
                await channel.unary_unary("/promptlooper.v1.RunnerService/GetRun")(b"")
    assert caught.value.message.endswith(said)


async def test_name_that_is_not_known_is_said() -> None:
    async with open_channel("nowhere.invalid:7051") as channel:
        with pytest.raises(errors.ServiceUnavailable, match="the name is not known"), domain_errors("nowhere.invalid"):
            await channel.unary_unary("/promptlooper.v1.RunnerService/GetRun")(b"")
