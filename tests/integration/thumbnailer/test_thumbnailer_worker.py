"""The running thumbnailer on both brokers: the canvas, duplicates, broken files, queries, fences and outages."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from celery import chain
from conftest import eventually
from kombu import Connection, Queue
from PIL import Image
from thumbnailer_bench import RECIPE, Bench, bomb, children, picture, running

from darkroom import topology
from darkroom.celery_app import request
from darkroom.contracts import keys
from darkroom.contracts.base import Lane, ThumbnailSize
from darkroom.contracts.events import ImagePrepared
from darkroom.contracts.messages import (
    DescribedManifest,
    Embedded,
    Fence,
    PreparedManifest,
    PrepareQuery,
    Rendition,
)
from darkroom.contracts.tasks import FENCE, PREPARE_QUERY, RETURN_FENCE
from darkroom.topology import Node, queues_of

THUMBNAILER_QUEUES = (*queues_of(Node.THUMBNAILER), *queues_of(Node.THUMBNAILER_BULK))


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One thumbnailer for each lane, for all the tests of this file: every test has photos of its own."""
    redis_url = request.getfixturevalue("redis_server").url
    broker_url = redis_url if request.param == "redis" else request.getfixturevalue("rabbit_url")
    with running(Bench(broker_url, redis_url, tmp_path_factory.mktemp("bench"))) as bench:
        bench.start(Lane.INTERACTIVE)
        bench.start(Lane.BULK, DARKROOM_WORKER_CONCURRENCY="1")
        bench.ready()
        yield bench


def artefacts(bench: Bench, sha256: str) -> dict[str, bytes]:
    return {blob.key: bench.store.get(blob.key) for blob in bench.store.walk(keys.derived_prefix(sha256))}


def opened(bench: Bench, rendition: Rendition) -> Image.Image:
    path = bench.store.path(rendition.key)
    assert path.stat().st_size == rendition.bytes
    image = Image.open(path)
    assert image.size == (rendition.width, rendition.height)
    return image


def test_a_prepared_photo_is_hinted_at_on_the_events_exchange(bench: Bench) -> None:
    heard = Queue("hints-heard", topology.EVENTS, routing_key="image.prepared", durable=True)
    with Connection(bench.broker_url) as connection, connection.channel() as channel:
        heard(channel).declare()
        heard(channel).purge()
        sha256 = bench.keep(picture(width=900, height=600, seed=31))
        bench.dispatch(sha256, generation=4)

        message = eventually(lambda: heard(channel).get(no_ack=True))
        event = ImagePrepared.from_wire(message.payload)
        heard(channel).delete()
    assert (event.sha256, event.generation) == (sha256, 4)
    assert bench.store.exists(keys.thumbnail_key(sha256, RECIPE, ThumbnailSize.LARGE))


@pytest.mark.parametrize("lane", Lane)
def test_a_photo_goes_through_the_canvas_and_is_joined_once(bench: Bench, lane: Lane) -> None:
    sha256 = bench.keep(picture(width=2000, height=1000, seed=1 if lane is Lane.BULK else 2))
    ids = bench.dispatch(sha256, lane=lane)

    embed = bench.take("embed.bulk" if lane is Lane.BULK else "embed", ids["embed"])
    assert embed.message["proxy"] == keys.proxy_key(sha256, RECIPE)
    assert (embed.message["generation"], embed.message["lane"]) == (1, lane.value)
    assert bench.store.exists(keys.proxy_key(sha256, RECIPE))
    bench.answer(ids["thumbnails"])
    vector = Embedded(model="tiny@0123456789ab", dim=4, vector="embeddings/tiny@0123456789ab/x.npy")
    bench.answer_as_worker(embed, vector)
    # A part that is delivered twice answers the same, and must not join once more.
    bench.answer_as_worker(embed, vector)

    last_queue = "finalize.bulk" if lane is Lane.BULK else "finalize"
    finalize = bench.take(last_queue, ids["finalize"])
    described = {"manifest": keys.described_key(sha256, RECIPE)}
    assert finalize.previous == [[described, vector.to_wire()]]
    assert finalize.message["sha256"] == sha256
    assert finalize.message["recipe"] == RECIPE.model_dump(mode="json")
    assert [each.task_id for each in bench.messages(last_queue)].count(ids["finalize"]) == 1
    assert bench.failures(sha256) == []

    prepared = PreparedManifest.model_validate_json(bench.store.get(keys.prepared_key(sha256, RECIPE)))
    described_manifest = DescribedManifest.model_validate_json(bench.store.get(keys.described_key(sha256, RECIPE)))
    assert (prepared.format, prepared.width, prepared.height) == ("JPEG", 2000, 1000)
    assert opened(bench, prepared.large).size == (1600, 800)
    assert opened(bench, prepared.proxy).size == (768, 384)
    assert opened(bench, described_manifest.medium).size == (768, 384)
    assert opened(bench, described_manifest.small).size == (256, 128)
    eventually(lambda: not bench.redis.keys("tries:*"))  # of the photos of the tests before, too


