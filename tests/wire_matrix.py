"""What every wire format is asked and answered in the tests, and what comes of it: the table in docs/providers.md.

`python tests/wire_matrix.py` writes the table anew. A wire format is added to DIALECTS; where it can't do something
that the others can, its `differs` says what comes of that case instead.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from promptlooper.completion import Completion, CompletionRequest, Message, Tool, ToolCall
from promptlooper.testing.wires import Reply, Said, Wire
from promptlooper.testing.wires.anthropic import AnthropicWire
from promptlooper.testing.wires.azure import AzureWire
from promptlooper.testing.wires.bedrock import BedrockWire
from promptlooper.testing.wires.gemini import GeminiWire
from promptlooper.testing.wires.mistral import MistralWire
from promptlooper.testing.wires.ollama import OllamaWire
from promptlooper.testing.wires.openai_chat import OpenAIChatWire
from promptlooper.testing.wires.openai_responses import OpenAIResponsesWire

DOCS = Path(__file__).parent.parent / "docs" / "providers.md"
BEGIN, END = "<!-- outcomes: written by tests/wire_matrix.py -->\n", "<!-- end of outcomes -->\n"

_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PIXEL = f"data:image/png;base64,{_PNG}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", "The weather of a city", SCHEMA)
ASKED_FOR = ToolCall("call_1", "weather", '{"city":"Paris"}')

ANSWER = "an answer"
NEVER = "-"  # a wire that has no such answer


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire format and how the tests configure it."""

    wire: Wire
    title: str
    model: str
    settings: str = ""  # further lines of its entry of the providers file, in flow style
    differs: Mapping[str, str] = field(default_factory=dict)  # what comes of a case, where that is not as elsewhere


_BINARY = {"slow drip, streamed": NEVER}  # its streams have no bytes that say nothing
DIALECTS = (
    Dialect(OpenAIChatWire(), "OpenAI chat", "gpt-4.1"),
    Dialect(OpenAIResponsesWire(), "OpenAI Responses", "gpt-5"),
    Dialect(AzureWire(), "Azure OpenAI", "my-gpt-5", "api_version: 2024-10-21"),
    Dialect(MistralWire(), "Mistral", "mistral-medium-2604", "quirks: mistral", differs={"filtered": NEVER}),
    Dialect(AnthropicWire(), "Anthropic", "claude-opus-5"),
    Dialect(GeminiWire(), "Gemini", "gemini-3-flash"),
    Dialect(BedrockWire(), "Bedrock Converse", "us.anthropic.claude-opus-5-v1:0", differs=_BINARY),
    Dialect(
        OllamaWire(),
        "Ollama",
        "qwen3:4b",
        differs={"tool call": "PROVIDER_REJECTED", "tool named": "PROVIDER_REJECTED", "filtered": NEVER},
    ),
)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    outcome: str = ANSWER  # else the reason of the error; `again` where it was tried more than once
    reply: Reply = field(default_factory=Reply)
    messages: tuple[Message, ...] = (Message("user", "What is it?"),)
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    schema: Mapping[str, object] | None = None
    settings: str = ""
    streamed: bool = False
    holds: Callable[[Completion], bool] = lambda completion: completion.output == "ok"  # of an answer

    def request(self, dialect: Dialect) -> CompletionRequest:
        return CompletionRequest(
            f"p/{dialect.model}",
            self.messages,
            {"max_tokens": 50},
            30.0,
            tools=self.tools,
            tool_choice=self.tool_choice,
            response_schema=self.schema,
        )


def bomb() -> bytes:
    """300 MB of blanks in a few KB of gzip."""
    return gzip.compress(b" " * (10 << 20), 9) * 30


def _within(letter: str) -> Callable[[bytes], int]:
    return lambda body: body.index(letter.encode()) + 1


def _after(text: str) -> Callable[[bytes], int]:
    return lambda body: body.index(text.encode()) + len(text)


def _half(body: bytes) -> int:
    return len(body) // 2


