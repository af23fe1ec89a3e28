"""The tables as SQLAlchemy sees them. The migrations are the authority; a test compares the two."""

import sqlalchemy as sa
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from darkroom.telemetry import tracing

metadata = sa.MetaData()


def _moment(name: str, *, required: bool = False) -> sa.Column:  # type: ignore[type-arg]
    """A timestamp; a required one is now unless given."""
    default = sa.func.now() if required else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=not required, server_default=default)


def _hash(name: str = "sha256", **options: object) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.Text(collation="C"), **options)  # type: ignore[arg-type]


def _json(name: str) -> sa.Column:  # type: ignore[type-arg]
    """An optional document. None is SQL's NULL, not JSON's null, which `IS NULL` does not find."""
    return sa.Column(name, JSONB(none_as_null=True))


originals = sa.Table(
    "originals",
    metadata,
    _hash(primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="accepted"),
    sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
    _moment("dispatched_at"),
    _moment("lease_until"),
    _moment("not_before", required=True),
    sa.Column("traceparent", sa.Text),
    sa.Column("tracestate", sa.Text),
    sa.Column("dispatch_traceparent", sa.Text),
    sa.Column("recipe", sa.Text),
    sa.Column("format", sa.Text),
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("taken_at", sa.Text),
    sa.Column("thumbhash", sa.Text),
    _json("palette"),
    sa.Column("perceptual_hash", sa.BigInteger),
    _json("thumbnails"),
    _json("error"),
    _moment("created_at", required=True),
    _moment("ready_at"),
    _moment("unreferenced_at"),
    _moment("checked_at"),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("ready", sa.Integer, nullable=False, server_default="0"),
    sa.Column("failed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("deleted", sa.Integer, nullable=False, server_default="0"),
    sa.Column("pending", sa.Integer, nullable=False),
    _moment("created_at", required=True),
    _moment("completed_at"),
    sa.Column("callback_url", sa.Text),
)

images = sa.Table(
    "images",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    _hash(nullable=False),
    sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batches.id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("filename", sa.Text),
    sa.Column("tags", ARRAY(sa.Text), nullable=False, server_default="{}"),
    sa.Column("external_id", sa.Text),
    sa.Column("duplicate", sa.Boolean, nullable=False),
    sa.Column("trace_id", sa.Text),
    _moment("created_at", required=True),
    _moment("ready_at"),
    _moment("deleted_at"),
)

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        for name in ("accepted", "ready", "failed", "deleted", "in_flight")
    ),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batches.id"), nullable=False),
    _moment("created_at", required=True),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("row_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("id", sa.BigInteger, unique=True),
    sa.Column("type", sa.Text, nullable=False),
    _moment("occurred_at", required=True),
    sa.Column("batch_id", sa.Uuid, nullable=False),
    sa.Column("image_id", sa.Uuid),
    _hash(),
    _json("problem"),
    sa.Column("trace_id", sa.Text),
    # Of the transition that wrote the row: what is published is a child of it.
    sa.Column("traceparent", sa.Text, default=tracing.traceparent),
    _moment("published_at"),
)

callbacks = sa.Table(
    "callbacks",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.func.gen_random_uuid()),
    sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batches.id"), nullable=False),
    sa.Column("image_id", sa.Uuid),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    _hash("host", nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    _moment("next_attempt_at", required=True),
    _moment("lease_until"),
    _moment("last_attempt_at"),
    sa.Column("last_status", sa.Integer),
    sa.Column("last_error", sa.Text),
    _moment("created_at", required=True),
    _moment("finished_at"),
)

callback_hosts = sa.Table(
    "callback_hosts",
    metadata,
    _hash("host", primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
    _moment("not_before", required=True),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("queue", sa.Text),
    _hash(),
    _moment("issued_at", required=True),
    _moment("expires_at"),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    _moment("registered_at", required=True),
    _moment("seen_at", required=True),
    _moment("activated_at"),
)

embeddings = sa.Table(
    "embeddings",
    metadata,
    sa.Column("model_id", sa.Text, sa.ForeignKey("models.id"), primary_key=True),
    _hash(primary_key=True),
    sa.Column("vector", HALFVEC, nullable=False),
    _moment("created_at", required=True),
    sa.ForeignKeyConstraint(["sha256"], ["originals.sha256"], ondelete="CASCADE"),
)

backfills = sa.Table(
    "backfills",
    metadata,
    sa.Column("model_id", sa.Text, sa.ForeignKey("models.id"), primary_key=True),
    _hash(primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
    _moment("dispatched_at"),
    _moment("lease_until"),
    sa.ForeignKeyConstraint(["sha256"], ["originals.sha256"], ondelete="CASCADE"),
)

fences = sa.Table(
    "fences",
    metadata,
    sa.Column("number", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    _moment("sent_at", required=True),
    _moment("returned_at"),
    sa.Column("verdict", sa.Text),
    sa.Column("answer", sa.Text),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("fingerprint", sa.Uuid, nullable=False, unique=True),
    sa.Column("queue", sa.Text),
    sa.Column("task", sa.Text),
    sa.Column("task_id", sa.Text),
    _hash(),
    sa.Column("generation", sa.Integer),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("deaths", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    _moment("received_at", required=True),
    _moment("replayed_at"),
    sa.Column("headers", sa.Text),
    sa.Column("content_type", sa.Text),
    sa.Column("content_encoding", sa.Text),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("body_bytes", sa.BigInteger, nullable=False),
)

periodic_jobs = sa.Table(
    "periodic_jobs",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    _moment("scheduled_at"),
    _moment("started_at"),
    _moment("finished_at"),
    _moment("succeeded_at"),
    sa.Column("summary", sa.Text),
    sa.Column("alarm", sa.Text),
)

usage_reports = sa.Table(
    "usage_reports",
    metadata,
    _moment("period_start", required=True),
    _moment("period_end", required=True),
    sa.Column("report", JSONB, nullable=False),
    _moment("created_at", required=True),
    sa.PrimaryKeyConstraint("period_start"),
)

backups = sa.Table(
    "backups",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    _moment("created_at", required=True),
)

trace_rows = sa.Table(
    "trace_rows",
    metadata,
    sa.Column("row_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("trace_id", sa.Uuid, nullable=False),
    sa.Column("spans", sa.Integer, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    _moment("received_at", required=True),
)
