"""The token that a channel sends: with every kind of call, the newest, and never to everyone on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tls_lab import put

from promptlooper.errors import InvalidArgument
from promptlooper.rpc.client import open_channel
from promptlooper.rpc.security import ChannelSecurity
from promptlooper.rpc.server import serving
from promptlooper.testing.eventually import eventually


def said(context: Any) -> bytes:
    return b",".join(value.encode() for key, value in context.invocation_metadata() if key == "authorization")


async def unary(request: Any, context: Any) -> bytes:
    return said(context)


async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield said(context)


def register(server: grpc.aio.Server) -> None:
    handlers = {
        "UU": grpc.unary_unary_rpc_method_handler(unary),
        "US": grpc.unary_stream_rpc_method_handler(stream),
        "SU": grpc.stream_unary_rpc_method_handler(unary),
        "SS": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))


async def test_every_kind_of_call_carries_the_token_that_is_there_now(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    async with serving("127.0.0.1:0", {"t.T": register}, reflection=False) as running:
        async with open_channel(f"127.0.0.1:{running.port}", security=ChannelSecurity(token_file=token)) as channel:
            call = channel.unary_unary("/t.T/UU")
            assert await call(b"") == b"Bearer first"
            assert await channel.stream_unary("/t.T/SU")(iter([b""])) == b"Bearer first"
            assert [one async for one in channel.unary_stream("/t.T/US")(b"")] == [b"Bearer first"]
            assert [one async for one in channel.stream_stream("/t.T/SS")(iter([b""]))] == [b"Bearer first"]
            assert await call(b"", metadata=(("x", "y"),)) == b"Bearer first"
            assert await call(b"", metadata=(("authorization", "Bearer own"),)) == b"Bearer own"
            put(token, b"second")

            async def changed() -> bool:
                return bool(await call(b"") == b"Bearer second")

            await eventually(changed)


@pytest.mark.parametrize("address", ["runner:7051", "10.0.0.1:7051", "127.0.0.1:1,10.0.0.1:1", "dns:///runner:7051"])
async def test_token_is_not_sent_to_another_machine_unencrypted(address: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-word")
    with pytest.raises(InvalidArgument, match="PROMPTLOOPER_ALLOW_PLAINTEXT_TOKENS") as caught:
        async with open_channel(address, security=ChannelSecurity(token_file=token)):
            pass
    assert "secret-word" not in caught.value.message
    async with open_channel(address, security=ChannelSecurity(token_file=token, allow_plaintext_token=True)):
        pass


@pytest.mark.parametrize("address", ["localhost:7051", "[::1]:7051", "127.0.0.1:1,127.0.0.2:1", "unix:/run/pl.sock"])
async def test_token_may_stay_on_this_machine(address: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-word")
    async with open_channel(address, security=ChannelSecurity(token_file=token)):
        pass


@pytest.mark.parametrize(
    ("security", "message"),
    [
        (ChannelSecurity(token_file=Path("/nowhere/token")), "can't be read"),
        (ChannelSecurity(ca_file=Path("/nowhere/ca.pem")), "can't be read"),
        (ChannelSecurity(cert_file=Path("c"), key_file=Path("k")), "CA that signed the server's"),
        (ChannelSecurity(ca_file=Path("ca"), cert_file=Path("c")), "give both files"),
    ],
)
async def test_files_that_can_not_be_used_are_said_at_once(security: ChannelSecurity, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        async with open_channel("127.0.0.1:1", security=security):
            pass
