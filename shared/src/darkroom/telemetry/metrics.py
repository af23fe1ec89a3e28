"""Every metric, declared once: its name with its unit, its labels, its meaning. docs/metrics.md lists them.

A registry for each kind of process, so that none shows metrics that it never sets. Base units; labels only from closed
sets, never an id. Gauges of the gateway that it measures at a scrape all have a label: cleared, they are absent, which
says "unknown" where a number would lie.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # a moment for each series: nearly twice the text, and nobody asks for it

GATEWAY = CollectorRegistry()
WORKER = CollectorRegistry()
BEAT = CollectorRegistry()

_ANSWERS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WORK = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# --- Gateway: what it does itself ---------------------------------------------------------------------------------

UPLOADS = Counter(
    "darkroom_uploads_total", "Images accepted, also those whose bytes were known.", ["lane"], registry=GATEWAY
)
UPLOAD_BYTES = Counter("darkroom_upload_bytes_total", "Bytes of accepted files.", ["lane"], registry=GATEWAY)
UPLOADS_REFUSED = Counter(
    "darkroom_uploads_refused_total",
    "Upload requests that were refused, by problem slug.",
    ["problem"],
    registry=GATEWAY,
)
HTTP_REQUESTS = Counter(
    "darkroom_http_requests_total",
    "Requests over HTTP by route template; status `none` where the client had gone.",
    ["method", "route", "status"],
    registry=GATEWAY,
)
HTTP_DURATION = Histogram(
    "darkroom_http_request_duration_seconds",
    "From a request until its answer began; a stream of events goes on after it.",
    ["method", "route"],
    buckets=_ANSWERS,
    registry=GATEWAY,
)
GRPC_CALLS = Counter("darkroom_grpc_calls_total", "gRPC calls by status code.", ["method", "code"], registry=GATEWAY)
GRPC_DURATION = Histogram(
    "darkroom_grpc_call_duration_seconds",
    "From a gRPC call until its end; a watch lasts as long as its client stays.",
    ["method"],
    buckets=_ANSWERS,
    registry=GATEWAY,
)
EVENTS_PUBLISHED = Counter(
    "darkroom_events_published_total", "Events that the broker confirmed, by type.", ["type"], registry=GATEWAY
)
TRACE_SPANS = Counter(
    "darkroom_trace_spans_total",
    "Spans that this gateway keeps: received, of them stored and dropped; rejected ones had no ids.",
    ["outcome"],
    registry=GATEWAY,
)

# --- Gateway: the whole system, measured at a scrape ---------------------------------------------------------------

PART_UP = Gauge(
    "darkroom_part_up", "1 where `database`, `broker` or `redis` answered this gateway.", ["part"], registry=GATEWAY
)
LEDGER = Gauge(
    "darkroom_ledger_images",
    "Images in the ledger: accepted = ready + failed + deleted + in_flight.",
    ["state"],
    registry=GATEWAY,
)
DISPATCH_BACKLOG = Gauge(
    "darkroom_dispatch_backlog", "Photos and backfills that wait to be dispatched.", ["kind"], registry=GATEWAY
)
DISPATCH_WAIT = Gauge(
    "darkroom_dispatch_oldest_wait_seconds",
    "How long the oldest of them has waited since its upload.",
    ["kind"],
    registry=GATEWAY,
)
QUEUE_MESSAGES = Gauge("darkroom_queue_messages", "Messages ready in a queue.", ["queue"], registry=GATEWAY)
QUEUE_AGE = Gauge(
    "darkroom_queue_oldest_age_seconds", "How long the oldest message has waited.", ["queue"], registry=GATEWAY
)
QUEUE_IN_HAND = Gauge("darkroom_queue_in_hand", "Messages that workers hold.", ["queue"], registry=GATEWAY)
QUEUE_CONSUMERS = Gauge("darkroom_queue_consumers", "Workers that take from a queue.", ["queue"], registry=GATEWAY)
QUEUE_PROBE = Gauge(
    "darkroom_queue_probe",
    "1 for the state of a queue's probe: ok, late, wrong or unknown.",
    ["queue", "state"],
    registry=GATEWAY,
)
DEAD_LETTERS = Gauge(
    "darkroom_dead_letters",
    "Dead letters `queued` at the broker, and `kept` for a person.",
    ["state"],
    registry=GATEWAY,
)
JOB_STARTED = Gauge(
    "darkroom_job_started_timestamp_seconds", "When a periodic job last began.", ["periodic_job"], registry=GATEWAY
)
JOB_SUCCEEDED = Gauge(
    "darkroom_job_succeeded_timestamp_seconds", "When it last ended well.", ["periodic_job"], registry=GATEWAY
)
JOB_ALARM = Gauge("darkroom_job_alarm", "1 while its last run left an alarm.", ["periodic_job"], registry=GATEWAY)

# --- Workers ------------------------------------------------------------------------------------------------------

TASK_DURATION = Histogram(
    "darkroom_task_duration_seconds",
    "One try of a task, from when it began until its end was recorded; a batched one from when its batch began. "
    "Outcomes: success, failure, retry, timeout (its process was killed), lost (its process died), rejected, ignored, "
    "revoked.",
    ["task", "outcome"],
    buckets=_WORK,
    registry=WORKER,
)
TASK_FAILURES = Counter(
    "darkroom_task_failures_total",
    "Failures for good, by problem slug; without one: `time-limit`, `transient` (all retries used up), `unforeseen`.",
    ["task", "problem"],
    registry=WORKER,
)
QUEUE_WAIT = Histogram(
    "darkroom_queue_wait_seconds",
    "From being published, or from its countdown's end, until a worker began; what a batch waited for is in it.",
    ["queue"],
    buckets=_WAITS,
    registry=WORKER,
)
REDELIVERIES = Counter(
    "darkroom_task_redeliveries_total",
    "Tries of messages that had been delivered before and were not acknowledged.",
    ["queue"],
    registry=WORKER,
)
TASKS_RUNNING = Gauge("darkroom_worker_tasks_running", "Tasks that run now.", registry=WORKER)
WORKER_CONNECTED = Gauge(
    "darkroom_worker_connected", "1 while the worker is connected to the broker and consumes.", registry=WORKER
)
CHILDREN_STARTED = Counter(
    "darkroom_worker_children_started_total",
    "Child processes of a prefork worker: those beyond its slots took the place of recycled or dead ones.",
    registry=WORKER,
)
BATCH_SIZE = Histogram(
    "darkroom_batch_size", "Requests that the embedder computed together.", ["kind"], buckets=_SIZES, registry=WORKER
)
BATCH_DURATION = Histogram(
    "darkroom_batch_duration_seconds",
    "One batch: reading and decoding, the model, writing.",
    ["kind"],
    buckets=_WORK,
    registry=WORKER,
)

# --- Beat ---------------------------------------------------------------------------------------------------------

BEAT_LEADING = Gauge("darkroom_beat_leading", "1 while this beat leads; of several one does.", registry=BEAT)
BEAT_TICK = Gauge("darkroom_beat_tick_timestamp_seconds", "When beat last looked what is due.", registry=BEAT)
JOBS_SENT = Counter(
    "darkroom_beat_jobs_sent_total", "Periodic jobs sent to the queue.", ["periodic_job"], registry=BEAT
)
