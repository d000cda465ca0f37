"""A gRPC server as a context manager: tests and services go the same way."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

from promptlooper.addresses import health_address, host_and_port
from promptlooper.errors import DomainError
from promptlooper.rpc.access import Access
from promptlooper.rpc.calls import Calls
from promptlooper.rpc.health import Health
from promptlooper.rpc.interceptors import CallGuard

_LARGEST_MESSAGE = 4 * 1024 * 1024
CONNECTION_AGE = 300.0  # seconds

Register = Callable[[grpc.aio.Server], None]


class CannotListen(DomainError):
    """The address can't be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server: the ports it got, and its health (`set_ready(False)` while it can't do its work)."""

    port: int
    health_port: int
    health: Health


@asynccontextmanager
async def serving(
    listen: str,
    services: Mapping[str, Register],
    *,
    health_listen: str | None = None,
    reflection: bool = True,
    grace: float = 20.0,
    lame_duck: float = 0.0,
    on_drain: Callable[[], None] | None = None,
    credentials: grpc.ServerCredentials | None = None,
    access: Access | None = None,
    calls: Calls | None = None,
    connection_age: float = CONNECTION_AGE,
) -> AsyncIterator[Serving]:
    """Serves `services` (full name to what registers it) on `listen`, with health there and, alone, on its own port.

    Port 0 takes a free one. `health_listen` is the port of `listen` + 100 unless given. On leaving it drains: health
    says NOT_SERVING, `lame_duck` seconds later clients are told to send no more calls, `on_drain` tells long streams to
    end, and what still runs gets `grace` seconds. `credentials` are for TLS, `access` decides who may call; the health
    port has neither. A connection takes no new calls after `connection_age` seconds, give or take a tenth: its client
    makes another, asks DNS again before, and so finds replicas that are new. Raises CannotListen where an address is
    taken.
    """
    answers, calls = Health(services), calls or Calls()
    async with AsyncExitStack() as stack:
        if access is not None:
            calls.refused = access.refused
        guards = [access, CallGuard(calls)] if access is not None else [CallGuard(calls)]
        server = grpc.aio.server(interceptors=guards, options=_options(_LARGEST_MESSAGE, connection_age))
        stack.push_async_callback(server.stop, None)
        handlers = cast(grpc.aio.Server, _Handlers(server))
        for register in services.values():
            register(handlers)
        health_pb2_grpc.add_HealthServicer_to_server(answers, handlers)
        if reflection:
            listed = (*services, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME)
            grpc_reflection.enable_server_reflection(listed, server)
        port = _bound(server, listen, "PROMPTLOOPER_LISTEN", credentials)

        # Alone on its own port, so that a server with many calls still answers its probes.
        probes = grpc.aio.server(interceptors=[CallGuard(Calls())], options=_options(64 * 1024, connection_age))
        stack.push_async_callback(probes.stop, None)
        health_pb2_grpc.add_HealthServicer_to_server(answers, probes)
        health_port = _bound(probes, health_listen or health_address(listen), "PROMPTLOOPER_HEALTH_LISTEN")

        await server.start()
        await probes.start()
        answers.set_ready(True)
        try:
            yield Serving(port, health_port, answers)
        finally:
            answers.drain()
            calls.draining = True
            await asyncio.sleep(lame_duck)
            # Connections first: who comes again because a stream has ended then comes to another replica.
            stopping = asyncio.create_task(server.stop(grace))
            await asyncio.sleep(0)
            answers.end_watches()
            if on_drain is not None:
                on_drain()
            await stopping


class _Handlers:
    """What generated code adds a service to, which it does twice. The second time is left out: grpc's Python server
    waits for each registered method apart, and for all of them anew with each call. For the Runner's thirty methods
    that is 0.03 ms."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        pass


def _options(max_receive_bytes: int, connection_age: float) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # by default two servers share a port, in silence
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", _LARGEST_MESSAGE),
        # What a connection asks for beyond this waits, or is refused where it has many short calls (seen from 300 on at
        # a limit of 200): so more than any client of ours has.
        ("grpc.max_concurrent_streams", 1_000),
        # Calls that Python has not taken yet. By default a burst is cut off from the 1,000th on, each call CANCELLED.
        ("grpc.server.max_pending_requests", 100_000),
        ("grpc.server.max_pending_requests_hard_limit", 100_000),
        # Calls that run go on for as long as they take: there is no limit to the grace.
        ("grpc.max_connection_age_ms", int(connection_age * 1000)),
        # All three are needed: without ping_timeout a frozen peer is seen after a minute more.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Our clients ping every 30 s; who pings more often than this is cut off.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _bound(
    server: grpc.aio.Server, listen: str, variable: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    in_use = f"{listen} is in use: stop what listens there or set {variable}"
    try:
        # First ourselves: grpc does not say what is wrong, and writes to stderr.
        _bind_once(*host_and_port(listen))
        return server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(in_use) from None
        raise CannotListen(f"can't listen on {listen!r}: {error.strerror}; set {variable} to another address") from None
    except RuntimeError:
        raise CannotListen(in_use) from None


def _bind_once(host: str, port: int) -> None:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, address = found[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()
