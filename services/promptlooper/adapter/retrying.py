"""What a failed attempt means and whether to try again: pure decisions, which the gateway carries out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

from promptlooper.errors import (
    CompletionFailed,
    ContentFiltered,
    ContextTooLong,
    ProviderCredentials,
    ProviderMalformed,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)

MAX_ATTEMPTS = 3  # of transient failures; rate limits are waited for within the deadline
LONGEST_SLEEP = 5.0  # seconds; whoever must wait longer gives its place to another run
LONGEST_SAID = 86_400.0  # seconds that a provider's word on waiting is believed
_FIRST_BACKOFF = 0.5  # seconds; doubles with every attempt
_LAST_BACKOFF = 30.0
_SPREAD = 0.1  # of a wait that the provider asked for, so that those who wait do not all come back at once


class Kind(Enum):
    """Of a failure. Every failed attempt is exactly one."""

    RATE_LIMITED = "rate limited"
    TRANSIENT = "transient"
    MALFORMED = "malformed"
    PERMANENT = "permanent"
    CONTEXT_TOO_LONG = "context too long"
    CONTENT_FILTERED = "content filtered"
    CREDENTIALS = "credentials"


@dataclass(frozen=True, slots=True)
class Failure:
    """What came of one attempt that got no answer. The message is free of secrets."""

    kind: Kind
    message: str
    status: int | None = None  # None where there was no HTTP response
    retry_after: float | None = None  # seconds, as the provider said
    waits_for: str = ""  # of an attempt that a limit did not admit: concurrency, rate, quota or pause
    elsewhere: bool = False  # it is not the provider's: what the question names could not be had


class AttemptFailed(Exception):
    """Raised by a provider for one attempt; the gateway decides what follows."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.told = False  # a part of the answer, to the caller

    @property
    def reason(self) -> str:
        """The kind of the failure, for counts and spans."""
        return self.failure.kind.value.replace(" ", "_")


@dataclass(frozen=True, slots=True)
class Decision:
    sleep: float | None  # seconds until the next attempt; None gives up
    retry_after: float | None = None  # seconds, for the caller of an attempt that was given up


def decide(failure: Failure, *, attempts: int, time_left: float, random: Callable[[], float]) -> Decision:
    """What follows on the failure of attempt number `attempts` (from 1). `random` gives numbers in [0, 1)."""
    if failure.kind is Kind.RATE_LIMITED:
        wait = _wait(failure.retry_after, attempts, random)
    elif failure.kind in (Kind.TRANSIENT, Kind.MALFORMED):
        if attempts >= MAX_ATTEMPTS:
            return Decision(None, failure.retry_after)
        wait = _wait(failure.retry_after, attempts, random)
    else:
        return Decision(None)
    said = failure.retry_after
    if (said if said is not None else wait) > LONGEST_SLEEP or wait >= time_left:
        return Decision(None, said if said is not None else wait)
    return Decision(wait)


def _wait(said: float | None, attempts: int, random: Callable[[], float]) -> float:
    """Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"), never less than the provider asked for."""
    if said is not None and said > 0:
        return said * (1 + _SPREAD * random())
    return random() * min(_LAST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(attempts - 1, 10))


def retry_after_of(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait by `retry-after-ms` or `retry-after` (seconds or an HTTP date), a day at most; None where not
    said."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return min(max(0.0, seconds), LONGEST_SAID)
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(0.0, seconds), LONGEST_SAID)


_TRANSIENT_STATUSES = frozenset({408, 409, 425, 498, 529})  # 498: Groq has no place for it now
_NOT_IMPLEMENTED = 501  # such as embeddings of a server that was not started for them: it stays so
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"})
_TOO_LONG = re.compile(
    r"maximum context length|context (?:length|window|size)|prompt is too long|input is too long|"
    r"reduce the length of the (?:messages|prompt|input)|exceeds? the available context|"
    r"exceeds? context limit|exceeds the maximum number of (?:input )?tokens",
    re.IGNORECASE,
)
_CANNOT = re.compile(r"(?:image|audio) input is not supported", re.IGNORECASE)  # a 500 of llama.cpp
_FLAGGED = re.compile(r"input was flagged|violates usage guidelines", re.IGNORECASE)  # OpenRouter, xAI


def kind_of(status: int, code: str, message: str) -> Kind:
    """The kind of an HTTP error by its status, and by the provider's own code and message where the status is vague."""
    if status == 403 and _FLAGGED.search(message):
        return Kind.CONTENT_FILTERED
    if status in (401, 402, 403) or code in _NO_CREDIT:
        return Kind.CREDENTIALS
    if status == 429:
        return Kind.RATE_LIMITED
    if code in _TOO_LONG_CODES or (status in (400, 413, 422) and _TOO_LONG.search(message)):
        return Kind.CONTEXT_TOO_LONG
    if status == 400 and code in ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"):
        return Kind.CONTENT_FILTERED
    if status == _NOT_IMPLEMENTED or _CANNOT.search(message):
        return Kind.PERMANENT
    if status >= 500 or status in _TRANSIENT_STATUSES:
        return Kind.TRANSIENT
    return Kind.PERMANENT


_ERRORS: Mapping[Kind, tuple[type[CompletionFailed], str]] = {
    Kind.RATE_LIMITED: (ProviderRateLimited, "provider {0!r} asks to wait"),
    Kind.TRANSIENT: (ProviderUnavailable, "provider {0!r} did not answer"),
    Kind.MALFORMED: (ProviderMalformed, "provider {0!r} gave an answer that cannot be understood"),
    Kind.PERMANENT: (ProviderRejected, "provider {0!r} refused the request"),
    Kind.CONTEXT_TOO_LONG: (ContextTooLong, "the prompt is too long for model {1!r} of provider {0!r}; shorten it"),
    Kind.CONTENT_FILTERED: (ContentFiltered, "provider {0!r} withheld the answer by its content filter"),
    Kind.CREDENTIALS: (ProviderCredentials, "provider {0!r} refused the key or the account"),
}


def error_of(
    failure: Failure, *, attempts: int, provider: str, model: str, retry_after: float | None = None
) -> CompletionFailed:
    """The domain error of an attempt that was given up."""
    cls, words = _ERRORS[failure.kind]
    status = "" if failure.status is None else f" (HTTP {failure.status})"
    tries = f" ({attempts} attempts were made)" if attempts > 1 else ""
    metadata = {"provider": provider, "model": model}
    if failure.status is not None:
        metadata["status"] = str(failure.status)
    if failure.waits_for:
        metadata["waits_for"] = failure.waits_for
    return cls(
        f"{words.format(provider, model)}{status}: {failure.message.rstrip('. ')}{tries}",
        attempts=attempts,
        retry_after=retry_after,
        **metadata,
    )
