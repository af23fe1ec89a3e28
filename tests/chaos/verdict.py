"""What must be true after a storm, each part as a function that answers with the sentences of what is not."""

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from darkroom_house import House, OverdueError, wait_for
from storm import Accepted, Course
from storm_photos import storm_photo
from transformers.utils import logging as transformers_logging

from darkroom.contracts import keys
from darkroom.contracts.base import BlobKey, Sha256, ThumbnailSize
from darkroom.contracts.keys import Recipe
from darkroom.contracts.messages import DescribedManifest, PreparedManifest
from darkroom.database.engine import sync_engine
from darkroom.errors import BlobMissingError, PermanentError
from darkroom.settings import DatabaseSettings, LimitSettings, ModelSettings
from darkroom.storage import BlobStore
from embedder.model import ClipModel, load_model
from scheduler.retention import clean_up
from scheduler.settings import SchedulerSettings
from thumbnailer import decoding, describing, rendering
from thumbnailer.decoding import Limits

MAX_DISTANCE = 1e-3
"""1 - cosine of a stored and a directly computed vector: bfloat16 and another batch cost 1e-4."""

BATCH = 16

EMPTY_WITHIN_S = 120.0
"""Redis hands back what a killed worker held after the hard limit and 30 s."""

QUIET_S = 2.0

SAID_EVERY = 250

A_DAY_AND_MORE_S = 100_000.0

OURS = ("originals/", "derived/", "embeddings/", "incoming/", "queries/", "probes/")
"""Where the blobs of photos, and what is left of their making, can lie. The others are backups and reports."""

Image = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """What the pure functions make of one original: the pictures by key, and what describes them."""

    blobs: dict[BlobKey, bytes]
    proxy: bytes
    facts: dict[str, Any]


def make(sha256: Sha256, data: bytes, recipe: Recipe, limits: Limits) -> Made:
    """Every rendition and fact of one original, computed here and now. Raises what refuses it."""
    photo = decoding.decode(data, limits)
    large, proxy = rendering.render_large(photo, recipe.output), rendering.render_proxy(photo)
    source = rendering.thumbnail_source(proxy.data, large.data)
    medium, small = rendering.render_medium(source, recipe.output), rendering.render_small(source, recipe.output)
    named = {ThumbnailSize.LARGE: large, ThumbnailSize.MEDIUM: medium, ThumbnailSize.SMALL: small}
    blobs = {keys.thumbnail_key(sha256, recipe, size): rendition.data for size, rendition in named.items()}
    facts = {
        "format": photo.format,
        "width": photo.width,
        "height": photo.height,
        "thumbhash": describing.thumbhash(source),
        "palette": [{"hex": one.colour, "share": one.permille / 1000} for one in describing.palette(source)],
        "thumbnails": {
            size.value: {"width": one.width, "height": one.height, "bytes": len(one.data)}
            for size, one in named.items()
        },
    }
    return Made(blobs | {keys.proxy_key(sha256, recipe): proxy.data}, proxy.data, facts)


def check_accepted(accepted: Sequence[Accepted], uploads: int, stored: Iterable[str]) -> Iterator[str]:
    """Each upload has one image of its own, and there are no others. `stored`: the ids of all rows."""
    told, rows = [one.image_id for one in accepted], list(stored)
    if len(told) != uploads:
        yield f"{uploads} photos were sent and {len(told)} clients have a 202"
    for image_id, times in Counter(told).items():
        if times > 1:
            yield f"{times} clients were told the same image {image_id}"
    for image_id in sorted(set(told) - set(rows)):
        yield f"the image {image_id} of a 202 is not there"
    for image_id in sorted(set(rows) - set(told)):
        yield f"nobody was told of the image {image_id}"


def check_ledger(ledger: Mapping[str, int], accepted: int, ends: Mapping[str, int]) -> Iterator[str]:
    """The ledger says what clients were told and what images are."""
    wanted = {"accepted": accepted, "ready": 0, "failed": 0, "deleted": 0, "in_flight": 0, **ends}
    for name, count in wanted.items():
        if ledger[name] != count:
            yield f"the ledger has {ledger[name]} {name}; it must be {count}"


def check_image(image: Image, sha256: Sha256, expected: Made | PermanentError) -> Iterator[str]:
    """One image's row says what the direct computation says."""
    name = f"{image['filename']} ({image['id']})"
    if image["sha256"] != sha256:
        yield f"{name} has other bytes than were sent"
    if isinstance(expected, PermanentError):
        if image["status"] != "failed":
            yield f"{name} is broken and is {image['status']}"
        elif image["error"]["type"] != expected.problem.type:
            yield f"{name} failed for {image['error']['type']}; it must be {expected.problem.type}"
        return
    if image["status"] != "ready":
        yield f"{name} is good and is {image['status']}: {image['error']}"
        return
    found = dict(image)
    found["thumbnails"] = {
        size: {field: one[field] for field in ("width", "height", "bytes")} for size, one in image["thumbnails"].items()
    }
    for field, value in expected.facts.items():
        if found[field] != value:
            yield f"{name} has the {field} {found[field]}; it must be {value}"
    if len(image["embeddings"]) != 1:
        yield f"{name} has {len(image['embeddings'])} vectors; it must have one"


