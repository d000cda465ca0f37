"""`python -m promptlooper.adapter`: a process that serves, drains, and says what is wrong with its settings."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from promptlooper.clients.adapter import connected
from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import ContextTooLong, ProviderCredentials, ProviderRateLimited, UnknownProvider
from promptlooper.testing.provider import FakeProvider, Reply, error

KEY = "sk-canary-0123456789abcdef"


@asynccontextmanager
async def adapter(**env: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Callable[[str], object]]]:
    """The process, and a coroutine function that returns the first log line with a text in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTLOOPER_", "OPENAI_"))}
    ours = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PROMPTLOOPER_LISTEN": "127.0.0.1:0",
        "PROMPTLOOPER_HEALTH_LISTEN": "127.0.0.1:0",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "promptlooper.adapter"), env={**kept, **ours, **env}, stderr=asyncio.subprocess.PIPE
    )
    log = process.stderr
    assert log is not None

    async def line_with(text: str) -> str:
        while line := (await log.readline()).decode():
            if text in line:
                return line
        raise AssertionError(f"the log ended without {text!r}")

    try:
        yield process, line_with
    finally:
        if process.returncode is None:
            process.kill()
        await log.read()
        await process.wait()


def asking(question: str, model: str = "openai/gpt-4o-mini", timeout: float = 30.0) -> CompletionRequest:
    return CompletionRequest(model, (Message("user", question),), {"max_tokens": 5}, timeout)


async def test_it_answers_over_grpc_and_ends_on_sigterm():
    def answer(request):
        return {"long": error(400, "no", code="context_length_exceeded"), "wait": error(429, retry_after="60")}.get(
            request.question, Reply(f"re: {request.question}", tokens_in=100, tokens_out=10)
        )

    async with (
        FakeProvider(answer) as fake,
        adapter(OPENAI_BASE_URL=fake.base_url, OPENAI_API_KEY=KEY) as (
            process,
            line_with,
        ),
    ):
        port = re.search(r"\bport=(\d+)", await line_with("serving"))[1]
        async with connected(f"127.0.0.1:{port}") as client:
            answers = await asyncio.gather(*(client.complete(asking(str(n))) for n in range(50)))
            assert [a.output for a in answers] == [f"re: {n}" for n in range(50)]
            # The public price is not that of another address.
            assert {(a.tokens_in, a.tokens_out, a.cost_nanousd) for a in answers} == {(100, 10, None)}
            with pytest.raises(ContextTooLong):
                await client.complete(asking("long"))
            with pytest.raises(ProviderRateLimited) as limited:
                await client.complete(asking("wait"))
            assert limited.value.retry_after == 60
            with pytest.raises(UnknownProvider, match="did you mean 'openai'"):
                await client.complete(asking("hi", "opnai/x"))
            (check,) = await client.check_models(["openai/gpt-4o-mini"])
            assert (check.problem, check.endpoint) == (None, hashlib.sha256(fake.base_url.encode()).hexdigest()[:12])
            assert "mock/echo" in {info.model for info in await client.list_models()}
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_caller_that_gives_up_stops_the_providers_request():
    async with (
        FakeProvider(Reply(until=asyncio.Event())) as fake,
        adapter(OPENAI_BASE_URL=fake.base_url) as (
            _,
            line_with,
        ),
    ):
        port = re.search(r"\bport=(\d+)", await line_with("serving"))[1]
        async with connected(f"127.0.0.1:{port}") as client:
            call = asyncio.create_task(client.complete(asking("hi")))
            await fake.eventually(lambda f: f.open == 1)
            call.cancel()
            await fake.eventually(lambda f: f.hung_up == 1)


async def test_missing_key_travels_as_a_check_and_as_an_error():
    async with adapter() as (_, line_with):
        port = re.search(r"\bport=(\d+)", await line_with("serving"))[1]
        async with connected(f"127.0.0.1:{port}") as client:
            (check,) = await client.check_models(["openai/gpt-4o-mini"])
            assert check.problem_reason == "PROVIDER_CREDENTIALS"
            with pytest.raises(ProviderCredentials, match="set the environment variable 'OPENAI_API_KEY'"):
                await client.complete(asking("hi"))


async def test_wrong_providers_file_ends_it_with_2_and_the_line(tmp_path: Path):
    path = tmp_path / "providers.yaml"
    path.write_text("providers:\n- {name: a, typ: mock, type: mock}\n")
    async with adapter(PROMPTLOOPER_PROVIDERS=str(path)) as (process, line_with):
        await line_with(f"{path}:2: provider 'a': unknown key 'typ'; did you mean 'type'?")
        assert await process.wait() == 2


async def test_log_at_start_shows_settings_and_no_key():
    async with adapter(OPENAI_API_KEY=KEY) as (process, line_with):
        line = await line_with("serving")
        assert "listen=127.0.0.1:0" in line
        process.send_signal(signal.SIGTERM)
        rest = (await process.stderr.read()).decode()
        assert KEY not in line + rest
