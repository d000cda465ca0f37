"""Questions that no provider is to be asked: told before anything is sent, with the field that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from promptlooper.adapter.batch.format import written
from promptlooper.batches import BatchItem
from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall, fault_of
from promptlooper.errors import InvalidArgument

PIXEL = ("data:image/png;base64,AAAA",)
CALL = (ToolCall("c1", "now", "{}"),)


@pytest.mark.parametrize(
    ("messages", "choice", "field", "said"),
    [
        ((), "", "messages", "give one at least"),
        ((Message("usr", "hi"),), "", "messages[0].role", "'usr' is none; use one of system, user, assistant, tool"),
        ((Message("user", "hi"), Message("system", "", PIXEL)), "", "messages[1].images", "only a user shows images"),
        ((Message("tool", "4", tool_calls=CALL),), "", "messages[0].tool_calls", "only an assistant calls tools"),
        ((Message("user", "hi"),), "then", "tool_choice", "'then' is none of auto, none, required"),
    ],
)
async def test_a_question_that_is_none_reaches_no_provider(
    gateways: Any, fake: Any, messages: tuple[Message, ...], choice: str, field: str, said: str
) -> None:
    request = CompletionRequest("openai/m", messages, {}, tools=(Tool("now"),), tool_choice=choice)
    with pytest.raises(InvalidArgument, match=said) as refused:
        await gateways(OPENAI_BASE_URL=fake.base_url).complete(request)
    assert refused.value.metadata["field"] == field
    assert fake.requests == []
    _, ((item_id, failure),) = await written([BatchItem("a", request)], lambda request: b"")
    assert (item_id, failure.message) == ("a", refused.value.message)


def test_what_a_conversation_holds_is_no_fault() -> None:
    turns = (Message("user", "hi", PIXEL), Message("assistant", "", tool_calls=CALL), Message("tool", "4"))
    assert fault_of(CompletionRequest("p/m", turns, {}, tools=(Tool("now"),), tool_choice="now")) is None
    assert fault_of(CompletionRequest("p/m", turns, {}, tool_choice="none")) is None
