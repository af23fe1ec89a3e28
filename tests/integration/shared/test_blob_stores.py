"""Every blob store keeps the same promises: a folder, and a bucket behind a server that speaks S3."""

import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from darkroom.errors import BlobMissingError, ConfigurationError
from darkroom.object_storage import PART_BYTES, StorageUnavailableError
from darkroom.storage import INCOMING, BlobStore, open_blob_store

KEY = "derived/ab/abcd/r1-webp/large.webp"


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """An empty store of each kind."""
    if request.param == "file":
        return open_blob_store((tmp_path / "blobs").as_uri())
    return open_blob_store(request.getfixturevalue("s3_url"))


def leftovers(store: BlobStore) -> list[str]:
    return [blob.key for blob in store.walk(INCOMING)]


def test_a_blob_comes_back_as_it_was_put(store: BlobStore) -> None:
    store.put(KEY, b"first")
    store.put(KEY, b"second, longer")

    assert store.get(KEY) == b"second, longer"
    assert store.info(KEY).bytes == 14
    assert store.exists(KEY)
    assert leftovers(store) == []


def test_a_reader_sees_all_of_a_blob_or_nothing(store: BlobStore) -> None:
    contents = [bytes([number]) * 300_000 for number in range(8)]
    seen: set[bytes] = set()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            if store.exists(KEY):
                seen.add(store.get(KEY))

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        store.put(KEY, content)
    is_over.set()
    reader.join()

    assert seen <= set(contents)


def test_an_upload_has_no_name_before_it_is_placed(store: BlobStore) -> None:
    writer = store.new_writer()
    writer.write(b"by")
    writer.write(b"tes")
    writer.sync()

    assert not store.exists(KEY)
    writer.place(KEY)
    assert store.get(KEY) == b"bytes"
    writer.discard()
    assert leftovers(store) == []


def test_placing_over_a_blob_of_another_size_repairs_it(store: BlobStore) -> None:
    store.put(KEY, b"by")  # as a crash of a file system may leave it
    writer = store.new_writer()
    writer.write(b"bytes")
    writer.sync()
    writer.place(KEY)

    assert store.get(KEY) == b"bytes"


def test_an_upload_that_is_discarded_leaves_nothing(store: BlobStore) -> None:
    writer = store.new_writer()
    writer.write(b"bytes")
    writer.discard()
    writer.discard()

    assert leftovers(store) == []


def test_discarding_after_placing_keeps_the_blob(store: BlobStore) -> None:
    writer = store.new_writer()
    writer.write(b"bytes")
    writer.sync()
    writer.place(KEY)
    writer.discard()

    assert store.get(KEY) == b"bytes"


MISSING: dict[str, Callable[[BlobStore], object]] = {
    "get": lambda store: store.get(KEY),
    "info": lambda store: store.info(KEY),
    "read_range": lambda store: store.read_range(KEY, 0),
}


@pytest.mark.parametrize("call", MISSING)
def test_what_is_not_there_is_told_by_its_key(store: BlobStore, call: str) -> None:
    with pytest.raises(BlobMissingError, match=KEY):
        MISSING[call](store)


def test_deleting_one_of_two_keeps_the_other(store: BlobStore) -> None:
    neighbour = KEY.replace("large", "small")
    store.put(KEY, b"1")
    store.put(neighbour, b"2")
    store.delete(KEY)

    assert store.get(neighbour) == b"2"


@pytest.mark.parametrize("depth", ["derived/ab/x", "derived/ab/abcd/r1-webp"])
def test_puts_and_deletes_that_race_in_one_folder_lose_nothing(store: BlobStore, depth: str) -> None:
    # Each thread's deletes remove the folders that the other one is about to write into.
    errors: list[BaseException] = []
    start = threading.Barrier(3)

    def work(name: str) -> None:
        key = f"{depth}/{name}/file"
        try:
            start.wait()
            for turn in range(20):
                store.put(key, b"%d" % turn)
                assert store.get(key) == b"%d" % turn
                store.delete(key)
                assert not store.exists(key)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


