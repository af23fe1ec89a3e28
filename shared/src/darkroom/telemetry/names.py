"""Every span, span attribute and message header, named once, with unit and meaning.

Messaging follows OpenTelemetry's conventions: a span is called `{operation} {destination}`. The destination of a task
is its queue, on both brokers and on both sides; that of an event is its type. docs/tracing.md draws how spans nest.
"""

# --- Spans between processes --------------------------------------------------------------------------------------

PUBLISH = "publish"
"""`publish {queue}`, PRODUCER: from handing a message to the client until the broker has confirmed it."""

WAIT = "wait"
"""`wait {queue}`: in a queue, from being published, or from its time having come, until a worker began."""

DELAY = "delay"
"""`delay {queue}`: held back on purpose before it counts as waiting, as before a retry."""

PROCESS = "process"
"""`process {queue}`, CONSUMER: one delivery, until its result is stored and what follows it is published."""

WAIT_DISPATCH = "wait dispatch"
"""From the transaction that wrote the row, or from when it was due again, until a dispatcher began to lease it."""

DISPATCH = "dispatch"
"""Sending one original through the workflow: lease, publish, stamp. From the second on it links to the one before."""

# --- Spans inside a process ---------------------------------------------------------------------------------------

RECEIVE_UPLOAD = "receive upload"
"""Reading a request's files, hashing and syncing them."""

COMMIT_UPLOAD = "commit upload"
"""Naming the blobs and inserting the rows of an upload."""

TRANSACTION = "transaction"
"""One database transaction, CLIENT: from its first statement until the connection is free again."""

BLOB_GET = "get blob"
"""Reading one blob, CLIENT."""

BLOB_PUT = "put blob"
"""Writing one blob durably, CLIENT."""

DECODE = "decode"
"""From the original's bytes to upright sRGB pixels."""

ENCODE = "encode"
"""`encode {large|proxy|medium|small}`: resizing and encoding one rendition."""

DESCRIBE = "describe"
"""Palette, ThumbHash and perceptual hash."""

WAIT_BATCH = "wait batch"
"""From being received by the embedder until its batch began: company, or the batch before."""

WAIT_TURN = "wait turn"
"""From the end of its batch until the embedder's loop, which takes one at a time, stores its result."""

COMPUTE_BATCH = "compute batch"
"""A member's time in its batch. It links to the batch, in whose trace the shared work is."""

BATCH = "batch"
"""One batch of the embedder, a trace of its own. It links to every member's process span."""

PREPROCESS = "preprocess"
"""From one proxy to the model's pixels."""

FORWARD = "forward"
"""One pass through the model. In a member's trace it has the times of the batch's, and is_shared set."""

WAITS = (WAIT, DELAY)
"""The first words of spans in which nothing is done for the photo."""


def is_wait(span_name: str) -> bool:
    """Whether a span of this name is time spent waiting, not working."""
    return span_name.partition(" ")[0] in WAITS


# --- Attributes: OpenTelemetry's own ------------------------------------------------------------------------------

MESSAGING_SYSTEM = "messaging.system"
"""`rabbitmq` or `redis`."""
MESSAGING_OPERATION_NAME = "messaging.operation.name"
"""`publish` or `process`."""
MESSAGING_OPERATION_TYPE = "messaging.operation.type"
"""`send` or `process`."""
MESSAGING_DESTINATION = "messaging.destination.name"
"""The queue of a task, the type of an event."""
MESSAGING_ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
"""As sent to the exchange; a delayed message has its delay in front."""
MESSAGING_MESSAGE_ID = "messaging.message.id"
"""The task's id, the same in each of its tries; an event's number."""
MESSAGING_BATCH_COUNT = "messaging.batch.message_count"
"""Members of a batch."""
DB_SYSTEM = "db.system.name"
"""`postgresql`."""
ERROR_TYPE = "error.type"
"""The slug of a problem, or else the exception's class."""
RPC_SYSTEM = "rpc.system.name"
"""`grpc`."""
RPC_METHOD = "rpc.method"
"""`package.Service/Method`."""
RPC_STATUS = "rpc.response.status_code"
"""The gRPC status code by name."""

# --- Attributes: ours ---------------------------------------------------------------------------------------------

IMAGE_SHA256 = "darkroom.image.sha256"
"""The original that a span works for: picks one photo out of the trace of an upload of several."""
IMAGE_ID = "darkroom.image.id"
"""The image that an event is about."""
GENERATION = "darkroom.generation"
"""Which dispatch of the original, from 1."""
LANE = "darkroom.lane"
"""`interactive` or `bulk`."""
TASK_NAME = "darkroom.task.name"
"""The task's name in its contract."""
TASK_STATE = "darkroom.task.state"
"""How a delivery ended, in Celery's words: SUCCESS, RETRY, FAILURE, REJECTED, IGNORED."""
RETRY_NUMBER = "darkroom.retry.number"
"""Which retry a message is, from 1; missing on the first try."""
RETRY_DELAY = "darkroom.retry.delay_s"
"""Seconds until the next try, on the one that asked for it."""
IS_REDELIVERED = "darkroom.delivery.is_redelivered"
"""True when the broker delivers the message again, because whoever had it before did not acknowledge it."""
DELIVERY_COUNT = "darkroom.delivery.count"
"""Earlier deliveries, as a quorum queue counts them."""
IS_ABANDONED = "darkroom.delivery.is_abandoned"
"""True when a worker held the message, and then gave it back or dropped it unprocessed."""
BATCH_SIZE = "darkroom.batch.size"
"""Requests that were computed together."""
IS_SHARED = "darkroom.is_shared"
"""True for a span that shows work done for several at once: summing such spans counts it several times."""
BLOB_KEY = "darkroom.blob.key"
"""Which blob."""
BLOB_BYTES = "darkroom.blob.bytes"
"""Its size in bytes."""
BLOB_IS_MISSING = "darkroom.blob.is_missing"
"""True when there was none under the key."""
FILES = "darkroom.upload.files"
"""Files of one upload."""
MODEL = "darkroom.model"
"""The embedding model's id."""
SERVICE_NODE = "service.instance.id"
"""Resource: the process's node, such as `thumbnailer-bulk`, and its process id."""

# --- Message headers ----------------------------------------------------------------------------------------------

TRACEPARENT = "traceparent"
"""W3C trace context of the publishing span."""
TRACESTATE = "tracestate"
PUBLISHED_AT = "published_at_ns"
"""When it was published, in nanoseconds since 1970 by the publisher's clock. On every message, traced or not."""
