"""The example clients over TLS, with a token."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from promptlooper.errors import Unauthenticated
from promptlooper.rpc.calls import Calls
from promptlooper.rpc.interceptors import CallGuard
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceServicer, add_RunnerServiceServicer_to_server

SELF_SIGNED = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"


class Doorkeeper(RunnerServiceServicer):
    """Lets nobody in, and remembers who they said they are."""

    def __init__(self) -> None:
        self.shown: list[object] = []

    async def CreateExperiment(
        self, request: pb.CreateExperimentRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.CreateExperimentResponse:
        self.shown.append(dict(context.invocation_metadata() or ()).get("authorization"))
        raise Unauthenticated("this server does not know the token: send another")


@pytest.fixture
def credentials(tmp_path: Path) -> grpc.ServerCredentials:
    """Of `localhost`; its certificate is its own authority, in ca.pem."""
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    words = [
        *SELF_SIGNED.split(),
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(words, check=True, capture_output=True)
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])


@asynccontextmanager
async def listening(doorkeeper: Doorkeeper, credentials: grpc.ServerCredentials) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=[CallGuard(Calls())])
    add_RunnerServiceServicer_to_server(doorkeeper, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("language", ["node", "go", "cpp"])
async def test_client_sends_its_token_over_tls(
    language: str, program: Callable[[str], tuple[str, ...]], credentials: grpc.ServerCredentials, tmp_path: Path
) -> None:
    words = await asyncio.to_thread(program, language)
    (tmp_path / "token").write_text("a-token\n")
    (tmp_path / "promptlooper.yaml").write_text("model: mock/echo\nprompt: hello\n")
    doorkeeper = Doorkeeper()
    async with listening(doorkeeper, credentials) as address:
        options = ("--server", address, "--ca-file", "ca.pem", "--token-file", "token", "promptlooper.yaml")
        process = await asyncio.create_subprocess_exec(*words, *options, cwd=tmp_path, stderr=asyncio.subprocess.PIPE)
        _, err = await process.communicate()
    assert err.decode() == "UNAUTHENTICATED: this server does not know the token: send another\n"
    assert process.returncode == 1
    assert doorkeeper.shown == ["Bearer a-token"]
