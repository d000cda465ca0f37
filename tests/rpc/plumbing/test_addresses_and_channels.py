from __future__ import annotations

from typing import Any

import grpc
import pytest

from promptlooper.backing import free_port
from promptlooper.errors import InvalidArgument, ServiceUnavailable
from promptlooper.rpc.client import domain_errors, is_name, open_channel, target_of
from promptlooper.rpc.server import serving


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("adapter:7052", "dns:///adapter:7052"),
        ("127.0.0.1:7052", "dns:///127.0.0.1:7052"),
        ("[::1]:7052", "dns:///[::1]:7052"),
        ("dns:///adapter-headless:7052", "dns:///adapter-headless:7052"),
        ("unix:/run/pl.sock", "unix:/run/pl.sock"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("localhost:1,localhost:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_addresses_become_targets(address: str, target: str) -> None:
    assert target_of(address) == target


@pytest.mark.parametrize(
    "address",
    ["", "adapter", ":7052", "adapter:", "adapter:http", "a:70000", "::1:7052", "a:1,b:2", "127.0.0.1:1,[::1]:2"],
)
def test_addresses_that_can_not_be_read_are_refused_with_their_text(address: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        target_of(address)
    assert repr(address) in caught.value.message or repr(address.split(",")[0]) in caught.value.message


@pytest.mark.parametrize(
    "address", ["adapter:7052", "dns:///adapter:7052", "dns:adapter:7052", "dns://10.0.0.1/adapter:7052"]
)
def test_names_may_stand_for_several_replicas(address: str) -> None:
    assert is_name(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:7052",
        "localhost:7052",
        "[::1]:7052",
        "dns:///127.0.0.1:1",
        "unix:/run/a.sock",
        "10.0.0.1:1,10.0.0.2:1",
    ],
)
def test_other_addresses_stand_for_what_they_say(address: str) -> None:
    assert not is_name(address)


async def test_calls_are_spread_over_a_list_of_addresses() -> None:
    calls = {"a": 0, "b": 0}

    def named(name: str) -> Any:
        async def answer(request: Any, context: Any) -> bytes:
            calls[name] += 1
            return b""

        def register(server: grpc.aio.Server) -> None:
            handlers = {"Do": grpc.unary_unary_rpc_method_handler(answer)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

        return {"t.T": register}

    async with (
        serving("127.0.0.1:0", named("a"), reflection=False) as a,
        serving("127.0.0.1:0", named("b"), reflection=False) as b,
        open_channel(f"127.0.0.1:{a.port},127.0.0.1:{b.port}") as channel,
    ):
        call = channel.unary_unary("/t.T/Do")
        while not all(calls.values()):  # the second connection may come up a little later
            await call(b"")
        before = dict(calls)
        for _ in range(20):
            await call(b"")
    assert {name: calls[name] - before[name] for name in calls} == {"a": 10, "b": 10}


async def test_channel_finds_a_server_that_came_back() -> None:
    async def answer(request: Any, context: Any) -> bytes:
        return b"here"

    def register(server: grpc.aio.Server) -> None:
        handlers = {"Do": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    address = f"127.0.0.1:{free_port()}"
    async with open_channel(address) as channel:
        call = channel.unary_unary("/t.T/Do")
        for _ in range(2):
            with pytest.raises(ServiceUnavailable), domain_errors(address):
                await call(b"")
            async with serving(address, {"t.T": register}, health_listen="127.0.0.1:0", reflection=False):
                assert await call(b"", wait_for_ready=True, timeout=60) == b"here"
