"""Questions to models, and how their answers are kept in the cache: for stages, judges and whoever else asks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import orjson

from promptlooper.caching import CacheEntry, Found, LookupStatus, Worth
from promptlooper.completion import Completion, CompletionRequest, ToolCall, form_of
from promptlooper.digest import sha256_hex
from promptlooper.experiment import CachePolicy
from promptlooper.tracing import current
from promptlooper.validity import why_unusable

log = logging.getLogger("questions")
KEY_VERSION = 1
STORED_FINISH_REASONS = frozenset({"stop", "length", "tool_calls"})
LARGEST_VALUE = 1024 * 1024 - 1024  # bytes: what the Cache takes, less its envelope


@dataclass(frozen=True, slots=True)
class Question:
    request: CompletionRequest
    endpoint: str  # identity of the provider's address
    repeat: int
    project: str
    policy: CachePolicy


def cache_key(question: Question) -> str:
    """`<project>.<namespace>:<sha256>` over all that can change the answer. Timeouts, retries, labels and ids are not
    in it; the repeat is, so that repeats of a question differ within an experiment and are shared across
    experiments. Who asks is not in it: a judge and a stage that ask the same share the answer."""
    request = question.request
    meaning = [
        KEY_VERSION,
        request.model,
        question.endpoint,
        [_plain(form_of(message)) for message in request.messages],
        request.params,
        question.repeat,
        question.project,
        question.policy.namespace,
        *_asked_besides(request),
    ]
    return key_in(question.project, question.policy.namespace, meaning)


def key_in(project: str, namespace: str, meaning: Any) -> str:
    """The key of what is asked otherwise, such as an embedding. `meaning`: JSON of all that can change the answer,
    beginning with a word for the kind of question, which keeps it apart from completions."""
    return f"{project}.{namespace}:{sha256_hex(meaning)}"


def _plain(form: list[Any]) -> list[Any]:
    if len(form) > 2 and (calls := form[2].get("tool_calls")):
        form[2]["tool_calls"] = [[call.id, call.name, call.arguments] for call in calls]
    return form


def _asked_besides(request: CompletionRequest) -> list[Any]:
    """Tools and schema; nothing where there are none, as in keys of versions that knew neither."""
    tools = [[tool.name, tool.description, tool.parameters] for tool in request.tools]
    if not tools and not request.tool_choice and request.response_schema is None:
        return []
    return [{"tools": tools, "tool_choice": request.tool_choice, "response_schema": request.response_schema}]


# Not the price list: a remembered answer costs nothing, and 0.1.0 could not read what every answer has.
_FIELDS = tuple((field.name, field.default) for field in fields(Completion) if field.name != "price_version")


def entry_of(key: str, request: CompletionRequest, completion: Completion) -> CacheEntry | None:
    """None for answers that are not kept: filtered ones, those cut off for other reasons, those of another model than
    the one that was asked, those that can't be used, and what is too large."""
    if completion.finish_reason not in STORED_FINISH_REASONS or completion.fallback:
        return None
    if why_unusable(request, completion) is not None:
        return None
    # Only what is set: versions that lack a field can read what does not use it.
    value = orjson.dumps({name: said for name, plain in _FIELDS if (said := getattr(completion, name)) != plain})
    if len(value) > LARGEST_VALUE:
        return None
    worth = Worth(completion.tokens_in or 0, completion.tokens_out or 0, completion.latency_ms, completion.cost_nanousd)
    return CacheEntry(key, value, current.get(), request.model, worth)


def completion_of(found: Found) -> Completion | None:
    """None for what is no hit or can't be read, which is a miss."""
    if found.status is not LookupStatus.HIT:
        return None
    try:
        values: Mapping[str, Any] = orjson.loads(found.value)
        calls = tuple(ToolCall(**call) for call in values.get("tool_calls", ()))
        return Completion(**{**values, "tool_calls": calls})
    except (ValueError, TypeError, AttributeError) as error:  # of another version, say: its answer is paid for again
        log.warning("an answer in the cache can't be read, its question is asked anew: %s", type(error).__name__)
        return None
