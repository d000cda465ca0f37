"""What events say of experiments and of failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptlooper.runner.ledger import Ledger

# What events say of a failure: never the error's own message, which may quote a prompt or an input. That stands in the
# run.
_WAITS = {
    "": "the provider asks to wait",
    "concurrency": "as many requests to the provider as are allowed are under way",
    "rate": "the requests or tokens of this minute are used up",
    "quota": "the provider says that its quota is used up",
    "pause": "the provider asks to wait",
    "batch": "its question is to be answered in a batch",
}
FAILURES = {
    "TEMPLATE_ERROR": "a template could not be rendered with this run's values",
    "OUTPUT_INVALID": "an answer does not match the stage's response_schema",
    "PROVIDER_CREDENTIALS": "the provider refused the key",
    "PROVIDER_RATE_LIMITED": "the provider asks to wait",
    "PROVIDER_UNAVAILABLE": "the provider could not be reached or failed",
    "PROVIDER_REJECTED": "the provider refused the request",
    "PROVIDER_MALFORMED": "the provider's answer could not be understood",
    "CONTEXT_TOO_LONG": "the prompt does not fit the model's context",
    "CONTENT_FILTERED": "the provider's content filter withheld the answer",
    "DEADLINE_EXCEEDED": "there was no answer in time",
    "BATCH_EXPIRED": "the provider did not come to it within the batch's time",
    "BATCH_CANCELLED": "its batch was cancelled",
    "SERVICE_UNAVAILABLE": "the Adapter could not be reached",
    "UNKNOWN_PROVIDER": "the provider is not configured",
}


def waiting_facts(reason: str, waits_for: str) -> dict[str, str]:
    """What a parked run waits for: a name of ErrorReason, and which limit, of an Adapter that may be newer."""
    return {"error_reason": reason, "error_message": _WAITS.get(waits_for, _WAITS[""])}


@dataclass(frozen=True, slots=True)
class NewEvent:
    kind: str
    run_index: int | None
    detail: Mapping[str, Any]


def experiment_facts(ledger: Ledger) -> dict[str, Any]:
    """What experiment.… events say."""
    return {
        "state": ledger.state,
        "reason": ledger.reason,
        "total": ledger.total,
        "completed": ledger.completed,
        "failed": ledger.failed,
        "cancelled": ledger.cancelled,
        "cost_nanousd": ledger.spent_nanousd,
        "cost_unknown_calls": ledger.cost_unknown_calls,
        "max_concurrency": ledger.max_concurrency,
    }
