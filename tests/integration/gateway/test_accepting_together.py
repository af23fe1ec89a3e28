"""Uploads that arrive while others are being committed: one transaction for all, and each for itself."""

import asyncio
import errno
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_outcomes import finish
from gateway_pictures import picture
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, event, text

from darkroom.contracts.keys import original_key
from darkroom.database import images
from darkroom.storage import FileStore, FileWriter
from darkroom.telemetry import names, tracing
from darkroom.telemetry.export import provider_for
from gateway.receiving import ReceivedForm, SyncedFile
from gateway.traces import TraceContext
from gateway.uploads import AT_ONCE, Acceptance, Accepted, UploadOptions

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


Accept = Callable[..., Awaitable[Accepted]]
"""An upload of pictures, by their seeds."""


@pytest.fixture
def accept(engine: Engine, store: FileStore) -> Accept:
    acceptance = Acceptance(engine, threads=4, is_gathering=True)

    async def accept(*seeds: int, tags: tuple[str, ...] = (), key: str | None = None) -> Accepted:
        form = ReceivedForm([synced(store, picture(seed)) for seed in seeds])
        trace = TraceContext(TRACE, f"00-{TRACE}-00f067aa0ba902b7-01")
        return await acceptance.accept(form, UploadOptions(tags=tags), trace, key)

    return accept


def synced(store: FileStore, content: bytes) -> SyncedFile:
    writer = store.new_writer()
    writer.write(content)
    writer.sync()
    return SyncedFile(writer, "photo.jpg", sha256_of(content), len(content))


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def all_of(*uploads: Awaitable[Accepted]) -> list[Accepted | BaseException]:
    """What becomes of uploads that begin at once."""

    async def run() -> list[Accepted | BaseException]:
        return await asyncio.gather(*uploads, return_exceptions=True)

    return asyncio.run(run())


@contextmanager
def commits_counted(engine: Engine) -> Iterator[list[int]]:
    counted = list[int]()
    event.listen(engine, "commit", lambda connection: counted.append(1))
    yield counted


def accepted_images(engine: Engine) -> int:
    with engine.connect() as connection:
        return images.read_ledger(connection)["accepted"]


def test_uploads_that_meet_share_a_transaction_and_nothing_else(
    engine: Engine, store: FileStore, accept: Accept
) -> None:
    with commits_counted(engine) as commits:
        answers = all_of(*(accept(seed, 100 + seed, tags=(f"tag {seed}", "all")) for seed in range(8)))

    assert len(commits) == AT_ONCE + 1, "those that found others on their way went together"
    assert accepted_images(engine) == 16
    for seed, answer in enumerate(answers):
        assert isinstance(answer, Accepted)
        assert (answer.batch.total, answer.batch.pending) == (2, 2)
        assert [image.sha256 for image in answer.images] == [sha256_of(picture(n)) for n in (seed, 100 + seed)]
        assert {tuple(image.tags) for image in answer.images} == {(f"tag {seed}", "all")}
        assert all(store.exists(original_key(image.sha256)) for image in answer.images)
        with engine.connect() as connection:
            batch = images.find_batch(connection, answer.batch.id)
            read = images.images_of_batch(connection, answer.batch.id)
        assert batch is not None
        assert dict(batch._mapping) == dict(answer.batch._mapping), "what was answered is what is there"
        assert [dict(row._mapping) for row in read] == [dict(row._mapping) for row in answer.images]


def test_the_same_bytes_are_uploaded_by_many_at_once(engine: Engine, accept: Accept) -> None:
    answers = all_of(*(accept(7) for _ in range(8)))

    found = [answer.images[0] for answer in answers if isinstance(answer, Accepted)]
    assert len(found) == 8
    assert sorted(image.duplicate for image in found) == [False] + [True] * 7
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM originals")) == 1


