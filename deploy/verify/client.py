"""What deploy/verify-compose.sh asks of a running Darkroom, from inside of its network. Each command ends with 0 or 1.

upload COUNT   sends that many mixed photos over REST and gRPC in turn, and notes what was accepted in /state
storm          goes on sending until /state/stop exists: whatever is refused or cut is sent again under the same key
settle         waits until everything that was accepted has ended, and compares every result with what was sent
search         finds photos by a text, by a photo and by an uploaded picture
trace          reads one photo's trace from Jaeger
ledger         compares the ledger with what was accepted here
"""

import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx

from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1 import darkroom_pb2_grpc as services
from darkroom_cli.samples import SAMPLES, Sample, draw

GATEWAY, GRPC, JAEGER = "http://gateway:8000", "gateway:50051", "http://jaeger:16686"
STATE = Path("/state")
NOTED, STOP = STATE / "accepted.jsonl", STATE / "stop"
CHUNK_BYTES = 256 * 1024
SETTLE_S = 420
BROKEN_EVERY = 20
"""One of so many is cut in the middle: it must fail, with a cause."""
SMALL_PIXELS = 2_000_000
"""While containers die, this machine's cores are for them and not for drawing big pictures."""


@dataclass(frozen=True)
class Accepted:
    """One upload that was answered with 202 or OK."""

    id: str
    number: int
    face: str
    filename: str
    is_broken: bool


def fail(words: str) -> None:
    sys.exit(f"FAILED: {words}")