def check_blobs(store: BlobStore, made: Mapping[BlobKey, bytes]) -> Iterator[str]:
    """Every picture is there, byte by byte."""
    for key, data in made.items():
        try:
            if store.get(key) != data:
                yield f"{key} has other bytes than a direct computation gives"
        except BlobMissingError:
            yield f"{key} is missing"


def check_manifests(store: BlobStore, sha256: Sha256, recipe: Recipe) -> Iterator[str]:
    """Both manifests are there and about this photo."""
    for key, model in (
        (keys.prepared_key(sha256, recipe), PreparedManifest),
        (keys.described_key(sha256, recipe), DescribedManifest),
    ):
        try:
            if model.model_validate_json(store.get(key)).sha256 != sha256:
                yield f"{key} is about another photo"
        except (BlobMissingError, ValueError) as error:
            yield f"{key} cannot be read: {error}"


def distances(model: ClipModel, proxies: Sequence[bytes], stored: Sequence[np.ndarray[Any, Any]]) -> list[float]:
    """1 - cosine between each stored vector and the one that the model gives here."""
    found: list[float] = []
    for start in range(0, len(proxies), BATCH):
        pixels = [model.preprocessing.pixels(proxy) for proxy in proxies[start : start + BATCH]]
        here = model.embed_pictures(pixels)
        there = np.stack(stored[start : start + BATCH]).astype(np.float32)
        cosines = (here * there).sum(axis=1) / np.linalg.norm(there, axis=1)
        found += [float(1 - cosine) for cosine in cosines]
    return found


def check_store(found: Iterable[BlobKey], expected: Iterable[BlobKey]) -> Iterator[str]:
    """The store holds one set of artefacts for each photo, and nothing else."""
    there, wanted = set(found), set(expected)
    for key in sorted(wanted - there):
        yield f"{key} is missing"
    for key in sorted(there - wanted):
        yield f"{key} belongs to nothing"


def check_events(events: Iterable[tuple[str, str, str | None]], ends: Mapping[str, str]) -> Iterator[str]:
    """Each image was accepted once and ended once, and each batch was completed once.

    `events`: type, batch and image; `ends`: the state of each image. Every batch has one image here.
    """
    counts, completed = Counter[tuple[str, str]](), Counter[str]()
    for kind, batch, image in events:
        if kind == "batch.completed":
            completed[batch] += 1
        elif image is not None:
            counts[kind, image] += 1
    for image, state in ends.items():
        for kind in ("image.accepted", "image.ready", "image.failed"):
            wanted = int(kind in ("image.accepted", f"image.{state}"))
            if counts[kind, image] != wanted:
                yield f"the image {image}, {state}, has {counts[kind, image]} events {kind}; it must have {wanted}"
    if len(completed) != len(ends) or set(completed.values()) - {1}:
        yield f"{len(ends)} batches were completed {sum(completed.values())} times"


@dataclass(frozen=True)
class Verdict:
    """What was wrong, in sentences, and figures for the report."""

    faults: list[str]
    figures: dict[str, Any]


