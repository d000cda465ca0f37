"""Control of experiments: time limits, cancelled runs, kept events, what was deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
works_with = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UNCERTAIN = ("uncertain_nanousd", "uncertain_tokens")
PENDING = sa.text("state = 'PENDING'")
CANCELLED = sa.text("cancel_requested AND state = 'RUNNING'")


def upgrade() -> None:
    op.add_column("experiments", sa.Column("spec_sha256", sa.String(length=64), server_default="", nullable=False))
    op.add_column("progress", sa.Column("timeout_us", sa.BigInteger(), nullable=True))
    op.add_column("progress", sa.Column("deadline_us", sa.BigInteger(), nullable=True))
    op.add_column("progress", sa.Column("first_event_seq", sa.BigInteger(), server_default="1", nullable=False))
    for name in UNCERTAIN:
        op.add_column("progress", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("runners", sa.Column("name", sa.String(length=63), server_default="", nullable=False))
    op.add_column("runs", sa.Column("run_deadline_us", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index(
        "runs_cancel_requested",
        "runs",
        ["owner"],
        unique=False,
        sqlite_where=CANCELLED,
        postgresql_where=CANCELLED,
    )
    op.create_index(
        "runs_cheapest",
        "runs",
        ["experiment_id", "reserved_nanousd", "reserved_tokens"],
        unique=False,
        sqlite_where=PENDING,
        postgresql_where=PENDING,
    )
    op.create_table(
        "deleted",
        sa.Column("experiment_id", sa.String(length=63), nullable=False),
        sa.Column("project", sa.String(length=40), nullable=False),
        sa.Column("event_seq", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("deleted_us", sa.BigInteger(), nullable=False),
        sa.Column("detail_json", sa.Text(), nullable=False),
        sa.Column("published", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id"),
    )


def downgrade() -> None:
    op.drop_table("deleted")
    op.drop_index("runs_cheapest", table_name="runs")
    op.drop_index("runs_cancel_requested", table_name="runs")
    op.drop_column("runs", "cancel_requested")
    op.drop_column("runs", "run_deadline_us")
    op.drop_column("runners", "name")
    for name in UNCERTAIN:
        op.drop_column("progress", name)
    op.drop_column("progress", "first_event_seq")
    op.drop_column("progress", "deadline_us")
    op.drop_column("progress", "timeout_us")
    op.drop_column("experiments", "spec_sha256")
