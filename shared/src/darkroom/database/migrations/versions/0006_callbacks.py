"""Callbacks: who is told that an image or a batch is done."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE batches ADD COLUMN callback_url text;

-- One row for each request that a receiver gets, written in the transition's own transaction. `id` is its webhook-id,
-- the same at every attempt; `attempts` rises when one begins, and so tells an attempt from a later one.
CREATE TABLE callbacks (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    batch_id         uuid NOT NULL REFERENCES batches (id),
    image_id         uuid,
    type             text NOT NULL,
    url              text NOT NULL,
    host             text COLLATE "C" NOT NULL,
    body             text NOT NULL,
    state            text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts         integer NOT NULL DEFAULT 0,
    next_attempt_at  timestamptz NOT NULL DEFAULT now(),
    lease_until      timestamptz,
    last_attempt_at  timestamptz,
    last_status      integer,
    last_error       text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    finished_at      timestamptz
);
CREATE INDEX callbacks_due ON callbacks (host, next_attempt_at) WHERE state = 'pending';
CREATE INDEX callbacks_under_way ON callbacks (host, lease_until)
    WHERE state = 'pending' AND lease_until IS NOT NULL;
CREATE INDEX callbacks_of_batch ON callbacks (batch_id, created_at);
CREATE INDEX callbacks_finished ON callbacks (finished_at) WHERE state <> 'pending';

-- How the hosts do. A row is locked while one of the host's callbacks is taken; whoever takes one makes it if need be.
CREATE TABLE callback_hosts (
    host             text COLLATE "C" PRIMARY KEY,
    failures         integer NOT NULL DEFAULT 0,
    not_before       timestamptz NOT NULL DEFAULT now()
);
"""


def upgrade() -> None:
    """Forward; there is nothing to go back to."""
    op.execute(SCHEMA)