def test_a_message_that_comes_twice_finds_the_work_done(bench: Bench) -> None:
    sha256 = bench.keep(picture(seed=3))
    first = bench.answer(bench.prepare(sha256)), bench.answer(bench.thumbnails(sha256))
    before = {blob.key: blob.modified_s for blob in bench.store.walk(keys.derived_prefix(sha256))}

    second = bench.answer(bench.prepare(sha256, 2)), bench.answer(bench.thumbnails(sha256, 2))

    assert second == first
    assert {blob.key: blob.modified_s for blob in bench.store.walk(keys.derived_prefix(sha256))} == before
    assert len(before) == 6


def test_work_that_is_done_again_writes_the_same_bytes(bench: Bench) -> None:
    sha256 = bench.keep(picture("PNG", seed=4))
    first = bench.answer(bench.prepare(sha256)), bench.answer(bench.thumbnails(sha256))
    before = artefacts(bench, sha256)
    for key in before:
        bench.store.delete(key)

    second = bench.answer(bench.prepare(sha256, 2)), bench.answer(bench.thumbnails(sha256, 2))

    # Header results of a chord must look the same too.
    assert second == first
    assert artefacts(bench, sha256) == before


@pytest.mark.parametrize("lost", ["large", "proxy", "prepared", "torn"])
def test_an_artefact_that_was_lost_is_rendered_again(bench: Bench, lost: str) -> None:
    sha256 = bench.keep(picture(seed=10 + ["large", "proxy", "prepared", "torn"].index(lost)))
    bench.answer(bench.prepare(sha256))
    before = artefacts(bench, sha256)
    large = keys.thumbnail_key(sha256, RECIPE, ThumbnailSize.LARGE)
    match lost:
        case "torn":
            bench.store.put(large, before[large][:-1])
            bench.store.put(keys.prepared_key(sha256, RECIPE), before[keys.prepared_key(sha256, RECIPE)][:20])
        case "large":
            bench.store.delete(large)
        case "proxy":
            bench.store.delete(keys.proxy_key(sha256, RECIPE))
        case _:
            bench.store.delete(keys.prepared_key(sha256, RECIPE))

    bench.answer(bench.prepare(sha256, 2))

    assert artefacts(bench, sha256) == before


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut off": (picture("JPEG", seed=20)[:-3000], "image-truncated"),
    "cut off PNG": (picture("PNG", seed=21)[:-20], "image-truncated"),
    "text": (b"Dear Sir or Madam, this is no picture.", "unsupported-format"),
    "too many pixels": (bomb(), "too-many-pixels"),
    "empty": (b"", "unsupported-format"),
}


def test_each_broken_file_fails_once_with_its_cause_and_the_children_go_on(bench: Bench) -> None:
    before = children(bench.workers[0])
    sent = {name: bench.dispatch(bench.keep(data), generation=7) for name, (data, _) in BROKEN.items()}
    good = bench.keep(picture(seed=22))

    for name, ids in sent.items():
        assert bench.ends_as(ids["prepare"])[0] == "FAILURE", name
    bench.answer(bench.prepare(good))

    for name, (data, slug) in BROKEN.items():
        sha256 = bench.keep(data)
        [failure] = eventually(lambda sha256=sha256: bench.failures(sha256))
        assert failure.problem.slug == slug, name
        assert (failure.generation, failure.lane) == (7, Lane.INTERACTIVE)
        assert failure.problem.remedy
    assert bench.failures(good) == []
    assert children(bench.workers[0]) == before
    # Nothing of their chords was sent on.
    assert not {ids["embed"] for ids in sent.values()} & {each.task_id for each in bench.messages("embed")}
    eventually(lambda: not bench.redis.keys("tries:*"))  # of the photos of the tests before, too


