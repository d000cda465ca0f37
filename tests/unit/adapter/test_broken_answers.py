"""Answers that are JSON and not of their format: whatever stands where something else is expected, the failure is the
server's, and may be tried again."""

from __future__ import annotations

import copy
import struct
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

import orjson
import pytest
from wire_matrix import ASKED_FOR, DIALECTS, Dialect

from promptlooper.adapter.config import ProviderEntry
from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.bodies import as_malformed
from promptlooper.adapter.providers.dialects import DIALECTS as FORMATS
from promptlooper.adapter.providers.error_bodies import error_in
from promptlooper.adapter.providers.http import Dialect as Format
from promptlooper.adapter.providers.responses import OpenAIResponses
from promptlooper.adapter.retrying import AttemptFailed, Kind
from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import ProviderMalformed
from promptlooper.testing.wires import Asked, Reply, Said, WireServer
from promptlooper.testing.wires.openai_chat import OpenAIChatWire
from promptlooper.wire.completion import completion_to_pb

NOW = datetime(2026, 11, 23, tzinfo=UTC)
PLACES: dict[str, tuple[str, str]] = {  # of a question and of a streamed one, where the path says which it is
    "gemini": ("/models/x:generateContent", "/models/x:streamGenerateContent?alt=sse"),
    "bedrock": ("/model/x/converse", "/model/x/converse-stream"),
}
ANSWERS = (
    Said("one two", "hmm well", "signed", tokens_in=20, tokens_out=9, tokens_reasoning=3, logprob=-0.5),
    Said("", tool_calls=(ASKED_FOR,), finish_reason="tool_calls"),
)
WRONG: tuple[Any, ...] = (None, -1, True, "x", [], {}, [None], ["x"], [1], {"a": 1}, [{}])


def format_of(dialect: Dialect) -> Format:
    entry = ProviderEntry.model_validate({"name": "p", "type": dialect.wire.type})
    return FORMATS[dialect.wire.type](entry, "http://x", {})


def asked(dialect: Dialect, *, stream: bool) -> Asked:
    path = PLACES.get(dialect.wire.type, ("/", "/"))[stream]
    return Asked(path, {}, {"model": dialect.model, "stream": stream})


def variations(value: Any) -> Iterator[Any]:
    """The value with something wrong in each of its places, one at a time."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            if key == ":event":  # of the frame, which is no part of the JSON
                continue
            for inner in (*WRONG, *variations(value[key])):
                changed = copy.copy(value)
                changed[key] = inner
                yield changed


async def events_in(form: Format, data: bytes) -> list[dict[str, Any]]:
    async def parts() -> AsyncIterator[bytes]:
        yield data

    return [event async for event in form.events(parts())]


def read(form: Format, body: bytes) -> None:
    """As the provider does it, to the proto that the answer becomes."""
    try:
        with as_malformed():
            completion = form.completion(body, "m", 1)
    except AttemptFailed:
        form.failure(form.error_in(body) or 500, {}, body, now=NOW, redacted=str)
    else:
        completion_to_pb(completion)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.title)
def test_an_answer_with_anything_in_any_place_is_an_answer_or_malformed(dialect: Dialect) -> None:
    form = format_of(dialect)
    for said in ANSWERS:
        whole = orjson.loads(dialect.wire.whole(asked(dialect, stream=False), said))
        for changed in variations(whole):
            read(form, orjson.dumps(changed))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.title)
async def test_a_stream_with_anything_in_any_place_is_an_answer_or_malformed(dialect: Dialect) -> None:
    form = format_of(dialect)
    for said in ANSWERS:
        _, parts = dialect.wire.stream(asked(dialect, stream=True), said)
        events = await events_in(form, b"".join(parts))
        for index, event in enumerate(events):
            for changed in variations(event):
                gathering = form.gathering(Heard(lambda piece: None))
                try:
                    with as_malformed():
                        for each in (*events[:index], changed, *events[index + 1 :]):
                            gathering.add(copy.deepcopy(each))
                        body = gathering.body()
                except AttemptFailed:
                    continue
                read(form, body)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.title)
@pytest.mark.parametrize("status", [200, 400, 429, 500])
def test_an_error_of_any_form_is_a_failure(dialect: Dialect, status: int) -> None:
    form = format_of(dialect)
    inner: tuple[Any, ...] = (
        {"code": []},
        {"code": {}},
        {"details": 5},
        {"details": [{"reason": []}]},
        {"message": []},
    )
    for error in (*WRONG, *inner):
        for body in (orjson.dumps({"error": error}), orjson.dumps([{"error": error}]), orjson.dumps(error)):
            said = form.error_in(body) if status == 200 else status
            form.failure(said or 500, {}, body, now=NOW, redacted=str)


def test_an_error_in_a_200_response_has_its_code_as_status_also_as_text() -> None:
    assert error_in(b'{"error": {"code": "429", "message": "slow down"}}') == 429
    assert error_in(b'{"error": {"code": "99999999999999999999"}}') == 502
    assert error_in(b'{"error": "it broke"}') == 502
    assert OpenAIResponses().error_in(b'{"error": "it broke"}') == 502
    assert OpenAIResponses().error_in(b'{"error": {"code": "rate_limit_exceeded"}}') == 429


def message(body: bytes, *, length: int | None = None, headers: int = 0) -> bytes:
    """Of an AWS event stream, with right checksums."""
    total = 16 + len(body) if length is None else length
    prelude = struct.pack(">II", total, headers)
    prelude += struct.pack(">I", crc32(prelude))
    return prelude + body + struct.pack(">I", crc32(prelude + body))


@pytest.mark.parametrize("data", [message(b"", length=0), message(b"", length=12), message(b"\x05ab", headers=3)])
async def test_a_message_of_an_event_stream_with_a_broken_frame_is_malformed(data: bytes) -> None:
    bedrock = next(dialect for dialect in DIALECTS if dialect.wire.type == "bedrock")
    with pytest.raises(AttemptFailed) as failed:
        await events_in(format_of(bedrock), data)
    assert failed.value.failure.kind is Kind.MALFORMED


_PARTS = b'"logprobs": {"content": [{"top_logprobs": 5}]}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize(
    ("body", "streamed"),
    [
        (b'{"choices": [{"message": {"content": "hi"}, ' + _PARTS, False),
        (b'data: {"choices": [{"delta": {"tool_calls": "x"}, ' + _PARTS + b"\n\n", True),
        (b'data: {"choices": [{"delta": {}, ' + _PARTS + b"\n\n", True),
    ],
)
async def test_a_provider_is_asked_again_after_an_answer_of_another_form(gateways, body, streamed) -> None:
    async with WireServer(OpenAIChatWire()) as server:
        server.answer = Reply(body=body)
        gateway = gateways(
            f"providers: [{{name: p, type: openai, base_url: '{server.base_url}', api_key_env: KEY}}]", KEY="k"
        )
        request = CompletionRequest("p/m", (Message("user", "hi"),), {}, 30.0)
        with pytest.raises(ProviderMalformed) as failed:
            await gateway.complete(request, (lambda piece: None) if streamed else None)
    assert failed.value.attempts == 3
