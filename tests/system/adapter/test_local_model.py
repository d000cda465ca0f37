"""The real local model in a real child process: it answers, is watched, and never stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest

from promptlooper.adapter.cost import Dated, Prices
from promptlooper.adapter.gateway import Gateway
from promptlooper.adapter.limits.lanes import Lanes
from promptlooper.adapter.limits.ledger import Rules
from promptlooper.adapter.providers.local import MODEL, LocalProvider
from promptlooper.adapter.routes.route import Pool, Upstream
from promptlooper.adapter.routes.router import Router
from promptlooper.adapter.tariff import FREE
from promptlooper.clock import SystemClock
from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import ContextTooLong, ProviderRejected
from promptlooper.testing.eventually import eventually

CAPITAL = "What is the capital of France? Answer with one word."


def asking(question: str = CAPITAL, *, max_tokens: int = 16) -> CompletionRequest:
    params = {"temperature": 0, "max_tokens": max_tokens}
    return CompletionRequest(f"local/{MODEL}", (Message("user", question),), params, 60.0)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
async def local() -> AsyncIterator[LocalProvider]:
    provider = LocalProvider("local", prices=Prices({"*": [Dated(FREE)]}), clock=SystemClock())
    yield provider
    pid = provider.pid
    await provider.aclose()
    assert provider.pid is None
    assert pid is None or is_gone(pid)


@pytest.fixture
def gateway(local: LocalProvider) -> Gateway:
    limiter = Lanes(lambda _: Rules(max_concurrency=2), SystemClock())
    return Gateway(Router({"local": Pool((Upstream(local),))}), limiter)


async def test_local_model_knows_the_capital_of_france(gateway, local):
    assert local.pid is None  # started by the first question
    answer = await gateway.complete(asking())
    assert "Paris" in answer.output
    assert (answer.model, answer.finish_reason, answer.cost_nanousd, answer.attempts) == (MODEL, "stop", 0, 1)
    assert answer.tokens_in > 0
    assert answer.tokens_out > 0


async def test_same_question_gets_the_same_answer_amid_others(gateway):
    questions = [CAPITAL, "Say one sentence about Japan.", CAPITAL, CAPITAL]
    answers = await asyncio.gather(*(gateway.complete(asking(question)) for question in questions))
    assert len({answer.output for answer in (answers[0], *answers[2:])}) == 1


async def test_prompt_that_does_not_fit_is_context_too_long(gateway):
    with pytest.raises(ContextTooLong, match="too long for model 'smollm2-135m-instruct'"):
        await gateway.complete(asking("word " * 5000))


async def test_what_the_model_cannot_do_is_refused_and_not_tried(gateway):
    seeing = replace(asking(), messages=(Message("user", "What is it?", images=("https://a.example/b.png",)),))
    for request, said in (
        (seeing, "sees no images"),
        (replace(asking(), params={"reasoning_effort": "low"}), "'reasoning_effort'"),
    ):
        with pytest.raises(ProviderRejected, match=said) as refused:
            await gateway.complete(request)
        assert refused.value.attempts == 1


async def test_child_is_in_a_session_of_its_own_and_has_none_of_our_keys(gateway, local, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    await gateway.complete(asking())
    assert os.getsid(local.pid) != os.getsid(0)
    assert "OPENAI_API_KEY" not in psutil.Process(local.pid).environ()


async def test_child_that_died_is_started_again(gateway, local):
    first = await gateway.complete(asking())
    killed = local.pid
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: is_gone(killed))
    again = await gateway.complete(asking())
    assert again.output == first.output
    assert local.pid != killed


async def test_call_in_flight_survives_the_death_of_the_child(gateway, local):
    await gateway.complete(asking())
    killed = local.pid
    child = psutil.Process(killed)
    worked = child.cpu_times().user
    call = asyncio.create_task(gateway.complete(asking("Tell a long story about a ship.", max_tokens=200)))
    await eventually(lambda: child.cpu_times().user > worked + 0.1)  # it works on the answer
    os.kill(killed, signal.SIGKILL)
    answer = await call
    assert answer.attempts >= 2
    assert answer.output
    assert local.pid != killed


async def test_first_caller_may_give_up_while_the_model_loads(gateway, local):
    first = asyncio.create_task(gateway.complete(asking()))
    second = asyncio.create_task(gateway.complete(asking()))
    await eventually(lambda: psutil.Process().children())
    first.cancel()
    assert "Paris" in (await second).output
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_closing_while_the_model_loads_leaves_no_process(gateway, local):
    before = set(psutil.Process().children())
    call = asyncio.create_task(gateway.complete(asking()))
    (child,) = await eventually(lambda: set(psutil.Process().children()) - before)
    await local.aclose()
    assert is_gone(child.pid)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


PARENT = """
import asyncio
from promptlooper.adapter.app import gateway_from
from promptlooper.completion import CompletionRequest, Message

async def main():
    async with gateway_from(env={}) as gateway:
        request = CompletionRequest("local/smollm2-135m-instruct", (Message("user", "hi"),), {"max_tokens": 1}, 60.0)
        await gateway.complete(request)
        print("asked", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_child_ends_with_its_parent_however_that_ends(number):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"asked\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(number)
        parent.wait(30)
    asyncio.run(eventually(lambda: is_gone(child.pid)))
