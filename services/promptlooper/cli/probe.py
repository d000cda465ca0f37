"""Asks one part of a stack whether it is well, each kind in its own words."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from promptlooper.addresses import host_and_port
from promptlooper.rpc.client import open_channel

_SECONDS = 2.0


async def is_healthy(kind: str, address: str, health_address: str | None) -> bool:
    """A service by the standard gRPC health check on its health port, NATS and Redis by a ping. Never raises."""
    try:
        async with asyncio.timeout(_SECONDS):
            match kind:
                case "nats":
                    return await _exchange(address, b"CONNECT {}\r\nPING\r\n", b"PONG")
                case "redis":
                    return await _exchange(address, b"PING\r\n", b"+PONG")
                case _:
                    return await _is_serving(health_address or address)
    except (OSError, TimeoutError):
        return False


async def _exchange(address: str, question: bytes, answer: bytes) -> bool:
    """Whether a line of what comes back is `answer`. (NATS speaks first and greets with a line of its own.)"""
    host, port = host_and_port(address)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(question)
        await writer.drain()
        while line := await reader.readline():
            if line.strip() == answer:
                return True
            if line.startswith(b"-"):  # an error, of both protocols
                return False
        return False
    finally:
        writer.close()


async def _is_serving(address: str) -> bool:
    # A channel for each question: one that is kept would wait out its backoff after a refused connection.
    async with open_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=_SECONDS
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
