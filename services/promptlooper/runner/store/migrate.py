"""Brings a database to a revision of its tables. SQLite files migrate themselves when opened; PostgreSQL is migrated by
`promptlooper migrate`, so that replicas never race.

Revisions are numbered: a later one is a greater text. Each says which is the oldest whose code works with the tables
that it leaves (`works_with`), and the database remembers that: an older Runner reads it there.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from promptlooper.errors import InvalidArgument
from promptlooper.runner.store.database import Database

log = logging.getLogger("runner.store")
HEAD = "0006"  # the revision that this code is written for
LOCK = 0x70726C6F  # any number that only migrations take
# As alembic's own table: about migrations, and so not made by one.
compatibility = sa.Table("compatibility", sa.MetaData(), sa.Column("works_with", sa.String(32), nullable=False))


def current_revision(connection: sa.Connection) -> str | None:
    """None for a database without our tables."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def upgrade(database_url: str, password_file: Path | None = None) -> tuple[str | None, str]:
    """Migrates to the newest revision and returns (from, to). Concurrent calls wait for each other. What newer code has
    migrated stays as it is, where this code works with it."""
    return _migrated(database_url, HEAD, password_file)


def move(
    database_url: str, to: str, password_file: Path | None = None, *, discard: bool = False
) -> tuple[str | None, str]:
    """Migrates to any revision, newer or older, and returns (from, to). Raises InvalidArgument where going back would
    lose what is stored, unless that is to be discarded."""
    return _migrated(database_url, to, password_file, back=True, discard=discard)


def prepare(database: Database) -> None:
    """Migrates SQLite; raises InvalidArgument where another database is not up to date, or one is too new."""
    revision = database.reading(current_revision)
    if revision == HEAD:
        return
    if (revision or "") > HEAD:
        database.reading(_check_newer)
        log.info("the database is at revision %s; this version is written for %s and works with it", revision, HEAD)
    elif database.is_sqlite:
        database.writing(partial(_migrate, to=HEAD))
    else:
        raise InvalidArgument(
            f"the database is at revision {revision or 'none'!r} and must be at {HEAD!r}; run `promptlooper migrate`"
        )


def _check_newer(connection: sa.Connection) -> None:
    """Raises InvalidArgument where the newer code that migrated the database does not say that ours works with it."""
    said = sa.inspect(connection).has_table(compatibility.name)
    oldest = connection.execute(sa.select(compatibility.c.works_with)).scalar() if said else None
    if oldest is None or oldest > HEAD:
        raise InvalidArgument(
            f"the database is at revision {current_revision(connection)!r}, which is too new for this version, written"
            f" for {HEAD!r}: use the version that migrated it, or go back with that: `promptlooper migrate --to {HEAD}`"
        )


def _migrated(
    database_url: str, to: str, password_file: Path | None, *, back: bool = False, discard: bool = False
) -> tuple[str | None, str]:
    database = Database(database_url, password_file=password_file)
    try:
        return database.writing(partial(_migrate, to=to, back=back, discard=discard))
    finally:
        database.close()


def _migrate(connection: sa.Connection, to: str, back: bool = False, discard: bool = False) -> tuple[str | None, str]:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:n)"), {"n": LOCK})
    before = current_revision(connection)
    if before is not None and (before == to or (before > HEAD and not back)):
        if before > HEAD:
            _check_newer(connection)
        return before, before
    from alembic import command

    from promptlooper.runner.store.revisions import config_of, losses, works_with

    config = config_of(connection)
    known = works_with(config)
    if to not in known or (before or HEAD) not in known:
        raise InvalidArgument(
            f"can't migrate from revision {before or 'none'!r} to {to!r}: this version knows {', '.join(known)};"
            " use the version that knows both"
        )
    if (before or "") < to:
        command.upgrade(config, to)
    else:
        if not discard and (lost := losses(connection, to)):
            raise InvalidArgument(
                f"going back to revision {to!r} would lose what it has no place for: {', '.join(lost)};"
                " export what you need, and repeat it with --discard-data"
            )
        command.downgrade(config, to)
    compatibility.create(connection, checkfirst=True)
    connection.execute(sa.delete(compatibility))
    connection.execute(sa.insert(compatibility), {"works_with": known[to]})
    return before, to
