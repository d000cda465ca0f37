"""Messages of a conversation as a person reads them on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from promptlooper.completion import Message, ToolCall

_LONGEST_ADDRESS = 200


def said(message: Message) -> Iterator[str]:
    """What a message has beside its text."""
    for image in message.images:
        kind, comma, data = image.partition(",")
        yield (
            f"[image] {kind},… ({len(data) * 3 // 4:,} bytes)" if comma and kind.startswith("data:") else _short(image)
        )
    yield from asked_for(message.tool_calls)


def asked_for(calls: Iterable[ToolCall]) -> Iterator[str]:
    return (f"[calls] {call.name} {call.arguments}" for call in calls)


def _short(address: str) -> str:
    return f"[image] {address if len(address) <= _LONGEST_ADDRESS else address[:_LONGEST_ADDRESS] + '…'}"
