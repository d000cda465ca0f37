"""Brings a database up to date. SQLite files migrate themselves when opened; PostgreSQL is migrated by `promptlooper
migrate`, so that replicas never race."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from promptlooper.errors import InvalidArgument
from promptlooper.runner.store.database import Database

HEAD = "0004"
LOCK = 0x70726C6F  # any number that only migrations take


def current_revision(connection: sa.Connection) -> str | None:
    """None for a database without our tables."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def upgrade(database_url: str, password_file: Path | None = None) -> tuple[str | None, str]:
    """Migrates to the newest revision and returns (from, to). Concurrent calls wait for each other."""
    database = Database(database_url, password_file=password_file)
    try:
        return database.writing(_upgrade), HEAD
    finally:
        database.close()


def prepare(database: Database) -> None:
    """Migrates SQLite; raises InvalidArgument where another database is not up to date."""
    revision = database.reading(current_revision)
    if revision == HEAD:
        return
    if not database.is_sqlite:
        raise InvalidArgument(
            f"the database is at revision {revision or 'none'!r} and must be at {HEAD!r}; run `promptlooper migrate`"
        )
    database.writing(_upgrade)


def _upgrade(connection: sa.Connection) -> str | None:
    # Imported here: it takes longer than a run, and an up-to-date database needs none of it.
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:n)"), {"n": LOCK})
    before = current_revision(connection)
    if before == HEAD:
        return before
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before
