"""Several calls of one stage, and what answers hold besides text."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0005"
works_with = "0002"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = ("experiment_id", "run_index", "stage_index")
PARTS = ("iteration", "round")
LATER = ("tool_calls_json", "tokens_cache_write_in", "logprobs_json", "provider_data", "price_version")


def upgrade() -> None:
    op.add_column("stage_results", sa.Column("tool_calls_json", sa.Text(), nullable=True))
    op.add_column("stage_results", sa.Column("tokens_cache_write_in", sa.BigInteger(), nullable=True))
    op.add_column("stage_results", sa.Column("logprobs_json", sa.Text(), nullable=True))
    for name in ("provider_data", "price_version"):
        op.add_column("stage_results", sa.Column(name, sa.Text(), server_default="", nullable=False))
    for name in PARTS:
        op.add_column("stage_results", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    _set_key(*KEY, *PARTS)


def downgrade() -> None:
    """Of a stage that took several calls, the last one stays."""
    op.execute(
        "DELETE FROM stage_results WHERE EXISTS (SELECT 1 FROM stage_results AS later"
        " WHERE later.experiment_id = stage_results.experiment_id AND later.run_index = stage_results.run_index"
        " AND later.stage_index = stage_results.stage_index AND (later.iteration > stage_results.iteration"
        " OR (later.iteration = stage_results.iteration AND later.round > stage_results.round)))"
    )
    _set_key(*KEY)
    for name in (*PARTS, *LATER):
        op.drop_column("stage_results", name)


def _set_key(*columns: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.drop_constraint("stage_results_pkey", "stage_results", type_="primary")
        op.create_primary_key("stage_results_pkey", "stage_results", list(columns))
        return
    # SQLite can't change a key in place.
    made = op.get_bind().execute(sa.text("SELECT sql FROM sqlite_master WHERE name = 'stage_results'")).scalar_one()
    op.rename_table("stage_results", "stage_results_before")
    op.execute(re.sub(r"PRIMARY KEY \([^)]*\)", f"PRIMARY KEY ({', '.join(columns)})", made))
    op.execute("INSERT INTO stage_results SELECT * FROM stage_results_before")
    op.drop_table("stage_results_before")
