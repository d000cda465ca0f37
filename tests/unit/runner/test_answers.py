"""One question is asked once: in this process by flights, across processes by the cache's leases."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from promptlooper.cache.core import CacheCore
from promptlooper.cache.store.local import LocalStore
from promptlooper.caching import CacheEntry, Found, Lookup, LookupStatus, ResponseCache
from promptlooper.clock import SystemClock
from promptlooper.completion import (
    Completion,
    CompletionRequest,
    Message,
    ModelCheck,
    ModelInfo,
    OnDelta,
    ToolCall,
)
from promptlooper.errors import CacheUnavailable, DeadlineExceeded, ProviderRejected, ServiceUnavailable
from promptlooper.experiment import CacheMode, CachePolicy
from promptlooper.questions import Question, cache_key
from promptlooper.runner.answers import Answer, Answers


class Model:
    """A gateway that counts, and answers when it is let."""

    def __init__(self, *, free: bool = True, finish_reason: str = "stop") -> None:
        self.calls: list[CompletionRequest] = []
        self.cancelled = 0
        self.errors: list[Exception] = []
        self.gate, self.called = asyncio.Event(), asyncio.Event()
        self.finish_reason = finish_reason
        self.besides: dict[str, Any] = {}
        if free:
            self.gate.set()

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        self.calls.append(request)
        self.called.set()
        if self.errors:
            raise self.errors.pop(0)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Completion(
            f"answer {len(self.calls)}",
            "m",
            self.finish_reason,
            3,
            2,
            latency_ms=7,
            cost_nanousd=500,
            attempts=2,
            **self.besides,
        )

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        return [ModelCheck(model) for model in models]

    async def list_models(self) -> list[ModelInfo]:
        return []


class SlowLookup:
    """A cache whose lookups are answered when they may."""

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> Sequence[Found]:
        found = await self._cache.lookup(lookups, claimant_id)
        self.asked.set()
        await self.go.wait()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class CountedLookups:
    """A cache that says how long the lists were that it was asked for."""

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache
        self.lists: list[int] = []

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> Sequence[Found]:
        self.lists.append(len(lookups))
        return await self._cache.lookup(lookups, claimant_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class SlowStore:
    """A cache that stores when it may."""

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache
        self.go = asyncio.Event()

    async def store(self, entries: Sequence[CacheEntry], claimant_id: str) -> None:
        await self.go.wait()
        await self._cache.store(entries, claimant_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def question(text: str = "why?", *, repeat: int = 0, mode: CacheMode = CacheMode.READ_WRITE) -> Question:
    request = CompletionRequest("mock/m", (Message("user", text),), {"temperature": 0.5}, timeout=30)
    return Question(request, "here", repeat, "default", CachePolicy(mode))


@asynccontextmanager
async def cache_in(folder: Path) -> AsyncIterator[CacheCore]:
    async with LocalStore(folder / "cache.db") as store:
        yield CacheCore(store, lease_ttl=0.3)


@asynccontextmanager
async def answering(model: Model, cache: ResponseCache, claimant: str = "one") -> AsyncIterator[Answers]:
    answers = Answers(model, cache, claimant, SystemClock())
    try:
        yield answers
    finally:
        await answers.aclose()


async def test_200_equal_questions_at_once_make_one_call_and_all_but_one_are_cached(tmp_path: Path) -> None:
    model = Model()
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        got = await asyncio.gather(*(answers.ask(question()) for _ in range(200)))
    assert len(model.calls) == 1
    assert {answer.completion.output for answer in got} == {"answer 1"}
    assert sorted(answer.cached for answer in got) == [False] + [True] * 199


async def test_questions_that_are_ready_together_are_looked_up_in_one_call(tmp_path: Path) -> None:
    model = Model()
    async with cache_in(tmp_path) as cache:
        async with answering(model, cache) as answers:
            await asyncio.gather(*(answers.ask(question(str(n))) for n in range(0, 100, 2)))
        counted = CountedLookups(cache)
        async with answering(model, counted) as answers:  # type: ignore[arg-type]
            got = await asyncio.gather(*(answers.ask(question(str(n))) for n in range(100)))
    assert [answer.cached for answer in got] == [True, False] * 50
    assert counted.lists == [100]


async def test_equal_questions_of_two_processes_make_one_call(tmp_path: Path) -> None:
    model = Model(free=False)
    async with cache_in(tmp_path) as one, cache_in(tmp_path) as two:
        async with answering(model, one, "one") as first, answering(model, two, "two") as second:
            asked = [asyncio.create_task(a.ask(question())) for a in (first, second) for _ in range(20)]
            await model.called.wait()
            model.gate.set()
            got = await asyncio.gather(*asked)
    assert len(model.calls) == 1
    assert sum(not answer.cached for answer in got) == 1


async def test_when_the_process_that_leads_dies_another_asks_after_the_lease(tmp_path: Path) -> None:
    dead, alive = Model(free=False), Model()
    async with cache_in(tmp_path) as cache:
        key = cache_key(question())
        await cache.lookup([Lookup(key)], "dead")  # it took the lease and will never answer
        async with answering(alive, cache, "alive") as answers:
            answer = await answers.ask(question())
    assert not dead.calls
    assert (answer.cached, len(alive.calls)) == (False, 1)


async def test_a_stored_answer_keeps_everything_of_the_original(tmp_path: Path) -> None:
    model = Model()
    model.besides = {
        "tool_calls": (ToolCall("1", "weather", '{"city": "Oslo"}'),),
        "tokens_cache_write_in": 1,
        "logprobs": [{"token": "a", "logprob": -0.5, "top": []}],
        "provider_data": '{"signature": "s"}',
    }
    async with cache_in(tmp_path) as cache:
        async with answering(model, cache) as answers:
            first = await answers.ask(question())
        async with answering(model, cache) as answers:
            again = await answers.ask(question())
    assert again == Answer(first.completion, cached=True)
    assert len(model.calls) == 1


@pytest.mark.parametrize(
    "besides",
    [
        {"fallback": True},
        {"tool_calls": (ToolCall("1", "weather", '{"city": "Os'),)},
        {"tool_calls": (ToolCall("1", "weather", "[]"),)},
    ],
)
async def test_answers_of_other_models_and_broken_calls_are_not_kept(tmp_path: Path, besides: dict[str, Any]) -> None:
    model = Model()
    model.besides = besides
    async with cache_in(tmp_path) as cache:
        for _ in range(2):
            async with answering(model, cache) as answers:
                await answers.ask(question())
    assert len(model.calls) == 2


async def test_repeats_are_different_questions(tmp_path: Path) -> None:
    model = Model()
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        await asyncio.gather(*(answers.ask(question(repeat=n)) for n in range(3)))
    assert len(model.calls) == 3


@pytest.mark.parametrize(
    ("mode", "calls_when_cold", "calls_when_warm"),
    [
        (CacheMode.OFF, 2, 2),
        (CacheMode.READ_WRITE, 1, 0),
        (CacheMode.READ_ONLY, 2, 0),
        (CacheMode.WRITE_ONLY, 2, 2),
        (CacheMode.REFRESH, 2, 2),
    ],
)
async def test_modes_read_and_write_as_they_say(
    tmp_path: Path, mode: CacheMode, calls_when_cold: int, calls_when_warm: int
) -> None:
    model = Model()
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        for _ in range(2):
            await answers.ask(question("cold", mode=mode))
        assert len(model.calls) == calls_when_cold
    async with cache_in(tmp_path) as cache:
        async with answering(model, cache) as answers:
            await answers.ask(question("warm"))
        model.calls.clear()
        async with answering(model, cache) as answers:
            for _ in range(2):
                await answers.ask(question("warm", mode=mode))
    assert len(model.calls) == calls_when_warm


@pytest.mark.parametrize("mode", [CacheMode.READ_ONLY, CacheMode.WRITE_ONLY, CacheMode.REFRESH])
async def test_modes_that_do_not_share_a_call_wait_for_nobody_and_leave_leases_alone(
    tmp_path: Path, mode: CacheMode
) -> None:
    model, key = Model(), cache_key(question())
    async with LocalStore(tmp_path / "cache.db") as store:
        cache = CacheCore(store, lease_ttl=60)
        [led] = await cache.lookup([Lookup(key)], "another")
        async with answering(model, cache) as answers:
            await answers.ask(question(mode=mode))
        assert (led.status, await cache.renew([key], "another")) == (LookupStatus.LEAD, [True])
        [found] = await cache.lookup([Lookup(key)], "third")
    assert len(model.calls) == 1
    # What was written ends the wait of those who look again, also while the leader still asks.
    assert found.status is (LookupStatus.HIT if mode.writes else LookupStatus.BUSY)


@pytest.mark.parametrize("mode", [CacheMode.READ_WRITE, CacheMode.WRITE_ONLY, CacheMode.REFRESH])
async def test_an_answer_does_not_wait_until_it_is_stored(tmp_path: Path, mode: CacheMode) -> None:
    model = Model()
    async with cache_in(tmp_path) as cache:
        slow = SlowStore(cache)
        async with answering(model, slow) as answers:  # type: ignore[arg-type]
            assert (await answers.ask(question(mode=mode))).completion.output == "answer 1"
            assert not slow.go.is_set()
            slow.go.set()
        [found] = await cache.lookup([Lookup(cache_key(question()))], "")
    assert found.status is LookupStatus.HIT


@pytest.mark.parametrize("finish_reason", ["content_filter", "other"])
async def test_answers_that_are_not_whole_are_not_stored(tmp_path: Path, finish_reason: str) -> None:
    model = Model(finish_reason=finish_reason)
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        await answers.ask(question())
        await answers.ask(question())
    assert len(model.calls) == 2


async def test_an_error_goes_to_all_who_waited_and_the_next_asks_again(tmp_path: Path) -> None:
    model = Model()
    model.errors = [ProviderRejected("no", attempts=1)]
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        got = await asyncio.gather(*(answers.ask(question()) for _ in range(5)), return_exceptions=True)
        assert [type(error) for error in got] == [ProviderRejected] * 5
        assert (await answers.ask(question())).completion.output == "answer 2"
    assert len(model.calls) == 2


async def test_a_cancelled_first_asker_does_not_take_the_answer_from_the_others(tmp_path: Path) -> None:
    model = Model(free=False)
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        first, second = (asyncio.create_task(answers.ask(question())) for _ in range(2))
        await model.called.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        model.gate.set()
        assert (await second).completion.output == "answer 1"
    assert (len(model.calls), model.cancelled) == (1, 0)


async def test_when_everyone_who_waited_is_cancelled_the_call_is_stopped_and_the_lease_given_back(
    tmp_path: Path,
) -> None:
    model = Model(free=False)
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        asked = [asyncio.create_task(answers.ask(question())) for _ in range(3)]
        await model.called.wait()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        model.gate.set()
        await answers.ask(question())
    assert (len(model.calls), model.cancelled) == (2, 1)


class NoCache:
    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> list[Found]:
        raise CacheUnavailable("gone")

    async def store(self, entries: object, claimant_id: str) -> None:
        raise ServiceUnavailable("gone")


async def test_who_is_cancelled_while_the_cache_is_asked_leaves_no_lease_behind(tmp_path: Path) -> None:
    """A Runner that stops in a burst: the next one must not wait until leases run out."""
    model = Model()
    async with cache_in(tmp_path) as cache:
        slow = SlowLookup(cache)
        async with answering(model, slow) as answers:  # type: ignore[arg-type]
            asker = asyncio.create_task(answers.ask(question()))
            await slow.asked.wait()
            asker.cancel()
            await asyncio.gather(asker, return_exceptions=True)
            slow.go.set()
        (found,) = await cache.lookup([Lookup(cache_key(question()), None)], "another")
    assert found.status is LookupStatus.LEAD
    assert model.calls == []


async def test_a_cache_that_does_not_answer_is_a_miss_and_flights_still_share() -> None:
    model = Model()
    async with answering(model, NoCache()) as answers:  # type: ignore[arg-type]
        got = await asyncio.gather(*(answers.ask(question()) for _ in range(10)))
    assert len(model.calls) == 1
    assert len(got) == 10


async def test_an_adapter_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    model = Model()
    model.errors = [ServiceUnavailable("the Adapter is away")]
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        assert (await answers.ask(question())).completion.output == "answer 2"


async def test_waiting_for_anothers_answer_ends_at_the_deadline(tmp_path: Path) -> None:
    model = Model(free=False)
    late = question()
    late = dataclasses.replace(late, request=dataclasses.replace(late.request, timeout=0.05))
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        leader = asyncio.create_task(answers.ask(question()))
        await model.called.wait()
        with pytest.raises(DeadlineExceeded):
            await answers.ask(late)
        model.gate.set()
        await leader


async def test_a_paid_answer_is_counted_once_also_when_its_first_asker_is_cancelled(tmp_path: Path) -> None:
    model = Model(free=False)
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        first, *others = (asyncio.create_task(answers.ask(question())) for _ in range(4))
        await model.called.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        model.gate.set()
        got = await asyncio.gather(*others)
    assert sorted(answer.cached for answer in got) == [False, True, True]


async def test_one_who_has_time_left_asks_again_when_anothers_time_is_over(tmp_path: Path) -> None:
    model = Model()
    model.errors = [DeadlineExceeded("its time was over", attempts=1)]
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        first, second = await asyncio.gather(answers.ask(question()), answers.ask(question()), return_exceptions=True)
    assert isinstance(first, DeadlineExceeded)
    assert isinstance(second, Answer)
    assert len(model.calls) == 2


async def test_one_who_has_time_left_asks_again_when_the_adapter_was_away_for_all_of_anothers_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hurried = Model(), question()
    model.errors = [ServiceUnavailable("the Adapter is away")]
    monkeypatch.setattr("promptlooper.runner.answers.FIRST_RETRY", hurried.request.timeout)  # no time for a second try
    patient = dataclasses.replace(hurried, request=dataclasses.replace(hurried.request, timeout=600))
    async with cache_in(tmp_path) as cache, answering(model, cache) as answers:
        first, second = await asyncio.gather(answers.ask(hurried), answers.ask(patient), return_exceptions=True)
    assert isinstance(first, ServiceUnavailable)
    assert isinstance(second, Answer)
