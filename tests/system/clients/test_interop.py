"""gRPC's interop cases, called by Node's client on our server, as `docs/clients.md` has their outcomes."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from promptlooper.errors import InvalidArgument
from promptlooper.rpc.server import serving

CLIENTS = Path(__file__).parents[3] / "examples" / "clients"
DOCUMENTED = re.findall(
    r"^\| `([a-z_]+)` \|.*\| ([A-Z_]+):[^|]*\|$",
    (Path(__file__).parents[3] / "docs" / "clients.md").read_text(),
    re.MULTILINE,
)
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
Context = grpc.aio.ServicerContext[bytes, bytes]


class Interop:
    """The methods that the cases call; messages are bytes."""

    def __init__(self) -> None:
        self.waiting = 0
        self.given_up = asyncio.Semaphore(0)

    async def echo(self, request: bytes, context: Context) -> bytes:
        received = dict(context.invocation_metadata() or ())
        await context.send_initial_metadata([(k, v) for k, v in received.items() if k == "x-echo-initial"])
        context.set_trailing_metadata([(k, v) for k, v in received.items() if k == "x-echo-trailing-bin"])
        return request

    async def large(self, request: bytes, context: Context) -> bytes:
        assert len(request) == 271_828
        return bytes(314_159)

    async def ping_pong(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        answers = iter((31_415, 9, 2_653, 58_979))
        async for _ in requests:
            yield bytes(next(answers))

    async def fail(self, request: bytes, context: Context) -> bytes:
        raise InvalidArgument(request.decode(), field="text")

    async def fail_in_stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield b"one"
            raise InvalidArgument(request.decode(), field="text")

    async def wait(self, request: bytes, context: Context) -> bytes:
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.release()
        raise AssertionError("it waits for ever")

    def register(self, server: grpc.aio.Server) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Large": grpc.unary_unary_rpc_method_handler(self.large),
            "PingPong": grpc.stream_stream_rpc_method_handler(self.ping_pong),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "FailInStream": grpc.stream_stream_rpc_method_handler(self.fail_in_stream),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
        }
        handler = grpc.method_handlers_generic_handler("promptlooper.testing.Interop", handlers)
        server.add_generic_rpc_handlers((handler,))


@pytest.mark.timeout(900)
async def test_interop_cases_end_as_documented(program: Callable[[str], tuple[str, ...]]) -> None:
    await asyncio.to_thread(program, "node")
    interop = Interop()
    services = {"promptlooper.testing.Interop": interop.register}
    async with serving("127.0.0.1:0", services, health_listen="127.0.0.1:0", reflection=False, grace=0) as server:
        words = (
            "node",
            str(Path(__file__).with_name("interop.mjs")),
            str(CLIENTS / "node"),
            f"127.0.0.1:{server.port}",
        )
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        # The server heard of both: that the deadline passed, and that the call was cancelled.
        for _ in range(2):
            await interop.given_up.acquire()
    assert process.returncode == 0
    outcomes = json.loads(out)
    assert [(case, outcome["code"]) for case, outcome in outcomes.items()] == DOCUMENTED

    assert outcomes["empty_unary"]["bytes"] == 0
    assert outcomes["large_unary"]["bytes"] == 314_159
    assert outcomes["too_large"]["bytes"] is None
    assert outcomes["ping_pong"]["sizes"] == [31_415, 9, 2_653, 58_979]
    assert outcomes["empty_stream"]["sizes"] == []
    assert outcomes["custom_metadata"]["headers"] == {
        "x-echo-initial": ["test_initial_metadata_value"],
        "x-echo-trailing-bin": [base64.b64encode(b"\xab\xab\xab\x00\xff").decode()],
    }
    assert outcomes["unicode_error"]["message"] == outcomes["unicode_error_in_stream"]["message"] == SPECIAL
    status = status_pb2.Status.FromString(base64.b64decode(outcomes["unicode_error"]["details"]))
    info = error_details_pb2.ErrorInfo()
    assert status.message == SPECIAL
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_ARGUMENT", "promptlooper", {"field": "text"})
    assert outcomes["cancel_after_first_response"]["sizes"] == [31_415]
    assert interop.waiting == 2
