"""Repeats stay distinct, and are found again: over a provider, an Adapter's core, a Runner, a Cache and Redis."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache_lab import asking_runner, cache_service, ran
from runner_lab import experiment, stage

from promptlooper.backing import RedisServer
from promptlooper.caching import CacheStats
from promptlooper.clients.cache import CacheClient
from promptlooper.completion import Tool
from promptlooper.experiment import CacheMode, CachePolicy, ExperimentSpec, ModelEntry, Pipeline, Stage
from promptlooper.run import RunState
from promptlooper.runner.core import RunnerCore
from promptlooper.testing.provider import FakeProvider


def asked(*stages: Stage, model: str = "openai/m", **settings: Any) -> ExperimentSpec:
    """One row, at temperature 1."""
    settings = {"params": {"temperature": 1, "seed": 7}, "project": "repeats", **settings}
    pipeline = Pipeline("p", stages or (stage("{{ input.n }}?"),), (ModelEntry("m", model),))
    return experiment(pipelines=(pipeline,), **settings)


@asynccontextmanager
async def asking(folder: Path, redis: RedisServer) -> AsyncIterator[tuple[RunnerCore, FakeProvider, CacheClient]]:
    numbers = itertools.count(1)
    provider = FakeProvider(lambda request: f'{{"n": {next(numbers)}}}')
    async with provider, cache_service(redis.url) as (cache, _), asking_runner(folder, provider, cache) as runner:
        yield runner, provider, cache


async def outputs(runner: RunnerCore, spec: ExperimentSpec) -> tuple[list[str | None], list[bool]]:
    """By repeat: what was answered, and whether by the cache."""
    runs = await ran(runner, spec)
    assert {run.state for run in runs} == {RunState.COMPLETED}
    return [run.output for run in runs], [run.cached for run in runs]


async def test_five_repeats_are_five_calls_and_all_hits_for_the_next_experiment(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with asking(tmp_path, redis) as (runner, provider, cache):
        before = await cache.stats()
        first, cached = await outputs(runner, asked(repeats=5))
        assert (len(set(first)), cached, len(provider.requests)) == (5, [False] * 5, 5)
        again, cached = await outputs(runner, asked(repeats=5, name="another", tags=("x",)))
        assert (again, cached, len(provider.requests)) == (first, [True] * 5, 5)
        more, cached = await outputs(runner, asked(repeats=7))
        assert (more[:5], cached, len(provider.requests)) == (first, [True] * 5 + [False] * 2, 7)
        assert changes(before, await cache.stats()) == {"hits": 10, "misses": 7, "stored": 7}


def changes(before: CacheStats, now: CacheStats) -> dict[str, int]:
    return {name: getattr(now, name) - getattr(before, name) for name in ("hits", "misses", "stored")}


async def test_any_change_of_the_question_is_asked_anew(tmp_path: Path, redis: RedisServer) -> None:
    tool = Tool("weather", "The weather.", {"type": "object"})
    base = stage("{{ input.n }}?", tools=(tool,), tool_choice="auto", response_schema={"type": "object"})
    questions = {
        "prompt": asked(replace(base, messages=(base.messages[0], *stage("so?").messages))),
        "system": asked(replace(base, messages=(replace(base.messages[0], role="system"), *base.messages))),
        "row": asked(base, rows=[{"n": 2}]),
        "model": asked(base, model="openai/m2"),
        "temperature": asked(base, params={"temperature": 0.9, "seed": 7}),
        "seed": asked(base, params={"temperature": 1, "seed": 8}),
        "a parameter less": asked(base, params={"temperature": 1}),
        "an unknown parameter": asked(base, params={"temperature": 1, "seed": 7, "num_ctx": 1}),
        "namespace": asked(base, cache=CachePolicy(namespace="n")),
        "project": asked(base, project="repeats-2"),
        "tools": asked(replace(base, tools=(replace(tool, description="What the weather is."),))),
        "tool choice": asked(replace(base, tool_choice="none")),
        "schema": asked(replace(base, response_schema={"type": ["object", "array"]})),
    }
    same = {
        "name": asked(base, name="another"),
        "limits": asked(base, limits={"stage_timeout": 31.0, "max_concurrency": 3}),
        "age": asked(base, cache=CachePolicy(max_age=3600.0)),
        "numbers": asked(base, params={"seed": 7, "temperature": 1.0}),
        "stage": asked(replace(base, name="other", timeout=29.0)),
    }
    async with asking(tmp_path, redis) as (runner, provider, _):
        await outputs(runner, asked(base))
        for name, spec in questions.items():
            _, [cached] = await outputs(runner, spec)
            assert not cached, name
        assert len(provider.requests) == 1 + len(questions)
        for name, spec in (questions | same).items():
            _, [cached] = await outputs(runner, spec)
            assert cached, name
        assert len(provider.requests) == 1 + len(questions)


async def test_another_address_of_the_provider_is_another_question(tmp_path: Path, redis: RedisServer) -> None:
    spec = asked(project="addresses")
    async with cache_service(redis.url) as (cache, _):
        for n in range(2):
            folder = tmp_path / str(n)
            folder.mkdir()
            async with FakeProvider("here") as provider, asking_runner(folder, provider, cache) as runner:
                _, cached = await outputs(runner, spec)
                assert cached == [False]
                _, cached = await outputs(runner, spec)
                assert cached == [True]


async def test_modes_read_write_and_refresh_through_the_service(tmp_path: Path, redis: RedisServer) -> None:
    def spec(mode: CacheMode) -> ExperimentSpec:
        return asked(project="modes", cache=CachePolicy(mode))

    async with asking(tmp_path, redis) as (runner, provider, _):
        said = [
            (mode, (await outputs(runner, spec(mode)))[0][0], len(provider.requests))
            for mode in (
                CacheMode.READ_ONLY,
                CacheMode.WRITE_ONLY,
                CacheMode.READ_WRITE,
                CacheMode.OFF,
                CacheMode.REFRESH,
                CacheMode.READ_ONLY,
            )
        ]
    assert said == [
        (CacheMode.READ_ONLY, '{"n": 1}', 1),
        (CacheMode.WRITE_ONLY, '{"n": 2}', 2),
        (CacheMode.READ_WRITE, '{"n": 2}', 2),
        (CacheMode.OFF, '{"n": 3}', 3),
        (CacheMode.REFRESH, '{"n": 4}', 4),
        (CacheMode.READ_ONLY, '{"n": 4}', 4),
    ]
