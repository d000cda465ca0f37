"""Who may call what: every call's token is checked before anything else looks at the call."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from promptlooper.errors import DomainError, PermissionDenied, Unauthenticated
from promptlooper.reloading import Reloaded
from promptlooper.rpc.api_keys import PREFIX, ApiKeys, read_keys
from promptlooper.rpc.callers import Caller
from promptlooper.rpc.scopes import SCOPES
from promptlooper.rpc.status import code_of, status_of, trailers_of
from promptlooper.telemetry import LogLimit

if TYPE_CHECKING:
    from promptlooper.rpc.web_tokens import WebTokens

_log = logging.getLogger(__name__)
LINES = 10  # a second, of refused calls: metrics count them all
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Access(grpc.aio.ServerInterceptor):
    """Lets a call pass if its `authorization: Bearer …` is a token with the scope that the table asks for.

    Methods are known by their exact path. One without an entry is refused, health is open to all.
    """

    def __init__(
        self,
        keys: Reloaded[ApiKeys] | None = None,
        web_tokens: Reloaded[WebTokens] | None = None,
        *,
        now: Callable[[], float] = time.time,
        limit: LogLimit | None = None,
    ) -> None:
        self._keys = keys
        self._web_tokens = web_tokens
        self._now = now
        self._limit = limit or LogLimit(LINES)
        self.refused: Counter[tuple[str, str]] = Counter()  # calls by method and status code

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        method = handler_call_details.method
        needed = SCOPES.get(method)
        if needed is None and method in SCOPES:
            return await continuation(handler_call_details)
        name = ""
        try:
            caller = self.caller(handler_call_details.invocation_metadata)
            name = caller.name
            if needed is not None and not caller.may(needed):
                raise PermissionDenied(
                    f"{method.rpartition('/')[2]} needs the scope {needed.value!r}, and the token of {name!r} has"
                    f" {' and '.join(sorted(caller.scopes)) or 'none'}: use one that has it",
                    scope=needed.value,
                )
            handler = await continuation(handler_call_details)
            if needed is None and handler is not None:
                raise PermissionDenied(f"{method} has no scope here, so nobody may call it")
        except (Unauthenticated, PermissionDenied) as error:
            self.refused[method if method in SCOPES else "other", code_of(error).name] += 1
            return self._refusal(error, method, name)
        return handler

    def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Whom the token of a call stands for. Raises Unauthenticated."""
        token = _bearer([value for key, value in metadata if key == "authorization"])
        caller: Caller | None = None
        if token.startswith(PREFIX):
            caller = self._keys.current().caller(token) if self._keys is not None else None
        elif self._web_tokens is not None:
            caller = self._web_tokens.current().caller(token)
        if caller is None:
            raise Unauthenticated("the token is not known to this server: was it revoked, or is it another server's?")
        if self._now() >= caller.until:
            raise Unauthenticated("the token has expired: get a new one")
        return caller

    def _refusal(self, error: DomainError, method: str, name: str) -> _Handler:
        async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            if (left_out := self._limit.left_out()) is not None:
                facts = {"method": method, "caller": name, "peer": context.peer(), "why": error.reason}
                _log.info("call refused", extra=facts | ({"not_logged_before": left_out} if left_out else {}))
            status = status_of(error)
            await context.abort(code_of(error), status.message, trailers_of(error, status))

        # Of all kinds this one does not wait for a message first.
        return grpc.stream_stream_rpc_method_handler(refuse)


def access_by(
    api_keys_file: Path | None, jwks_file: Path | None, jwt_issuer: str = "", jwt_audience: str = ""
) -> Access | None:
    """What the settings ask for; None where they name no tokens. Raises InvalidArgument where a file can't be taken."""
    keys = web_tokens = None
    if api_keys_file is not None:
        keys = Reloaded(f"the API keys in {str(api_keys_file)!r}", [api_keys_file], lambda data: read_keys(data[0]))
    if jwks_file is not None:
        from promptlooper.rpc.web_tokens import WebTokens  # only where it is used: importing it takes a while

        web_tokens = Reloaded(
            f"the JWKS in {str(jwks_file)!r}", [jwks_file], lambda data: WebTokens(data[0], jwt_issuer, jwt_audience)
        )
    return Access(keys, web_tokens) if keys or web_tokens else None


def _bearer(values: list[str | bytes]) -> str:
    if not values:
        raise Unauthenticated(
            "this server needs a token: set PROMPTLOOPER_SERVER_TOKEN_FILE; other clients than ours send the metadata"
            " `authorization: Bearer TOKEN`"
        )
    value = values[0]
    scheme, _, token = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if len(values) > 1 or scheme.lower() != "bearer" or not (token := token.strip()).isascii() or not token:
        raise Unauthenticated("the metadata `authorization` must be given once, as `Bearer TOKEN`")
    return token
