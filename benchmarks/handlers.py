"""What an upload is compared with: the handler that a first version would have, and the least that any needs.

Run by `uvicorn handlers:naive` and `uvicorn handlers:bare`. DARKROOM_BENCH_FOLDER and DARKROOM_BENCH_DATABASE say
where to.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, UploadFile
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

FOLDER = Path(os.environ["DARKROOM_BENCH_FOLDER"])
CHUNK_BYTES = 256 * 1024


class Base(DeclarativeBase):
    """Of the naive handler's one table."""


class Photo(Base):
    """One upload."""

    __tablename__ = "photos"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    filename: Mapped[str | None]
    bytes: Mapped[int]


engine = create_engine(os.environ["DARKROOM_BENCH_DATABASE"])
naive = FastAPI()


@naive.on_event("startup")
def make_table() -> None:
    """Once."""
    Base.metadata.create_all(engine)


@naive.post("/v1/images", status_code=202)
async def upload(file: UploadFile) -> dict[str, str]:
    """Reads all, hashes, writes and syncs, inserts a row: everything where it blocks the event loop."""
    data = await file.read()
    photo = Photo(id=uuid.uuid4(), sha256=hashlib.sha256(data).hexdigest(), filename=file.filename, bytes=len(data))
    with (FOLDER / photo.sha256).open("wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
    with Session(engine, expire_on_commit=False) as session:
        session.add(photo)
        session.commit()
    return {"id": str(photo.id), "sha256": photo.sha256}


async def bare(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Streams the body as it is, hashes and syncs it in a thread, and answers. No form, no database."""
    if scope["type"] != "http":
        return
    path, digest, pending, has_more = FOLDER / uuid.uuid4().hex, hashlib.sha256(), bytearray(), True
    with path.open("xb", buffering=0) as target:

        def write(data: bytes) -> None:
            digest.update(data)
            target.write(data)

        def finish(data: bytes) -> None:
            write(data)
            os.fsync(target.fileno())
            path.rename(FOLDER / digest.hexdigest())
            descriptor = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(descriptor)
            os.close(descriptor)

        while has_more:
            message = await receive()
            pending += message.get("body", b"")
            has_more = message.get("more_body", False)
            if has_more and len(pending) >= CHUNK_BYTES:
                data, pending = bytes(pending), bytearray()
                await run_sync(write, data)
        await run_sync(finish, bytes(pending))
    body = json.dumps({"sha256": digest.hexdigest()}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})
