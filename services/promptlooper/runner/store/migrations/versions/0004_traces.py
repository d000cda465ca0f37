"""The trace in which an experiment was created."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
works_with = "0002"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("experiments", sa.Column("traceparent", sa.String(length=55), nullable=True))


def downgrade() -> None:
    op.drop_column("experiments", "traceparent")
