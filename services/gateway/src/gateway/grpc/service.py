"""The calls of `darkroom.v1.Darkroom`: each reads its request, has it done as REST does, and puts it into a message."""

import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import anyio
from anyio.lowlevel import checkpoint
from anyio.to_thread import run_sync
from google.protobuf.empty_pb2 import Empty
from pydantic import BaseModel, Field

from darkroom.contracts.base import BlobKey, ThumbnailSize
from darkroom.contracts.messages import ProbeKind
from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomServicer
from darkroom.storage import BlobStore
from gateway import library
from gateway.bootstrap import Gateway
from gateway.events import Watch
from gateway.grpc import messages
from gateway.grpc.streams import Context, first_message, parts
from gateway.models import Image, ListQuery, PictureSearch, ProbeRequest, SearchRequest
from gateway.pressure import Face
from gateway.problems import gateway_stopping, read
from gateway.receiving import FormLimits
from gateway.sniffing import media_type
from gateway.tasks import find_task
from gateway.traces import TraceContext, trace_of_call
from gateway.uploads import Accepted, accept_form, check_idempotency_key, read_options, refusals_counted

HEARTBEAT_S = 15.0
"""As on the REST face: how long a watcher that resumes may have to read again, where nothing was of its business."""


class _ImageId(BaseModel):
    image_id: UUID


class _BatchId(BaseModel):
    batch_id: UUID


class _TaskId(BaseModel):
    task_id: UUID


class _ProbeKind(BaseModel):
    kind: ProbeKind


class _ThumbnailQuery(_ImageId):
    size: ThumbnailSize


class _Watch(BaseModel):
    last_event_id: int | None = Field(None, ge=0)


class _ImageWatch(_Watch, _ImageId):
    pass


