"""A service at its address, as its settings say: the one place where settings become a server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import grpc

from promptlooper.addresses import host_and_port, is_loopback
from promptlooper.rpc.access import access_by
from promptlooper.rpc.calls import Calls
from promptlooper.rpc.certificates import server_credentials
from promptlooper.rpc.process import until_signalled
from promptlooper.rpc.server import Register, Serving, serving
from promptlooper.settings import ServiceSettings


@asynccontextmanager
async def service(
    settings: ServiceSettings,
    services: Mapping[str, Register],
    *,
    log: logging.Logger,
    on_drain: Callable[[], None] | None = None,
    calls: Calls | None = None,
) -> AsyncIterator[Serving]:
    """Serves `services` until the block is left; then it drains. What it serves, and where, goes to `log`, and its
    calls are counted in `calls`."""
    credentials = _credentials(settings)
    access = access_by(settings.api_keys_file, settings.jwks_file, settings.jwt_issuer, settings.jwt_audience)
    readable = credentials is None and not is_loopback(host_and_port(settings.listen)[0])
    if access is not None and readable and not settings.allow_plaintext_tokens:
        log.warning(
            "tokens are unencrypted on their way here: set PROMPTLOOPER_TLS_CERT_FILE and its key, or, where the"
            " network encrypts, PROMPTLOOPER_ALLOW_PLAINTEXT_TOKENS=true"
        )
    async with serving(
        settings.listen,
        services,
        health_listen=settings.health_listen,
        reflection=settings.reflection,
        grace=settings.grace,
        lame_duck=settings.lame_duck,
        on_drain=on_drain,
        credentials=credentials,
        access=access,
        calls=calls,
    ) as server:
        log.info("serving", extra={**settings.described(), "port": server.port, "health_port": server.health_port})
        yield server


def _credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return server_credentials(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)


async def until_stopped(settings: ServiceSettings) -> None:
    """Waits for a signal; from then on the process has the time that the settings give it to end."""
    await until_signalled(settings.lame_duck + settings.grace)