def _error(status: int, **headers: str) -> Reply:
    return Reply(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


_TURNS = (
    Message("system", "Be brief."),
    Message("user", "Hello"),
    Message("assistant", "Hi, what do you want to know?"),
    Message("user", "What is it?"),
)
_RESULT = (
    Message("user", "What is the weather in Paris?"),
    Message("assistant", "", tool_calls=(ASKED_FOR,)),
    Message("tool", "It rains.", tool_call_id="call_1", name="weather"),
)
_CALLS = Said("", tool_calls=(ASKED_FOR,), finish_reason="tool_calls")
_LETTERS = Said("one € 🙂 quux", tokens_in=20, tokens_out=9)
_SHORT = "timeouts: {first_token: 0.1, idle: 0.1, total: 0.2}"
_SILENT = Reply(upto=lambda body: 0, then="hang")
_DRIPPING = Reply(upto=lambda body: 0, then="drip")
_DATE = "Mon, 23 Nov 2026 12:00:07 GMT"  # 7 s after the tests' now


def _called(completion: Completion) -> bool:
    (call,) = completion.tool_calls
    return completion.finish_reason == "tool_calls" and (call.name, call.arguments) == ("weather", '{"city":"Paris"}')


def _counted(completion: Completion) -> bool:
    counts = (completion.tokens_in, completion.tokens_out, completion.finish_reason)
    return completion.output == _LETTERS.text and counts == (20, 9, "stop")


def _ends_with(reason: str) -> Callable[[Completion], bool]:
    return lambda completion: completion.finish_reason == reason


_REJECTED, _CREDENTIALS, _LIMITED = "PROVIDER_REJECTED", "PROVIDER_CREDENTIALS", "PROVIDER_RATE_LIMITED"
_UNAVAILABLE, _MALFORMED = "PROVIDER_UNAVAILABLE", "PROVIDER_MALFORMED"
_UNAVAILABLE_AGAIN, _MALFORMED_AGAIN = f"{_UNAVAILABLE}, again", f"{_MALFORMED}, again"
_BOMB = Reply(body=bomb(), headers={"content-encoding": "gzip"})

CASES = (
    Case("plain", reply=Reply(_LETTERS), holds=_counted),
    Case("system message", messages=_TURNS[:2]),
    Case("several turns", messages=_TURNS),
    Case("image", messages=(Message("user", "What is it?", images=(PIXEL,)),)),
    Case("tool call", reply=Reply(_CALLS), tools=(WEATHER,), tool_choice="required", holds=_called),
    Case("tool call, streamed", reply=Reply(_CALLS), tools=(WEATHER,), streamed=True, holds=_called),
    Case("tool named", reply=Reply(_CALLS), tools=(WEATHER,), tool_choice="weather", holds=_called),
    Case("tool result", messages=_RESULT, tools=(WEATHER,), tool_choice="auto"),
    Case("JSON Schema", schema={**SCHEMA, "additionalProperties": False}),
    Case("streamed", reply=Reply(_LETTERS), streamed=True, holds=_counted),
    Case("streamed in single bytes", reply=Reply(_LETTERS, each=1), streamed=True, holds=_counted),
    Case("cut off by `max_tokens`", reply=Reply(Said(finish_reason="length")), holds=_ends_with("length")),
    Case("filtered", reply=Reply(Said("", finish_reason="content_filter")), holds=_ends_with("content_filter")),
    Case("400", _REJECTED, _error(400)),
    Case("401", _CREDENTIALS, _error(401)),
    Case("404", _REJECTED, _error(404)),
    Case("408", _UNAVAILABLE_AGAIN, _error(408)),
    Case("429, `Retry-After` in seconds", _LIMITED, _error(429, retry_after="7")),
    Case("429, `Retry-After` as a date", _LIMITED, _error(429, retry_after=_DATE)),
    Case("500", _UNAVAILABLE_AGAIN, _error(500)),
    Case("529", _UNAVAILABLE_AGAIN, _error(529)),
    Case("malformed JSON", _MALFORMED_AGAIN, Reply(body=b'{"oops": ')),
    Case("malformed JSON, streamed", _MALFORMED_AGAIN, Reply(body=b'data: {"oops": \n\n'), streamed=True),
    Case("end in the middle", _MALFORMED_AGAIN, Reply(_LETTERS, upto=_half)),
    Case("end within a letter", _MALFORMED_AGAIN, Reply(_LETTERS, upto=_within("€"))),
    Case("end within a letter, streamed", _MALFORMED, Reply(_LETTERS, upto=_within("€")), streamed=True),
    Case("end before the last event", _MALFORMED, Reply(_LETTERS, upto=_after("quux")), streamed=True),
    Case("connection dropped, streamed", _UNAVAILABLE, Reply(_LETTERS, upto=_within("€"), then="drop"), streamed=True),
    Case("stall", _UNAVAILABLE_AGAIN, _SILENT, settings=_SHORT),
    Case("stall before the first token", _UNAVAILABLE_AGAIN, _SILENT, settings=_SHORT, streamed=True),
    Case("stall later", _UNAVAILABLE, Reply(_LETTERS, upto=_within("€"), then="hang"), settings=_SHORT, streamed=True),
    Case("slow drip", _UNAVAILABLE_AGAIN, _DRIPPING, settings=_SHORT),
    Case("slow drip, streamed", _UNAVAILABLE_AGAIN, _DRIPPING, settings=_SHORT, streamed=True),
    Case("300 MB in a compressed bomb", _MALFORMED_AGAIN, _BOMB),
    Case("300 MB in a compressed bomb, streamed", _MALFORMED_AGAIN, _BOMB, streamed=True),
)


def outcome_of(dialect: Dialect, case: Case) -> str:
    return dialect.differs.get(case.name, case.outcome)


def table() -> str:
    rows = [["what comes", *(dialect.title for dialect in DIALECTS)], ["---"] * (len(DIALECTS) + 1)]
    rows += [[case.name, *(_cell(outcome_of(dialect, case)) for dialect in DIALECTS)] for case in CASES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(outcome: str) -> str:
    reason, comma, again = outcome.partition(", ")
    return outcome if outcome in (ANSWER, NEVER) else f"`{reason}`{comma}{again}"


def documented() -> str:
    """The table as it stands in the docs."""
    return DOCS.read_text().partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    before, _, rest = DOCS.read_text().partition(BEGIN)
    DOCS.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
