"""The two faces of a gateway behind one set of calls, which answer and refuse in REST's words."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

import grpc
import httpx
from gateway_serving import Served
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub

Json = dict[str, Any]
AnswerT = TypeVar("AnswerT")

CHUNK_BYTES = 256 * 1024

UNSET_WHEN_NULL = {
    *("filename", "format", "width", "height", "taken_at", "external_id", "thumbhash", "error", "trace_id"),
    "ready_at",
}

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""The status code that stands for each HTTP status."""


class Refused(Exception):  # noqa: N818
    """A call was answered with a problem."""

    def __init__(
        self, slug: str, code: grpc.StatusCode, detail: str, told: dict[str, str], retry_s: int | None
    ) -> None:
        super().__init__(f"{slug}: {detail} {told}")
        self.slug, self.code, self.detail, self.told, self.retry_s = slug, code, detail, told, retry_s


@dataclass(frozen=True)
class Picture:
    """A rendition as it was delivered."""

    media_type: str
    etag: str
    content: bytes


class Face(Protocol):
    """What both faces can do. Every call raises Refused."""

    def upload(self, content: bytes, *, key: str | None = None, trace: str | None = None, **fields: Any) -> Json: ...
    def image(self, image_id: str) -> Json: ...
    def images(self, **query: Any) -> Json: ...
    def delete(self, image_id: str) -> None: ...
    def retry(self, image_id: str) -> Json: ...
    def batch(self, batch_id: str) -> Json: ...
    def thumbnail(self, image_id: str, size: str) -> Picture: ...
    def search(self, **query: Any) -> Json: ...
    def search_picture(self, content: bytes, **query: Any) -> Json: ...
    def task(self, task_id: str) -> Json: ...
    def probe(self, kind: str, **fields: Any) -> str: ...
    def ledger(self) -> Json: ...


class RestFace:
    """Over HTTP."""

    def __init__(self, gateway: Served) -> None:
        self._http = gateway.http

    def upload(self, content: bytes, *, key: str | None = None, trace: str | None = None, **fields: Any) -> Json:
        headers = {"Idempotency-Key": key, "traceparent": trace}
        name = fields.pop("filename", "photo.jpg")
        answer = self._call(
            "POST",
            "/v1/images",
            files=[("file", (name, content))],
            data=fields,
            headers={header: value for header, value in headers.items() if value is not None},
        ).json()
        return {"batch": answer["batch"], "image": answer["images"][0]}

    def image(self, image_id: str) -> Json:
        return dict(self._call("GET", f"/v1/images/{image_id}").json())

    def images(self, **query: Any) -> Json:
        return dict(self._call("GET", "/v1/images", params=query).json())

    def delete(self, image_id: str) -> None:
        self._call("DELETE", f"/v1/images/{image_id}")

    def retry(self, image_id: str) -> Json:
        return dict(self._call("POST", f"/v1/images/{image_id}:retry").json())

    def batch(self, batch_id: str) -> Json:
        return dict(self._call("GET", f"/v1/batches/{batch_id}").json())

    def thumbnail(self, image_id: str, size: str) -> Picture:
        answer = self._call("GET", f"/v1/images/{image_id}/thumbnails/{size}")
        return Picture(answer.headers["content-type"], answer.headers["etag"].strip('"'), answer.content)

    def search(self, **query: Any) -> Json:
        return dict(self._call("POST", "/v1/search", json=query).json())

    def search_picture(self, content: bytes, **query: Any) -> Json:
        fields = {name: value if isinstance(value, int) else json.dumps(value) for name, value in query.items()}
        return dict(self._call("POST", "/v1/search:image", files=[("file", ("q.jpg", content))], data=fields).json())

    def task(self, task_id: str) -> Json:
        return dict(self._call("GET", f"/v1/tasks/{task_id}").json())

    def probe(self, kind: str, **fields: Any) -> str:
        answer = self._call("POST", f"/v1/probes/{kind}", json=fields)
        assert answer.status_code == 202
        assert answer.headers["Location"] == f"/v1/tasks/{answer.json()['task_id']}"
        return str(answer.json()["task_id"])

    def ledger(self) -> Json:
        return dict(self._call("GET", "/v1/ledger").json())

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = self._http.request(method, path, **options)
        if answer.is_success:
            return answer
        problem = answer.json()
        told = {
            name: problem[name] if isinstance(problem[name], str) else json.dumps(problem[name], ensure_ascii=False)
            for name in ("value", "limit", "remedy", "file")
            if name in problem
        }
        retry_s = int(answer.headers["Retry-After"]) if "Retry-After" in answer.headers else None
        slug = problem["type"].rpartition("/")[2]
        raise Refused(slug, CODES[answer.status_code], problem["detail"], told, retry_s)


