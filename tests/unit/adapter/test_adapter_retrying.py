"""The retry table: what each failure means and what follows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from promptlooper.adapter.retrying import Decision, Failure, Kind, decide, error_of, kind_of, retry_after_of
from promptlooper.errors import ContextTooLong, ProviderRateLimited, ProviderUnavailable

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (401, "invalid_api_key", "Incorrect API key", Kind.CREDENTIALS),
        (403, "", "Forbidden", Kind.CREDENTIALS),
        (402, "", "Insufficient Balance", Kind.CREDENTIALS),
        (403, "", "m requires moderation. Your input was flagged for violence", Kind.CONTENT_FILTERED),
        (403, "", "Content violates usage guidelines. Failed check: X", Kind.CONTENT_FILTERED),
        (498, "capacity_exceeded", "", Kind.TRANSIENT),
        (429, "rate_limit_exceeded", "slow down", Kind.RATE_LIMITED),
        (429, "insufficient_quota", "You exceeded your current quota", Kind.CREDENTIALS),
        (408, "", "", Kind.TRANSIENT),
        (409, "", "", Kind.TRANSIENT),
        (425, "", "", Kind.TRANSIENT),
        (500, "", "", Kind.TRANSIENT),
        (501, "", "This server does not support embeddings", Kind.PERMANENT),
        (500, "", "image input is not supported - hint: ...", Kind.PERMANENT),
        (502, "", "", Kind.TRANSIENT),
        (503, "", "Loading model", Kind.TRANSIENT),
        (529, "overloaded_error", "Overloaded", Kind.TRANSIENT),
        (400, "context_length_exceeded", "", Kind.CONTEXT_TOO_LONG),
        (400, "exceed_context_size_error", "", Kind.CONTEXT_TOO_LONG),
        (400, "BadRequestError", "This model's maximum context length is 4096 tokens.", Kind.CONTEXT_TOO_LONG),
        (413, "", "Input is too long for requested model", Kind.CONTEXT_TOO_LONG),
        (500, "", "context size 1024", Kind.TRANSIENT),
        (400, "content_filter", "The response was filtered", Kind.CONTENT_FILTERED),
        (400, "invalid_value", "temperature is too high", Kind.PERMANENT),
        (404, "model_not_found", "The model does not exist", Kind.PERMANENT),
        (422, "", "unprocessable", Kind.PERMANENT),
        (302, "", "", Kind.PERMANENT),
    ],
)
def test_every_status_has_one_kind(status: int, code: str, message: str, kind: Kind) -> None:
    assert kind_of(status, code, message) is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-4"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": "1e12"}, 86_400.0),
        ({"retry-after": "Mon, 23 Nov 9026 12:00:30 GMT"}, 86_400.0),
        ({"retry-after": "Mon, 23 Nov 99999999999 12:00:30 GMT"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_of(headers, NOW) == seconds


def decided(
    kind: Kind, *, retry_after: float | None = None, attempts: int = 1, time_left: float = 60.0, random: float = 0.5
) -> Decision:
    failure = Failure(kind, "no", retry_after=retry_after)
    return decide(failure, attempts=attempts, time_left=time_left, random=lambda: random)


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        # Transient: full jitter over 0.5 s, then 1 s; the third is the last.
        (decided(Kind.TRANSIENT), Decision(0.25)),
        (decided(Kind.TRANSIENT, attempts=2), Decision(0.5)),
        (decided(Kind.TRANSIENT, attempts=3), Decision(None, None)),
        (decided(Kind.TRANSIENT, random=0.0), Decision(0.0)),
        (decided(Kind.MALFORMED), Decision(0.25)),
        (decided(Kind.MALFORMED, attempts=3), Decision(None, None)),
        # What the provider says is waited for, a little spread, and never more than 5 s.
        (decided(Kind.TRANSIENT, retry_after=2.0), Decision(2.1)),
        (decided(Kind.TRANSIENT, retry_after=20.0), Decision(None, 20.0)),
        (decided(Kind.RATE_LIMITED, retry_after=2.0), Decision(2.1)),
        (decided(Kind.RATE_LIMITED, retry_after=5.0), Decision(5.25)),
        (decided(Kind.RATE_LIMITED, retry_after=5.01), Decision(None, 5.01)),
        (decided(Kind.RATE_LIMITED, retry_after=0.0), Decision(0.25)),
        # Rate limits: as long as the deadline allows, and not counted.
        (decided(Kind.RATE_LIMITED, attempts=5), Decision(4.0)),
        (decided(Kind.RATE_LIMITED, attempts=6), Decision(None, 8.0)),
        (decided(Kind.RATE_LIMITED, attempts=40, random=0.1), Decision(3.0)),
        (decided(Kind.RATE_LIMITED, attempts=9999, random=0.1), Decision(3.0)),
        (decided(Kind.RATE_LIMITED, retry_after=2.0, time_left=2.0), Decision(None, 2.0)),
        (decided(Kind.TRANSIENT, time_left=0.2), Decision(None, 0.25)),
        # The rest is never tried again.
        (decided(Kind.PERMANENT, retry_after=1.0), Decision(None)),
        (decided(Kind.CONTEXT_TOO_LONG), Decision(None)),
        (decided(Kind.CONTENT_FILTERED), Decision(None)),
        (decided(Kind.CREDENTIALS), Decision(None)),
    ],
)
def test_decision_follows_the_retry_table(decision: Decision, expected: Decision) -> None:
    assert decision.retry_after == expected.retry_after
    assert decision.sleep == (None if expected.sleep is None else pytest.approx(expected.sleep))


def test_error_carries_attempts_provider_status_and_the_providers_words() -> None:
    failure = Failure(Kind.TRANSIENT, "the server is on fire.", 503, 7.0)
    error = error_of(failure, attempts=3, provider="openai", model="gpt-4o", retry_after=7.0)
    assert isinstance(error, ProviderUnavailable)
    assert str(error) == ("provider 'openai' did not answer (HTTP 503): the server is on fire (3 attempts were made)")
    assert (error.attempts, error.retry_after) == (3, 7.0)
    assert error.metadata == {"provider": "openai", "model": "gpt-4o", "status": "503"}


def test_each_kind_becomes_its_own_error() -> None:
    def made(kind: Kind) -> Exception:
        return error_of(Failure(kind, "no"), attempts=1, provider="p", model="m")

    assert len({type(made(kind)) for kind in Kind}) == len(Kind)
    assert isinstance(made(Kind.RATE_LIMITED), ProviderRateLimited)
    assert isinstance(made(Kind.CONTEXT_TOO_LONG), ContextTooLong)
