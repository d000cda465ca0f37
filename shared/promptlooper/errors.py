"""What can go wrong, in domain words. Knows no transport: `rpc.status` has the one table of status codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class DomainError(Exception):
    """A failure with a stable `reason` (a name of the proto's ErrorReason) and its facts as `metadata`."""

    reason = "INTERNAL"
    retryable = False

    def __init__(self, message: str, *, retry_after: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after  # seconds; None where nobody said
        self.metadata = metadata


class InvalidArgument(DomainError):
    reason = "INVALID_ARGUMENT"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an experiment: where (`pipelines[0].stages[1].model`), and a sentence. Of an
    experiment that was sent as its file also the file, and the line from 1; 0 where it is of no line in particular."""

    field: str
    message: str
    file: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        """`rows.csv:3`, or the field."""
        return f"{self.file}:{self.line}" if self.file and self.line else self.file or self.field


class InvalidExperiment(DomainError):
    reason = "INVALID_EXPERIMENT"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{p.place}: {p.message}" if p.place else p.message for p in problems))
        self.problems = tuple(problems)


class ExperimentNotFound(DomainError):
    reason = "EXPERIMENT_NOT_FOUND"


class RunNotFound(DomainError):
    reason = "RUN_NOT_FOUND"


class RequestIdReused(DomainError):
    reason = "REQUEST_ID_REUSED"


class ExperimentNotEnded(DomainError):
    reason = "EXPERIMENT_NOT_ENDED"


class ExperimentCancelled(DomainError):
    reason = "EXPERIMENT_CANCELLED"


class NotAvailableYet(DomainError):
    reason = "NOT_AVAILABLE_YET"


class ResumeTokenInvalid(DomainError):
    reason = "RESUME_TOKEN_INVALID"


class ResumeTokenExpired(DomainError):
    reason = "RESUME_TOKEN_EXPIRED"


class PageTokenInvalid(DomainError):
    reason = "PAGE_TOKEN_INVALID"


class TooLarge(DomainError):
    reason = "TOO_LARGE"


class FilesMissing(DomainError):
    """`missing`: the paths, as the experiment file names them, with what is to be done about each."""

    reason = "FILES_MISSING"

    def __init__(
        self, message: str, *, missing: Sequence[Problem] = (), retry_after: float | None = None, **metadata: str
    ) -> None:
        super().__init__(message, retry_after=retry_after, **metadata)
        self.missing = tuple(missing)


class Unauthenticated(DomainError):
    reason = "UNAUTHENTICATED"


class PermissionDenied(DomainError):
    reason = "PERMISSION_DENIED"


class UnknownProvider(DomainError):
    reason = "UNKNOWN_PROVIDER"


class CompletionFailed(DomainError):
    """A provider call that got no answer; `attempts` HTTP requests were made."""

    def __init__(self, message: str, *, attempts: int = 0, retry_after: float | None = None, **metadata: str) -> None:
        super().__init__(message, retry_after=retry_after, **metadata)
        self.attempts = attempts


class ProviderCredentials(CompletionFailed):
    reason = "PROVIDER_CREDENTIALS"


class ProviderRateLimited(CompletionFailed):
    reason = "PROVIDER_RATE_LIMITED"
    retryable = True


class ProviderUnavailable(CompletionFailed):
    reason = "PROVIDER_UNAVAILABLE"
    retryable = True


class ProviderRejected(CompletionFailed):
    reason = "PROVIDER_REJECTED"


class ProviderMalformed(CompletionFailed):
    reason = "PROVIDER_MALFORMED"
    retryable = True


class ContextTooLong(CompletionFailed):
    reason = "CONTEXT_TOO_LONG"


class ContentFiltered(CompletionFailed):
    reason = "CONTENT_FILTERED"


class DeadlineExceeded(CompletionFailed):
    reason = "DEADLINE_EXCEEDED"
    retryable = True


class BatchExpired(CompletionFailed):
    """The batch's time was over before this question was answered: it is not billed."""

    reason = "BATCH_EXPIRED"
    retryable = True


class BatchCancelled(CompletionFailed):
    """The batch was cancelled before this question was answered: it is not billed."""

    reason = "BATCH_CANCELLED"
    retryable = True


class TemplateError(DomainError):
    reason = "TEMPLATE_ERROR"


class OutputInvalid(DomainError):
    reason = "OUTPUT_INVALID"


class CacheUnavailable(DomainError):
    reason = "CACHE_UNAVAILABLE"
    retryable = True


class StoreUnavailable(DomainError):
    reason = "STORE_UNAVAILABLE"
    retryable = True


class Draining(DomainError):
    reason = "DRAINING"
    retryable = True


class ServiceUnavailable(DomainError):
    """`sent`: what was asked may have been done, its answer was lost."""

    reason = "SERVICE_UNAVAILABLE"
    retryable = True

    def __init__(self, message: str, *, sent: bool = False, retry_after: float | None = None, **metadata: str) -> None:
        super().__init__(message, retry_after=retry_after, **metadata)
        self.sent = sent


def _subclasses(cls: type[DomainError]) -> list[type[DomainError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]


ERRORS_BY_REASON = {cls.reason: cls for cls in _subclasses(DomainError) if cls is not CompletionFailed}
"""The class of each reason, so that a client raises what the server raised."""
