"""What models were asked, and the number of the last execution."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "executions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("workflow_id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("department", sa.String(16)),
        sa.Column("task", sa.String(64)),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("answer_tokens", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(300)),
    )
    op.create_index("ix_executions_at", "executions", ["at"])
    op.create_index("ix_executions_model", "executions", ["model_id", "at"])
    op.create_index("ix_executions_workflow_id", "executions", ["workflow_id"])
    numbers = sa.table("store_numbers", sa.column("name", sa.String()), sa.column("value", sa.BigInteger()))
    op.get_bind().execute(numbers.insert().values(name="last_execution", value=0))
