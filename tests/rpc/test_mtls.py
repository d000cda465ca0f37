"""TLS on both sides: who is refused, and certificates that are replaced while calls run."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tls_lab import Authority, Pair, put, serial_of

from promptlooper.errors import InvalidArgument, ServiceUnavailable
from promptlooper.rpc.certificates import server_credentials
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.rpc.security import ChannelSecurity
from promptlooper.rpc.server import Serving, serving
from promptlooper.testing.eventually import eventually

WHO, COUNT = "/t.T/Who", "/t.T/Count"


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def server(
    pair: Pair, client_ca: Path | None, go_on: Callable[[], bool] = lambda: False
) -> AsyncIterator[Serving]:
    """Says the name in its client's certificate, and counts such calls for as long as `go_on` says."""
    called = asyncio.Event()

    async def who(request: Any, context: Any) -> bytes:
        called.set()
        return b" ".join(context.auth_context().get("x509_common_name", ()))

    async def count(request: Any, context: Any) -> AsyncIterator[bytes]:
        number = 0
        while go_on():
            yield str(number).encode()
            number += 1
            called.clear()
            await called.wait()

    def register(server: grpc.aio.Server) -> None:
        handlers = {
            "Who": grpc.unary_unary_rpc_method_handler(who),
            "Count": grpc.unary_stream_rpc_method_handler(count),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    credentials = server_credentials(pair.cert, pair.key, client_ca)
    async with serving("127.0.0.1:0", {"t.T": register}, reflection=False, credentials=credentials) as running:
        yield running


def security(ca: Authority, client: Pair | None = None, **more: Any) -> ChannelSecurity:
    return ChannelSecurity(ca.file, client and client.cert, client and client.key, **more)


async def who(port: int, how: ChannelSecurity, host: str = "127.0.0.1") -> str:
    address = f"{host}:{port}"
    async with open_channel(address, security=how) as channel:
        with domain_errors(address):
            return str((await channel.unary_unary(WHO)(b"", timeout=10)).decode())


async def test_each_side_proves_itself_to_the_other(ca: Authority) -> None:
    async with server(ca.issue("server"), ca.file) as running:
        assert await who(running.port, security(ca, ca.issue("one"))) == "one"


async def test_server_alone_may_prove_itself(ca: Authority) -> None:
    async with server(ca.issue("server"), None) as running:
        assert await who(running.port, security(ca)) == ""


async def test_client_without_certificate_is_refused(ca: Authority) -> None:
    async with server(ca.issue("server"), ca.file) as running:
        with pytest.raises(ServiceUnavailable):
            await who(running.port, security(ca))


async def test_client_of_another_authority_is_refused(ca: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "Other CA")
    async with server(ca.issue("server"), ca.file) as running:
        with pytest.raises(ServiceUnavailable):
            await who(running.port, security(ca, other.issue("stranger")))


async def test_expired_client_is_refused(ca: Authority) -> None:
    async with server(ca.issue("server"), ca.file) as running:
        with pytest.raises(ServiceUnavailable):
            await who(running.port, security(ca, ca.issue("old", lasts=-timedelta(hours=1))))


async def test_plaintext_is_refused(ca: Authority) -> None:
    async with server(ca.issue("server"), ca.file) as running:
        with pytest.raises(ServiceUnavailable):
            await who(running.port, ChannelSecurity())


async def test_server_without_tls_is_told_from_none(ca: Authority) -> None:
    async with serving("127.0.0.1:0", {}, reflection=False) as running:
        with pytest.raises(ServiceUnavailable, match="does not speak TLS"):
            await who(running.port, security(ca))


async def test_server_of_another_authority_is_not_talked_to(ca: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "Other CA")
    async with server(other.issue("server"), None) as running:
        with pytest.raises(ServiceUnavailable, match="not to be trusted: unable to get local issuer"):
            await who(running.port, security(ca))


async def test_expired_server_is_not_talked_to(ca: Authority) -> None:
    async with server(ca.issue("server", lasts=-timedelta(hours=1)), None) as running:
        with pytest.raises(ServiceUnavailable, match="not to be trusted: certificate has expired"):
            await who(running.port, security(ca))


async def test_server_of_another_name_is_not_talked_to(ca: Authority) -> None:
    async with server(ca.issue("server", host="runner.example"), None) as running:
        with pytest.raises(ServiceUnavailable, match="another name"):
            await who(running.port, security(ca))
        assert await who(running.port, security(ca, server_name="runner.example")) == ""


async def test_list_of_servers_needs_the_name_that_they_share(ca: Authority) -> None:
    pair = ca.issue("server")
    async with server(pair, None) as one, server(pair, None) as other:
        async with open_channel(f"127.0.0.1:{one.port},127.0.0.1:{other.port}", security=security(ca)) as channel:
            assert await channel.unary_unary(WHO)(b"", timeout=10) == b""
    with pytest.raises(InvalidArgument, match="PROMPTLOOPER_TLS_SERVER_NAME"):
        async with open_channel("127.0.0.1:1,127.0.0.2:1", security=security(ca)):
            pass


async def test_health_port_stays_plain(ca: Authority) -> None:
    async with server(ca.issue("server"), ca.file) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.health_port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_rotation_under_load_drops_no_call(ca: Authority) -> None:
    """Server and client get new certificates, then the authority is replaced too, while calls and a stream run."""
    running, served, client = True, ca.issue("server"), ca.issue("client")
    answered: list[bytes] = []

    async with server(served, ca.file, lambda: running) as serving_now:
        address = f"127.0.0.1:{serving_now.port}"
        async with open_channel(address, security=security(ca, client)) as channel:
            call = channel.unary_unary(WHO)

            async def load() -> int:
                calls = 0
                while running:
                    answered.append(await call(b"", timeout=10))
                    calls += 1
                return calls

            async def stream() -> list[bytes]:
                return [message async for message in channel.unary_stream(COUNT)(b"")]

            counting = asyncio.ensure_future(stream())
            work = [asyncio.ensure_future(load()) for _ in range(8)]

            # Under another name: the server says whom it sees, and so the calls tell when the rotation is through.
            renamed = ca.issue("renamed")
            put(client.key, renamed.key.read_bytes())
            put(client.cert, renamed.cert.read_bytes())
            ca.issue("server")
            await eventually(lambda: answered[-1:] == [b"renamed"])
            assert await shown(address, ca, client) == serial_of(served.cert.read_bytes())

            # Both authorities are trusted, then certificates of the new one are served, then the old one goes.
            new = Authority(ca.file.parent, "New CA")
            put(ca.file, ca.pem + new.pem)
            new.issue("server")
            last = new.issue("last")
            put(client.key, last.key.read_bytes())
            put(client.cert, last.cert.read_bytes())
            await eventually(lambda: answered[-1:] == [b"last"])
            put(ca.file, new.pem)
            before = len(answered)
            await eventually(lambda: len(answered) > before + 100)
            assert await shown(address, ca, client) == serial_of(served.cert.read_bytes())

            running = False
            calls = await asyncio.gather(*work)
            await call(b"", timeout=10)  # the count waits for one more
            counted = await counting
    assert counted == [str(number).encode() for number in range(len(counted))]
    assert len(counted) > 10
    assert sum(calls) == len(answered)
    assert set(answered) == {b"client", b"renamed", b"last"}


async def test_old_certificate_stays_while_the_new_one_can_not_be_taken(
    ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    served, client = ca.issue("server"), ca.issue("client")
    async with server(served, ca.file) as running:
        address = f"127.0.0.1:{running.port}"
        before = await shown(address, ca, client)
        key = served.key.read_bytes()
        put(served.key, b"half of a key")
        assert await shown(address, ca, client) == before
        put(served.key, ca.issue("other").key.read_bytes())
        assert await shown(address, ca, client) == before
        assert "holds no private key" in caplog.text
        assert "is not that of the first certificate" in caplog.text
        assert "BEGIN" not in caplog.text
        put(served.key, key)
        ca.issue("server")
        assert await shown(address, ca, client) == serial_of(served.cert.read_bytes()) != before


async def shown(address: str, ca: Authority, client: Pair) -> int:
    """The serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=str(ca.file))
    context.load_cert_chain(client.cert, client.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        return serial_of(ssl.DER_cert_to_PEM_cert(writer.get_extra_info("ssl_object").getpeercert(True)).encode())
    finally:
        writer.transport.abort()  # in good order it would have to read what the server says