def test_known_bytes_are_answered_as_ever_in_a_shared_transaction(
    engine: Engine, store: FileStore, accept: Accept
) -> None:
    all_of(accept(5))
    finish(engine, store, sha256_of(picture(5)))
    with commits_counted(engine) as commits:
        answers = all_of(*(accept(seed) for seed in range(8)))

    assert len(commits) == AT_ONCE + 1
    found = [answer for answer in answers if isinstance(answer, Accepted)]
    assert [(one.batch.ready, one.images[0].state, one.images[0].duplicate) for one in found] == [
        (int(seed == 5), "ready" if seed == 5 else "in_flight", seed == 5) for seed in range(8)
    ]


def test_one_that_cannot_be_stored_fails_for_itself(
    engine: Engine, store: FileStore, accept: Accept, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, bad = FileWriter.place, original_key(sha256_of(picture(6)))

    def refuse_one(writer: FileWriter, key: str) -> None:
        if key == bad:
            raise OSError(errno.EIO, "the disk has a hole here")
        place(writer, key)

    monkeypatch.setattr(FileWriter, "place", refuse_one)
    answers = all_of(*(accept(seed) for seed in range(8)))

    assert [isinstance(answer, Accepted) for answer in answers] == [seed != 6 for seed in range(8)]
    assert isinstance(answers[6], OSError)
    assert accepted_images(engine) == 7


def test_an_upload_with_a_key_goes_alone_and_holds_it(engine: Engine, accept: Accept) -> None:
    answers = all_of(*(accept(seed) for seed in range(4)), *(accept(9, key="once") for _ in range(4)))

    batches = {answer.batch.id for answer in answers if isinstance(answer, Accepted)}
    assert len(batches) == 5
    assert accepted_images(engine) == 5


def test_who_waits_for_a_lock_does_not_keep_the_others(engine: Engine, accept: Accept) -> None:
    stuck = [sha256_of(picture(seed)) for seed in range(AT_ONCE)]
    all_of(*(accept(seed) for seed in range(AT_ONCE)))

    async def run() -> None:
        with engine.connect() as holder:
            holder.execute(text("SELECT FROM originals WHERE sha256 = ANY(:stuck) FOR UPDATE"), {"stuck": stuck})
            waiting = [asyncio.ensure_future(accept(seed)) for seed in range(AT_ONCE)]
            await accept(50)
            assert not any(one.done() for one in waiting)
            holder.rollback()
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert accepted_images(engine) == 2 * AT_ONCE + 1


def test_each_upload_has_the_shared_transaction_in_its_own_trace(
    engine: Engine, accept: Accept, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = provider_for(SimpleSpanProcessor(exporter), "test", "test")
    monkeypatch.setattr(tracing._Process, "provider", provider)
    monkeypatch.setattr(tracing._Process, "tracer", provider.get_tracer("test"))

    async def called(seed: int) -> Accepted:
        with tracing.span(f"call {seed}"):
            return await accept(seed)

    all_of(*(called(seed) for seed in range(6)))
    spans = exporter.get_finished_spans()

    def under(parent: ReadableSpan, name: str) -> ReadableSpan:
        (found,) = (
            span
            for span in spans
            if span.name == name and span.parent and span.parent.span_id == parent.context.span_id
        )
        return found

    are_shared = []
    for seed in range(6):
        (call,) = (span for span in spans if span.name == f"call {seed}")
        commit = under(call, names.COMMIT_UPLOAD)
        under(commit, names.BLOB_PUT)
        are_shared.append(bool((under(commit, names.TRANSACTION).attributes or {}).get(names.IS_SHARED)))
        with engine.connect() as connection:
            traceparents = connection.scalars(
                text("SELECT traceparent FROM events WHERE sha256 = :sha256"), {"sha256": sha256_of(picture(seed))}
            ).all()
        assert traceparents == [
            f"00-{commit.context.trace_id:032x}-{commit.context.span_id:016x}-{commit.context.trace_flags:02x}"
        ]
    assert len([span for span in spans if span.name == names.TRANSACTION]) == 6
    assert are_shared == [False] * AT_ONCE + [True] * (6 - AT_ONCE)
