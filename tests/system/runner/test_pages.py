"""Runs with long texts, read a page at a time, on SQLite and on PostgreSQL."""

from __future__ import annotations

import tracemalloc
from itertools import chain

import pytest
from runner_lab import Lab, experiment, exported

from promptlooper.experiment import CacheMode, CachePolicy, ScorerSpec
from promptlooper.run import Run, RunState
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.store.reading import PAGE_BYTES

MIB = 1024 * 1024
HALF = MIB // 2  # an output counts twice: as the run's and as its stage's
UNCACHED = CachePolicy(CacheMode.OFF)
SCORED = (ScorerSpec("right", "contains", "x"),)


async def ran(lab: Lab, lengths: list[int], letter: str = "x", prompt: str = "") -> str:
    """An experiment whose runs have outputs of these lengths."""
    lab.model.say = lambda request: letter * lengths[int(request.messages[-1].content.split()[-1])]
    rows = [{"n": n} for n in range(len(lengths))]
    spec = experiment(f"{prompt} {{{{ input.n }}}}", rows=rows, cache=UNCACHED, scorers=SCORED)
    async with lab.runner() as runner:
        created = await runner.create(spec)
        async for _ in runner.watch(created.experiment_id):
            pass
        assert (await runner.get(created.experiment_id)).counts.completed == len(lengths)
    return created.experiment_id


async def pages(runner: RunnerCore, name: str, size: int = 1_000, states: tuple[RunState, ...] = ()) -> list[list[Run]]:
    found: list[list[Run]] = []
    token = ""
    while token or not found:
        page = await runner.list_runs(name, size, token, states, full=True)
        found.append(list(page.runs))
        token = page.next_page_token
    return found


def indexes(found: list[list[Run]]) -> list[list[int]]:
    return [[run.run_index for run in page] for page in found]


async def test_reading_long_runs_takes_the_memory_of_a_page_not_of_all(lab: Lab) -> None:
    name = await ran(lab, [HALF] * 60)
    async with lab.runner() as runner:
        tracemalloc.start()
        try:
            read = [run.run_index async for run in runner.export(name)]
            page = await runner.list_runs(name, 1_000, full=True)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert read == list(range(60))
    assert [run.run_index for run in page.runs] == [0, 1]
    assert peak < 4 * PAGE_BYTES


@pytest.mark.parametrize(
    ("letter", "expected"),
    [
        ("x", [[0], [1], [2], [3, 4, 5, 6], [7, 8, 9], [10]]),
        ("é", [[0], [1], [2], [3, 4, 5], [6], [7], [8, 9], [10]]),  # takes two bytes
    ],
    ids=["narrow", "wide"],
)
async def test_pages_end_at_their_size_and_hold_every_run_once(
    lab: Lab, letter: str, expected: list[list[int]]
) -> None:
    lengths = [10, 4 * MIB, 2 * MIB, 10, 10, HALF, HALF, HALF, HALF, 10, 4 * MIB]
    name = await ran(lab, lengths, letter)
    async with lab.runner() as runner:
        found = await pages(runner, name)
        of_a_state = await pages(runner, name, states=(RunState.COMPLETED,))
        by_two = await pages(runner, name, 2)
        everything = await exported(runner, name)
    assert indexes(found) == indexes(of_a_state) == expected
    assert max(len(page) for page in by_two) == 2
    for runs in (chain(*found), chain(*by_two), everything):
        read = list(runs)
        assert [len(run.output or "") for run in read] == lengths
        assert all(len(run.stages) == 1 and run.scores[0].name == "right" for run in read)


async def test_page_is_full_also_where_its_texts_are_longer_in_the_database(lab: Lab) -> None:
    name = await ran(lab, [10] * 30, prompt="\n" * 250_000)  # JSON writes two characters for each of them
    async with lab.runner() as runner:
        assert [len(page) for page in await pages(runner, name)] == [12, 12, 6]