def judge(house: House, course: Course, seed: int, uploads: int, say: Callable[[str], None] = print) -> Verdict:
    """Compares everything that can be seen with what it must be."""
    say("every photo is made again here and compared")
    faults = list(course.overdue)
    store, recipe = house.store, Recipe.current()
    settings = LimitSettings()
    limits = Limits(file_bytes=settings.max_upload_bytes, pixels=settings.max_pixels, frames=settings.max_frames)

    ends: dict[str, str] = {}
    expected_keys: set[BlobKey] = set()
    made_of: dict[Sha256, Made | PermanentError] = {}
    proxies: dict[Sha256, bytes] = {}
    with httpx.Client(base_url=house.url, timeout=30, trust_env=False) as http:
        for compared, one in enumerate(sorted(course.accepted, key=lambda each: each.number)):
            if compared and compared % SAID_EVERY == 0:
                say(f"{compared:>6} of {len(course.accepted)} photos compared, {len(faults)} faults")
            photo = storm_photo(seed, one.number)
            if one.sha256 not in made_of:
                made_of[one.sha256] = expected = _made(one.sha256, photo.data, recipe, limits)
                if isinstance(expected, PermanentError) != photo.is_broken:
                    faults.append(f"{photo.filename} was sent as {'broken' if photo.is_broken else 'good'} and is not")
                expected_keys.add(keys.original_key(one.sha256))
                if isinstance(expected, Made):
                    faults += check_blobs(store, expected.blobs | {keys.original_key(one.sha256): photo.data})
                    faults += check_manifests(store, one.sha256, recipe)
                    expected_keys |= {*expected.blobs, *_manifests(one.sha256, recipe)}
                    proxies[one.sha256] = expected.proxy
                    made_of[one.sha256] = Made({}, b"", expected.facts)  # 5,000 pictures need not stay in memory
            image = http.get(f"/v1/images/{one.image_id}").raise_for_status().json()
            ends[one.image_id] = image["status"]
            faults += check_image(image, one.sha256, made_of[one.sha256])
        ledger = http.get("/v1/ledger").raise_for_status().json()

    say("every vector is computed again here and compared")
    transformers_logging.disable_progress_bar()
    model = load_model("bundled", ModelSettings())
    vectors = {sha256: keys.embedding_key(model.reference.id, sha256) for sha256 in proxies}
    expected_keys |= set(vectors.values())
    farthest, vector_faults = _check_vectors(house, model, proxies, vectors)
    faults += vector_faults
    counts = Counter(ends.values())
    faults += check_accepted(course.accepted, uploads, [str(row[0]) for row in house.rows("SELECT id FROM images")])
    faults += check_ledger(ledger, len(course.accepted), counts)
    faults += check_events(_events(house), ends)
    if course.answers["500"]:
        faults.append(f"{course.answers['500']} requests were answered 500: an error that nobody foresaw")
    faults += [f"no strike of {one.kind} met any work" for one in course.struck if not sum(one.in_flight.values())]
    faults += _letters(house)
    leftovers = _sweep(house, expected_keys)
    faults += check_store(_keys(store), expected_keys)
    say("waiting until the broker has no message left")
    faults += _check_queues(house)
    return Verdict(
        faults,
        {
            "ledger": ledger,
            "originals": len(made_of),
            "farthest_vector": farthest,
            "left_for_the_sweeper": leftovers,
            "losses": int(_number(house, "SELECT sum(losses) FROM originals")),
            "dispatches": int(_number(house, "SELECT sum(generation) FROM originals")),
        },
    )


def _made(sha256: Sha256, data: bytes, recipe: Recipe, limits: Limits) -> Made | PermanentError:
    try:
        return make(sha256, data, recipe, limits)
    except PermanentError as error:
        return error


def _manifests(sha256: Sha256, recipe: Recipe) -> tuple[BlobKey, BlobKey]:
    return keys.prepared_key(sha256, recipe), keys.described_key(sha256, recipe)


def _check_vectors(
    house: House, model: ClipModel, proxies: Mapping[Sha256, bytes], vectors: Mapping[Sha256, BlobKey]
) -> tuple[float, list[str]]:
    rows = dict(house.rows("SELECT sha256, vector::text FROM embeddings WHERE model_id = %s", model.reference.id))
    faults, known, stored = [], [], []
    for sha256, key in vectors.items():
        try:
            vector = np.load(io.BytesIO(house.store.get(key)), allow_pickle=False)
        except (BlobMissingError, ValueError) as error:
            faults.append(f"the vector of {sha256} cannot be read: {error}")
            continue
        if sha256 not in rows or not np.array_equal(np.array(json.loads(str(rows[sha256])), np.float16), vector):
            faults.append(f"the index has another vector of {sha256} than the store")
        known.append(sha256)
        stored.append(vector)
    found = distances(model, [proxies[sha256] for sha256 in known], stored)
    faults += [
        f"the vector of {sha256} is {distance:.5f} from a direct computation's"
        for sha256, distance in zip(known, found, strict=True)
        if distance > MAX_DISTANCE
    ]
    return max(found, default=0.0), faults


def _events(house: House) -> list[tuple[str, str, str | None]]:
    rows = house.rows("SELECT type, batch_id, image_id FROM events")
    return [(str(kind), str(batch), None if image is None else str(image)) for kind, batch, image in rows]


def _letters(house: House) -> list[str]:
    rows = house.rows("SELECT task, cause FROM dead_letters WHERE outcome = 'kept'")
    return [f"a dead letter of {task} waits for a person: {cause}" for task, cause in rows]


def _number(house: House, statement: str) -> Any:
    return house.rows(statement)[0][0]


def _keys(store: BlobStore) -> list[BlobKey]:
    return [blob.key for prefix in OURS for blob in store.walk(prefix)]


def _sweep(house: House, expected: set[BlobKey]) -> int:
    """Lets the sweeper do what it will have done a day later; returns how many blobs were left for it."""
    leftovers = len(set(_keys(house.store)) - expected)
    engine = sync_engine(DatabaseSettings(database_url=house.database_url))
    try:
        clean_up(engine, house.store, SchedulerSettings(), time.time() + A_DAY_AND_MORE_S)
    finally:
        engine.dispose()
    return leftovers


def _check_queues(house: House) -> list[str]:
    """Whether every message is gone, those of the periodic jobs too: nothing is sent meanwhile."""
    beat = house.pid("beat")
    with house.stopped(beat):
        time.sleep(QUIET_S)
        try:
            wait_for(lambda: not house.left_in_queues(), "every queue is empty", within_s=EMPTY_WITHIN_S, every_s=1)
        except OverdueError:
            return [f"{count} messages are left in {queue}" for queue, count in house.left_in_queues().items()]
    return []
