import datetime

from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Lane(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LANE_UNSPECIFIED: _ClassVar[Lane]
    LANE_INTERACTIVE: _ClassVar[Lane]
    LANE_BULK: _ClassVar[Lane]

class ImageStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_STATUS_UNSPECIFIED: _ClassVar[ImageStatus]
    IMAGE_STATUS_ACCEPTED: _ClassVar[ImageStatus]
    IMAGE_STATUS_PROCESSING: _ClassVar[ImageStatus]
    IMAGE_STATUS_READY: _ClassVar[ImageStatus]
    IMAGE_STATUS_FAILED: _ClassVar[ImageStatus]

class ThumbnailSize(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THUMBNAIL_SIZE_UNSPECIFIED: _ClassVar[ThumbnailSize]
    THUMBNAIL_SIZE_SMALL: _ClassVar[ThumbnailSize]
    THUMBNAIL_SIZE_MEDIUM: _ClassVar[ThumbnailSize]
    THUMBNAIL_SIZE_LARGE: _ClassVar[ThumbnailSize]

class TaskState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATE_UNSPECIFIED: _ClassVar[TaskState]
    TASK_STATE_PENDING: _ClassVar[TaskState]
    TASK_STATE_STARTED: _ClassVar[TaskState]
    TASK_STATE_RETRY: _ClassVar[TaskState]
    TASK_STATE_SUCCESS: _ClassVar[TaskState]
    TASK_STATE_FAILURE: _ClassVar[TaskState]
    TASK_STATE_REVOKED: _ClassVar[TaskState]
    TASK_STATE_PROGRESS: _ClassVar[TaskState]

class ProbeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROBE_KIND_UNSPECIFIED: _ClassVar[ProbeKind]
    PROBE_KIND_ADD: _ClassVar[ProbeKind]
    PROBE_KIND_CPU: _ClassVar[ProbeKind]
    PROBE_KIND_IO: _ClassVar[ProbeKind]
    PROBE_KIND_FAIL: _ClassVar[ProbeKind]
    PROBE_KIND_SLOW: _ClassVar[ProbeKind]

class ProbedService(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROBED_SERVICE_UNSPECIFIED: _ClassVar[ProbedService]
    PROBED_SERVICE_THUMBNAILER: _ClassVar[ProbedService]
    PROBED_SERVICE_EMBEDDER: _ClassVar[ProbedService]
    PROBED_SERVICE_SCHEDULER: _ClassVar[ProbedService]
LANE_UNSPECIFIED: Lane
LANE_INTERACTIVE: Lane
LANE_BULK: Lane
IMAGE_STATUS_UNSPECIFIED: ImageStatus
IMAGE_STATUS_ACCEPTED: ImageStatus
IMAGE_STATUS_PROCESSING: ImageStatus
IMAGE_STATUS_READY: ImageStatus
IMAGE_STATUS_FAILED: ImageStatus
THUMBNAIL_SIZE_UNSPECIFIED: ThumbnailSize
THUMBNAIL_SIZE_SMALL: ThumbnailSize
THUMBNAIL_SIZE_MEDIUM: ThumbnailSize
THUMBNAIL_SIZE_LARGE: ThumbnailSize
TASK_STATE_UNSPECIFIED: TaskState
TASK_STATE_PENDING: TaskState
TASK_STATE_STARTED: TaskState
TASK_STATE_RETRY: TaskState
TASK_STATE_SUCCESS: TaskState
TASK_STATE_FAILURE: TaskState
TASK_STATE_REVOKED: TaskState
TASK_STATE_PROGRESS: TaskState
PROBE_KIND_UNSPECIFIED: ProbeKind
PROBE_KIND_ADD: ProbeKind
PROBE_KIND_CPU: ProbeKind
PROBE_KIND_IO: ProbeKind
PROBE_KIND_FAIL: ProbeKind
PROBE_KIND_SLOW: ProbeKind
PROBED_SERVICE_UNSPECIFIED: ProbedService
PROBED_SERVICE_THUMBNAILER: ProbedService
PROBED_SERVICE_EMBEDDER: ProbedService
PROBED_SERVICE_SCHEDULER: ProbedService

class UploadImageRequest(_message.Message):
    __slots__ = ("metadata", "chunk")
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    metadata: UploadMetadata
    chunk: bytes
    def __init__(self, metadata: _Optional[_Union[UploadMetadata, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadMetadata(_message.Message):
    __slots__ = ("filename", "lane", "tags", "external_id", "idempotency_key", "callback_url")
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_URL_FIELD_NUMBER: _ClassVar[int]
    filename: str
    lane: Lane
    tags: _containers.RepeatedScalarFieldContainer[str]
    external_id: str
    idempotency_key: str
    callback_url: str
    def __init__(self, filename: _Optional[str] = ..., lane: _Optional[_Union[Lane, str]] = ..., tags: _Optional[_Iterable[str]] = ..., external_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., callback_url: _Optional[str] = ...) -> None: ...

class UploadImageResponse(_message.Message):
    __slots__ = ("batch", "image")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    image: Image
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class GetImageRequest(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class ListImagesRequest(_message.Message):
    __slots__ = ("status", "tags", "limit", "page_token")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    status: ImageStatus
    tags: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    page_token: str
    def __init__(self, status: _Optional[_Union[ImageStatus, str]] = ..., tags: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images", "next_page_token")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    next_page_token: str
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteImageRequest(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class RetryImageRequest(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class GetBatchRequest(_message.Message):
    __slots__ = ("batch_id",)
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    def __init__(self, batch_id: _Optional[str] = ...) -> None: ...

class GetBatchResponse(_message.Message):
    __slots__ = ("batch", "images")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class GetThumbnailRequest(_message.Message):
    __slots__ = ("image_id", "size")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    size: ThumbnailSize
    def __init__(self, image_id: _Optional[str] = ..., size: _Optional[_Union[ThumbnailSize, str]] = ...) -> None: ...

class GetThumbnailResponse(_message.Message):
    __slots__ = ("info", "chunk")
    INFO_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    info: BlobInfo
    chunk: bytes
    def __init__(self, info: _Optional[_Union[BlobInfo, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class BlobInfo(_message.Message):
    __slots__ = ("media_type", "bytes", "etag")
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    media_type: str
    bytes: int
    etag: str
    def __init__(self, media_type: _Optional[str] = ..., bytes: _Optional[int] = ..., etag: _Optional[str] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("text", "image_id", "limit", "filter")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    text: str
    image_id: str
    limit: int
    filter: SearchFilter
    def __init__(self, text: _Optional[str] = ..., image_id: _Optional[str] = ..., limit: _Optional[int] = ..., filter: _Optional[_Union[SearchFilter, _Mapping]] = ...) -> None: ...

class SearchFilter(_message.Message):
    __slots__ = ("tags", "lane", "created_after")
    TAGS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    tags: _containers.RepeatedScalarFieldContainer[str]
    lane: Lane
    created_after: _timestamp_pb2.Timestamp
    def __init__(self, tags: _Optional[_Iterable[str]] = ..., lane: _Optional[_Union[Lane, str]] = ..., created_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SearchImageRequest(_message.Message):
    __slots__ = ("metadata", "chunk")
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    metadata: SearchImageMetadata
    chunk: bytes
    def __init__(self, metadata: _Optional[_Union[SearchImageMetadata, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SearchImageMetadata(_message.Message):
    __slots__ = ("limit", "filter", "filename")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    limit: int
    filter: SearchFilter
    filename: str
    def __init__(self, limit: _Optional[int] = ..., filter: _Optional[_Union[SearchFilter, _Mapping]] = ..., filename: _Optional[str] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "model")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Hit]
    model: str
    def __init__(self, results: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., model: _Optional[str] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("image", "score")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    image: Image
    score: float
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., score: _Optional[float] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("id", "status", "sha256", "filename", "format", "bytes", "width", "height", "taken_at", "tags", "external_id", "lane", "thumbhash", "palette", "thumbnails", "embeddings", "error", "attempts", "trace_id", "created_at", "ready_at", "batch_id", "duplicate", "tasks")
    class ThumbnailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Thumbnail
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Thumbnail, _Mapping]] = ...) -> None: ...
    class TasksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    TAKEN_AT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_ID_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    THUMBHASH_FIELD_NUMBER: _ClassVar[int]
    PALETTE_FIELD_NUMBER: _ClassVar[int]
    THUMBNAILS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    READY_AT_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: ImageStatus
    sha256: str
    filename: str
    format: str
    bytes: int
    width: int
    height: int
    taken_at: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    external_id: str
    lane: Lane
    thumbhash: str
    palette: _containers.RepeatedCompositeFieldContainer[Colour]
    thumbnails: _containers.MessageMap[str, Thumbnail]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    error: Problem
    attempts: int
    trace_id: str
    created_at: _timestamp_pb2.Timestamp
    ready_at: _timestamp_pb2.Timestamp
    batch_id: str
    duplicate: bool
    tasks: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[ImageStatus, str]] = ..., sha256: _Optional[str] = ..., filename: _Optional[str] = ..., format: _Optional[str] = ..., bytes: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., taken_at: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., external_id: _Optional[str] = ..., lane: _Optional[_Union[Lane, str]] = ..., thumbhash: _Optional[str] = ..., palette: _Optional[_Iterable[_Union[Colour, _Mapping]]] = ..., thumbnails: _Optional[_Mapping[str, Thumbnail]] = ..., embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., error: _Optional[_Union[Problem, _Mapping]] = ..., attempts: _Optional[int] = ..., trace_id: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ready_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., batch_id: _Optional[str] = ..., duplicate: _Optional[bool] = ..., tasks: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Colour(_message.Message):
    __slots__ = ("hex", "share")
    HEX_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    hex: str
    share: float
    def __init__(self, hex: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class Thumbnail(_message.Message):
    __slots__ = ("url", "width", "height", "bytes")
    URL_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    url: str
    width: int
    height: int
    bytes: int
    def __init__(self, url: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("model", "dim")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    model: str
    dim: int
    def __init__(self, model: _Optional[str] = ..., dim: _Optional[int] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("type", "title", "status", "detail", "value", "limit", "remedy", "file")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    type: str
    title: str
    status: int
    detail: str
    value: _struct_pb2.Value
    limit: _struct_pb2.Value
    remedy: str
    file: str
    def __init__(self, type: _Optional[str] = ..., title: _Optional[str] = ..., status: _Optional[int] = ..., detail: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., limit: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., remedy: _Optional[str] = ..., file: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("id", "total", "ready", "failed", "deleted", "pending", "created_at", "completed_at", "callback_url")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_URL_FIELD_NUMBER: _ClassVar[int]
    id: str
    total: int
    ready: int
    failed: int
    deleted: int
    pending: int
    created_at: _timestamp_pb2.Timestamp
    completed_at: _timestamp_pb2.Timestamp
    callback_url: str
    def __init__(self, id: _Optional[str] = ..., total: _Optional[int] = ..., ready: _Optional[int] = ..., failed: _Optional[int] = ..., deleted: _Optional[int] = ..., pending: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., completed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., callback_url: _Optional[str] = ...) -> None: ...

class WatchImageRequest(_message.Message):
    __slots__ = ("image_id", "last_event_id", "follow")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    last_event_id: int
    follow: bool
    def __init__(self, image_id: _Optional[str] = ..., last_event_id: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("last_event_id",)
    LAST_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    last_event_id: int
    def __init__(self, last_event_id: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("position", "event")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    position: int
    event: Event
    def __init__(self, position: _Optional[int] = ..., event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("id", "type", "occurred_at", "batch_id", "image_id", "sha256", "problem", "trace_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    type: str
    occurred_at: _timestamp_pb2.Timestamp
    batch_id: str
    image_id: str
    sha256: str
    problem: Problem
    trace_id: str
    def __init__(self, id: _Optional[int] = ..., type: _Optional[str] = ..., occurred_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., batch_id: _Optional[str] = ..., image_id: _Optional[str] = ..., sha256: _Optional[str] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., trace_id: _Optional[str] = ...) -> None: ...

class GetTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "name", "state", "result", "error", "progress", "queue", "worker", "issued_at", "started_at", "finished_at")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    name: str
    state: TaskState
    result: _struct_pb2.Value
    error: TaskError
    progress: Progress
    queue: str
    worker: str
    issued_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    def __init__(self, task_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[_Union[TaskState, str]] = ..., result: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., error: _Optional[_Union[TaskError, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., queue: _Optional[str] = ..., worker: _Optional[str] = ..., issued_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TaskError(_message.Message):
    __slots__ = ("type", "message")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total", "unit")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    done: float
    total: float
    unit: str
    def __init__(self, done: _Optional[float] = ..., total: _Optional[float] = ..., unit: _Optional[str] = ...) -> None: ...

class RunProbeRequest(_message.Message):
    __slots__ = ("kind", "service", "lane", "seconds", "countdown_seconds", "expires_seconds", "cause")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    COUNTDOWN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    kind: ProbeKind
    service: ProbedService
    lane: Lane
    seconds: float
    countdown_seconds: int
    expires_seconds: int
    cause: str
    def __init__(self, kind: _Optional[_Union[ProbeKind, str]] = ..., service: _Optional[_Union[ProbedService, str]] = ..., lane: _Optional[_Union[Lane, str]] = ..., seconds: _Optional[float] = ..., countdown_seconds: _Optional[int] = ..., expires_seconds: _Optional[int] = ..., cause: _Optional[str] = ...) -> None: ...

class RunProbeResponse(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class GetLedgerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("accepted", "ready", "failed", "deleted", "in_flight")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    ready: int
    failed: int
    deleted: int
    in_flight: int
    def __init__(self, accepted: _Optional[int] = ..., ready: _Optional[int] = ..., failed: _Optional[int] = ..., deleted: _Optional[int] = ..., in_flight: _Optional[int] = ...) -> None: ...
