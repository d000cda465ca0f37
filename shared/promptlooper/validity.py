"""Whether an answer is one that its question asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptlooper.completion import Completion, CompletionRequest, arguments_of
from promptlooper.json_schema import mismatch
from promptlooper.jsonvalue import json_value


def why_unusable(request: CompletionRequest, completion: Completion) -> str | None:
    """A sentence about calls of tools that are no JSON, or an answer that does not match the schema; None for a good
    one. What the content filter withheld is for others to judge."""
    for call in completion.tool_calls:
        if arguments_of(call) is None:
            return f"The arguments of the tool {call.name!r} are not a JSON object."
    if request.response_schema is None or completion.tool_calls or completion.finish_reason == "content_filter":
        return None
    return _mismatch(request.response_schema, completion)


def _mismatch(schema: Mapping[str, Any], completion: Completion) -> str | None:
    try:
        value = json_value(completion.output)
    except ValueError as error:
        cut = "; it ended at max_tokens" if completion.finish_reason == "length" else ""
        return f"The answer is not JSON: {error}{cut}."
    found = mismatch(schema, value)
    return None if found is None else f"The answer does not match the JSON Schema{found}."
