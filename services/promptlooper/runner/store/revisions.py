"""The revisions that this version has, and what going back to one would lose.

Imported only where something is to be migrated: alembic takes longer than a run.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from promptlooper.runner.store.database import Database

OURS = ("alembic_version", "compatibility")  # about migrations, and so not made by one


def config_of(connection: sa.Connection) -> Config:
    """For alembic's commands, to work over this connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    return config


def works_with(config: Config) -> dict[str, str]:
    """By revision, from the oldest: the oldest one whose code works with the tables that it leaves."""
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    return {script.revision: script.module.works_with for script in reversed(scripts)}


def tables_at(revision: str) -> dict[str, set[str]]:
    """The columns by table, as a new database has them at that revision."""
    database = Database("sqlite://")
    try:
        return database.writing(partial(_made, revision=revision))
    finally:
        database.close()


def losses(connection: sa.Connection, revision: str) -> list[str]:
    """What is stored in tables and columns that an older revision does not have: a few words each."""
    kept: dict[str, set[str]] = tables_at(revision)
    found: list[tuple[int, str]] = []
    inspector = sa.inspect(connection)
    for name in sorted(inspector.get_table_names()):
        table = sa.table(name)
        if name in OURS:
            continue
        if name not in kept:
            found.append((_count(connection, table), f"of {name}"))
            continue
        for column in inspector.get_columns(name):
            if column["name"] not in kept[name]:
                default = sa.null() if column["default"] is None else sa.literal_column(column["default"])
                is_set = sa.column(column["name"]).is_distinct_from(default)
                found.append((_count(connection, table, is_set), f"with {name}.{column['name']}"))
    return [f"{count} row{'s' if count > 1 else ''} {words}" for count, words in found if count]


def _count(connection: sa.Connection, table: sa.TableClause, *where: sa.ColumnElement[bool]) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one()


def _made(connection: sa.Connection, revision: str) -> dict[str, set[str]]:
    command.upgrade(config_of(connection), revision)
    inspector = sa.inspect(connection)
    return {name: {column["name"] for column in inspector.get_columns(name)} for name in inspector.get_table_names()}
