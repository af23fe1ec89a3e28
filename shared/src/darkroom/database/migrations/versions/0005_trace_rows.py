"""Spans of the last hours."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = """
-- One row for each trace and export batch: what one service told of one trace at once.
CREATE TABLE trace_rows (
    row_id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    trace_id         uuid NOT NULL,
    spans            integer NOT NULL,
    payload          bytea NOT NULL,
    received_at      timestamptz NOT NULL DEFAULT now()
);
-- Compressed already: trying again would only cost time.
ALTER TABLE trace_rows ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX trace_rows_trace ON trace_rows (trace_id);
CREATE INDEX trace_rows_age ON trace_rows USING brin (received_at);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("DROP TABLE trace_rows")