def test_a_search_picture_becomes_a_proxy_or_a_problem_and_never_a_failure(bench: Bench) -> None:
    before = len(bench.messages("finalize"))
    source, proxy = keys.query_key("1", "source"), keys.query_key("1", "proxy.jpg")
    bench.store.put(source, picture("WEBP", width=1000, height=500))
    bench.store.put(keys.query_key("2", "source"), b"no picture")

    good = bench.send(PREPARE_QUERY, PrepareQuery(source=source, proxy=proxy))
    broken_source = keys.query_key("2", "source")
    broken = bench.send(PREPARE_QUERY, PrepareQuery(source=broken_source, proxy=keys.query_key("2", "proxy.jpg")))

    assert bench.answer(good) == {}
    with Image.open(bench.store.path(proxy)) as image:
        assert (image.format, image.size) == ("JPEG", (768, 384))
        assert np.asarray(image).std() > 10
    assert bench.answer(broken)["problem"]["type"].endswith("/unsupported-format")
    assert not bench.store.exists(keys.query_key("2", "proxy.jpg"))
    assert len(bench.messages("finalize")) == before


def test_a_fence_comes_back_through_every_queue(bench: Bench) -> None:
    for number, queue in enumerate(THUMBNAILER_QUEUES, 1):
        fence = Fence(number=number, queue=queue)
        chain(
            request(bench.app, FENCE, fence, queue=queue, task_id=f"fence-{number}"),
            request(bench.app, RETURN_FENCE, fence, task_id=f"return-{number}"),
            app=bench.app,
        ).apply_async()

    for number, queue in enumerate(THUMBNAILER_QUEUES, 1):
        assert bench.take("finalize", f"return-{number}").message == {"number": number, "queue": queue}


def test_each_lane_has_queues_children_and_a_priority_of_its_own(bench: Bench) -> None:
    interactive, bulk = bench.workers
    consumed = bench.app.control.inspect(timeout=10, limit=2).active_queues()

    by_node = {name.partition("@")[0]: {queue["name"] for queue in queues} for name, queues in consumed.items()}
    assert by_node == {node.value: set(queues_of(node)) for node in (Node.THUMBNAILER, Node.THUMBNAILER_BULK)}
    assert (len(children(interactive)), len(children(bulk))) == (2, 1)
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in children(bulk)} == {10}
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in children(interactive)} == {0}


def test_a_blob_that_is_missing_is_tried_again_and_then_given_up_without_failing_the_photo(bench: Bench) -> None:
    # Several retries each: the second one shows that a message which came back once comes back again.
    late, never, without_proxy = (f"{number:064x}" for number in (1, 2, 3))
    late_id, never_id, proxy_id = bench.prepare(late), bench.prepare(never), bench.thumbnails(without_proxy)
    eventually(lambda: bench.state(late_id) == "RETRY")
    bench.store.put(keys.original_key(late), picture(seed=30))

    bench.answer(late_id)
    assert bench.ends_as(never_id) == ("FAILURE", "BlobMissingError")
    assert bench.ends_as(proxy_id) == ("FAILURE", "BlobMissingError")

    for sha256 in (late, never, without_proxy):
        assert bench.failures(sha256) == []
    assert not bench.store.exists(keys.prepared_key(never, RECIPE))


def test_a_heartbeat_is_touched_by_the_worker_s_loop(bench: Bench) -> None:
    heartbeat = bench.heartbeat(0)
    before = heartbeat.stat().st_mtime_ns

    eventually(lambda: heartbeat.stat().st_mtime_ns > before)


def test_nothing_was_dead_lettered(bench: Bench) -> None:
    # The last test of this file: of all that was sent, no message was refused or delivered too often.
    assert bench.dead_letters() == []
