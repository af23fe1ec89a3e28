"""Where a dispatch and an event stand in their trace."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = """
-- W3C trace context of the last dispatch: the next one links to it. Null: it was not traced.
ALTER TABLE originals ADD COLUMN dispatch_traceparent text;

-- W3C trace context of the transition that wrote the event. Null: it was part of no trace.
ALTER TABLE events ADD COLUMN traceparent text;
"""


def upgrade() -> None:
    """Adds columns alone: the release before goes on working on this schema."""
    op.execute(SCHEMA)
