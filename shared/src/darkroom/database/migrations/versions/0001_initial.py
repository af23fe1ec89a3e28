"""The first schema."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;

-- One row for each distinct photo. It owns the blobs, the work and the dispatch stamp:
-- status in (accepted, processing) and dispatched_at null is the outbox.
CREATE TABLE originals (
    sha256           text COLLATE "C" PRIMARY KEY,
    bytes            bigint NOT NULL,
    lane             text NOT NULL CHECK (lane IN ('interactive', 'bulk')),
    status           text NOT NULL DEFAULT 'accepted'
                     CHECK (status IN ('accepted', 'processing', 'ready', 'failed', 'sweeping')),
    generation       integer NOT NULL DEFAULT 0,
    attempts         integer NOT NULL DEFAULT 0,
    losses           integer NOT NULL DEFAULT 0,
    dispatched_at    timestamptz,
    lease_until      timestamptz,
    not_before       timestamptz NOT NULL DEFAULT now(),
    traceparent      text,
    tracestate       text,
    recipe           text,
    format           text,
    width            integer,
    height           integer,
    taken_at         text,
    thumbhash        text,
    palette          jsonb,
    perceptual_hash  bigint,
    thumbnails       jsonb,
    error            jsonb,
    created_at       timestamptz NOT NULL DEFAULT now(),
    ready_at         timestamptz,
    unreferenced_at  timestamptz
);
CREATE INDEX originals_outbox ON originals (lane DESC, created_at)
    WHERE dispatched_at IS NULL AND status IN ('accepted', 'processing');
CREATE INDEX originals_in_flight ON originals (dispatched_at)
    WHERE status IN ('accepted', 'processing');
CREATE INDEX originals_unreferenced ON originals (unreferenced_at) WHERE unreferenced_at IS NOT NULL;

CREATE TABLE batches (
    id               uuid PRIMARY KEY,
    total            integer NOT NULL,
    ready            integer NOT NULL DEFAULT 0,
    failed           integer NOT NULL DEFAULT 0,
    deleted          integer NOT NULL DEFAULT 0,
    pending          integer NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    completed_at     timestamptz,
    CONSTRAINT batches_add_up CHECK (total = ready + failed + deleted + pending)
);

-- One row for each upload, kept as a tombstone after a delete.
CREATE TABLE images (
    id               uuid PRIMARY KEY,
    sha256           text COLLATE "C" NOT NULL,
    batch_id         uuid NOT NULL REFERENCES batches (id),
    state            text NOT NULL CHECK (state IN ('in_flight', 'ready', 'failed', 'deleted')),
    lane             text NOT NULL CHECK (lane IN ('interactive', 'bulk')),
    filename         text,
    tags             text[] NOT NULL DEFAULT '{}',
    external_id      text,
    duplicate        boolean NOT NULL,
    trace_id         text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    ready_at         timestamptz,
    deleted_at       timestamptz
);
CREATE INDEX images_of_original ON images (sha256);
CREATE INDEX images_of_batch ON images (batch_id);
CREATE INDEX images_newest ON images (id DESC) WHERE state <> 'deleted';
CREATE INDEX images_by_state ON images (state, id DESC) WHERE state <> 'deleted';
CREATE INDEX images_by_tag ON images USING gin (tags) WHERE state <> 'deleted';

-- Counters in shards, so that uploads on several connections do not wait for one row. `accepted` is counted by the
-- accept transaction, the states by the trigger below: neither is derived from the other, so a difference means loss.
CREATE TABLE ledger (
    shard            integer PRIMARY KEY,
    accepted         bigint NOT NULL DEFAULT 0,
    ready            bigint NOT NULL DEFAULT 0,
    failed           bigint NOT NULL DEFAULT 0,
    deleted          bigint NOT NULL DEFAULT 0,
    in_flight        bigint NOT NULL DEFAULT 0
);
INSERT INTO ledger (shard) SELECT generate_series(0, 15);

CREATE FUNCTION count_image_states() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moved record;
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT count(*) FILTER (WHERE state = 'ready') AS ready, count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'deleted') AS deleted,
               count(*) FILTER (WHERE state = 'in_flight') AS in_flight
        INTO moved FROM after_rows;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT -count(*) FILTER (WHERE state = 'ready') AS ready, -count(*) FILTER (WHERE state = 'failed') AS failed,
               -count(*) FILTER (WHERE state = 'deleted') AS deleted,
               -count(*) FILTER (WHERE state = 'in_flight') AS in_flight
        INTO moved FROM before_rows;
    ELSE
        SELECT sum((a.state = 'ready')::int - (b.state = 'ready')::int) AS ready,
               sum((a.state = 'failed')::int - (b.state = 'failed')::int) AS failed,
               sum((a.state = 'deleted')::int - (b.state = 'deleted')::int) AS deleted,
               sum((a.state = 'in_flight')::int - (b.state = 'in_flight')::int) AS in_flight
        INTO moved FROM after_rows a JOIN before_rows b USING (id) WHERE a.state <> b.state;
    END IF;
    IF moved.ready <> 0 OR moved.failed <> 0 OR moved.deleted <> 0 OR moved.in_flight <> 0 THEN
        UPDATE ledger SET ready = ledger.ready + moved.ready, failed = ledger.failed + moved.failed,
                          deleted = ledger.deleted + moved.deleted, in_flight = ledger.in_flight + moved.in_flight
        WHERE shard = pg_backend_pid() % 16;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER images_inserted AFTER INSERT ON images
    REFERENCING NEW TABLE AS after_rows FOR EACH STATEMENT EXECUTE FUNCTION count_image_states();
CREATE TRIGGER images_updated AFTER UPDATE ON images
    REFERENCING NEW TABLE AS after_rows OLD TABLE AS before_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_image_states();
CREATE TRIGGER images_removed AFTER DELETE ON images
    REFERENCING OLD TABLE AS before_rows FOR EACH STATEMENT EXECUTE FUNCTION count_image_states();

CREATE TABLE idempotency_keys (
    key              text PRIMARY KEY,
    fingerprint      text NOT NULL,
    batch_id         uuid NOT NULL REFERENCES batches (id),
    created_at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Written in the transition's own transaction. `id` is given by the one relay, in the order of publication.
CREATE TABLE events (
    row_id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id               bigint UNIQUE,
    type             text NOT NULL,
    occurred_at      timestamptz NOT NULL DEFAULT now(),
    batch_id         uuid NOT NULL,
    image_id         uuid,
    sha256           text COLLATE "C",
    problem          jsonb,
    trace_id         text,
    published_at     timestamptz
);
CREATE SEQUENCE event_ids OWNED BY events.id;
CREATE INDEX events_unnumbered ON events (row_id) WHERE id IS NULL;
CREATE INDEX events_unpublished ON events (id) WHERE id IS NOT NULL AND published_at IS NULL;
CREATE INDEX events_of_image ON events (image_id, id);
CREATE INDEX events_by_age ON events (occurred_at);

-- Every task id that was ever handed to a broker, so that an unknown one can be told from a forgotten one.
CREATE TABLE tasks (
    id               uuid PRIMARY KEY,
    name             text NOT NULL,
    sha256           text COLLATE "C",
    issued_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tasks_by_age ON tasks (issued_at);

CREATE TABLE models (
    id               text PRIMARY KEY,
    source           text NOT NULL,
    dim              integer NOT NULL,
    state            text NOT NULL CHECK (state IN ('filling', 'active', 'retired')),
    registered_at    timestamptz NOT NULL DEFAULT now(),
    seen_at          timestamptz NOT NULL DEFAULT now(),
    activated_at     timestamptz
);
CREATE UNIQUE INDEX models_one_active ON models ((true)) WHERE state = 'active';

-- One HNSW index for each model is made when the model registers: its length is only known then.
CREATE TABLE embeddings (
    model_id         text NOT NULL REFERENCES models (id),
    sha256           text COLLATE "C" NOT NULL REFERENCES originals (sha256) ON DELETE CASCADE,
    vector           halfvec NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_id, sha256)
);
CREATE INDEX embeddings_of_original ON embeddings (sha256);

-- Finished originals that lack a vector of a new model, leased and stamped like originals.
CREATE TABLE backfills (
    model_id         text NOT NULL REFERENCES models (id),
    sha256           text COLLATE "C" NOT NULL REFERENCES originals (sha256) ON DELETE CASCADE,
    generation       integer NOT NULL DEFAULT 0,
    dispatched_at    timestamptz,
    lease_until      timestamptz,
    PRIMARY KEY (model_id, sha256)
);

CREATE TABLE fences (
    number           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue            text NOT NULL,
    sent_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    returned_at      timestamptz
);
CREATE INDEX fences_of_queue ON fences (queue, number DESC);

CREATE TABLE periodic_jobs (
    name             text PRIMARY KEY,
    scheduled_at     timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    succeeded_at     timestamptz,
    summary          text,
    alarm            text
);

CREATE TABLE usage_reports (
    period_start     timestamptz PRIMARY KEY,
    period_end       timestamptz NOT NULL,
    report           jsonb NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE backups (
    key              text PRIMARY KEY,
    bytes            bigint NOT NULL,
    sha256           text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now()
);
"""


def upgrade() -> None:
    """Forward; there is nothing to go back to."""
    op.execute(SCHEMA)
