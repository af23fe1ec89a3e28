"""Searching by text, by a stored image and by an uploaded picture: ask the workers for a vector, then the database."""

import asyncio
import base64
import json
import struct
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import anyio
from anyio.to_thread import run_sync
from celery import Celery
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom.celery_app import PUBLISH_OPTIONS, request
from darkroom.contracts import keys
from darkroom.contracts.base import Message
from darkroom.contracts.messages import EmbedPicture, EmbedText, ModelReference, PrepareQuery, QueryVector
from darkroom.contracts.tasks import EMBED_PICTURE, EMBED_TEXT, PREPARE_QUERY, TaskContract
from darkroom.database import images, vectors
from darkroom.database.images import ImageFilter
from darkroom.errors import PermanentError
from darkroom.storage import BlobStore
from gateway.broker import BrokerLink
from gateway.errors import UnavailableError
from gateway.receiving import SyncedFile

ArgumentsT = TypeVar("ArgumentsT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)


@dataclass(frozen=True)
class Found:
    """The images nearest to a query, best first, and the model that compared. Each row has a `score`."""

    rows: Sequence[Row[Any]]
    model: str


class Search:
    """Waits for workers without blocking the event loop, and never longer than `timeout_s` for one search."""

    def __init__(
        self, engine: AsyncEngine, app: Celery, link: BrokerLink, results: Redis, store: BlobStore, *, timeout_s: float
    ) -> None:
        self._engine = engine
        self._app = app
        self._link = link
        self._results = results
        self._store = store
        self._timeout_s = timeout_s
        # One thread for one link: publishes take milliseconds, and while the broker hangs searches give up in line.
        self._publisher = ThreadPoolExecutor(1, "search-publisher")

    def close(self) -> None:
        """Ends the publishing thread and its connection."""
        self._publisher.shutdown(wait=True, cancel_futures=True)
        self._link.close()

    async def by_text(self, text: str, wanted: ImageFilter, limit: int) -> Found:
        """Raises the problems `model-not-ready`, `search-timeout` and `search-unavailable`."""
        model = await self._active_model()
        async with self._in_time():
            embed = EmbedText(text=text, model=_reference(model))
            vector = _vector(await self._ask(EMBED_TEXT, embed), model)
        return await self._nearest(model, vector, wanted, limit)

    async def by_image(self, image_id: UUID, wanted: ImageFilter, limit: int) -> Found:
        """Without the image itself. Raises `image-not-found`, `image-not-ready` and `model-not-ready`."""
        model = await self._active_model()
        async with self._engine.connect() as connection:
            image = await connection.run_sync(images.find_image, image_id)
            vector = await connection.run_sync(vectors.vector_of_image, model.id, image_id)
        if image is None:
            raise image_not_found(image_id)
        if vector is None:
            raise PermanentError.of(
                "image-not-ready",
                "The image has no embedding yet",
                409,
                f"The image {image_id} is {image.state.replace('_', ' ')} and has no vector of the model {model.id}.",
                value=str(image_id),
                remedy="Search by it when its status is ready.",
            )
        found = await self._nearest(model, vector, wanted, limit + 1)
        return Found([row for row in found.rows if row.id != image_id][:limit], found.model)

    async def by_picture(self, picture: SyncedFile, wanted: ImageFilter, limit: int) -> Found:
        """The picture is decoded by a thumbnailer and is gone at the end, whatever happens.

        Raises what `by_text` raises, and the picture's own problem when it cannot be decoded.
        """
        model = await self._active_model()
        query_id = uuid.uuid4().hex
        source, proxy = keys.query_key(query_id, "source"), keys.query_key(query_id, "proxy.jpg")
        try:
            await run_sync(picture.writer.place, source)
            async with self._in_time():
                prepared = await self._ask(PREPARE_QUERY, PrepareQuery(source=source, proxy=proxy))
                if prepared.problem is not None:
                    raise PermanentError(prepared.problem)
                embed = EmbedPicture(proxy=proxy, model=_reference(model))
                vector = _vector(await self._ask(EMBED_PICTURE, embed), model)
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(self._delete, source, proxy)
        return await self._nearest(model, vector, wanted, limit)

    def _delete(self, *blob_keys: str) -> None:
        for key in blob_keys:
            self._store.delete(key)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as late:
            raise _timeout(self._timeout_s) from late

    async def _ask(self, contract: TaskContract[ArgumentsT, ResultT], message: ArgumentsT) -> ResultT:
        """What a worker answers. Cancelled when nobody waits any more; the message expires by itself."""
        task_id = str(uuid.uuid4())
        channel = f"celery-task-meta-{task_id}"
        # In the publisher's thread, but in this call's trace.
        publish = partial(copy_context().run, self._publish, contract, message, task_id)
        try:
            async with self._results.pubsub(ignore_subscribe_messages=True) as subscription:
                # First, so that no answer is too early to be heard.
                await subscription.subscribe(channel)
                await asyncio.get_running_loop().run_in_executor(self._publisher, publish)
                async for heard in subscription.listen():
                    answer = json.loads(heard["data"])
                    if answer["status"] in ("SUCCESS", "FAILURE", "REVOKED"):
                        break
                else:
                    raise _unavailable("the result store closed the connection")
            await self._results.delete(channel)
        except RedisError as error:
            raise _unavailable(f"the result store does not answer ({type(error).__name__})") from error
        if answer["status"] != "SUCCESS":
            raise _failed(contract.name, answer)
        try:
            return contract.result.from_wire(answer["result"])
        except ValidationError as error:
            raise _failed(contract.name, answer) from error

    def _publish(self, contract: TaskContract[ArgumentsT, ResultT], message: ArgumentsT, task_id: str) -> None:
        try:
            with self._link.connection() as connection:
                request(self._app, contract, message, task_id=task_id).apply_async(
                    connection=connection, expires=self._timeout_s, **PUBLISH_OPTIONS
                )
        except Exception as error:
            raise _unavailable(f"the broker does not take the request ({type(error).__name__})") from error

    async def _active_model(self) -> Row[Any]:
        async with self._engine.connect() as connection:
            model = await connection.run_sync(vectors.active_model)
        if model is None:
            raise UnavailableError.of(
                "model-not-ready",
                "No embedding model is ready",
                "No embedder has registered a model yet, so there is nothing to search with.",
                remedy="Wait until the embedder has loaded its model: GET /readyz says when.",
            )
        return model

    async def _nearest(self, model: Row[Any], vector: Sequence[float], wanted: ImageFilter, limit: int) -> Found:
        async with self._engine.connect() as connection:
            rows = await connection.run_sync(vectors.nearest, model, vector, wanted, limit)
        return Found(rows, model.id)


def _reference(model: Row[Any]) -> ModelReference:
    return ModelReference(id=model.id, source=model.source)


def _vector(answer: QueryVector, model: Row[Any]) -> Sequence[float]:
    """The vector in an answer; raises `search-failed` when it is of another model or length."""
    data = base64.b64decode(answer.vector)
    if answer.model != model.id or len(data) != 2 * model.dim:
        raise _failed("embedding the query", {"result": f"{len(data) // 2} numbers of {answer.model}"})
    return struct.unpack(f"<{model.dim}e", data)


def image_not_found(image_id: UUID) -> PermanentError:
    """There is no such image, or it was deleted."""
    return PermanentError.of(
        "image-not-found",
        "There is no such image",
        404,
        f"No image has the id {image_id}; it may have been deleted.",
        value=str(image_id),
        remedy="List the images that there are: GET /v1/images.",
    )


def _timeout(limit_s: float) -> UnavailableError:
    return UnavailableError.of(
        "search-timeout",
        "The search took too long",
        f"No worker answered within {limit_s * 1000:g} ms.",
        limit=round(limit_s * 1000),
        remedy="Try again; if it stays so, see whether the embedder runs, or raise DARKROOM_SEARCH_TIMEOUT_MS.",
    )


def _unavailable(fault: str) -> UnavailableError:
    return UnavailableError.of(
        "search-unavailable",
        "Searching is not possible at the moment",
        f"The query could not be embedded: {fault}.",
        remedy="Try again; uploads go on being accepted meanwhile.",
    )


def _failed(task: str, answer: dict[str, Any]) -> UnavailableError:
    result = answer.get("result")
    cause = result.get("exc_type", "no cause") if isinstance(result, dict) else result
    return UnavailableError.of(
        "search-failed",
        "The query could not be embedded",
        f"{task} ended with {cause!s:.200}.",
        remedy="Try again; the worker's log says more.",
    )
