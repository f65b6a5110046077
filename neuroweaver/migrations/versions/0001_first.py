"""The tables from before there were migrations; those that a store has already stay as they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_UNFINISHED = sa.text("state IN ('deploying', 'active', 'draining')")


def upgrade() -> None:
    op.create_table(
        "store_numbers",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger(), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("model_type", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text()),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("dataset_ids", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.String(64)),
        sa.Column("model_version", sa.Integer()),
        sa.Column("owner", sa.String(255)),
        sa.Column("ray_submission_id", sa.String(128)),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("progress", sa.JSON()),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("updated_at", sa.String(32), nullable=False),
        sa.Column("started_at", sa.String(32)),
        sa.Column("ended_at", sa.String(32)),
        sa.Column("heartbeat_at", sa.String(32)),
        if_not_exists=True,
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"], if_not_exists=True)
    op.create_table(
        "job_moves",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("before", sa.String(16)),
        sa.Column("after", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_job_moves_job_id", "job_moves", ["job_id"], if_not_exists=True)
    op.create_table(
        "events",
        sa.Column("id", _ID, primary_key=True, autoincrement=False),
        sa.Column("channel", sa.String(255), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("job_id", sa.String(64)),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("timestamp", sa.String(32), nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_events_channel", "events", ["channel", "id"], if_not_exists=True)
    op.create_index("ix_events_job", "events", ["job_id", "id"], if_not_exists=True)
    op.create_table(
        "deployments",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("model_type", sa.String(64), nullable=False),
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("max_concurrency", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("folder", sa.Text()),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("updated_at", sa.String(32), nullable=False),
        sa.Column("active_at", sa.String(32)),
        sa.Column("ended_at", sa.String(32)),
        if_not_exists=True,
    )
    op.create_index("ix_deployments_created_at", "deployments", ["created_at"], if_not_exists=True)
    op.create_index(
        "ix_deployments_once", "deployments", ["model_id", "environment"], unique=True, if_not_exists=True,
        sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED,
    )  # fmt: skip
    op.create_table(
        "audit_entries",
        sa.Column("id", _ID, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("user", sa.String(255), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("action", sa.String(128), nullable=False),
        sa.Column("object", sa.String(255), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        if_not_exists=True,
    )
    _fill_numbers()


def _fill_numbers() -> None:
    numbers = sa.table("store_numbers", sa.column("name", sa.String()), sa.column("value", sa.BigInteger()))
    connection = op.get_bind()
    known = set(connection.scalars(sa.select(numbers.c.name)))
    # Programs from before there were migrations look for schema 1, and would write to tables they do not know.
    if "schema_version" in known:
        connection.execute(numbers.update().where(numbers.c.name == "schema_version").values(value=2))
    rows = (("schema_version", 2), ("last_event", 0), ("pruned_events", 0), ("last_audit_entry", 0))
    if missing := [{"name": name, "value": value} for name, value in rows if name not in known]:
        connection.execute(numbers.insert(), missing)
