"""What every call to a server passes through: a deadline where none was sent, status codes for errors, counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc

from promptlooper import tracing
from promptlooper.errors import DeadlineExceeded, DomainError, NotAvailableYet
from promptlooper.rpc.calls import Calls
from promptlooper.rpc.deadlines import is_deadline, usual_deadline
from promptlooper.rpc.status import code_of, status_of, trailers_of

_log = logging.getLogger(__name__)
Code = grpc.StatusCode
SLOW = 1.0  # seconds
_RUNNER, _ADAPTER = "promptlooper.v1.RunnerService", "promptlooper.v1.AdapterService"

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Behavior: TypeAlias = Callable[[Any, Context], Any]


class CallGuard(grpc.aio.ServerInterceptor):
    """Ends calls that no caller's deadline ends, turns what servicers raise into `google.rpc.Status`, and counts.

    Covers the four kinds of method. `otherwise` is in seconds, for unary methods that are not ours. A DomainError goes
    out as the table says, anything else as INTERNAL with its traceback in the log only. CancelledError and a servicer's
    own `abort` pass.
    """

    def __init__(self, calls: Calls, *, otherwise: float = 60.0) -> None:
        self._calls, self._otherwise = calls, otherwise
        self._guarded: dict[str, tuple[Any, Any]] = {}  # by method: its handler, and what stands in its place

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # no such method: grpc answers UNIMPLEMENTED
            return None
        method = handler_call_details.method
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = self._guarded[method] = handler, self._guard(handler, method)
        return known[1]  # type: ignore[no-any-return]

    def _guard(self, handler: Any, method: str) -> Any:
        asks, answers = ("stream" if s else "unary" for s in (handler.request_streaming, handler.response_streaming))
        kind = f"{asks}_{answers}"
        otherwise = None if handler.response_streaming else self._otherwise
        seconds = usual_deadline(method, otherwise=otherwise)
        guard = _stream if handler.response_streaming else _unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        guarded = guard(getattr(handler, kind), method, seconds, self._calls)
        return make(guarded, handler.request_deserializer, handler.response_serializer)


def _unary(behavior: Behavior, method: str, seconds: float | None, calls: Calls) -> Behavior:
    async def guarded(request: Any, context: Context) -> Any:
        began, code = time.monotonic(), Code.CANCELLED
        calls.began(method)
        try:
            with _span(method, context):
                if seconds is None or is_deadline(context.time_remaining()):
                    answer = await behavior(request, context)
                else:
                    answer = await _within(seconds, behavior(request, context))
            code = Code.OK
            return answer
        except Exception as error:
            told = _told(error, context, method)
            code = _code_of(told, context)
            await _abort(told, context, time.monotonic() - began)
        finally:
            calls.ended(method, code.name, time.monotonic() - began)

    return guarded


def _stream(behavior: Behavior, method: str, seconds: float | None, calls: Calls) -> Behavior:
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
        code = Code.CANCELLED
        calls.began(method)
        try:
            with _span(method, context):
                if seconds is None or is_deadline(context.time_remaining()):
                    await answer(request, context)
                else:
                    await _within(seconds, answer(request, context))
            code = Code.OK
        except Exception as error:
            told = _told(error, context, method)
            code = _code_of(told, context)
            await _abort(told, context)
        finally:
            calls.ended(method, code.name)

    return guarded


def _span(method: str, context: Context) -> tracing.Span:
    """Batches have none: each of their items brings its own place in a trace."""
    if not tracing.is_on():
        return tracing.NOTHING
    found = [str(value) for key, value in context.invocation_metadata() or () if key == "traceparent"]
    service, _, name = method[1:].rpartition("/")
    begins = service == _RUNNER or (service == _ADAPTER and name in ("Complete", "StreamComplete"))
    span = tracing.served(method[1:], found[0] if found else "", may_begin=begins)
    if span:
        span.set({"rpc.system": "grpc", "rpc.service": service, "rpc.method": name})
    return span


async def _within(seconds: float, work: Awaitable[Any]) -> Any:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await work
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineExceeded(f"no answer within {seconds:g} s, the usual deadline: send a longer one") from None


def _told(error: Exception, context: Context, method: str) -> DomainError | grpc.aio.AbortError:
    """What the caller is to hear; a servicer's own abort as it is."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:  # from a TaskGroup
        error = error.exceptions[0]
    if isinstance(error, DomainError | grpc.aio.AbortError):
        return error
    if isinstance(error, NotImplementedError) and context.code() is Code.UNIMPLEMENTED:  # by the stub's base
        return NotAvailableYet(f"this server does not serve {method}", feature=method)
    _log.error("%s failed", method, exc_info=error)
    return DomainError("internal error")


def _code_of(told: DomainError | grpc.aio.AbortError, context: Context) -> grpc.StatusCode:
    if isinstance(told, DomainError):
        return code_of(told)
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else Code.UNKNOWN


async def _abort(told: DomainError | grpc.aio.AbortError, context: Context, took: float = 0.0) -> NoReturn:
    if isinstance(told, grpc.aio.AbortError):
        raise told
    status = status_of(told)
    # What took long to fail would take as long again, and the caller would hear of its deadline and not of this.
    trailers = trailers_of(told, status, may_repeat=took < SLOW)
    await context.abort(code_of(told), status.message, trailers)
    raise AssertionError("abort returned")
