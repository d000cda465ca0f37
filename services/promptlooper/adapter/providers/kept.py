"""What a provider wants back in the next turn, such as signed reasoning: `provider_data` of answers and messages.

It is JSON: an object whose one name is the format that it belongs to. Another format's is not sent, since a fallback
may have given the answer.
"""

from __future__ import annotations

from typing import Any

import orjson

from promptlooper.adapter.providers.refusal import refusal


def keeping(format_name: str, value: Any) -> str:
    return orjson.dumps({format_name: value}).decode()


def kept_of(provider_data: str, format_name: str) -> Any:
    """None where there is nothing of this format. Raises AttemptFailed for what no provider gave."""
    if not provider_data:
        return None
    try:
        data = orjson.loads(provider_data)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise refusal("a message's 'provider_data' is not what a provider gave; leave it as it was, or out")
    return data.get(format_name)
