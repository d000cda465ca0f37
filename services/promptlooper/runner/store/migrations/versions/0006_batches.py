"""Batches at providers, and the questions in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
works_with = "0002"
down_revision = "0005"
branch_labels = None
depends_on = None

NO = sa.text("false")
WAITING = sa.text("state = 'WAITING'")


def upgrade() -> None:
    op.add_column("progress", sa.Column("in_batch", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("progress", sa.Column("batch_keeper", sa.String(63), nullable=True))
    op.add_column("runs", sa.Column("in_batch", sa.Boolean(), server_default=NO, nullable=False))
    op.add_column("stage_results", sa.Column("batched", sa.Boolean(), server_default=NO, nullable=False))
    op.create_table(
        "batch_items",
        sa.Column("experiment_id", sa.String(63), nullable=False),
        sa.Column("run_index", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.String(64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("batch_id", sa.String(63), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("shared", sa.Boolean(), server_default=NO, nullable=False),
        sa.Column("added_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", "run_index"),
    )
    op.create_index(
        "batch_items_waiting",
        "batch_items",
        ["experiment_id", "model", "run_index"],
        sqlite_where=WAITING,
        postgresql_where=WAITING,
    )
    op.create_index("batch_items_of_batch", "batch_items", ["batch_id"])
    op.create_index("batch_items_equal", "batch_items", ["experiment_id", "item_id"])
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.String(63), nullable=False),
        sa.Column("experiment_id", sa.String(63), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("handle", sa.Text(), server_default="", nullable=False),
        sa.Column("stop_reason", sa.String(16), server_default="", nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("deadline_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id"),
    )
    op.create_index("batches_of_experiment", "batches", ["experiment_id"])


def downgrade() -> None:
    op.drop_table("batches")
    op.drop_table("batch_items")
    op.drop_column("stage_results", "batched")
    op.drop_column("runs", "in_batch")
    op.drop_column("progress", "batch_keeper")
    op.drop_column("progress", "in_batch")
