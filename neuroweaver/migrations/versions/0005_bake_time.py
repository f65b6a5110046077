"""The bake time of deployments: its rules, and until when it goes on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("deployments", sa.Column("bake", sa.JSON()))
    op.add_column("deployments", sa.Column("bake_until", sa.String(32)))
