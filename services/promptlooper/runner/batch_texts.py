"""Questions for batches, their answers and errors as the JSON that the database keeps."""

from __future__ import annotations

from dataclasses import fields

from promptlooper.completion import Completion, CompletionRequest, Tool, ToolCall, form_of, message_of
from promptlooper.errors import ERRORS_BY_REASON, CompletionFailed, DomainError
from promptlooper.jsonvalue import json_text, json_value
from promptlooper.runner.store.rows import storable, storable_completion

_ANSWER = tuple((field.name, field.default) for field in fields(Completion))


def request_text(request: CompletionRequest) -> str:
    """Without its time: a batch has its own."""
    return json_text(
        {
            "model": request.model,
            "messages": [form_of(message) for message in request.messages],
            "params": request.params,
            "tools": request.tools,
            "tool_choice": request.tool_choice,
            "response_schema": request.response_schema,
        }
    )


def request_of(text: str) -> CompletionRequest:
    said = json_value(text)
    return CompletionRequest(
        said["model"],
        tuple(map(message_of, said["messages"])),
        said["params"],
        tools=tuple(Tool(**tool) for tool in said["tools"]),
        tool_choice=said["tool_choice"],
        response_schema=said["response_schema"],
    )


def answer_text(completion: Completion) -> str:
    """Only what is set."""
    said = storable_completion(completion)
    return storable(json_text({name: value for name, plain in _ANSWER if (value := getattr(said, name)) != plain}))


def answer_of(text: str) -> Completion:
    said = json_value(text)
    return Completion(**{**said, "tool_calls": tuple(ToolCall(**call) for call in said.get("tool_calls", ()))})


def error_text(error: DomainError) -> str:
    attempts = error.attempts if isinstance(error, CompletionFailed) else 0
    return storable(json_text([error.reason, error.message, attempts]))


def error_of(text: str) -> DomainError:
    reason, message, attempts = json_value(text)
    kind = ERRORS_BY_REASON.get(reason, DomainError)
    error = kind(message, attempts=attempts) if issubclass(kind, CompletionFailed) else DomainError(message)
    error.reason = reason
    return error
