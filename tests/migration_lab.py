"""Takes a database with experiments in it through all of its revisions and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
from fault_checks import Told, check, event_problems, row_problems, told
from runner_lab import Lab, ended, experiment, stage

from promptlooper.completion import CompletionRequest, Price
from promptlooper.errors import ProviderRejected
from promptlooper.experiment import CacheMode, CachePolicy, ExperimentSpec, ExperimentSummary, ScorerSpec
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.migrate import HEAD, compatibility, move, upgrade
from promptlooper.runner.store.revisions import OURS, config_of, tables_at, works_with

T = TypeVar("T")
FAILS_EVERY, SMALL = 10, 20  # runs


def reading(database_url: str, fn: Callable[[sa.Connection], T]) -> T:
    with closing(Database(database_url)) as database:
        return database.reading(fn)


def as_newer_code_leaves_it(database_url: str, revision: str, works_with: str | None) -> None:
    """Says that later code has migrated the database; None: that code says nothing of what it works with."""

    def write(connection: sa.Connection) -> None:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :it"), {"it": revision})
        connection.execute(sa.delete(compatibility))
        if works_with is not None:
            connection.execute(sa.insert(compatibility), {"works_with": works_with})

    with closing(Database(database_url)) as database:
        database.writing(write)


def revisions() -> list[str]:
    """All of them, from the oldest."""
    with closing(Database("sqlite://")) as database:
        return database.reading(lambda connection: list(works_with(config_of(connection))))


def specs(runs: int) -> list[ExperimentSpec]:
    """Two stages with scores, of which some runs fail; and the same questions again, which the cache answers."""
    large = experiment(
        "first {{ input.n }}",
        stage("last {{ input.n }} after {{ prev_output }}", "last"),
        rows=[{"n": n} for n in range(runs - SMALL)],
        cache=CachePolicy(CacheMode.READ_WRITE),
        limits={"max_concurrency": 100, "budget_nanousd": 10**12},
        params={"max_tokens": 40},
        scorers=(ScorerSpec("right", "contains", "{{ input.n }}", threshold=1),),
        tags=("kept",),
        metadata={"owner": "search"},
    )
    small = experiment(
        "first {{ input.n }}",
        rows=[{"n": n} for n in range(SMALL)],
        cache=CachePolicy(CacheMode.READ_WRITE),
        params={"max_tokens": 40},
    )
    return [large, small]


def answer(request: CompletionRequest) -> str | Exception:
    question = request.messages[-1].content
    number = int(question.split()[1])
    if question.startswith("last") and number % FAILS_EVERY == 0:
        return ProviderRejected("scripted")
    return f"answer to {question.split(' after ')[0]}"


@dataclass(frozen=True, slots=True)
class Known:
    """What a user can read of an experiment, but for its `spec_sha256`: revision 0001 has no place for it."""

    told: Told
    summary: ExperimentSummary


async def run_experiments(lab: Lab, runs: int) -> list[str]:
    """Really runs them; their ids."""
    lab.model.say, lab.model.price = answer, Price(1_000_000, 4_000_000)
    ids = []
    async with lab.runner() as runner:
        for spec in specs(runs):
            created = await runner.create(spec, f"request-{len(ids)}")
            await ended(runner, created.experiment_id)
            ids.append(created.experiment_id)
    return ids


async def known_of(lab: Lab, ids: list[str]) -> list[Known]:
    async with lab.runner() as runner:
        found = [Known(await told(runner, one), await runner.summarize(one)) for one in ids]
    for known in found:
        check(event_problems(known.told.events), row_problems(known.told))
    return [
        Known(
            replace(known.told, experiment=replace(known.told.experiment, spec_sha256="")),
            replace(known.summary, experiment=replace(known.summary.experiment, spec_sha256="")),
        )
        for known in found
    ]


async def check_there_and_back(lab: Lab, runs: int) -> None:
    """Runs experiments, and takes the database to each older revision and back: what an older one has a place for is
    the same there, and what a user reads is the same after it."""
    ids = await run_experiments(lab, runs)
    known = await known_of(lab, ids)
    assert sum(len(one.told.runs) for one in known) == runs
    for revision in reversed(revisions()[:-1]):
        kept = reading(lab.database_url, partial(kept_columns, revision=revision))
        stored = reading(lab.database_url, partial(digests, columns=kept))
        assert move(lab.database_url, revision, discard=True) == (HEAD, revision)
        assert reading(lab.database_url, partial(digests, columns=kept)) == stored
        assert upgrade(lab.database_url) == (revision, HEAD)
        assert reading(lab.database_url, partial(digests, columns=kept)) == stored
        assert await known_of(lab, ids) == known


def kept_columns(connection: sa.Connection, revision: str) -> dict[str, list[str]]:
    """By table, those of the present that the revision has too."""
    inspector, there = sa.inspect(connection), tables_at(revision)
    return {
        name: [column["name"] for column in inspector.get_columns(name) if column["name"] in there[name]]
        for name in sorted(inspector.get_table_names())
        if name in there and name not in OURS
    }


def digests(connection: sa.Connection, columns: dict[str, list[str]]) -> dict[str, str]:
    """Of all rows of each table."""
    return {name: _digest(connection, name, of_table) for name, of_table in columns.items()}


def _digest(connection: sa.Connection, name: str, columns: list[str]) -> str:
    key = sa.inspect(connection).get_pk_constraint(name)["constrained_columns"]
    order = [sa.column(one) for one in key]
    query = sa.select(*map(sa.column, columns)).select_from(sa.table(name)).order_by(*order)
    found = hashlib.sha256()
    for row in connection.execute(query):
        found.update(repr(tuple(row)).encode())
    return found.hexdigest()
