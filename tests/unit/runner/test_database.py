from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from promptlooper.errors import InvalidArgument, StoreUnavailable
from promptlooper.runner.store.database import Database, sqlite_url
from promptlooper.runner.store.migrate import HEAD, current_revision, prepare


def test_a_database_without_our_tables_is_a_fault_and_not_an_outage(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "x.db"))
    try:
        with pytest.raises(OperationalError):
            database.reading(lambda connection: connection.execute(sa.text("SELECT * FROM runs")))
    finally:
        database.close()


def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "missing" / "x.db"))
    try:
        with pytest.raises(StoreUnavailable):
            database.reading(lambda connection: connection.execute(sa.text("SELECT 1")))
    finally:
        database.close()


def test_a_sqlite_file_migrates_itself_once(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "x.db"))
    try:
        for _ in range(2):
            prepare(database)
            assert database.reading(current_revision) == HEAD
    finally:
        database.close()


def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="mysql"):
        Database("mysql://somewhere/x")