class GrpcFace:
    """Over gRPC, its answers translated."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = DarkroomStub(channel)

    def upload(self, content: bytes, *, key: str | None = None, trace: str | None = None, **fields: Any) -> Json:
        lane = fields.pop("lane", None)
        tags = fields.pop("tags", [])
        metadata = pb.UploadMetadata(
            filename=fields.pop("filename", "photo.jpg"),
            lane=lane and number(pb.Lane, "LANE", lane),
            tags=[tags] if isinstance(tags, str) else tags,
            idempotency_key=key,
            **fields,
        )
        answer = told(
            self.stub.UploadImage,
            upload_requests(metadata, content),
            metadata=[("traceparent", trace)] if trace else (),
        )
        return {"batch": batch_json(answer.batch), "image": image_json(answer.image)}

    def image(self, image_id: str) -> Json:
        return image_json(told(self.stub.GetImage, pb.GetImageRequest(image_id=image_id)))

    def images(self, **query: Any) -> Json:
        status, tags = query.pop("status", None), query.pop("tag", [])
        answer = told(
            self.stub.ListImages,
            pb.ListImagesRequest(
                status=status and number(pb.ImageStatus, "IMAGE_STATUS", status),
                tags=[tags] if isinstance(tags, str) else tags,
                **query,
            ),
        )
        token = answer.next_page_token if answer.HasField("next_page_token") else None
        return {"images": [image_json(image) for image in answer.images], "next_page_token": token}

    def delete(self, image_id: str) -> None:
        told(self.stub.DeleteImage, pb.DeleteImageRequest(image_id=image_id))

    def retry(self, image_id: str) -> Json:
        return image_json(told(self.stub.RetryImage, pb.RetryImageRequest(image_id=image_id)))

    def batch(self, batch_id: str) -> Json:
        answer = told(self.stub.GetBatch, pb.GetBatchRequest(batch_id=batch_id))
        return {**batch_json(answer.batch), "images": [image_json(image) for image in answer.images]}

    def thumbnail(self, image_id: str, size: str) -> Picture:
        request = pb.GetThumbnailRequest(image_id=image_id, size=number(pb.ThumbnailSize, "THUMBNAIL_SIZE", size))
        first, *rest = told(lambda asked: list(self.stub.GetThumbnail(asked)), request)
        content = b"".join(message.chunk for message in rest)
        assert first.info.bytes == len(content)
        return Picture(first.info.media_type, first.info.etag, content)

    def search(self, **query: Any) -> Json:
        return search_json(told(self.stub.Search, pb.SearchRequest(**with_filter(query))))

    def search_picture(self, content: bytes, **query: Any) -> Json:
        metadata = pb.SearchImageMetadata(filename="q.jpg", **with_filter(query))
        first = pb.SearchImageRequest(metadata=metadata)
        requests = [first, *(pb.SearchImageRequest(chunk=chunk) for chunk in chunks(content))]
        return search_json(told(self.stub.SearchImage, iter(requests)))

    def task(self, task_id: str) -> Json:
        answer = told(self.stub.GetTask, pb.GetTaskRequest(task_id=task_id))
        unset = ("result", "error", "progress", "queue", "worker", "issued_at", "started_at", "finished_at")
        state = pb.TaskState.Name(answer.state).removeprefix("TASK_STATE_")
        return dict.fromkeys(unset) | plain(answer) | {"state": state}

    def probe(self, kind: str, **fields: Any) -> str:
        for name, enum, prefix in (("service", pb.ProbedService, "PROBED_SERVICE"), ("lane", pb.Lane, "LANE")):
            if name in fields:
                fields[name] = number(enum, prefix, fields[name])
        request = pb.RunProbeRequest(kind=number(pb.ProbeKind, "PROBE_KIND", kind), **fields)
        return str(told(self.stub.RunProbe, request).task_id)

    def ledger(self) -> Json:
        answer = told(self.stub.GetLedger, pb.GetLedgerRequest())
        return {name: int(value) for name, value in plain(answer).items()}


def number(enum: Any, prefix: str, word: str) -> int:
    """The number of a word; one that means nothing for a word that there is not."""
    name = f"{prefix}_{word.upper()}"
    return int(enum.Value(name)) if name in enum.keys() else 99  # noqa: SIM118


def chunks(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]


def upload_requests(metadata: pb.UploadMetadata, content: bytes) -> Iterator[pb.UploadImageRequest]:
    """The messages of an upload."""
    yield pb.UploadImageRequest(metadata=metadata)
    for chunk in chunks(content):
        yield pb.UploadImageRequest(chunk=chunk)


def with_filter(query: Json) -> Json:
    wanted = query.pop("filter", {})
    lane, after = wanted.get("lane"), wanted.get("created_after")
    query["filter"] = pb.SearchFilter(
        tags=wanted.get("tags", []),
        lane=lane and number(pb.Lane, "LANE", lane),
        created_after=datetime.fromisoformat(after) if after else None,
    )
    return query


def plain(message: Message) -> Json:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def image_json(image: pb.Image) -> Json:
    """The image as REST shows it."""
    shown: Json = dict.fromkeys(UNSET_WHEN_NULL) | plain(image)
    shown["status"] = shown["status"].removeprefix("IMAGE_STATUS_").lower()
    shown["lane"] = shown["lane"].removeprefix("LANE_").lower()
    for sized in (shown, *shown["thumbnails"].values()):
        sized["bytes"] = int(sized["bytes"])
    if shown["error"]:
        shown["error"] = dict.fromkeys(("value", "limit", "remedy", "file")) | shown["error"]
    if not shown["thumbhash"]:
        shown["palette"] = None  # described together
    return shown


def batch_json(batch: pb.Batch) -> Json:
    return {"completed_at": None, "callback_url": None} | plain(batch)


def search_json(answer: pb.SearchResponse) -> Json:
    results = [{"image": image_json(hit.image), "score": hit.score} for hit in answer.results]
    return {"results": results, "model": answer.model}


def told(call: Callable[..., AnswerT], request: Message | Iterable[Message], **options: Any) -> AnswerT:
    """The answer to a call; raises Refused with what its rich status says."""
    try:
        return call(request, **options)
    except grpc.RpcError as error:
        raise refused(error) from error


def refused(error: grpc.RpcError) -> Refused:
    """What a rich status says."""
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} without details: {error.details()}"
    info, violations, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(violations) or detail.Unpack(retry), detail.type_url
    assert info.domain == "darkroom.example"
    assert bool(violations.field_violations) == (info.reason in ("invalid-field", "invalid-request"))
    told = {name: info.metadata[name] for name in info.metadata}
    retry_s = retry.retry_delay.seconds or None
    return Refused(info.reason, error.code(), error.details(), told, retry_s)
