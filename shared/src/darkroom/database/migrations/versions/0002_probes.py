"""What fences answered, and what is known of a task besides its name."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = """
-- Null: came back without an answer, from an older worker or from one that could not compute it.
ALTER TABLE fences ADD COLUMN verdict text CHECK (verdict IN ('ok', 'wrong'));
ALTER TABLE fences ADD COLUMN answer text;

-- Null for tasks that were issued before.
ALTER TABLE tasks ADD COLUMN queue text;
-- A message that nobody took until then is dropped; null: never.
ALTER TABLE tasks ADD COLUMN expires_at timestamptz;

-- The rate limit counts those of the last minute, among any number of photos' tasks.
CREATE INDEX tasks_of_probes ON tasks (issued_at) WHERE name = 'darkroom.probe';
"""


def upgrade() -> None:
    """Adds columns alone: the release before goes on working on this schema."""
    op.execute(SCHEMA)
