"""What has come of an answer so far, and how long the next piece may take."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType

from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.adapter.route_config import StreamSetting, Timeouts
from promptlooper.completion import CompletionRequest, OnDelta

LONG_ANSWER = 4096  # tokens
LONG_WAIT = 120.0  # seconds: whoever waits so long expects an answer that takes its time
_LEAST_MOVE = 0.05  # seconds: the timer is not moved for less, as pieces may come by the thousand


def streams(setting: StreamSetting, request: CompletionRequest, *, to_caller: bool) -> bool:
    """Whether an answer is asked for piece by piece: then a stall is noticed, and what was spent is known when the
    caller goes. It costs CPU for each piece, so a short answer comes at once unless the caller wants to listen."""
    if setting != "auto":
        return setting == "always"
    params = request.params
    most = params.get("max_tokens", params.get("max_completion_tokens"))
    long = isinstance(most, int) and most > LONG_ANSWER
    return to_caller or long or request.timeout > LONG_WAIT


class Heard:
    """Of one attempt. A provider calls it with each piece of the output, `thought` with what the caller does not hear
    (reasoning, arguments of tools), and `used` with the tokens that it is told of; the last counts stay."""

    def __init__(self, on_delta: OnDelta | None) -> None:
        self._on_delta = on_delta
        self.patience: Patience | None = None
        self.told = False  # something, to the caller
        self.pieces = 0
        self.tokens_in: int | None = None
        self._tokens_out: int | None = None

    def __call__(self, piece: str) -> None:
        self.thought()
        if self._on_delta is not None:
            self.told = True
            self._on_delta(piece)

    def thought(self) -> None:
        self.pieces += 1
        if self.patience is not None:
            self.patience.renew()

    def used(self, *, tokens_in: int | None = None, tokens_out: int | None = None) -> None:
        self.tokens_in = tokens_in if tokens_in is not None else self.tokens_in
        self._tokens_out = tokens_out if tokens_out is not None else self._tokens_out

    @property
    def tokens_out(self) -> int:
        """As the provider said; else a token for each piece."""
        return max(self._tokens_out or 0, self.pieces)


class Patience:
    """Ends an attempt that takes too long, with AttemptFailed: until its first token, between two, or in all."""

    def __init__(self, timeouts: Timeouts, heard: Heard | None) -> None:
        self._timeouts = timeouts
        self._begun = False
        self._now = asyncio.get_running_loop().time
        started = self._now()
        self._end = started + timeouts.total
        self._until = min(self._end, started + timeouts.first_token) if heard else self._end
        self._scope = asyncio.timeout_at(self._until)
        if heard is not None:
            heard.patience = self

    async def __aenter__(self) -> Patience:
        await self._scope.__aenter__()
        return self

    def renew(self) -> None:
        """A piece has come."""
        self._begun = True
        until = min(self._end, self._now() + self._timeouts.idle)
        if abs(until - self._until) > _LEAST_MOVE and not self._scope.expired():
            self._scope.reschedule(until)
            self._until = until

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            raise AttemptFailed(Failure(Kind.TRANSIENT, self._said())) from None

    def _said(self) -> str:
        name, seconds = "total", self._timeouts.total
        if self._until < self._end:
            name = "idle" if self._begun else "first_token"
            seconds = self._timeouts.idle if self._begun else self._timeouts.first_token
        what = {"total": "no whole answer", "idle": "nothing more came", "first_token": "nothing came"}[name]
        return f"{what} within {seconds:g} s (timeouts.{name} of the providers file)"


def timed(timeouts: Timeouts, timeout: float, heard: Heard | None) -> AbstractAsyncContextManager[Patience | None]:
    """Of one attempt. A timer costs CPU: there is none where the caller's own `timeout` goes off first."""
    if heard is None and timeouts.total >= timeout:
        return nullcontext()
    return Patience(timeouts, heard)
