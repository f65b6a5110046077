"""Deployments that answer nobody."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("deployments", sa.Column("shadow", sa.Boolean(), nullable=False, server_default=sa.false()))
