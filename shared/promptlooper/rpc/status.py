"""The one table that makes status codes of domain errors, and `google.rpc.Status` of them and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from promptlooper import errors
from promptlooper.errors import CompletionFailed, DomainError, FilesMissing, InvalidExperiment, Problem

DOMAIN = "promptlooper"
Code = grpc.StatusCode

CODES: dict[type[DomainError], grpc.StatusCode] = {
    DomainError: Code.INTERNAL,
    errors.InvalidArgument: Code.INVALID_ARGUMENT,
    errors.InvalidExperiment: Code.INVALID_ARGUMENT,
    errors.ExperimentNotFound: Code.NOT_FOUND,
    errors.RunNotFound: Code.NOT_FOUND,
    errors.RequestIdReused: Code.INVALID_ARGUMENT,
    errors.ExperimentNotEnded: Code.FAILED_PRECONDITION,
    errors.ExperimentCancelled: Code.FAILED_PRECONDITION,
    errors.NotAvailableYet: Code.UNIMPLEMENTED,
    errors.ResumeTokenInvalid: Code.INVALID_ARGUMENT,
    errors.ResumeTokenExpired: Code.OUT_OF_RANGE,
    errors.PageTokenInvalid: Code.INVALID_ARGUMENT,
    errors.TooLarge: Code.RESOURCE_EXHAUSTED,
    errors.FilesMissing: Code.FAILED_PRECONDITION,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.PermissionDenied: Code.PERMISSION_DENIED,
    errors.UnknownProvider: Code.INVALID_ARGUMENT,
    errors.ProviderCredentials: Code.FAILED_PRECONDITION,
    errors.ProviderRateLimited: Code.RESOURCE_EXHAUSTED,
    errors.ProviderUnavailable: Code.UNAVAILABLE,
    errors.ProviderRejected: Code.INVALID_ARGUMENT,
    errors.ProviderMalformed: Code.UNAVAILABLE,
    errors.ContextTooLong: Code.INVALID_ARGUMENT,
    errors.ContentFiltered: Code.FAILED_PRECONDITION,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.BatchExpired: Code.DEADLINE_EXCEEDED,
    errors.BatchCancelled: Code.ABORTED,
    errors.TemplateError: Code.INVALID_ARGUMENT,
    errors.OutputInvalid: Code.INVALID_ARGUMENT,
    errors.CacheUnavailable: Code.UNAVAILABLE,
    errors.StoreUnavailable: Code.UNAVAILABLE,
    errors.Draining: Code.UNAVAILABLE,
    errors.ServiceUnavailable: Code.UNAVAILABLE,
}

# Trailers over 8 KiB may be refused by a client of any language: message and details together stay under this.
_TRAILER_BYTES = 7000
_MESSAGE_BYTES = 1024

# The channel repeats UNAVAILABLE by itself. That helps where another replica, or the same in a moment, may answer; of
# the others the layer below has already tried again.
_REPEATED_BY_CHANNEL = (errors.Draining, errors.StoreUnavailable)


def code_of(error: DomainError) -> grpc.StatusCode:
    """The code of the error's class, or of the nearest class above it."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def status_of(error: DomainError) -> status_pb2.Status:
    """Code, message, one ErrorInfo; BadRequest for the problems of an experiment, RetryInfo for `retry_after`.

    Cut to what fits in trailers: a long message is shortened; where problems are left out the last violation says so.
    """
    # The message of InvalidExperiment repeats its problems, which are sent in full below.
    message = _shortened(error.message, 256 if isinstance(error, InvalidExperiment) else _MESSAGE_BYTES)
    facts = {name: _shortened(value, 256) for name, value in error.metadata.items()}
    if isinstance(error, CompletionFailed):
        facts["attempts"] = str(error.attempts)
    status = status_pb2.Status(code=code_of(error).value[0], message=message)
    _add(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(max(0, round(error.retry_after * 1000)))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, InvalidExperiment):
        room = _TRAILER_BYTES - len(quote(message)) - status.ByteSize() * 4 // 3
        _add(status, _bad_request(error.problems, room * 3 // 4 - 200))
    if isinstance(error, FilesMissing):
        room = _TRAILER_BYTES - len(quote(message)) - status.ByteSize() * 4 // 3
        _add(status, _missing_files(error.missing, room * 3 // 4 - 200))
    return status


def trailers_of(
    error: DomainError, status: status_pb2.Status, *, may_repeat: bool = True
) -> tuple[tuple[str, str | bytes], ...]:
    """What is sent beside code and message; with it, whether the channel is to repeat the call by itself."""
    details = ("grpc-status-details-bin", status.SerializeToString())
    if code_of(error) is Code.UNAVAILABLE and not (may_repeat and isinstance(error, _REPEATED_BY_CHANNEL)):
        return (details, ("grpc-retry-pushback-ms", "-1"))
    return (details,)


def error_of(status: status_pb2.Status) -> DomainError | None:
    """The error that a status was made of; None where it has no reason of ours."""
    info = _detail(status, error_details_pb2.ErrorInfo)
    if info is None or info.domain != DOMAIN:
        return None
    facts = dict(info.metadata)
    retry = _detail(status, error_details_pb2.RetryInfo)
    retry_after = None if retry is None else retry.retry_delay.ToMilliseconds() / 1000
    cls = errors.ERRORS_BY_REASON.get(info.reason, DomainError)
    if issubclass(cls, InvalidExperiment):
        bad = _detail(status, error_details_pb2.BadRequest)
        found = [Problem(v.field, v.description) for v in bad.field_violations] if bad else []
        return InvalidExperiment(found or [Problem("", status.message)])
    if issubclass(cls, CompletionFailed):
        attempts = facts.pop("attempts", "0")
        error: DomainError = cls(status.message, attempts=int(attempts) if attempts.isdecimal() else 0)
    else:
        error = cls(status.message)
    if isinstance(error, FilesMissing) and (failure := _detail(status, error_details_pb2.PreconditionFailure)):
        error.missing = tuple(Problem(v.subject, v.description) for v in failure.violations)
    # Set afterwards: a fact may be called `message`, and would clash with the argument.
    error.metadata = facts
    error.retry_after = retry_after
    if cls is DomainError:
        error.reason = info.reason  # one that this version does not know yet
    return error


def _bad_request(problems: Iterable[Problem], room: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    left_out = 0
    for problem in problems:
        field, description = _shortened(problem.place, 256), _shortened(problem.message, 512)
        size = len(field.encode()) + len(description.encode()) + 12
        if left_out or size > room:
            left_out += 1
            continue
        room -= size
        bad.field_violations.add(field=field, description=description)
    if left_out:
        bad.field_violations.add(description=f"and {left_out} more: ValidateExperiment lists them all")
    return bad


def _missing_files(missing: Iterable[Problem], room: int) -> error_details_pb2.PreconditionFailure:
    """As many as fit: who has sent those is told of the next ones."""
    failure = error_details_pb2.PreconditionFailure()
    for problem in missing:
        room -= len(problem.field.encode()) + len(problem.message.encode()) + 24
        if room < 0 and failure.violations:
            break
        failure.violations.add(type="FILE", subject=problem.field, description=problem.message)
    return failure


def _shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of valid UTF-8."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"


def _add(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _detail(status: status_pb2.Status, kind: type[Any]) -> Any | None:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            found = kind()
            packed.Unpack(found)
            return found
    return None