@pytest.mark.parametrize(
    "key", ["/etc/passwd", "../outside", "derived/../../outside", "derived/..", "..", "", ".", "a//b", "a/./b", "a/"]
)
def test_a_key_that_is_no_plain_path_below_the_folder_is_refused(store: BlobStore, key: str) -> None:
    for call in (store.get, store.info, store.exists, store.delete, lambda key: store.put(key, b"x")):
        with pytest.raises(ValueError, match="not a blob key"):
            call(key)


def test_a_walk_finds_the_blobs_below_a_folder_and_no_others(store: BlobStore) -> None:
    for key in ("derived/ab/1/x", "derived/ab/1/y/z", "derived/ab/11/x", "originals/ab/1"):
        store.put(key, key.encode())

    assert {(each.key, each.bytes) for each in store.walk("derived/ab/1/")} == {
        ("derived/ab/1/x", 14),
        ("derived/ab/1/y/z", 16),
    }
    assert list(store.walk("derived/ab/2")) == []
    assert all(each.modified_s > 0 for each in store.walk("derived/ab/1"))


def test_a_walk_goes_on_when_a_blob_disappears_under_it(store: BlobStore) -> None:
    for name in "abc":
        store.put(f"queries/1/{name}", b"x")

    found = []
    for blob in store.walk("queries/1"):
        found.append(blob.key)
        for name in "abc":
            store.delete(f"queries/1/{name}")

    assert len(found) in (1, 3)  # a bucket is listed a thousand at a time


@pytest.mark.parametrize("start", [0, 1, 4, 9, 10, 11])
def test_a_range_has_the_bytes_from_its_start(store: BlobStore, start: int) -> None:
    store.put(KEY, b"0123456789")

    pieces = list(store.read_range(KEY, start, chunk_bytes=4))

    assert b"".join(pieces) == b"0123456789"[start:]
    assert all(len(piece) <= 4 for piece in pieces)


def test_a_reader_keeps_the_bytes_that_are_deleted_under_it(store: BlobStore) -> None:
    store.put(KEY, b"0123456789")
    pieces = store.read_range(KEY, 0, chunk_bytes=4)
    next(pieces)
    store.delete(KEY)

    assert b"".join(pieces) == b"456789"


def test_a_blob_of_many_parts_comes_back_whole_and_in_ranges(store: BlobStore) -> None:
    content = bytes(range(256)) * (PART_BYTES // 128) + b"end"  # two parts and a little
    writer = store.new_writer()
    for begin in range(0, len(content), 1_000_000):
        writer.write(content[begin : begin + 1_000_000])
    writer.sync()
    writer.place(KEY)
    writer.discard()

    assert store.get(KEY) == content
    assert b"".join(store.read_range(KEY, PART_BYTES - 3)) == content[PART_BYTES - 3 :]
    assert leftovers(store) == []


def test_a_blob_that_was_placed_by_another_is_left_as_it_is(store: BlobStore) -> None:
    store.put(KEY, b"theirs")
    writer = store.new_writer()
    writer.write(b"mine!!")  # as long: with the same hash in their key they would be the same
    writer.sync()
    writer.place(KEY)
    writer.discard()

    assert store.get(KEY) == b"theirs"


def test_a_bucket_gives_addresses_to_download_from_and_a_folder_none(s3_url: str, tmp_path: Path) -> None:
    bucket, folder = open_blob_store(s3_url), open_blob_store(tmp_path.as_uri())
    bucket.put(KEY, b"bytes")
    folder.put(KEY, b"bytes")

    assert folder.signed_url(KEY, 60) is None
    url = bucket.signed_url(KEY, 60)
    assert url is not None
    answer = httpx.get(url, timeout=60)
    assert (answer.content, answer.headers["content-type"]) == (b"bytes", "image/webp")


def test_an_object_store_that_is_away_is_an_error_of_the_disk(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.object_storage.RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_blob_store(s3_url)

    with pytest.raises(StorageUnavailableError, match=KEY):
        store.get(KEY)
    assert issubclass(StorageUnavailableError, OSError)
    writer = store.new_writer()
    writer.write(b"bytes")
    with pytest.raises(StorageUnavailableError):
        writer.sync()
    writer.discard()


@pytest.mark.parametrize("url", ["s3://", "s3:bucket", "s4://bucket"])
def test_a_url_that_names_no_bucket_is_refused_at_boot(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DARKROOM_BLOB_URL"):
        open_blob_store(url)
