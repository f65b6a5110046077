"""The tables of the store. A change here needs a migration (`CONTRIBUTING.md` says how); a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

# Names of rows of NUMBERS.
LAST_EVENT, PRUNED_EVENTS, LAST_AUDIT_ENTRY = "last_event", "pruned_events", "last_audit_entry"
LAST_EXECUTION = "last_execution"
MAX_OBJECT = 255  # characters of what an audit entry is about
MAX_ERROR = 300  # characters of why an execution has failed

METADATA = MetaData()
_ID = BigInteger().with_variant(Integer, "sqlite")

NUMBERS = Table(
    "store_numbers",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("model_type", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("error_message", Text),
    Column("config", JSON, nullable=False),
    Column("dataset_ids", JSON, nullable=False),
    Column("run_id", String(64)),
    Column("model_version", Integer),
    Column("owner", String(255)),
    Column("ray_submission_id", String(128)),
    Column("attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress", JSON(none_as_null=True)),
    Column("created_at", String(32), nullable=False, index=True),
    Column("updated_at", String(32), nullable=False),
    Column("started_at", String(32)),
    Column("ended_at", String(32)),
    Column("heartbeat_at", String(32)),
)
JOB_MOVES = Table(
    "job_moves",
    METADATA,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False, index=True),
    Column("before", String(16)),
    Column("after", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", String(32), nullable=False),
)
EVENTS = Table(
    "events",
    METADATA,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("channel", String(255), nullable=False),
    Column("type", String(64), nullable=False),
    Column("model_id", String(255), nullable=False),
    Column("job_id", String(64)),
    Column("data", JSON, nullable=False),
    Column("timestamp", String(32), nullable=False),
    Index("ix_events_channel", "channel", "id"),
    Index("ix_events_job", "job_id", "id"),
)
_UNFINISHED = text("state IN ('deploying', 'active', 'draining')")
DEPLOYMENTS = Table(
    "deployments",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("model_id", String(255), nullable=False),
    Column("model_type", String(64), nullable=False),
    Column("environment", String(16), nullable=False),
    Column("weight", Float, nullable=False),
    Column("max_concurrency", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("folder", Text),
    Column("facts", JSON, nullable=False),
    Column("created_at", String(32), nullable=False, index=True),
    Column("updated_at", String(32), nullable=False),
    Column("active_at", String(32)),
    Column("ended_at", String(32)),
    Column("bake", JSON(none_as_null=True)),
    Column("bake_until", String(32)),
    Column("shadow", Boolean, nullable=False),
    Index(
        "ix_deployments_once", "model_id", "environment", unique=True,
        sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED,
    ),
)  # fmt: skip
AUDIT = Table(
    "audit_entries",
    METADATA,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("user", String(255), nullable=False),
    Column("role", String(16), nullable=False),
    Column("action", String(128), nullable=False),
    Column("object", String(MAX_OBJECT), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
EXECUTIONS = Table(
    "executions",
    METADATA,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False, index=True),
    Column("request_id", String(64), nullable=False),
    Column("workflow_id", String(64), nullable=False, index=True),
    Column("status", String(16), nullable=False),
    Column("model_id", String(255), nullable=False),
    Column("department", String(16)),
    Column("task", String(64)),
    Column("seconds", Float, nullable=False),
    Column("cost_usd", Float, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("answer_tokens", Integer, nullable=False),
    Column("error", String(MAX_ERROR)),
    Index("ix_executions_model", "model_id", "at"),
)
OVERRIDES = Table(
    "routing_overrides",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("user", String(255), nullable=False),
    Column("duration", String(16), nullable=False),
    Column("scope", String(64), nullable=False),
    Column("workflow_id", String(255)),
    Column("model_type", String(64), nullable=False),
    Column("model_id", String(255), nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", String(32), nullable=False, index=True),
    Column("ends_at", String(32)),
    Column("ended_at", String(32)),
    Index(
        "ix_routing_overrides_once", "user", "duration", "scope", "model_type", unique=True,
        sqlite_where=text("ended_at IS NULL"), postgresql_where=text("ended_at IS NULL"),
    ),
)  # fmt: skip
REVOCATIONS = Table(
    "revocations",
    METADATA,
    Column("user", String(255), primary_key=True),
    Column("issued_until", BigInteger),
    Column("at", String(32), nullable=False),
)
IDEMPOTENCY_KEYS = Table(
    "idempotency_keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("answer", JSON(none_as_null=True)),
    Column("created_at", String(32), nullable=False, index=True),
)
SERVICES = Table(
    "services",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("started_at", String(32), nullable=False),
    Column("seen_at", String(32), nullable=False),
    Column("beat", Integer, nullable=False),
    Column("reckons_with", JSON, nullable=False),
)
