"""What every call to a server passes through: a deadline where the caller sent none, and status codes for errors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc

from promptlooper.errors import DeadlineExceeded, DomainError, NotAvailableYet
from promptlooper.rpc.deadlines import is_deadline, usual_deadline
from promptlooper.rpc.status import code_of, status_of, trailers_of

_log = logging.getLogger(__name__)
SLOW = 1.0  # seconds

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Behavior: TypeAlias = Callable[[Any, Context], Any]


class CallGuard(grpc.aio.ServerInterceptor):
    """Ends calls that no caller's deadline ends, and turns what servicers raise into `google.rpc.Status`.

    Covers the four kinds of method. `otherwise` is in seconds, for unary methods that are not ours. A DomainError goes
    out as the table says, anything else as INTERNAL with its traceback in the log only. CancelledError and a servicer's
    own `abort` pass.
    """

    def __init__(self, *, otherwise: float = 60.0) -> None:
        self._otherwise = otherwise

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # no such method: grpc answers UNIMPLEMENTED
            return None
        method = handler_call_details.method
        asks, answers = ("stream" if s else "unary" for s in (handler.request_streaming, handler.response_streaming))
        kind = f"{asks}_{answers}"
        otherwise = None if handler.response_streaming else self._otherwise
        seconds = usual_deadline(method, otherwise=otherwise)
        guard = _stream if handler.response_streaming else _unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        guarded = guard(getattr(handler, kind), method, seconds)
        return make(guarded, handler.request_deserializer, handler.response_serializer)  # type: ignore[no-any-return]


def _unary(behavior: Behavior, method: str, seconds: float | None) -> Behavior:
    async def guarded(request: Any, context: Context) -> Any:
        began = time.monotonic()
        try:
            if seconds is None or is_deadline(context.time_remaining()):
                return await behavior(request, context)
            return await _within(seconds, behavior(request, context))
        except Exception as error:
            await _report(error, context, method, time.monotonic() - began)

    return guarded


def _stream(behavior: Behavior, method: str, seconds: float | None) -> Behavior:
    # A coroutine that writes, not a generator: a cancelled write then closes the servicer's generator here and now,
    # and not when the garbage collector finds it.
    async def answer(request: Any, context: Context) -> None:
        answers = behavior(request, context)
        if not hasattr(answers, "__aiter__"):  # a servicer that writes by itself, as grpc's health servicer does
            await answers
            return
        async with aclosing(answers):
            async for message in answers:
                await context.write(message)

    async def guarded(request: Any, context: Context) -> None:
        try:
            if seconds is None or is_deadline(context.time_remaining()):
                await answer(request, context)
            else:
                await _within(seconds, answer(request, context))
        except Exception as error:
            await _report(error, context, method)

    return guarded


async def _within(seconds: float, work: Awaitable[Any]) -> Any:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await work
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineExceeded(f"no answer within {seconds:g} s, the usual deadline: send a longer one") from None


async def _report(error: Exception, context: Context, method: str, took: float = 0.0) -> NoReturn:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:  # from a TaskGroup
        error = error.exceptions[0]
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:  # by the stub's base
        error = NotAvailableYet(f"this server does not serve {method}", feature=method)
    if not isinstance(error, DomainError):
        _log.error("%s failed", method, exc_info=error)
        error = DomainError("internal error")
    status = status_of(error)
    # What took long to fail would take as long again, and the caller would hear of its deadline and not of this.
    trailers = trailers_of(error, status, may_repeat=took < SLOW)
    await context.abort(code_of(error), status.message, trailers)
    raise AssertionError("abort returned")