def photo(number: int, samples: tuple[Sample, ...] = SAMPLES) -> tuple[str, bytes, bool]:
    """A photo's name, its bytes and whether they are cut; every number gives another."""
    sample, turn = samples[number % len(samples)], number // len(samples)
    fill, tilt = 0.28 + 0.01 * (turn % 15), 0.05 * turn
    picture = draw(
        sample.colour, sample.shape, sample.size, sample.ground, fill=fill, tilt=tilt, is_cut_out=sample.is_cut_out
    )
    data = sample.encode(picture)
    is_broken = number % BROKEN_EVERY == BROKEN_EVERY - 1
    return f"{number}-{sample.filename}", data[: len(data) // 3] if is_broken else data, is_broken


def send(number: int, name: str, data: bytes, key: str, http: httpx.Client, stub: Any) -> str:
    """The image's id; raises httpx.HTTPError or grpc.RpcError when it was not accepted."""
    lane = "bulk" if number % 3 == 0 else "interactive"
    if number % 2:
        metadata = pb.UploadMetadata(
            filename=name, lane=pb.Lane.Value(f"LANE_{lane.upper()}"), tags=["verify"], idempotency_key=key
        )

        def messages() -> Iterator[pb.UploadImageRequest]:
            yield pb.UploadImageRequest(metadata=metadata)
            for begin in range(0, len(data), CHUNK_BYTES):
                yield pb.UploadImageRequest(chunk=data[begin : begin + CHUNK_BYTES])

        return str(stub.UploadImage(messages(), timeout=20).image.id)
    form = {"lane": lane, "tags": "verify"}
    answer = http.post("/v1/images", files={"file": (name, data)}, data=form, headers={"Idempotency-Key": key})
    answer.raise_for_status()
    return str(answer.json()["images"][0]["id"])


def noted() -> list[Accepted]:
    return [Accepted(**json.loads(line)) for line in NOTED.read_text().splitlines()] if NOTED.exists() else []


def upload(count: int | None, http: httpx.Client, stub: Any) -> None:
    """Sends photos: so many at once, or, with retries, until there is a stop file."""
    samples = SAMPLES if count else tuple(s for s in SAMPLES if s.size[0] * s.size[1] < SMALL_PIXELS)
    first, refused, begun = len(noted()), Counter[str](), time.monotonic()
    number = first
    with NOTED.open("a") as file:
        while number < first + count if count else not STOP.exists():
            name, data, is_broken = photo(number, samples)
            key = str(uuid.uuid4())
            while True:
                try:
                    image_id = send(number, name, data, key, http, stub)
                    break
                except (httpx.HTTPError, grpc.RpcError) as error:
                    if count:
                        fail(f"upload {number} was refused: {error!r}")
                    refused[type(error).__name__] += 1
                    time.sleep(0.5)
            face = "gRPC" if number % 2 else "REST"
            file.write(json.dumps(asdict(Accepted(image_id, number, face, name, is_broken))) + "\n")
            file.flush()
            number += 1
            if not count:
                time.sleep(0.5)
    took = time.monotonic() - begun
    print(
        f"{number - first} uploads accepted in {took:.0f} s, {sum(refused.values())} tries refused or cut",
        dict(refused),
    )


def settle(http: httpx.Client, stub: Any) -> None:
    """Waits for the ledger to have nothing in flight, then checks every image."""
    begun, images = time.monotonic(), noted()
    while (ledger := http.get("/v1/ledger").raise_for_status().json())["in_flight"]:
        if time.monotonic() - begun > SETTLE_S:
            fail(f"still in flight after {SETTLE_S} s: {ledger}")
        time.sleep(1)
    print(f"all {len(images)} ended within {time.monotonic() - begun:.0f} s")
    formats, causes = Counter[str](), Counter[str]()
    for one in images:
        image = http.get(f"/v1/images/{one.id}").raise_for_status().json()
        if one.face == "gRPC":
            told = stub.GetImage(pb.GetImageRequest(image_id=one.id), timeout=10)
            if pb.ImageStatus.Name(told.status) != f"IMAGE_STATUS_{image['status'].upper()}":
                fail(f"{one.filename}: REST says {image['status']}, gRPC {told.status}")
        if one.is_broken:
            if image["status"] != "failed" or not (image["error"] or {}).get("detail"):
                fail(f"{one.filename} was cut, and is {image['status']} with {image['error']}")
            causes[image["error"]["type"].rpartition("/")[2]] += 1
            continue
        if image["status"] != "ready":
            fail(f"{one.filename} is {image['status']}: {image['error']}")
        check_pictures(one, image, http, stub)
        formats[image["format"]] += 1
    print(f"every result is as it must be: ready {dict(formats)}, failed {dict(causes)}")


def check_pictures(one: Accepted, image: dict[str, Any], http: httpx.Client, stub: Any) -> None:
    """One vector; three renditions of the sizes that they have, one of which is fetched over the upload's face."""
    if len(image["embeddings"]) != 1 or set(image["thumbnails"]) != {"small", "medium", "large"}:
        fail(f"{one.filename} lacks something: {image['embeddings']}, {list(image['thumbnails'])}")
    for size, side in (("small", 256), ("medium", 768), ("large", 1600)):
        shown = image["thumbnails"][size]
        if max(shown["width"], shown["height"]) != min(side, max(image["width"], image["height"])):
            fail(f"{one.filename}: {size} is {shown['width']}x{shown['height']}")
    expected = image["thumbnails"]["small"]["bytes"]
    if one.face == "gRPC":
        parts = stub.GetThumbnail(pb.GetThumbnailRequest(image_id=one.id, size=pb.THUMBNAIL_SIZE_SMALL), timeout=10)
        got = sum(len(part.chunk) for part in parts)
    else:
        got = len(http.get(image["thumbnails"]["small"]["url"]).raise_for_status().content)
    if got != expected:
        fail(f"{one.filename}: the small thumbnail has {got} bytes and not {expected}")


def search(http: httpx.Client) -> None:
    """Each kind of search finds what it must."""
    names = {one.id: one.filename for one in noted()}
    for text, wanted in (("a red circle", "red-circle"), ("a green triangle", "green-triangle")):
        found = http.post("/v1/search", json={"text": text, "limit": 5}).raise_for_status().json()["results"]
        titles = [names[result["image"]["id"]] for result in found]
        if not any(wanted in title for title in titles):
            fail(f"{text!r} found {titles}")
        print(f"“{text}” found {titles[0]} ({found[0]['score']:.3f})")
    one = next(one for one in noted() if "blue-star" in one.filename and not one.is_broken)
    near = http.post("/v1/search", json={"image_id": one.id, "limit": 3}).raise_for_status().json()["results"]
    data = photo(one.number)[1]
    same = http.post("/v1/search:image", files={"file": ("query.webp", data)}).raise_for_status().json()["results"]
    if one.id in [result["image"]["id"] for result in near] or same[0]["image"]["id"] != one.id:
        fail(f"searching by {one.filename} found {[names[result['image']['id']] for result in same]}")
    print(f"a photo found {names[near[0]['image']['id']]}, and its own bytes found itself ({same[0]['score']:.3f})")


def trace(http: httpx.Client) -> None:
    """One photo's spans in Jaeger: every service, one tree."""
    one = next(one for one in noted() if not one.is_broken)
    trace_id = http.get(f"/v1/images/{one.id}").raise_for_status().json()["trace_id"]
    wanted = {"gateway", "thumbnailer", "embedder", "scheduler"}
    deadline = time.monotonic() + 60
    while True:
        answer = httpx.get(f"{JAEGER}/api/traces/{trace_id}", timeout=10)
        found = answer.json()["data"] if answer.status_code == 200 else []
        spans = found[0]["spans"] if found else []
        services_seen = {process["serviceName"] for process in found[0]["processes"].values()} if found else set()
        known = {span["spanID"] for span in spans}
        roots = [
            span
            for span in spans
            if not any(ref["spanID"] in known for ref in span["references"] if ref["refType"] == "CHILD_OF")
        ]
        names = [root["operationName"] for root in roots]
        if wanted <= services_seen and len(roots) == 1:
            print(f"{one.filename}: {len(spans)} spans of {', '.join(sorted(services_seen))} under “{names[0]}”")
            return
        if time.monotonic() > deadline:
            fail(f"trace {trace_id} has {len(spans)} spans of {services_seen} under {names}")
        time.sleep(1)


def ledger(http: httpx.Client) -> None:
    """Both sides of the ledger, and what was accepted here."""
    told, count = http.get("/v1/ledger").raise_for_status().json(), len({one.id for one in noted()})
    print(f"ledger: {told}; accepted here: {count}")
    if told["accepted"] != told["ready"] + told["failed"] + told["deleted"] + told["in_flight"]:
        fail("the ledger does not add up")
    if told["accepted"] != count:
        fail("the ledger counts other uploads than those that were accepted here")


def main() -> None:
    command, *arguments = sys.argv[1:]
    with httpx.Client(base_url=GATEWAY, timeout=20) as http, grpc.insecure_channel(GRPC) as channel:
        stub = services.DarkroomStub(channel)
        match command:
            case "upload":
                upload(int(arguments[0]), http, stub)
            case "storm":
                upload(None, http, stub)
            case "settle":
                settle(http, stub)
            case "search":
                search(http)
            case "trace":
                trace(http)
            case "ledger":
                ledger(http)
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    main()
