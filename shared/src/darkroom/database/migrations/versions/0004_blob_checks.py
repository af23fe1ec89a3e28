"""When the blobs of a finished original were last seen in the store."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = """
-- Null: finished by the last release, which does not say; such ones are checked first.
ALTER TABLE originals ADD COLUMN checked_at timestamptz;
CREATE INDEX originals_by_check ON originals (checked_at NULLS FIRST) WHERE status = 'ready';
"""


def upgrade() -> None:
    """Forward; there is nothing to go back to."""
    op.execute(SCHEMA)
