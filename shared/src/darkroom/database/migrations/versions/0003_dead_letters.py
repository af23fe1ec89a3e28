"""Dead letters: what each was, and what became of it."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = """
-- Written before the broker is told that the letter was read. The fingerprint is the letter's own: one that is
-- delivered twice is one row.
CREATE TABLE dead_letters (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint      uuid NOT NULL UNIQUE,
    queue            text,
    task             text,
    task_id          text,
    sha256           text COLLATE "C",
    generation       integer,
    reason           text NOT NULL,
    deaths           integer NOT NULL,
    outcome          text NOT NULL
                     CHECK (outcome IN ('kept', 'dispatched_again', 'failed_image', 'obsolete', 'replayed')),
    cause            text NOT NULL,
    received_at      timestamptz NOT NULL DEFAULT now(),
    replayed_at      timestamptz,
    headers          text,
    content_type     text,
    content_encoding text,
    body             bytea NOT NULL,
    body_bytes       bigint NOT NULL
);
CREATE INDEX dead_letters_by_outcome ON dead_letters (outcome, id DESC);
CREATE INDEX dead_letters_by_age ON dead_letters (received_at);
"""


def upgrade() -> None:
    """Adds a table: the release before goes on working on this schema."""
    op.execute(SCHEMA)
