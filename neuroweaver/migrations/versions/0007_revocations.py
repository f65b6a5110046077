"""Users whose tokens are refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "revocations",
        sa.Column("user", sa.String(255), primary_key=True),
        sa.Column("issued_until", sa.BigInteger()),
        sa.Column("at", sa.String(32), nullable=False),
    )
