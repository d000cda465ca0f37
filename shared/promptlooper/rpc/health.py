"""The standard health service, answered from memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LIVENESS = "liveness"  # what a liveness probe asks for

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """One answer for all `services` and for "", the server: whether calls are welcome. `liveness` is SERVING whenever
    it can be answered, also while the server is not ready or drains: who restarts a process goes by that.

    Unlike grpc's own servicer it never waits for a watcher, and its watches end when the server drains: else each would
    hold the drain for the whole grace.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", LIVENESS, *services))
        self._ready = self._draining = self._ended = False
        self._changed = asyncio.Event()

    def set_ready(self, ready: bool) -> None:
        self._ready = ready and not self._draining
        self._tell()

    def drain(self) -> None:
        """Not ready from now on, whatever is set later."""
        self._ready, self._draining = False, True
        self._tell()

    def end_watches(self) -> None:
        self._ended = True
        self._tell()

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return _Status(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        last = None
        while True:
            changed, ended, status = self._changed, self._ended, self._status(request.service)
            if status != last:
                yield _Status(status=status)
                last = status
            if ended:
                return
            await changed.wait()

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._ready or service == LIVENESS else _Status.NOT_SERVING

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
