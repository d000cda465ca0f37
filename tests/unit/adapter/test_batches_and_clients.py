"""The fakes of batches are not our own dialect: the official clients understand them, and are understood by them."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import orjson
import pytest

from promptlooper.testing.wires import Said
from promptlooper.testing.wires.anthropic_batches import AnthropicBatchServer
from promptlooper.testing.wires.openai_batches import OpenAIBatchServer

STRICT: dict[str, Any] = {"_strict_response_validation": True, "max_retries": 0}
QUESTION: Any = {"role": "user", "content": "hi"}


async def test_openais_client_submits_follows_and_reads_a_batch():
    async with OpenAIBatchServer(Said("fine"), hold=True) as server:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k", **STRICT) as client:
            body = {"model": "gpt-4o", "messages": [QUESTION]}
            lines = b"".join(
                orjson.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}) + b"\n"
                for name in ("one", "two")
            )
            file = await client.files.create(file=("questions.jsonl", lines), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"promptlooper": "label"},
            )
            assert (await client.batches.retrieve(batch.id)).status == "in_progress"
            server.finish(end="expired", answered=1)
            batch = (await client.batches.list(limit=1)).data[0]
            assert (batch.status, batch.request_counts.completed) == ("expired", 1)
            answers = await client.files.content(batch.output_file_id)
            assert orjson.loads(answers.text)["response"]["body"]["choices"][0]["message"]["content"] == "fine"
            errors = await client.files.content(batch.error_file_id)
            assert orjson.loads(errors.text)["error"]["code"] == "batch_expired"
            with pytest.raises(openai.ConflictError):
                await client.batches.cancel(batch.id)


async def test_anthropics_client_submits_follows_and_reads_a_batch():
    async with AnthropicBatchServer(Said("fine"), hold=True) as server:
        async with anthropic.AsyncAnthropic(base_url=server.base_url, api_key="k", **STRICT) as client:
            params: Any = {"model": "claude-opus-5", "max_tokens": 9, "messages": [QUESTION]}
            wrong: Any = {**params, "max_tokens": 0}
            batch = await client.messages.batches.create(
                requests=[{"custom_id": name, "params": asked} for name, asked in (("one", params), ("two", wrong))]
            )
            assert (await client.messages.batches.cancel(batch.id)).processing_status == "canceling"
            server.finish(end="cancelled", answered=2)
            assert (await client.messages.batches.retrieve(batch.id)).request_counts.errored == 1
            results = [each async for each in await client.messages.batches.results(batch.id)]
    assert [each.custom_id for each in results] == ["one", "two"]
    assert results[0].result.message.content[0].text == "fine"
    assert results[1].result.error.error.type == "invalid_request_error"