class DarkroomService(DarkroomServicer):
    """What each call means is said in darkroom.proto."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def UploadImage(
        self, requests: AsyncIterator[pb.UploadImageRequest], context: Context
    ) -> pb.UploadImageResponse:
        """Takes one picture."""
        with refusals_counted():
            async with self._gateway.pressure.admitted(Face.GRPC):
                accepted = await self._take(requests, context)
        self._gateway.wake()
        answer = library.uploaded(accepted)
        return pb.UploadImageResponse(batch=messages.batch(answer.batch), image=messages.image(answer.images[0]))

    async def _take(self, requests: AsyncIterator[pb.UploadImageRequest], context: Context) -> Accepted:
        metadata = (await first_message(requests)).metadata
        key = metadata.idempotency_key if metadata.HasField("idempotency_key") else None
        if key is not None:
            check_idempotency_key(key)
        form_parts = parts(messages.upload_fields(metadata), metadata.filename, requests, context)
        async with self._gateway.receiving.parts(form_parts, self._limits) as form:
            options = read_options(form.fields, self._gateway.settings.outbound_policy)
            await checkpoint()  # all bytes are here, but the client may have gone while they were synced
            # From now on one that goes away does not stop what it has asked for.
            with anyio.CancelScope(shield=True):
                accepted = await accept_form(self._gateway.acceptance, form, options, _trace(context), key)
        return accepted

    async def GetImage(self, request: pb.GetImageRequest, context: Context) -> pb.Image:
        """One image."""
        row = await library.find_image(self._gateway.engine, _image_id(request))
        return messages.image(Image.of(row))

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        """A page of images."""
        page = await library.list_images(self._gateway.engine, read(ListQuery, messages.list_values(request)))
        return pb.ListImagesResponse(images=messages.images(page.images), next_page_token=page.next_page_token)

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        """Deletes an image."""
        await library.delete_image(self._gateway.engine, _image_id(request))
        self._gateway.wake()
        return Empty()

    async def RetryImage(self, request: pb.RetryImageRequest, context: Context) -> pb.Image:
        """Sends a failed image through again."""
        retried = await library.retry_image(self._gateway.engine, _image_id(request))
        self._gateway.wake()
        return messages.image(retried)

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> pb.GetBatchResponse:
        """One upload."""
        batch_id = read(_BatchId, {"batch_id": request.batch_id}).batch_id
        found = await library.find_batch(self._gateway.engine, batch_id)
        return pb.GetBatchResponse(batch=messages.batch(found), images=messages.images(found.images))

    async def GetThumbnail(
        self, request: pb.GetThumbnailRequest, context: Context
    ) -> AsyncIterator[pb.GetThumbnailResponse]:
        """A rendition, piece by piece."""
        size = messages.word(pb.ThumbnailSize, request.size)
        wanted = read(_ThumbnailQuery, {"image_id": request.image_id, "size": size})
        found = await library.find_thumbnail(self._gateway.engine, wanted.image_id, wanted.size)
        async with library.mending(self._gateway.engine, self._gateway.wake, found.image):
            info, pieces = await run_sync(_open, self._gateway.store, found.key)
        info.etag = found.etag
        yield pb.GetThumbnailResponse(info=info)
        while piece := await run_sync(next, pieces, b""):
            yield pb.GetThumbnailResponse(chunk=piece)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """The images nearest to a text or to a stored image."""
        query = read(SearchRequest, messages.search_values(request))
        return messages.search_answer(await library.search(self._gateway.search, query))

    async def SearchImage(self, requests: AsyncIterator[pb.SearchImageRequest], context: Context) -> pb.SearchResponse:
        """The images nearest to an uploaded picture."""
        metadata = (await first_message(requests)).metadata
        asked = read(PictureSearch, messages.picture_search_values(metadata))
        picture_parts = parts((), metadata.filename, requests, context)
        async with self._gateway.receiving.parts(picture_parts, self._limits) as form:
            found = await library.search_by_picture(self._gateway.search, form.files[0], asked)
        return messages.search_answer(found)

    async def WatchImage(self, request: pb.WatchImageRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """What happens to an image."""
        asked = read(_ImageWatch, {"image_id": request.image_id, **messages.given(request, "last_event_id")})
        events = self._gateway.events
        watch = await events.subscribe(asked.last_event_id, asked.image_id, follow=request.follow)
        async for message in _tell(watch):
            yield message

    async def WatchEvents(self, request: pb.WatchEventsRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """Everything that happens."""
        asked = read(_Watch, messages.given(request, "last_event_id"))
        async for message in _tell(await self._gateway.events.subscribe(asked.last_event_id)):
            yield message

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.Task:
        """One task."""
        task_id = read(_TaskId, {"task_id": request.task_id}).task_id
        expires = timedelta(seconds=self._gateway.settings.result_expires_s)
        return messages.task(await find_task(self._gateway.engine, self._gateway.results, task_id, expires))

    async def RunProbe(self, request: pb.RunProbeRequest, context: Context) -> pb.RunProbeResponse:
        """Sends a probe."""
        kind = read(_ProbeKind, {"kind": messages.word(pb.ProbeKind, request.kind)}).kind
        task_id = await self._gateway.probes.send(kind, read(ProbeRequest, messages.probe_values(request)))
        return pb.RunProbeResponse(task_id=str(task_id))

    async def GetLedger(self, request: pb.GetLedgerRequest, context: Context) -> pb.Ledger:
        """The counters."""
        return messages.ledger(await library.read_ledger(self._gateway.engine))

    @property
    def _limits(self) -> FormLimits:
        return FormLimits(1, self._gateway.settings.max_upload_bytes)


def _image_id(request: pb.GetImageRequest | pb.DeleteImageRequest | pb.RetryImageRequest) -> UUID:
    return read(_ImageId, {"image_id": request.image_id}).image_id


def _trace(context: Context) -> TraceContext:
    headers = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    return trace_of_call(headers.get("traceparent"), headers.get("tracestate"), secrets.randbits)


async def _tell(watch: Watch) -> AsyncIterator[pb.WatchResponse]:
    # The first number at once: a client that is cut before its first event must not miss what comes until it is back.
    yield pb.WatchResponse(position=watch.position)
    while not watch.is_over:
        events = await watch.batch(HEARTBEAT_S)
        for event in events:
            yield pb.WatchResponse(position=event.id, event=messages.event(event))
        if not events:
            yield pb.WatchResponse(position=watch.position)
    if watch.is_cut:
        raise gateway_stopping()  # an end without an error would look like the end of the story


def _open(store: BlobStore, key: BlobKey) -> tuple[pb.BlobInfo, Any]:
    size = store.info(key).bytes
    return pb.BlobInfo(media_type=media_type(store, key), bytes=size), store.read_range(key, 0)
