"""What each kind of probe does, and what it tells meanwhile. No broker involved."""

from pathlib import Path

import pytest

from darkroom.celery_app import Delivery
from darkroom.contracts.messages import Probe, ProbeKind
from darkroom.errors import PermanentError, TransientError
from darkroom.probes import BLOB_BYTES, run_probe
from darkroom.storage import BlobStore, FileStore

Told = list[tuple[float, float, str]]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


def delivery(told: Told) -> Delivery:
    return Delivery("7", None, lambda done, total, unit: told.append((done, total, unit)))


def unused() -> BlobStore:
    raise AssertionError("the store was opened")


def test_add_adds() -> None:
    probed = run_probe(Probe(kind=ProbeKind.ADD, queue="embed", terms=(412, 77)), delivery([]), unused)
    assert (probed.terms, probed.sum, probed.queue) == ((412, 77), 489, "embed")


@pytest.mark.parametrize("kind", [ProbeKind.CPU, ProbeKind.SLOW])
def test_what_lasts_tells_how_far_it_is_up_to_the_end(kind: ProbeKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.probes.PROGRESS_EVERY_S", 0.01)
    told: Told = []
    probed = run_probe(Probe(kind=kind, queue="embed", seconds=0.05), delivery(told), unused)
    assert probed.seconds is not None and probed.seconds >= 0.05
    assert (probed.rounds is not None and probed.rounds > 0) == (kind is ProbeKind.CPU)
    assert told == sorted(told) and len(told) > 1
    assert told[-1] == (0.05, 0.05, "s")


def test_io_writes_reads_and_removes(store: FileStore) -> None:
    probed = run_probe(Probe(kind=ProbeKind.IO, queue="prepare"), delivery([]), lambda: store)
    assert probed.bytes == BLOB_BYTES
    assert probed.write_s is not None and probed.read_s is not None
    assert list(store.walk("probes/")) == []


def test_a_store_that_gives_back_something_else_is_found_out(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "get", lambda key: bytes(BLOB_BYTES))
    with pytest.raises(TransientError, match="other bytes than were written under probes/7"):
        run_probe(Probe(kind=ProbeKind.IO, queue="prepare"), delivery([]), lambda: store)
    assert list(store.walk("probes/")) == []


@pytest.mark.parametrize(("cause", "told"), [("the moon", "the moon"), (None, "It was asked to fail.")])
def test_fail_fails_with_its_cause(cause: str | None, told: str) -> None:
    with pytest.raises(PermanentError, match=told) as failure:
        run_probe(Probe(kind=ProbeKind.FAIL, queue="prepare", cause=cause), delivery([]), unused)
    assert failure.value.problem.slug == "probe-failed"
