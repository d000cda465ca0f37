"""Revisions of the tables: there and back with experiments stored, what is refused, and what older code accepts."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner
from migration_lab import as_newer_code_leaves_it, check_there_and_back, known_of, reading, revisions, run_experiments
from runner_lab import Lab

from promptlooper.cli.main import main
from promptlooper.errors import InvalidArgument
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.migrate import HEAD, compatibility, current_revision, move, prepare, upgrade
from promptlooper.runner.store.models import metadata

RUNS = 200
RELEASED = "0002"  # of 0.1.0
NEWER = "9999"


def prepared(database_url: str) -> None:
    with closing(Database(database_url)) as database:
        prepare(database)


def marker(connection: sa.Connection) -> list[Any]:
    return list(connection.execute(sa.select(compatibility.c.works_with)).scalars())


async def test_every_revision_and_back_keeps_what_is_stored(lab: Lab) -> None:
    await check_there_and_back(lab, RUNS)


def test_revisions_are_numbered_and_the_last_is_what_the_code_is_written_for(lab: Lab) -> None:
    known = revisions()
    assert known == [f"{number:04}" for number in range(1, len(known) + 1)]
    assert known[-1] == HEAD


def test_migrations_make_the_tables_that_the_code_declares(lab: Lab) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        ours = MigrationContext.configure(connection, opts={"include_name": lambda name, *_: name != "compatibility"})
        return list(compare_metadata(ours, metadata))

    assert reading(lab.database_url, differences) == []


async def test_the_release_works_with_every_later_revision_and_going_back_to_it_loses_nothing(lab: Lab) -> None:
    """It need not be so for ever: drop this test with the first revision that 0.1.0 can't work with."""
    ids = await run_experiments(lab, 50)
    known = await known_of(lab, ids)
    for revision in reversed([one for one in revisions() if one >= RELEASED]):
        move(lab.database_url, revision)
        assert reading(lab.database_url, marker) == [RELEASED]
    upgrade(lab.database_url)
    assert await known_of(lab, ids) == known


async def test_going_back_is_refused_where_it_would_lose_data_and_says_which(lab: Lab) -> None:
    await run_experiments(lab, 50)
    words = ["migrate", "--database-url", lab.database_url, "--to", "0001"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code != 0
    assert "2 rows with experiments.spec_sha256" in refused.output
    assert "--discard-data" in refused.output
    assert reading(lab.database_url, current_revision) == HEAD
    discarded = CliRunner().invoke(main, [*words, "--discard-data"])
    assert f"from revision {HEAD} to revision 0001." in discarded.output
    assert reading(lab.database_url, current_revision) == "0001"
    assert "is at revision 0001." in CliRunner().invoke(main, words).output


def test_a_table_that_holds_something_is_not_dropped(lab: Lab) -> None:
    def upload(connection: sa.Connection) -> None:
        row = {"sha256": "0" * 64, "size": 0, "complete": True, "used_us": 1}
        connection.execute(sa.insert(metadata.tables["uploads"]), row)

    with closing(Database(lab.database_url)) as database:
        database.writing(upload)
    with pytest.raises(InvalidArgument, match="would lose what it has no place for: 1 row of uploads;"):
        move(lab.database_url, RELEASED)


def test_a_revision_that_this_version_does_not_know_is_refused(lab: Lab) -> None:
    with pytest.raises(InvalidArgument, match="this version knows 0001, 0002"):
        move(lab.database_url, "0815")


def test_a_newer_database_is_worked_with_where_it_says_so(lab: Lab) -> None:
    as_newer_code_leaves_it(lab.database_url, NEWER, works_with=HEAD)
    prepared(lab.database_url)
    assert upgrade(lab.database_url) == (NEWER, NEWER)
    shown = CliRunner().invoke(main, ["migrate", "--database-url", lab.database_url])
    assert f"is up to date, at revision {NEWER}, newer than this version's {HEAD}" in shown.output
    with pytest.raises(InvalidArgument, match="use the version that knows both"):
        move(lab.database_url, RELEASED)


@pytest.mark.parametrize("works_with", [NEWER, None], ids=["it says that it does not", "it says nothing"])
def test_a_newer_database_is_refused_otherwise(lab: Lab, works_with: str | None) -> None:
    as_newer_code_leaves_it(lab.database_url, NEWER, works_with)
    for open_it in (prepared, upgrade):
        with pytest.raises(InvalidArgument, match=f"too new for this version.*migrate --to {HEAD}"):
            open_it(lab.database_url)
